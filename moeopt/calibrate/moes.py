"""MoEs: sizes of experts, of everything else and of the KV cache, from their configurations.

Sources: the models' published ``config.json`` (Hugging Face); a test adds the parts up to the
published number of parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from moeopt.errors import InputError

#: Bytes a weight; MXFP4: 4 bits and one byte for 32 weights.
BYTES = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 17 / 32}


@dataclass(frozen=True)
class GroupedAttention:
    """Attention with ``kv_heads`` of keys and values; ``extra``: biases and norms of a layer."""

    heads: int
    kv_heads: int
    head_size: int
    extra: int = 0

    def parameters(self, hidden: int) -> int:
        """Of one layer."""
        return 2 * hidden * self.head_size * (self.heads + self.kv_heads) + self.extra

    @property
    def kv_values(self) -> int:
        """Numbers cached by one token in one layer."""
        return 2 * self.kv_heads * self.head_size


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek): compressed keys and values are cached."""

    heads: int
    query_rank: int | None
    kv_rank: int
    nope_size: int
    rope_size: int
    value_size: int

    def parameters(self, hidden: int) -> int:
        """Of one layer."""
        wide = self.heads * (self.nope_size + self.rope_size)
        rank = self.query_rank
        query = hidden * wide if rank is None else hidden * rank + rank + rank * wide
        compress = hidden * (self.kv_rank + self.rope_size) + self.kv_rank
        expand = self.kv_rank * self.heads * (self.nope_size + self.value_size)
        return query + compress + expand + self.heads * self.value_size * hidden

    @property
    def kv_values(self) -> int:
        """Numbers cached by one token in one layer."""
        return self.kv_rank + self.rope_size


