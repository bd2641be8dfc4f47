"""The parts of an instance, as they are read: an MoE, a cluster, routing, requests, options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from moeopt.arrays import Array, ArrayField, Rows, one_a_row
from moeopt.instance_limits import (
    MOST_COUNT,
    MOST_INDEX,
    MOST_LOAD,
    MOST_MIB,
    MOST_NUMBER,
    MOST_REQUESTS,
    MOST_WAVES,
)

Integer = Annotated[int, Strict()]
Index = Annotated[int, Strict(), Field(ge=1, le=MOST_INDEX)]
Count = Annotated[int, Strict(), Field(ge=1, le=MOST_COUNT)]
CountOrZero = Annotated[int, Strict(), Field(ge=0, le=MOST_COUNT)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0, le=MOST_NUMBER)]
Size = Annotated[Number, Field(ge=0, le=MOST_NUMBER)]
PositiveMib = Annotated[Number, Field(gt=0, le=MOST_MIB)]
SizeMib = Annotated[Number, Field(ge=0, le=MOST_MIB)]
Text = Annotated[str, Strict()]
Name = Annotated[Text, Field(min_length=1)]
List = Annotated[Array, ArrayField("numbers", "list", most=MOST_NUMBER)]
#: One number may stand without its brackets.
ListOrNumber = Annotated[Array, ArrayField("numbers", "list", most=MOST_NUMBER, single=True)]
Loads = Annotated[Array, ArrayField("numbers", "list", most=MOST_LOAD)]
Table = Annotated[Array, ArrayField("numbers", "table", most=MOST_NUMBER)]
LoadTable = Annotated[Array, ArrayField("numbers", "table", most=MOST_LOAD)]
IntegerRows = Annotated[Rows, ArrayField("integers", "rows", most=MOST_COUNT)]
#: One number a row may stand without its brackets.
BareRows = Annotated[
    Rows,
    ArrayField("integers", "rows", most=MOST_COUNT, single=True),
    BeforeValidator(one_a_row),
]


class Part(BaseModel):
    """Base of all parts of an instance: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Source(Part):
    """Where the instance comes from."""

    title: Text | None = None
    url: Text | None = None
    licence: Text | None = None
    notes: Text | None = None


class Moe(Part):
    """The LLM: ``layers`` MoE layers of ``experts`` experts, ``top_k`` of them for each token."""

    name: Name
    layers: Index
    experts: Index
    top_k: Index
    expert_mib: PositiveMib
    dense_mib: Annotated[
        SizeMib | None, Field(description="Non-expert weights on each GPU; needed with memory_mib.")
    ] = None
    kv_kib_per_token: Annotated[
        Size | None, Field(description="KV cache of one token, all layers; needed by joint.")
    ] = None
    hidden_size: Count | None = None
    expert_groups: Index = 1
    layers_total: Annotated[
        Count | None, Field(description="Hidden layers of the whole LLM, dense ones included.")
    ] = None


class Node(Part):
    """Equal GPUs of one server; memory is per GPU."""

    gpus: Index
    memory_mib: PositiveMib | None = None
    reserved_mib: SizeMib = 0.0
    kv_mib: Annotated[
        SizeMib | None,
        Field(
            description="Of each GPU, kept for the KV cache by problems that do not decide about "
            "it; joint does, and needs none."
        ),
    ] = None


class Cluster(Part):
    """GPUs, numbered node by node; ``hops`` is [nodes][nodes].

    Memory may be absent where slots are given, and vice versa.
    """

    nodes: Annotated[tuple[Node, ...], Field(min_length=1)]
    slots_per_gpu: Annotated[
        Count | None, Field(description="Experts of one layer that a GPU may host.")
    ] = None
    hops: Table | None = None
    intra_node_gb_s: Positive | None = None
    inter_node_gb_s: Positive | None = None

    @property
    def gpus(self) -> int:
        """Number of GPUs in all."""
        return sum(node.gpus for node in self.nodes)


class LayerTimeSpec(Part):
    """Time of a layer on one GPU: form and coefficients (see ``moeopt.problem.LayerTime``)."""

    form: Literal["unit", "sum", "max", "p2"]
    base_us: Size = 0.0
    expert_us: Size = 0.0
    token_base_us: Size = 0.0
    token_us: Size = 0.0
    attention_base_us: Size = 0.0
    attention_us_per_mib: Size = 0.0


class ScenarioList(Part):
    """Observed activations of one layer. ``tokens`` null means one token for each expert.

    ``covered_weight`` is the share of the observed total that the listed weights are.
    """

    experts: IntegerRows
    weight: Loads
    tokens: IntegerRows | None = None
    covered_weight: Annotated[Number, Field(gt=0, le=1)] = 1.0


class LayerRouting(Part):
    """Routing of one MoE layer. ``next``: rows of expert, expert of the next layer, tokens."""

    layer: CountOrZero
    scenarios: ScenarioList | None = None
    load: Loads | None = None
    next: Annotated[Array, ArrayField("numbers", "table", most=MOST_LOAD, columns=3)] | None = None


