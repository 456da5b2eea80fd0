"""What Megatron-LM's own report says of a layout, and what it leaves out.

Training prints `report_theoretical_memory` once, after its first logged steps (megatron/training/training.py:
training_log; theoretical_memory_usage.py of main, August 2026): the first stage's parameters times 18 bytes, or
6 + 12/d with the distributed optimizer, and Korthikanti et al.'s activations (arXiv:2205.05198, table 2). People hold
the two side by side, so the difference has to have reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import MLP, Attention, LatentAttention, Model, MoE
from planner.parameters import padded_vocab_size
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class MegatronEstimate:
    """Bytes of the first stage's ranks as Megatron-LM estimates them."""

    states_bytes: int
    """Weights, gradients and optimizer."""
    activation_bytes: int
    states_bytes_before: int
    """The same by releases before core 0.19, which divide experts over TP, never over EP."""
    differences: tuple[str, ...]
    """What it does not count of this layout, or counts otherwise."""

    @property
    def total_bytes(self) -> int:
        return self.states_bytes + self.activation_bytes


def megatron_estimate(
    model: Model, workload: Workload, implementation: Implementation, layout: Layout
) -> MegatronEstimate | None:
    """The estimate for this layout; None for models whose layers have no arguments of Megatron's: attention or MLPs of
    several widths, or layers recurring in no single pattern of dense and MoE ones."""
    attentions = {_without_window(kind.attention) for kind in model.layer_kinds}
    dense = {kind.mlp for kind in model.layer_kinds if isinstance(kind.mlp, MLP)}
    moes = {kind.mlp for kind in model.layer_kinds if isinstance(kind.mlp, MoE)}
    if len(attentions) > 1 or len(dense) > 1 or len(moes) > 1:
        return None
    mlp, moe = next(iter(dense), None), next(iter(moes), None)
    states, before = _states(model, implementation, layout, next(iter(attentions)), mlp, moe)
    ffn = mlp.ffn_hidden_size if mlp else moe.expert.ffn_hidden_size if moe else 4 * model.hidden_size
    activations = _activations(model, workload, implementation, layout, ffn)
    return MegatronEstimate(
        round(states), round(activations), round(before), tuple(_differences(model, workload, implementation, layout))
    )


Widths = tuple[int, int, int] | LatentAttention
"""(heads, groups, width of a head), or latent attention."""


def _without_window(attention: Attention | LatentAttention) -> Widths:
    """What of attention has parameters."""
    if isinstance(attention, Attention):
        return attention.num_heads, attention.num_query_groups, attention.head_dim
    return attention


def _with_sequence_parallelism(layout: Layout) -> bool:
    """Whether the first of its two formulas is taken."""
    return layout.sequence_parallel and layout.recompute.granularity == "selective"


def _attention(model: Model, attention: Widths) -> float:
    h = model.hidden_size
    norm = 2 if model.norm.type == "LayerNorm" else 1
    if isinstance(attention, LatentAttention):
        a, heads = attention, attention.num_heads
        query = a.q_lora_rank * (h + heads * a.qk_dim + norm) if a.q_lora_rank else h * heads * a.qk_dim
        latent = a.kv_lora_rank * (h + heads * (a.qk_head_dim + a.v_head_dim) + norm) + h * a.qk_pos_emb_head_dim
        return query + latent + heads * a.v_head_dim * h
    heads, groups, dim = attention
    return 2 * h * heads * dim * (1 + groups / heads)


