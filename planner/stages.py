"""The pipeline's stage split: which slice of the model each stage (and each of its virtual chunks) holds.

A model in order is the embedding, its decoder layers, its multi-token-prediction modules, and the loss (with the final
norm and the head). Chunk k of stage s is slice k * pp + s of that order, so a split is the list of the slices'
decoder layers.

Sources: megatron/core/transformer/transformer_block.py: get_num_layers_to_build;
megatron/core/transformer/transformer_layer.py: get_transformer_layer_offset;
megatron/core/transformer/pipeline_parallel_layer_layout.py: PipelineParallelLayerLayout.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from planner.errors import InputError, RuleBroken
from planner.layout import Chunk, Stage
from planner.model import Model

MAX_LAYOUT_SYMBOLS = 100_000
"""A layout string that unrolls to more symbols than this is a mistake, not a model."""

_GROUP = re.compile(r"\(([^()]*)\)\*(\d+)")
_SYMBOL = re.compile(r"([^()*])\*(\d+)")


def even_split(model: Model, pp: int, vpp: int = 1) -> tuple[Stage, ...]:
    """The same number of decoder layers in each of pp x vpp chunks; RuleBroken where they do not divide."""
    return uneven_split(model, pp, vpp)


def uneven_split(
    model: Model,
    pp: int,
    vpp: int = 1,
    first: int | None = None,
    last: int | None = None,
    account_for_embedding: bool = False,
    account_for_loss: bool = False,
) -> tuple[Stage, ...]:
    """Megatron's split from `--decoder-first-pipeline-num-layers` and `-last-`, or with the embedding or the loss
    counted as one layer (`--account-for-...-in-pipeline-split`); with none of them the even split.

    With virtual chunks the counted embedding (loss) leaves the first (last) chunk one layer fewer, down to none.
    """
    _positive("pp", pp)
    _positive("vpp", vpp)
    layers = model.num_layers
    if first is None and last is None:
        counted = layers + account_for_embedding + account_for_loss
        with_extras = " counted with the embedding or loss" if counted != layers else ""
        if counted % pp:
            raise RuleBroken(f"num_layers ({counted}{with_extras}) must be divisible by pp ({pp}).")
        per_stage = [counted // pp] * pp
    else:
        if account_for_embedding or account_for_loss:
            raise RuleBroken(
                f"account-for-embedding or -loss cannot be combined with uneven stages (first {first}, last {last})."
            )
        per_stage = _uneven_counts(layers, pp, first, last)
    for stage, count in enumerate(per_stage):
        if count % vpp:
            raise RuleBroken(f"the {count} layers of stage {stage} must be divisible by vpp ({vpp}).")
    counts = [[count // vpp] * vpp for count in per_stage]
    counts[0][0] -= account_for_embedding
    counts[-1][-1] -= account_for_loss
    return split_from_counts(model, counts)


def _uneven_counts(layers: int, pp: int, first: int | None, last: int | None) -> list[int]:
    """Decoder layers of each stage when the first, the last or both are given."""
    for name, value in (("first", first), ("last", last)):
        if value is not None and value < 1:
            raise RuleBroken(f"the {name} stage must hold at least 1 layer, but was given {value}.")
    if pp == 1:
        given = {value for value in (first, last) if value is not None}
        if given != {layers}:
            raise RuleBroken(
                f"one stage holds all {layers} layers, but was given {', '.join(map(str, sorted(given)))}."
            )
        return [layers]
    middle_stages = pp - (first is not None) - (last is not None)
    middle_layers = layers - (first or 0) - (last or 0)
    if middle_stages == 0:
        if middle_layers:
            raise RuleBroken(f"first ({first}) and last ({last}) stage must together hold all {layers} layers.")
        return [first or 0, last or 0]
    if middle_layers < middle_stages or middle_layers % middle_stages:
        raise RuleBroken(
            f"the {middle_layers} layers beside first ({first}) and last ({last}) "
            f"must be divisible by the {middle_stages} remaining stages."
        )
    per_stage = [middle_layers // middle_stages] * pp
    if first is not None:
        per_stage[0] = first
    if last is not None:
        per_stage[-1] = last
    return per_stage


def split_from_counts(model: Model, counts: Sequence[int] | Sequence[Sequence[int]]) -> tuple[Stage, ...]:
    """The split from the decoder layers of each stage, or of each virtual chunk of each stage (`--stage-layers`).

    The parts must sum to num_layers. Only the first and the last chunk may be without decoder layers: they hold the
    embedding, and the loss with the multi-token-prediction modules.
    """
    rows = _rows(counts)
    pp, vpp = len(rows), len(rows[0])
    total = sum(map(sum, rows))
    if total != model.num_layers:
        raise RuleBroken(f"the stages' layers must sum to num_layers ({model.num_layers}), but sum to {total}.")
    slices = pp * vpp
    chunks: list[Chunk] = []
    start = 0
    for index in range(slices):
        count = rows[index % pp][index // pp]
        last = index == slices - 1
        if count < 0 or (count == 0 and index > 0 and not last):
            where = f"stage {index % pp}" + (f", chunk {index // pp}" if vpp > 1 else "")
            raise RuleBroken(f"{where} must hold at least 1 layer, but holds {count}.")
        chunks.append(Chunk(start, start + count, index == 0, model.mtp_num_layers if last else 0, last))
        start += count
    return _stages(chunks, pp)


def balanced_split(model: Model, pp: int, vpp: int = 1) -> tuple[Stage, ...]:
    """The split closest to even where the layers do not divide, the embedding and the loss counted as one layer each.

    What uneven launches commonly mean: 70 layers on 12 stages are 5, ten times 6, 5. Slices that must take one more are
    the first of those between.
    """
    _positive("pp", pp)
    _positive("vpp", vpp)
    slices = pp * vpp
    if slices == 1:
        return split_from_counts(model, [model.num_layers])
    if slices > model.num_layers + 2:
        raise RuleBroken(f"num_layers ({model.num_layers}) are too few for pp x vpp = {slices} chunks.")
    each, extra = divmod(model.num_layers + 2, slices)
    middle = range(1, slices - 1)
    takers = {*middle[:extra], *([0, slices - 1][: max(0, extra - len(middle))])}
    counts = [each + (index in takers) - (index in (0, slices - 1)) for index in range(slices)]
    return split_from_counts(model, [[counts[k * pp + stage] for k in range(vpp)] for stage in range(pp)])


def usual_split(model: Model, pp: int, vpp: int = 1) -> tuple[Stage, ...]:
    """The split of a launch that does not say: even where the layers divide, else balanced."""
    return (balanced_split if model.num_layers % (pp * vpp) else even_split)(model, pp, vpp)


def _rows(counts: Sequence[int] | Sequence[Sequence[int]]) -> list[list[int]]:
    """One list of chunk counts for each stage, of equal lengths."""
    rows = [[row] if isinstance(row, int) else list(row) for row in counts]
    if not rows or not rows[0]:
        raise InputError("a stage split needs the layers of at least 1 stage, but none was given.")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise InputError(
            f"every stage must have the same number of virtual chunks, but was given {min(lengths)} and {max(lengths)}."
        )
    return rows


def split_from_layout_string(model: Model, text: str, pp: int, vpp: int | None = None) -> tuple[Stage, ...]:
    """The split of `--pipeline-model-parallel-layout`, e.g. `Et*3|(tt|)*29,m|L`; vpp, where given, must agree with it.

    E is the embedding, t a decoder layer, m a multi-token-prediction module, L the loss, `|` ends a chunk.
    """
    _positive("pp", pp)
    parts = _unroll(text).split("|")
    if len(parts) % pp:
        raise RuleBroken(f"the parts of the pipeline layout ({len(parts)}) must be divisible by pp ({pp}).")
    if vpp is not None and len(parts) != pp * vpp:
        raise RuleBroken(f"the pipeline layout must have pp x vpp = {pp * vpp} parts, but has {len(parts)}.")
    _check_order(model, parts, pp)
    chunks: list[Chunk] = []
    start = 0
    for index, part in enumerate(parts):
        if not part:
            raise RuleBroken(
                f"every part of the pipeline layout must hold something, but part {index} of {len(parts)} is empty."
            )
        stop = start + part.count("t")
        chunks.append(Chunk(start, stop, "E" in part, part.count("m"), "L" in part))
        start = stop
    return _stages(chunks, pp)


def _check_order(model: Model, parts: list[str], pp: int) -> None:
    """validate_layer_layout: one embedding first, one loss last, the model's own layers between, MTP in one place."""
    flat = "".join(parts)
    if not flat.startswith("E") or flat.count("E") != 1 or not flat.endswith("L") or flat.count("L") != 1:
        raise RuleBroken(
            "the pipeline layout must begin with its one E and end with its one L, "
            f"but has {flat.count('E')} E and {flat.count('L')} L in '{_short(flat)}'."
        )
    for symbol, what, wanted in (("t", "num_layers", model.num_layers), ("m", "mtp_num_layers", model.mtp_num_layers)):
        if flat.count(symbol) != wanted:
            raise RuleBroken(
                f"the pipeline layout must have {what} ({wanted}) '{symbol}', but has {flat.count(symbol)}."
            )
    if "m" not in flat:
        return
    if flat.rindex("t") > flat.index("m"):
        raise RuleBroken("decoder layers 't' must stand before every multi-token-prediction module 'm' in the layout.")
    holding = [index for index, part in enumerate(parts) if "m" in part]
    if len(holding) > 1:
        raise RuleBroken(f"all 'm' must stand in one part of the pipeline layout, but stand in {len(holding)}.")
    if holding[0] // pp != len(parts) // pp - 1 or (holding[0] % pp == 0 and pp > 1):
        raise RuleBroken(
            "'m' must stand in the last virtual chunk of a stage after the first, "
            f"but stands in part {holding[0]} of {len(parts)} with pp ({pp})."
        )


