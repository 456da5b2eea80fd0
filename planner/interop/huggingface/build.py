"""From a declared family and one config's fields to a Model."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import InputError, NotModelled
from planner.interop.huggingface.family import Family, attention, flag, resolve
from planner.interop.huggingface.fields import Fields
from planner.model import MLP, Attention, Layer, Model, MoE, Norm

WINDOWED = ("sliding_attention", "chunked_attention", "local_attention", "local", "sliding")
FULL = ("full_attention", "global_attention", "attention", "global", "full")


def build(family: Family, fields: Fields, source: str) -> Model:
    """The model a config describes. Raises InputError for wrong values, NotModelled for what is not accounted for."""
    problem = family.refuse(fields) if family.refuse else None
    if problem:
        raise NotModelled(f"{fields.name}: {problem}.")
    if fields.flag("is_encoder_decoder") or fields.flag("add_cross_attention"):
        raise NotModelled(f"{fields.name}: only decoder-only models are modelled, but this one has cross-attention.")
    hidden = fields.size("hidden_size", "hidden")
    norm: Norm = resolve(fields, family.norm)
    kinds, pattern = _layers(family, fields, hidden)
    positions = fields.optional(family.positions, "positions") or 2048
    position = resolve(fields, family.position)
    width = fields.optional(family.embedding_width, "hidden") if family.embedding_width else None
    return Model(
        name=fields.name,
        hidden_size=hidden,
        vocab_size=fields.size(family.vocab, "vocab"),
        layer_kinds=kinds,
        pattern=pattern,
        norm=norm,
        max_positions=_training_context(fields, positions) if position != "learned" else positions,
        position=position,
        learned_positions=positions + family.extra_positions if position == "learned" else 0,
        rotary_percent=_rotary(family, fields) if position == "rope" else 1.0,
        tied=fields.flag("tie_word_embeddings"),
        head_bias=flag(fields, family.head_bias),
        final_norm=flag(fields, family.final_norm),
        embedding_norm=flag(fields, family.embedding_norm),
        embedding_width=width if width != hidden else None,
        mtp_num_layers=fields.count("num_nextn_predict_layers"),
        dropout=min(fields.number(family.dropout, 0.0), 1.0),
        source=source,
    )


def _layers(family: Family, fields: Fields, hidden: int) -> tuple[tuple[Layer, ...], tuple[int, ...]]:
    """The kinds of layer and, for each layer, its kind."""
    count = fields.size("num_hidden_layers", "layers")
    attend = family.attention(fields) if family.attention else attention(fields, family)
    windows = _windows(family, fields, count) if isinstance(attend, Attention) else [None] * count
    experts = family.experts(fields) if family.experts else None
    sparse = [_is_sparse(family, fields, experts, i, count) for i in range(count)]
    dense = None if all(sparse) else _dense_mlp(family, fields, hidden)
    common = {
        "norms": resolve(fields, family.norms),
        "parallel": flag(fields, family.parallel),
        "sub_norms": family.sub_norms(fields) if family.sub_norms else (),
    }
    kinds: dict[Layer, int] = {}
    pattern = []
    for window, is_sparse in zip(windows, sparse, strict=True):
        mlp = experts if is_sparse else dense
        assert mlp is not None
        seen = replace(attend, window=window) if window and isinstance(attend, Attention) else attend
        pattern.append(kinds.setdefault(Layer(attention=seen, mlp=mlp, **common), len(kinds)))
    return tuple(kinds), tuple(pattern)


def _dense_mlp(family: Family, fields: Fields, hidden: int) -> MLP:
    if family.mlp:
        return family.mlp(fields)
    width = fields.optional(family.ffn, "ffn")
    if width is None:
        width = family.ffn_multiple * hidden if family.ffn_multiple else fields.size(family.ffn, "ffn")
    return MLP(width, flag(fields, family.gated), flag(fields, family.mlp_bias), family.activation_parameters)


def _is_sparse(family: Family, fields: Fields, experts: MoE | None, index: int, count: int) -> bool:
    if experts is None:
        return False
    types = fields.items("mlp_layer_types")
    if types:
        if len(types) != count or any(kind not in ("dense", "sparse") for kind in types):
            raise fields.wrong("mlp_layer_types", f"a list of {count} times 'dense' or 'sparse'", types)
        return bool(types[index] == "sparse")
    return family.is_sparse(fields, index) if family.is_sparse else True


def _windows(family: Family, fields: Fields, count: int) -> list[int | None]:
    """Sliding window of each layer in tokens, None where it sees everything before it."""
    window = fields.optional(family.window, "positions", least=0)
    types = fields.items("layer_types")
    if types is not None:
        odd = next((t for t in types if t not in WINDOWED and t not in FULL), None)
        if odd is not None:
            raise NotModelled(f"{fields.name}: layer_types has {odd!r}; only layers of softmax attention are modelled.")
        if len(types) != count:
            raise InputError(
                f"{fields.name}: layer_types must have {count} entries, one a layer, but has {len(types)}."
            )
        slides = [t in WINDOWED for t in types]
    elif family.slides:
        slides = [bool(window) and family.slides(fields, i) for i in range(count)]
    else:
        slides = [False] * count
    return [window if window and s else None for s in slides]


def _training_context(fields: Fields, positions: int) -> int:
    """Tokens of the main pre-training: what the config calls the original context, where it was extended afterwards."""
    given = [fields.raw("original_max_position_embeddings")]
    for key in ("rope_scaling", "rope_parameters"):
        nested = fields.raw(key)
        if isinstance(nested, dict):
            given.append(nested.get("original_max_position_embeddings"))
    known = [tokens for tokens in given if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1]
    return min([positions, *known])


def _rotary(family: Family, fields: Fields) -> float:
    """The rotated share of a head, from the key of the family or from `rope_parameters` (transformers 5)."""
    nested = fields.raw("rope_parameters")
    if isinstance(nested, dict) and isinstance(nested.get("partial_rotary_factor"), int | float):
        return float(nested["partial_rotary_factor"])
    return family.rotary(fields)