@dataclass(frozen=True)
class Moe:
    """One MoE.

    Attributes
    ----------
    layers, dense_layers : int
        Hidden layers, and how many of them (the first) have no experts.
    hidden, intermediate : int
        An expert has three matrices of ``hidden × intermediate``.
    shared_intermediate, dense_intermediate : int
        Widths of a layer's shared experts together, and of a dense layer.
    expert_extra, layer_extra, moe_extra : int
        Further parameters of an expert (biases), of a layer, and of a layer with experts (router
        biases, gates).
    precisions : tuple of str
        Of the expert weights; the first is the published one. Everything else is bf16 (fp8 where
        the experts are).
    published_parameters : int
        As published, the parts must add up to it.
    """

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    attention: GroupedAttention | LatentAttention
    vocabulary: int
    published_parameters: int
    dense_layers: int = 0
    shared_intermediate: int = 0
    dense_intermediate: int = 0
    expert_extra: int = 0
    layer_extra: int = 0
    moe_extra: int = 0
    norms: int = 2
    precisions: tuple[str, ...] = ("bf16", "fp8")

    @property
    def moe_layers(self) -> int:
        """Layers with experts."""
        return self.layers - self.dense_layers

    @property
    def expert_weights(self) -> int:
        """Weights of one expert, biases not counted."""
        return 3 * self.hidden * self.intermediate

    @property
    def dense_parameters(self) -> int:
        """Everything but the routed experts."""
        per_layer = self.attention.parameters(self.hidden) + self.norms * self.hidden
        per_moe = 3 * self.hidden * self.shared_intermediate + self.experts * self.hidden
        return (
            self.layers * (per_layer + self.layer_extra)
            + self.moe_layers * (per_moe + self.moe_extra)
            + self.dense_layers * 3 * self.hidden * self.dense_intermediate
            + self.hidden
            + 2 * self.embedding_parameters
        )

    @property
    def embedding_parameters(self) -> int:
        """Of the input embedding, which is looked up and not streamed."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        routed = self.moe_layers * self.experts * (self.expert_weights + self.expert_extra)
        return routed + self.dense_parameters

    def precision(self, name: str | None) -> str:
        """Return the precision of the expert weights; None: the published one.

        Raises
        ------
        InputError
            Not one of this MoE's.
        """
        if name is None:
            return self.precisions[0]
        if name not in self.precisions:
            known = ", ".join(self.precisions)
            raise InputError(f"{self.name}: no expert weights in {name!r} (known: {known})")
        return name

    def expert_bytes(self, precision: str) -> float:
        """Bytes of one expert; biases are bf16."""
        return self.expert_weights * BYTES[precision] + 2.0 * self.expert_extra

    def dense_bytes(self, precision: str) -> float:
        """Bytes of everything else."""
        return self.dense_parameters * (1.0 if precision == "fp8" else 2.0)

    def streamed_bytes(self, precision: str) -> float:
        """Bytes of everything else that a decode step reads."""
        streamed = self.dense_parameters - self.embedding_parameters
        return streamed * (1.0 if precision == "fp8" else 2.0)

    @property
    def kv_kib_per_token(self) -> float:
        """KV cache of a token, bf16, all layers."""
        return self.layers * self.attention.kv_values * 2 / 1024


MOES: dict[str, Moe] = {
    moe.name: moe
    for moe in (
        Moe(
            "mixtral-8x7b", 32, 8, 2, 4096, 14_336, GroupedAttention(32, 8, 128), 32_000,
            46_702_792_704,
        ),
        Moe(
            "mixtral-8x22b", 56, 8, 2, 6144, 16_384, GroupedAttention(48, 8, 128), 32_000,
            140_620_634_112,
        ),
        Moe(
            "dbrx", 40, 16, 4, 6144, 10_752, GroupedAttention(48, 8, 128), 100_352,
            131_596_523_520,
        ),
        Moe(
            "deepseek-moe-16b", 28, 64, 6, 2048, 1408, GroupedAttention(16, 16, 128), 102_400,
            16_375_728_128, dense_layers=1, shared_intermediate=2816, dense_intermediate=10_944,
        ),
        Moe(
            "deepseek-v2-lite", 27, 64, 6, 2048, 1408,
            LatentAttention(16, None, 512, 128, 64, 128), 102_400,
            15_706_484_224, dense_layers=1, shared_intermediate=2816, dense_intermediate=10_944,
        ),
        Moe(
            "deepseek-v3", 61, 256, 8, 7168, 2048,
            LatentAttention(128, 1536, 512, 128, 64, 128), 129_280,
            671_026_419_200, dense_layers=3, shared_intermediate=2048, dense_intermediate=18_432,
            moe_extra=256, precisions=("fp8", "bf16"),
        ),
        Moe(
            "qwen3-30b-a3b", 48, 128, 8, 2048, 768, GroupedAttention(32, 4, 128, 256), 151_936,
            30_532_122_624,
        ),
        Moe(
            "qwen3-235b-a22b", 94, 128, 8, 4096, 1536, GroupedAttention(64, 4, 128, 256), 151_936,
            235_093_634_560,
        ),
        Moe(
            "olmoe-1b-7b", 16, 64, 8, 2048, 1024, GroupedAttention(16, 16, 128, 4096), 50_304,
            6_919_161_856,
        ),
        Moe(
            "qwen1.5-moe-a2.7b", 24, 60, 4, 2048, 1408, GroupedAttention(16, 16, 128, 6144),
            151_936, 14_315_784_192, shared_intermediate=5632, moe_extra=2048,
        ),
        # Biases: query, key and value; output; sinks of the 64 heads; router.
        Moe(
            "gpt-oss-20b", 24, 32, 4, 2880, 2880, GroupedAttention(64, 8, 64, 5120 + 2880 + 64),
            201_088, 20_914_757_184, expert_extra=3 * 2880, moe_extra=32,
            precisions=("mxfp4", "bf16"),
        ),
        Moe(
            "gpt-oss-120b", 36, 128, 4, 2880, 2880, GroupedAttention(64, 8, 64, 5120 + 2880 + 64),
            201_088, 116_829_156_672, expert_extra=3 * 2880, moe_extra=128,
            precisions=("mxfp4", "bf16"),
        ),
    )
}  # fmt: skip


def moe_named(name: str) -> Moe:
    """Return an MoE of the table.

    Raises
    ------
    InputError
        No such MoE.
    """
    if name not in MOES:
        raise InputError(f"MoE {name!r} is unknown (known: {', '.join(MOES)})")
    return MOES[name]
