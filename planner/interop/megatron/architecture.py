"""Megatron arguments to the Model they build.

Sources: megatron/training/arguments.py: validate_args (derived defaults); megatron/training/argument_utils.py:
core_transformer_config_from_args; megatron/core/models/gpt/gpt_layer_specs.py: get_gpt_decoder_block_spec (which
layers are MoE); megatron/core/transformer/utils.py: is_layer_window_attention.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from planner.errors import InputError, NotModelled
from planner.interop.megatron.parse import Arguments, readable
from planner.interop.megatron.patterns import MAX_LAYERS, frequency
from planner.interop.megatron.problem import Problem
from planner.interop.megatron.vocabulary import vocabulary
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm, Position

MAX_MTP_LAYERS = 100

_GLU_ACTIVATIONS = ("geglu", "liglu", "reglu", "swiglu")
"""BigScience's Megatron-DeepSpeed, megatron/model/glu_activations.py: each halves what its projection gives."""

_POSITIONS: dict[str, Position] = {
    "learned_absolute": "learned",
    "rope": "rope",
    "yarn": "rope",
    "alibi": "alibi",  # Megatron-DeepSpeed
    "rotary": "rope",  # BigScience's Megatron-DeepSpeed, as the next
    "absolute": "learned",
    "none": "none",
}


def positive(args: Arguments, name: str, source: str, default: int | None = None) -> int:
    """A whole number of at least 1, which must be given where there is no default."""
    value = args.get(name, default)
    if value is None:
        raise InputError(f"{source}: --{name} must be given, but is absent.")
    if value < 1:
        raise InputError(f"{source}: --{name} must be at least 1, but was given {value}.")
    return value


def build_model(
    args: Arguments, source: str, name: str, problems: list[Problem], vocab_size: int | None = None
) -> Model:
    """The model of a launch; `vocab_size` is used where the arguments do not tell the vocabulary. Raises InputError
    where the arguments do not determine a model."""
    hidden = positive(args, "hidden-size", source)
    layers = positive(args, "num-layers", source, args.get("encoder-num-layers"))
    if layers > MAX_LAYERS:
        raise InputError(f"{source}: --num-layers must be at most {MAX_LAYERS}, but was given {layers}.")
    seq_length = positive(args, "seq-length", source, args.get("encoder-seq-length"))
    positions = positive(args, "max-position-embeddings", source, seq_length)
    norm = _norm(args, source)
    kinds: list[Layer] = []
    pattern: list[int] = []
    attention = _attention(args, source, hidden, problems)
    dense, moe = _mlps(args, source, hidden)
    windows = _windows(args, source, layers)
    for is_moe, window in zip(_moe_pattern(args, source, layers), windows, strict=True):
        held = attention
        if window is not None and isinstance(held, Attention):
            held = Attention(**{f: getattr(held, f) for f in Attention.__slots__} | {"window": window})
        layer = Layer(held, moe if is_moe and moe else dense)
        if layer not in kinds:
            kinds.append(layer)
        pattern.append(kinds.index(layer))
    position = _position(args, source)
    return Model(
        name=name,
        hidden_size=hidden,
        vocab_size=vocabulary(args, source, vocab_size),
        layer_kinds=tuple(kinds),
        pattern=tuple(pattern),
        norm=norm,
        max_positions=positions,
        position=position,
        learned_positions=positions if position == "learned" else 0,
        rotary_percent=_rotary_percent(args, source),
        tied=not args.flag("untie-embeddings-and-output-weights"),
        embedding_norm=args.flag("embed-layernorm"),
        mtp_num_layers=_mtp_layers(args, source),
        dropout=dropout(args, "hidden-dropout", source),
        source=source,
    )


def _rotary_percent(args: Arguments, source: str) -> float:
    value = args.get("rotary-percent", 1.0)
    if not 0 < value <= 1:
        raise InputError(f"{source}: --rotary-percent must be above 0 and at most 1, but was given {value}.")
    return value