def _unroll(text: str) -> str:
    """A layout string without commas, groups and multiplications; refuses what would unroll without bound."""
    flat = re.sub(r"[,\s'\"]", "", text)
    for pattern in (_GROUP, _SYMBOL):
        symbols = sum(len(m[1]) * _times(m[2]) for m in pattern.finditer(flat))
        if symbols > MAX_LAYOUT_SYMBOLS or len(flat) > MAX_LAYOUT_SYMBOLS:
            raise InputError(f"the pipeline layout must have at most {MAX_LAYOUT_SYMBOLS} parts, but has more.")
        flat = pattern.sub(lambda m: m[1] * _times(m[2]), flat)
    wrong = sorted(set(flat) - set("EtmL|"))
    if wrong:
        raise InputError(
            f"a pipeline layout is written with E, t, m, L, |, * and ( ), but '{_short(text)}' has '{wrong[0]}'."
        )
    return flat


def _times(digits: str) -> int:
    """A multiplier, cut where it is beyond any limit (Python refuses to convert thousands of digits)."""
    return int(digits.lstrip("0")[:9] or "0")


def layout_string(stages: Sequence[Stage]) -> str:
    """The `--pipeline-model-parallel-layout` of a split, e.g. `Et*3|t*4|t*4L`; split_from_layout_string reads it."""
    vpp = len(stages[0])
    parts = []
    for k in range(vpp):
        for stage in stages:
            chunk = stage[k]
            flat = "E" * chunk.embedding + "t" * chunk.num_layers + "m" * chunk.mtp_layers + "L" * chunk.loss
            runs = [(symbol, len(list(run))) for symbol, run in groupby(flat)]
            parts.append("".join(symbol if n == 1 else f"{symbol}*{n}" for symbol, n in runs))
    return "|".join(parts)


def _stages(chunks: list[Chunk], pp: int) -> tuple[Stage, ...]:
    return tuple(tuple(chunks[stage::pp]) for stage in range(pp))


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"{name} must be at least 1, but was given {value}.")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
