"""What some releases of Megatron-LM refuse and others take: a note in the report, never a broken rule.

Sources: megatron/training/arguments.py: validate_args and core/transformer/transformer_config.py:
TransformerConfig.__post_init__ of core_r0.12 to core_r0.19, and of the newest snapshot; multi_token_prediction.py:
MultiTokenPredictionLayer._checkpointed_forward; core/distributed/param_and_grad_buffer.py: shared_buffer;
megatron/training/determinism.py: apply_determinism_to_args.
"""

from __future__ import annotations

from planner.interop.megatron.parse import Arguments
from planner.layout import Layout
from planner.model import Model

_INSIDE_EXPERTS = {"expert_fc1", "moe_act"}


def release_notes(args: Arguments, model: Model, layout: Layout) -> list[str]:
    """One note for each argument that decides on which releases a launch runs."""
    return _of_the_model(args, model, layout) + _of_the_computation(args, layout)


def _of_the_model(args: Arguments, model: Model, layout: Layout) -> list[str]:
    recompute = layout.recompute
    notes = []
    if args.flag("multi-latent-attention") and args.flag("group-query-attention"):
        notes.append("--group-query-attention: has no effect with latent attention, and is refused from core_r0.16 on")
    if model.mtp_num_layers and model.position == "learned":
        notes.append("--mtp-num-layers: with learned positions it is refused before core_r0.17")
    uniform = recompute.granularity == "full" and recompute.method == "uniform"
    if model.mtp_num_layers and uniform and recompute.num_layers not in (None, 1):
        notes.append(
            f"--recompute-num-layers {recompute.num_layers}: with --mtp-num-layers, uniform recompute of other than 1 "
            "layer is refused from core_r0.14 on"
        )
    return notes


def _of_the_computation(args: Arguments, layout: Layout) -> list[str]:
    deterministic = args.flag("deterministic-mode")
    inside = sorted(_INSIDE_EXPERTS & {*args.get("offload-modules", ())})
    notes = []
    if deterministic and args.flag("use-flash-attn"):
        notes.append("--use-flash-attn: with --deterministic-mode it is refused before core_r0.19")
    if deterministic and args.flag("tp-comm-overlap"):
        notes.append("--tp-comm-overlap: with --deterministic-mode it is refused from core_r0.19 on")
    if args.flag("cross-entropy-loss-fusion") and args.get("cross-entropy-fusion-impl") == "te":
        notes.append(
            "--cross-entropy-fusion-impl te: with --cross-entropy-loss-fusion it is refused from core_r0.19 on"
        )
    small_weights = args.flag("fp8-param-gather") and args.get("fp8-recipe", "delayed") != "delayed"
    if args.flag("optimizer-cpu-offload") and small_weights:
        notes.append(
            "--optimizer-cpu-offload: with --fp8-param-gather and other than delayed scaling it is refused from "
            "core_r0.14 on"
        )
    if small_weights and args.get("fp8-recipe") == "mxfp8" and not args.flag("reuse-grad-buf-for-mxfp8-param-ag"):
        notes.append(
            "--fp8-param-gather: with mxfp8 it fails at the start without --reuse-grad-buf-for-mxfp8-param-ag, "
            "because Transformer Engine does not map such weights into another buffer"
        )
    if args.flag("fine-grained-activation-offloading") and inside and "moe" in layout.recompute.modules:
        notes.append(f"--offload-modules {' '.join(inside)}: with moe recomputed it is refused from core_r0.19 on")
    return notes