class RequestClass(Part):
    """``count`` equal requests. ``usage``: expected activations a step, [layers][experts]."""

    name: Name
    count: Annotated[int, Strict(), Field(ge=1, le=MOST_REQUESTS)]
    prompt_tokens: CountOrZero
    output_tokens: Count
    usage: Table | None = None


class JointOptions(Part):
    """Options of ``joint``: largest number of waves, or the decode steps or requests of each wave.

    ``charged``: the replicas that a wave's time counts, null for ``activated``.
    ``uniform_slots``: equally many experts on every GPU in every layer, null for false.
    ``share`` (by class name) and ``tpot_limit_us`` belong to the steady state objective.
    """

    waves: Annotated[int, Strict(), Field(ge=1, le=MOST_WAVES)] | None = None
    wave_steps: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    wave_requests: Annotated[
        tuple[dict[Name, CountOrZero], ...] | None,
        Field(min_length=1, description="Requests of each class in each wave; absent: none."),
    ] = None
    charged: Literal["activated", "resident"] | None = None
    uniform_slots: Annotated[bool, Strict()] | None = None
    share: dict[Name, Size] | None = None
    tpot_limit_us: Positive | None = None


class TopologyOptions(Part):
    """Options of ``topology``. Servers are the cluster's nodes, hops those of ``cluster.hops``.

    ``dispatch_node``, ``collect_node``: where the tokens of each layer start and end, one node a
    layer or several streams, [layers][streams]; null: collected where the next layer starts, after
    the last layer where the first does. ``share``: of the tokens that each stream has, null for
    equal ones. ``capacity``: experts of all layers that a node may hold, ``capacity_per_layer``: of
    one layer; null for what memory and slots hold. ``weighted``: by the load of each expert, else
    all experts alike. ``replicas``: copies beyond one of each expert, over all layers.
    """

    dispatch_node: BareRows
    collect_node: BareRows | None = None
    share: List | None = None
    capacity: Count | None = None
    capacity_per_layer: Count | None = None
    weighted: Annotated[bool, Strict()] = True
    replicas: CountOrZero | None = None


class AffinityOptions(Part):
    """Options of ``affinity``: tokens that change GPU between layers (``inter``, from ``next``), or
    further GPUs that a token touches inside a layer (``intra``, from ``scenarios``).

    ``near``: weight of another GPU of the node; ``far``: of another node, not below ``near``;
    ``max_load``: largest load of a GPU over the mean of the layer, null for any.
    """

    kind: Literal["inter", "intra"]
    near: Size = 1.0
    far: Size = 1.0
    max_load: Annotated[Number, Field(ge=1, le=MOST_NUMBER)] | None = None


class BalanceOptions(Part):
    """Options of ``balance``; without ``windows`` the load of the routing is the only one.

    ``previous``: GPUs of each expert in the plan in use, [layers][experts]; ``max_moves``: copies
    that may be brought to GPUs that did not hold them, over all layers.
    ``groups_on_nodes``: each of ``moe.expert_groups`` stays on one node, equally many on each.
    """

    rule: Literal["even", "optimal"] = "even"
    windows: Annotated[
        tuple[LoadTable, ...] | None,
        Field(min_length=1, description="Tokens of each expert in each window of time."),
    ] = None
    previous: tuple[IntegerRows, ...] | None = None
    max_moves: CountOrZero | None = None
    groups_on_nodes: Annotated[bool, Strict()] | None = None


class PagingOptions(Part):
    """Options of ``paging``: what is asked for (``requests`` or ``trace``), and the cache.

    ``requests``: experts of each request, in turn of layer 0, 1, …; ``trace``: a shipped trace, its
    first ``sequences``, ``batch`` of them decoded at once. ``cache``: experts that it holds, null
    for what memory holds. ``load_us``: time to load one expert, one number or one a layer;
    ``load_gb_s``: bandwidth that loads it; neither: misses are counted.
    """

    requests: IntegerRows | None = None
    trace: Name | None = None
    sequences: Count | None = None
    batch: Count | None = None
    cache: Count | None = None
    load_us: ListOrNumber | None = None
    load_gb_s: Positive | None = None


class ActivationOptions(Part):
    """Options of ``activation``. A token's experts are ranked by gate weight, heaviest first.

    ``gate_mass``: mean gate mass of each rank, [layers][top_k], any scale; ``budget``: what may be
    dropped of it, summed over layers (1 is all of one layer's). ``scenarios``: [layers][top_k];
    those of the same steps when tokens keep 1, 2, … experts. ``batch``: tokens of a step, for
    throughputs. ``hosts``: the GPU of each expert where the plan is fixed, [layers][experts].
    """

    gate_mass: LoadTable
    budget: Size
    scenarios: Annotated[tuple[tuple[ScenarioList, ...], ...], Field(min_length=1)]
    batch: Count | None = None
    hosts: tuple[BareRows, ...] | None = None
