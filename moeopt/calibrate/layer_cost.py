"""``layer_time`` of an MoE on a GPU: measured where it was measured, else from bytes and peaks.

With h × i the size of an expert's three matrices::

    b = expert bytes / (achieved bandwidth)        us to read one expert
    β = 6·h·i / (achieved arithmetic)              us to compute one token-expert pair
    attention_base = bytes of everything else / (0.8 · bandwidth)
    attention_per_mib = 2**20 / (0.8 · bandwidth)  the KV cache is read once a step
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeopt.calibrate.hardware import KERNEL_US, STREAM_EFFICIENCY, TABLE, Gpu, gpu_named
from moeopt.calibrate.moes import Moe, moe_named
from moeopt.errors import InputError

FORMS = ("sum", "max", "p2")
SLOPES = (
    "our fit to ai-dynamo/aiconfigurator moe_perf tables (vLLM kernels, one GPU, balanced), "
    "commit 095f58a5: b at 4-32 tokens an expert, β at large batches"
)
#: Measured slopes (b in us an expert, β in us a token-expert pair) by GPU, MoE and precision.
#: Source: :data:`SLOPES`.
MEASURED: dict[tuple[str, str, str], tuple[float, float]] = {
    ("h200", "mixtral-8x7b", "bf16"): (84.7, 0.534),
    ("h200", "qwen3-30b-a3b", "bf16"): (2.56, 0.0182),
    ("h200", "qwen3-235b-a22b", "bf16"): (9.27, 0.0686),
    ("h100", "mixtral-8x7b", "bf16"): (123.0, 0.687),
    ("h100", "qwen3-30b-a3b", "bf16"): (3.57, 0.0217),
    ("h100", "qwen3-235b-a22b", "bf16"): (13.3, 0.0777),
    ("h200", "mixtral-8x7b", "fp8"): (49.9, 0.536),
    ("h200", "qwen3-30b-a3b", "fp8"): (1.61, 0.0217),
    ("h200", "qwen3-235b-a22b", "fp8"): (5.47, 0.0654),
    ("a100", "mixtral-8x7b", "bf16"): (325.0, 4.449),
    ("a100", "qwen3-30b-a3b", "bf16"): (7.17, 0.0968),
    ("a100", "qwen3-235b-a22b", "bf16"): (28.2, 0.451),
}
#: GPU whose achieved shares stand for GPUs that were not measured.
REFERENCE = "h100"


@dataclass(frozen=True)
class LayerCost:
    """Coefficients of a ``layer_time`` block, and where each of them comes from.

    Attributes
    ----------
    block : dict
        ``layer_time`` as an instance has it (microseconds).
    sources : dict
        One line for each coefficient.
    """

    block: dict[str, float | str]
    sources: dict[str, str]


def achieved_tb_s(gpu: str, moe: str, precision: str) -> float:
    """Bandwidth of a measured case, from b and the expert's bytes."""
    return moe_named(moe).expert_bytes(precision) / MEASURED[gpu, moe, precision][0] / 1e6


def achieved_tflops(gpu: str, moe: str, precision: str) -> float:
    """Arithmetic of a measured case, from β."""
    return 2 * moe_named(moe).expert_weights / MEASURED[gpu, moe, precision][1] / 1e6


def layer_time(gpu: str, moe: str, form: str = "max", precision: str | None = None) -> LayerCost:
    """Return the layer time of an MoE on a GPU.

    Parameters
    ----------
    gpu, moe : str
        Names in :data:`moeopt.calibrate.hardware.GPUS` and :data:`moeopt.calibrate.moes.MOES`.
    form : {"sum", "max", "p2"}
    precision : str, optional
        Of the expert weights; default the published one.

    Raises
    ------
    InputError
        An unknown name, form or precision.
    """
    card, llm = gpu_named(gpu), moe_named(moe)
    precision = llm.precision(precision)
    if form not in FORMS:
        raise InputError(f"form {form!r} is unknown (known: {', '.join(FORMS)})")
    card.tflops(precision)  # refuses fp8 where there is none
    expert_us, token_us, source = _slopes(card, llm, precision)
    stream_bytes_us = STREAM_EFFICIENCY * card.bandwidth_tb_s * 1e6
    block: dict[str, float | str] = {
        "form": form,
        "base_us": KERNEL_US,
        "expert_us": expert_us,
        "token_us": token_us,
        "attention_base_us": round(llm.streamed_bytes(precision) / stream_bytes_us, 3),
        "attention_us_per_mib": round(2**20 / stream_bytes_us, 6),
    }
    streamed = f"at {STREAM_EFFICIENCY:.0%} of {card.bandwidth_tb_s:g} TB/s ({TABLE})"
    sources = {
        "base_us": f"a kernel's constant ({TABLE})",
        "expert_us": source[0],
        "token_us": source[1],
        "attention_base_us": f"all other weights but the input embedding, {streamed}",
        "attention_us_per_mib": f"KV cache read once a step, {streamed}",
    }
    if form == "max":
        block["token_base_us"] = KERNEL_US
        sources["token_base_us"] = sources["base_us"]
    return LayerCost(block, sources)


def _slopes(gpu: Gpu, moe: Moe, precision: str) -> tuple[float, float, tuple[str, str]]:
    key = (gpu.name, moe.name, precision)
    if key in MEASURED:
        return (*MEASURED[key], (f"measured: {SLOPES}", f"measured: {SLOPES}"))
    # 4-bit kernels were not measured: their shares are those of bf16.
    cases = _cases(gpu.name, precision) or _cases(gpu.name, "bf16")
    where = gpu.name
    if not cases:
        where, cases = REFERENCE, _cases(REFERENCE, "bf16")
    like = gpu_named(where)
    read = float(np.mean([achieved_tb_s(*case) for case in cases])) / like.bandwidth_tb_s
    peak = like.tflops(cases[0][2])
    compute = float(np.mean([achieved_tflops(*case) for case in cases])) / peak
    bandwidth, tflops = read * gpu.bandwidth_tb_s, compute * gpu.tflops(precision)
    expert_us = moe.expert_bytes(precision) / bandwidth / 1e6
    token_us = 2 * moe.expert_weights / tflops / 1e6
    shares = f"as the mean of {len(cases)} measured {cases[0][2]} cases of the {where} ({SLOPES})"
    return (
        float(f"{expert_us:.4g}"),
        float(f"{token_us:.4g}"),
        (
            f"{moe.expert_bytes(precision) / 1e6:.1f} MB at {read:.0%} of "
            f"{gpu.bandwidth_tb_s:g} TB/s, {shares}",
            f"6·{moe.hidden}·{moe.intermediate} operations at {compute:.0%} of "
            f"{gpu.tflops(precision):g} TFLOP/s, {shares}",
        ),
    )


def _cases(gpu: str, precision: str) -> list[tuple[str, str, str]]:
    return [key for key in MEASURED if key[0] == gpu and key[2] == precision]
