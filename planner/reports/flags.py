"""`--flags`: a layout as the arguments of the framework that will run it.

Megatron: an argument list of `pretrain_gpt.py`. DeepSpeed: the JSON of `--deepspeed_config`. What a framework takes
from elsewhere stands beside it as notes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.errors import PlannerError
from planner.implementation import as_sharded
from planner.model import MoE
from planner.reports.blocks import Code, Report
from planner.reports.body import VERSION
from planner.reports.body import layout as layout_body
from planner.reports.words import placement_words

if TYPE_CHECKING:
    from planner.layout import Layout
    from planner.model import Model
    from planner.question import Question


def flags_report(framework: str, question: Question, layout: Layout) -> tuple[Report, tuple[str, ...]]:
    """Only the arguments, ready to paste, and notes on what they cannot say.

    The data holds the arguments as a list (Megatron) or a mapping (DeepSpeed). Raises NotModelled where the framework
    has no argument for something.
    """
    data: dict[str, object] = {
        "version": VERSION,
        "framework": framework,
        "layout": layout_body(layout, question.workload.global_batch, question.cluster),
    }
    if framework == "megatron":
        from planner.interop.megatron.write import megatron_arguments

        words = megatron_arguments(question.model, question.workload, question.implementation, layout)
        data["arguments"] = words
        text, notes = argument_lines(words), tuple(_megatron_notes(question.model, layout))
    else:
        from planner.interop.deepspeed import deepspeed_config

        config = deepspeed_config(question.workload, question.implementation, layout)
        data["config"] = config
        text, notes = json.dumps(config, indent=2), tuple(_deepspeed_notes(question, layout))
    if order := placement_words(layout, question.cluster):
        notes = (*notes, f"start the nodes in this order, as NODE_RANK counts them. {order}")
    data["notes"] = list(notes)
    rows = [{"line": line} for line in text.splitlines()]
    return Report(f"{framework} arguments", data, (Code(text),), rows), notes


def launched_by(question: Question, layout: Layout) -> str | None:
    """The framework that has arguments for this layout of this model, Megatron before DeepSpeed; None if none has."""
    by_deepspeed = question.implementation.sharded_framework == "deepspeed"
    for framework in ("megatron", "deepspeed") if by_deepspeed else ("megatron",):
        try:
            flags_report(framework, question, layout)
        except PlannerError:
            continue
        return framework
    return None


def argument_lines(words: list[str]) -> str:
    """One option with its values on a line, quoted for a shell and continued with a backslash."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n".join(lines)


def _megatron_notes(model: Model, layout: Layout) -> Iterator[str]:
    yield f"add what changes no byte and so is not planned: {', '.join(_unplanned(model))}."
    if len(set(layout.recompute.stage_layers)) > 1:
        counts = ",".join(map(str, layout.recompute.stage_layers))
        yield (
            f"Megatron recomputes the same number of layers on every stage, the plan recomputes {counts}: "
            "check what the arguments say with `plan check`."
        )


def _unplanned(model: Model) -> Iterator[str]:
    """What a launch of this model needs besides, and a plan does not know."""
    if model.position == "rope":
        yield "--rotary-base and the scaling of rotary positions"
    gated = any((kind.mlp.expert if isinstance(kind.mlp, MoE) else kind.mlp).gated for kind in model.layer_kinds)
    yield "an activation function other than SwiGLU" if gated else "--squared-relu where it is not GELU"
    if model.is_moe:
        yield "the router's groups, scaling, correction bias and losses"
    yield "tokenizer, data, learning rate, initialization and checkpoints"


def _deepspeed_notes(question: Question, layout: Layout) -> Iterator[str]:
    if layout.zero >= 2 and question.implementation.sharded_framework != "deepspeed":
        yield (
            "the plan counts another framework's shards, buffers and time than DeepSpeed's: "
            "ask for them with --sharded-by deepspeed."
        )
    if question.implementation.layer_implementation == "transformer_engine":
        counted = as_sharded(question.implementation, layout.zero)
        yield (
            "the plan counts Transformer Engine's layers and main gradients of "
            f"{counted.grad_reduce_bytes} bytes; `plan check` on this file counts a PyTorch model "
            "whose gradients have the type of its weights."
        )
    if layout.pp > 1:
        yield f"the pipeline of {layout.pp} stages is made in code: PipelineModule(num_stages={layout.pp})."
    if layout.ep > 1:
        yield f"the experts are split in code: deepspeed.moe.layer.MoE(ep_size={layout.ep})."
