"""GPUs: memory, bandwidth and arithmetic.

Source of the table: ai-dynamo/aiconfigurator, ``systems/*.yaml`` (Apache-2.0, commit 095f58a5); the
memory of an H100 as its driver reports it.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeopt.errors import InputError

TABLE = "ai-dynamo/aiconfigurator systems/*.yaml, commit 095f58a5"
#: Taken from every GPU: 3.5 GB of safety and 392 MB for NCCL (decimal), rounded up. Source: TABLE.
RESERVED_MIB = 3712.0
#: Share of the peak bandwidth reached by reading weights and caches in order. Source: TABLE.
STREAM_EFFICIENCY = 0.8
#: A kernel's constant. Source: TABLE.
KERNEL_US = 3.0


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes
    ----------
    memory_mib : float
    bandwidth_tb_s : float
        Peak, 10^12 bytes a second.
    bf16_tflops, fp8_tflops : float, float or None
        Dense peak; None where fp8 is not supported.
    intra_node_gb_s, inter_node_gb_s : float
        10^9 bytes a second, one direction.
    """

    name: str
    memory_mib: float
    bandwidth_tb_s: float
    bf16_tflops: float
    fp8_tflops: float | None
    intra_node_gb_s: float
    inter_node_gb_s: float

    def tflops(self, precision: str) -> float:
        """Peak arithmetic; 4-bit weights are computed in bf16.

        Raises
        ------
        InputError
            The GPU does not compute in fp8.
        """
        if precision != "fp8":
            return self.bf16_tflops
        if self.fp8_tflops is None:
            raise InputError(f"{self.name} does not compute in fp8")
        return self.fp8_tflops


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 81_920, 2.039, 312, None, 300, 25),
        Gpu("h100", 81_559, 3.35, 989, 1978, 450, 50),
        Gpu("h200", 144_384, 4.80, 989, 1978, 450, 50),
        Gpu("b200", 184_320, 7.70, 2250, 4500, 900, 100),
        Gpu("gb200", 189_471, 8.0, 2500, 5000, 900, 100),
        Gpu("l40s", 46_068, 0.864, 362, 733, 32, 50),
    )
}


def gpu_named(name: str) -> Gpu:
    """Return a GPU of the table.

    Raises
    ------
    InputError
        No such GPU.
    """
    if name not in GPUS:
        raise InputError(f"GPU {name!r} is unknown (known: {', '.join(GPUS)})")
    return GPUS[name]
