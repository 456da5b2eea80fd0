"""Models and shapes small enough to check with a pencil, shared by the tests of the memory accounting."""

from __future__ import annotations

from planner.cluster import Cluster
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.activations.layer import layer_tape
from planner.memory.activations.shape import Shape
from planner.memory.exact import ExactAccounting
from planner.memory.report import MemoryReport
from planner.memory.tape import saved_by_tensor
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm
from planner.stages import balanced_split, even_split
from planner.workload import Workload

LOCAL = Implementation(
    layer_implementation="local", attention="flash", rope_fusion=False, moe_router_fp32=False, vocab_divisible_by=1
)
"""Megatron's own layers, flash attention, unfused rotary embedding, no vocabulary padding."""
TE = Implementation(vocab_divisible_by=1)

LLAMA = Layer(Attention(num_heads=4, num_query_groups=2, head_dim=2), MLP(8))
"""q is 8 wide, keys and values 4 each, SwiGLU of 8."""
GPT = Layer(Attention(4, 4, 1, qkv_bias=True, output_bias=True), MLP(16, gated=False, bias=True))
MIXTURE = Layer(Attention(4, 2, 2), MoE(num_experts=4, top_k=2, expert=MLP(8)))
LATENT = Layer(LatentAttention(2, 4, 2, 2, 2, 4), MLP(8))

LAYER_NORM = Norm("LayerNorm", bias=True)


def shape(**changes: object) -> Shape:
    """8 tokens of width 4: a residual stream of 64 bytes."""
    values: dict = {"seq": 8, "batch": 1, "hidden": 4, "tp": 1, "sequence_parallel": False}
    return Shape(**(values | changes))


def saved(
    layer: Layer,
    at: Shape,
    impl: Implementation = LOCAL,
    norm: Norm | None = None,
    rotary_dim: int = 0,
    modules: frozenset[str] = frozenset(),
) -> dict[str, int]:
    """Bytes of every tensor that a layer keeps."""
    return saved_by_tensor(layer_tape(at, impl, layer, norm or Norm(), rotary_dim, modules))


def model(layer: Layer = LLAMA, layers: int = 2, vocab: int = 8, **changes: object) -> Model:
    """A model of equal layers, width 4, rotary positions unless said otherwise."""
    values: dict = {
        "name": "tiny",
        "hidden_size": 4,
        "vocab_size": vocab,
        "layer_kinds": (layer,),
        "pattern": (0,) * layers,
        "max_positions": 8,
    }
    return Model(**(values | changes))


def cluster(gpus: int = 8) -> Cluster:
    return parse_gpus(f"{gpus}xA100-80G")


def accounting(
    m: Model, impl: Implementation = LOCAL, batch: int = 8, seq: int = 8, reserve: int = 0, **workload: object
) -> ExactAccounting:
    """The exact accounting of a tiny run."""
    return ExactAccounting(m, Workload(seq, batch, **workload), impl, cluster(), reserve)  # type: ignore[arg-type]


def laid_out(m: Model, **degrees: object) -> Layout:
    """A layout with its stage split: even where it divides, else balanced."""
    pp, vpp = int(degrees.get("pp", 1)), int(degrees.get("vpp", 1))  # type: ignore[call-overload]
    split = even_split if m.num_layers % (pp * vpp) == 0 else balanced_split
    return Layout(stages=split(m, pp, vpp), **degrees)  # type: ignore[arg-type]


def report(m: Model, impl: Implementation = LOCAL, batch: int = 8, seq: int = 8, **degrees: object) -> MemoryReport:
    """The memory of a tiny run without reserve."""
    return accounting(m, impl, batch, seq).report(laid_out(m, **degrees))