def _states(
    model: Model, implementation: Implementation, layout: Layout, attention: Widths, mlp: MLP | None, moe: MoE | None
) -> tuple[float, float]:
    """The most loaded shard: a pp-th of the layers, every multi-token-prediction layer, one vocabulary matrix (both
    without a pipeline). Second, as releases before core 0.19 divide it."""
    h, kinds = model.hidden_size, [model.layer_kinds[k].kind for k in model.pattern]
    norm = 2 if model.norm.type == "LayerNorm" else 1

    def up_and_down(one: MLP) -> float:
        return (3 if one.gated else 2) * h * one.ffn_hidden_size

    per_layer = _attention(model, attention)
    tp = etp_ep = replicated = 0.0
    share = 1 / layout.pp
    for kind in kinds:
        tp += per_layer * share
        replicated += 2 * h * norm * share
        if kind == "dense" and mlp:
            tp += up_and_down(mlp) * share
        elif moe:
            tp += up_and_down(moe.shared) * share if moe.shared else 0.0
            etp_ep += moe.num_experts * up_and_down(moe.expert) * share
            replicated += moe.num_experts * (h + moe.router_bias) * share + (h * share if moe.shared_gate else 0)
    if model.mtp_num_layers:
        times = model.mtp_num_layers
        tp += times * (per_layer + (up_and_down(mlp) if kinds[-1] == "dense" and mlp else 0.0))
        replicated += times * 2 * h * norm
        if kinds[-1] == "moe" and moe:
            tp += times * (up_and_down(moe.shared) if moe.shared else 0.0)
            etp_ep += times * moe.num_experts * up_and_down(moe.expert)
            replicated += times * moe.num_experts * (h + moe.router_bias)
    replicated += norm * h / layout.pp
    vocabulary = h * padded_vocab_size(model.vocab_size, layout.tp, implementation.vocab_divisible_by)
    tp += vocabulary * (2 if not model.tied and layout.pp == 1 else 1)
    world = layout.world_size
    dense_ranks = world / (layout.tp * layout.pp * layout.cp)  # args.data_parallel_size leaves cp out
    expert_ranks = world / (layout.ep * layout.etp * layout.pp)

    def each(ranks: float) -> float:
        return 18 if layout.zero == 0 else 6 + 12 / ranks

    experts = etp_ep / (layout.ep * layout.etp) * each(expert_ranks)
    before = (tp + replicated + etp_ep) / layout.tp * each(dense_ranks)
    return (tp / layout.tp + replicated) * each(dense_ranks) + experts, before


def _activations(model: Model, workload: Workload, implementation: Implementation, layout: Layout, ffn: int) -> float:
    """The first stage's, p microbatches in flight; the number of query heads, CP and experts are not looked at."""
    h, sb, pp = model.hidden_size, workload.seq_length * layout.micro_batch, layout.pp
    m = layout.num_microbatches(workload.global_batch)
    first = _with_sequence_parallelism(layout)
    total = sb * h * (18 + 4 * ffn / h if first else 10 + 24 / layout.tp) * model.num_layers
    total += 8 * sb * pp + sb * h * pp
    if layout.vpp > 1:
        total *= 1 + (pp - 1) / (pp * layout.vpp)
    elif pp > 1:
        total *= min(1, m / pp)
    vocabulary = padded_vocab_size(model.vocab_size, layout.tp, implementation.vocab_divisible_by)
    if first:
        total += 4 * sb * (h + vocabulary) if pp == 1 else 0
        return total / layout.tp
    total += 2 * sb * (h + vocabulary / layout.tp) if pp == 1 else 0
    return total * 1.05


def _differences(model: Model, workload: Workload, impl: Implementation, layout: Layout) -> Iterator[str]:
    """Only what makes a difference here."""
    usual = workload.precision in ("bf16", "fp16") and workload.optimizer == "adamw" and impl.grad_reduce_bytes == 4
    if layout.zero >= 2 or not usual:
        yield "it takes 18 bytes a parameter, or 6 + 12/dp, whatever the optimizer, precision and sharding"
    if layout.zero and layout.cp > 1:
        yield f"it divides the optimizer over DP alone, not over DP x CP ({layout.dp} x {layout.cp})"
    if len({sum(chunk.num_layers for chunk in stage) for stage in layout.stages}) > 1:
        yield f"it gives every stage {model.num_layers / layout.pp:.4g} layers; the stages differ"
    if layout.cp > 1:
        yield f"it does not divide activations over CP ({layout.cp})"
    if layout.recompute.granularity == "full":
        yield "it does not know full recomputation"
    if not _with_sequence_parallelism(layout):
        yield (
            "without both sequence parallelism and selective recomputation it takes a GPT layer's 10 + 24/tp bytes, "
            "and adds 5 %"
        )
    if model.is_moe:
        yield "its activations are those of a dense layer: no routing, no copies of tokens"
    if any(isinstance(k.attention, Attention) and k.attention.num_query_groups < k.attention.num_heads
           for k in model.layer_kinds):  # fmt: skip
        yield "its activations have as many key and value heads as queries"
    if layout.pp > 1:
        yield "it looks at the first stage only: no logits, no loss"
    yield "it has no buffers of communication, no gradients of a layer in flight, no workspaces, no reserve"