def _mtp_layers(args: Arguments, source: str) -> int:
    value = args.get("mtp-num-layers", 0)
    if not 0 <= value <= MAX_MTP_LAYERS:
        raise InputError(f"{source}: --mtp-num-layers must be from 0 to {MAX_MTP_LAYERS}, but was given {value}.")
    return value


def dropout(args: Arguments, name: str, source: str) -> float:
    """A dropout probability; Megatron's default is 0.1."""
    value = args.get(name, 0.1)
    if not 0 <= value < 1:
        raise InputError(f"{source}: --{name} must be at least 0 and below 1, but was given {value}.")
    return value


def _norm(args: Arguments, source: str) -> Norm:
    given = args.get("normalization", "LayerNorm")
    if args.under_deepspeed:  # whose choices are lower case
        given = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}.get(given, given)
    if given not in ("LayerNorm", "RMSNorm"):
        raise InputError(f"{source}: --normalization must be LayerNorm or RMSNorm, but was given '{readable(given)}'.")
    kind: Literal["LayerNorm", "RMSNorm"] = "RMSNorm" if given == "RMSNorm" else "LayerNorm"
    return Norm(kind, bias=kind == "LayerNorm")


def _attention(args: Arguments, source: str, hidden: int, problems: list[Problem]) -> Attention | LatentAttention:
    heads = positive(args, "num-attention-heads", source)
    norms = args.flag("qk-layernorm")
    if args.flag("multi-latent-attention"):
        rank = args.get("q-lora-rank")
        if not args.flag("disable-bias-linear"):
            args.not_accounted.append("--multi-latent-attention: the bias of its output projection is not counted")
        return LatentAttention(
            num_heads=heads,
            kv_lora_rank=positive(args, "kv-lora-rank", source, 32),
            qk_head_dim=positive(args, "qk-head-dim", source, 128),
            qk_pos_emb_head_dim=positive(args, "qk-pos-emb-head-dim", source, 64),
            v_head_dim=positive(args, "v-head-dim", source, 128),
            q_lora_rank=rank if rank is not None and rank > 0 else None,
            latent_norms=norms,
        )
    if "kv-channels" not in args and hidden % heads:
        problems.append(
            Problem(
                "hidden-divides-by-heads",
                f"hidden-size ({hidden}) must be divisible by num-attention-heads ({heads}), "
                "unless kv-channels is given",
                "megatron/training/arguments.py: validate_args",
                f"hidden-size {hidden}, num-attention-heads {heads}",
            )
        )
    groups = heads
    if args.flag("group-query-attention"):
        groups = positive(args, "num-query-groups", source, 1)
    elif "num-key-value-heads" in args:
        groups = positive(args, "num-key-value-heads", source)
    elif args.get("num-query-groups", heads) != heads:
        args.not_accounted.append("--num-query-groups: has no effect without --group-query-attention")
    bias = not args.flag("disable-bias-linear")
    softmax = args.get("softmax-type", "vanilla")
    return Attention(
        num_heads=heads,
        num_query_groups=groups,
        head_dim=positive(args, "kv-channels", source, max(1, hidden // heads)),
        qkv_bias=bias or args.flag("add-qkv-bias"),
        output_bias=bias,
        qk_norm="head" if norms else "none",
        sinks=softmax == "learnable",
    )


def _mlps(args: Arguments, source: str, hidden: int) -> tuple[MLP, MoE | None]:
    """The dense MLP, and the mixture of experts where there are experts."""
    swiglu = args.flag("swiglu")
    gated = swiglu or args.flag("quick-geglu") or _glu(args, source)
    bias = not args.flag("disable-bias-linear")
    default = int((4 * hidden * 2 / 3) / 64) * 64 if swiglu else 4 * hidden
    ffn = positive(args, "ffn-hidden-size", source, max(1, default))
    apart = not swiglu or args.flag("no-bias-swiglu-fusion")  # a fused SwiGLU clamps within its kernel
    dense = MLP(
        ffn,
        gated,
        bias,
        quick_gelu=args.flag("quick-geglu") and not swiglu,
        clamp=args.get("activation-func-clamp-value") if gated and apart else None,
        linear_offset=args.get("glu-linear-offset", 0.0) if gated else 0.0,
    )
    experts = _experts(args)
    if not experts:
        return dense, None
    shared = args.get("moe-shared-expert-intermediate-size")
    has_shared = shared is not None and shared > 0
    top_k = args.get("moe-router-topk", args.get("topk", 2))
    if not 1 <= top_k <= experts:
        raise InputError(f"{source}: --moe-router-topk ({top_k}) must be between 1 and --num-experts ({experts}).")
    return dense, MoE(
        num_experts=positive(args, "num-experts", source),
        top_k=top_k,
        expert=replace(dense, ffn_hidden_size=positive(args, "moe-ffn-hidden-size", source, ffn)),
        shared=replace(dense, ffn_hidden_size=shared) if has_shared else None,
        shared_gate=has_shared and args.flag("moe-shared-expert-gate"),
        # transformer/moe/router.py: Router.__init__ (add_bias_linear), since core 0.15; DeepSpeed's gate has none
        router_bias=bias and not args.under_deepspeed,
        score_function="softmax" if args.get("moe-router-score-function", "softmax") == "softmax" else "sigmoid",
    )


def _glu(args: Arguments, source: str) -> bool:
    given = args.get("glu-activation")
    if given is not None and given not in _GLU_ACTIVATIONS:
        known = ", ".join(_GLU_ACTIVATIONS)
        raise InputError(f"{source}: --glu-activation must be one of {known}, but was '{readable(given)}'.")
    return given is not None


def _experts(args: Arguments) -> int:
    """Experts of a layer; Megatron-DeepSpeed's default of one is a dense model (its megatron/model/transformer.py)."""
    experts: int = args.get("num-experts", 0)
    return 0 if args.under_deepspeed and experts == 1 else experts


def _moe_pattern(args: Arguments, source: str, layers: int) -> list[int]:
    """1 for each MoE layer, 0 for each dense one. An integer N makes every Nth layer, from the first, a MoE layer."""
    if not _experts(args):
        return [0] * layers
    return frequency(args.get("moe-layer-freq", "1"), "moe-layer-freq", layers, source, first=True)


def _windows(args: Arguments, source: str, layers: int) -> list[int | None]:
    """The sliding window of each layer in tokens; (left, right) attends `left` earlier tokens and the own."""
    if "window-size" not in args:
        return [None] * layers
    text = args.get("window-size")
    left = re.match(r"\s*\(?\s*(-?\d{1,15})", text)
    if not left:
        raise InputError(f"{source}: --window-size must be two whole numbers, but was given '{readable(text)}'.")
    window = int(left[1]) + 1 if int(left[1]) >= 0 else None
    if "window-attn-skip-freq" not in args:
        return [window] * layers
    used = frequency(args.get("window-attn-skip-freq"), "window-attn-skip-freq", layers, source, first=False)
    return [window if on else None for on in used]


def _position(args: Arguments, source: str) -> Position:
    given = args.get("position-embedding-type", "learned_absolute")
    if args.flag("use-rotary-position-embeddings"):
        given = "rope"
    if given in ("mrope", "relative"):
        raise NotModelled(f"{source}: --position-embedding-type {given} is not modelled.")
    if given not in _POSITIONS:
        known = ", ".join(_POSITIONS)
        raise InputError(f"{source}: --position-embedding-type must be one of {known}, but was '{readable(given)}'.")
    if args.flag("no-position-embedding") and given == "learned_absolute":
        return "none"
    return _POSITIONS[given]
