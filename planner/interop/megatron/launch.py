"""A Megatron-LM launch as the planner's own objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError, NotModelled
from planner.implementation import Implementation
from planner.interop.megatron.architecture import build_model, positive
from planner.interop.megatron.computation import build_implementation, build_workload
from planner.interop.megatron.conflicts import Launch, find_conflicts
from planner.interop.megatron.deepspeed_file import settings_of
from planner.interop.megatron.launcher import MAX_WORLD
from planner.interop.megatron.parallelism import build_layout
from planner.interop.megatron.parse import Arguments, parse
from planner.interop.megatron.problem import Problem
from planner.interop.megatron.sources import Source, read_source, source_from_text
from planner.interop.megatron.under_deepspeed import apply, overrule
from planner.layout import Layout
from planner.model import Model
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class MegatronLaunch:
    """What a launch asks for. Where the launch has no legal stage split, `problems` says why and a balanced one is
    assumed; `layout.stages` is empty where there is none at all."""

    model: Model
    workload: Workload
    implementation: Implementation
    layout: Layout
    world_size: int | None
    """GPUs of the launch: given by the caller, else by the file; None where neither says."""
    gpus_per_node: int | None = None
    """As the file says; None where it does not, or where the caller gave the GPUs."""
    unrecognised: tuple[str, ...] = ()
    not_accounted: tuple[str, ...] = ()
    """Arguments that are understood but have no term in the accounting, each with what is assumed."""
    notes: tuple[str, ...] = ()
    """What was guessed where a script could not be followed, and where its own words were overruled."""
    problems: tuple[Problem, ...] = ()
    stages_before_replicas: bool = False
    """Ranks in the order tp-cp-ep-pp-dp, not tp-cp-ep-dp-pp (--use-tp-pp-dp-mapping)."""

    def stage_of(self, rank: int) -> int:
        """The pipeline stage of a rank of the job (megatron/training/initialize.py: _initialize_distributed)."""
        layout = self.layout
        inside = layout.tp * layout.cp * (1 if self.stages_before_replicas else layout.dp)
        return rank // inside % layout.pp


def read_megatron(
    path: str | Path,
    world_size: int | None = None,
    vocab_size: int | None = None,
    preset: Mapping[str, str] | None = None,
) -> MegatronLaunch:
    """The launch in a shell script, an argument file or a YAML of arguments; nothing in it is run.

    `world_size` (from `--gpus`) goes before what the file says, `vocab_size` is for files that do not say it, `preset`
    holds the variables that a script starts with, positional parameters by number. Raises InputError where the file
    does not determine a model, a batch and a layout, and NotModelled where it asks for what is not accounted for.
    """
    return _launch(read_source(path, preset), str(path), world_size, vocab_size)


def launch_from_text(
    text: str,
    name: str,
    world_size: int | None = None,
    vocab_size: int | None = None,
    preset: Mapping[str, str] | None = None,
) -> MegatronLaunch:
    """As read_megatron, from the text of a file called `name`."""
    return _launch(source_from_text(text, name, preset), name, world_size, vocab_size)


def launch_from_words(
    words: Sequence[str], name: str, world_size: int | None = None, vocab_size: int | None = None
) -> MegatronLaunch:
    """As read_megatron, from an argument list."""
    return _launch(Source(list(words)), name, world_size, vocab_size)


def _launch(found: Source, name: str, world_size: int | None, vocab_size: int | None) -> MegatronLaunch:
    if world_size is not None and not 1 <= world_size <= MAX_WORLD:
        raise InputError(f"{name}: the number of GPUs must be from 1 to {MAX_WORLD}, but was given {world_size}.")
    args = parse(found.words, name)
    _check_spec(args, name)
    _check_words(args, name)
    world = found.gpus.total if world_size is None else world_size
    notes = list(found.notes)
    if found.gpus.total is not None and found.gpus.total != world:
        notes.append(
            f"the launch itself starts on {found.gpus.total} GPUs, but is judged on the {world} that were given"
        )
    problems: list[Problem] = []
    settings = settings_of(args, found, name)
    if settings:
        overrule(args, settings)
    model = build_model(args, name, Path(name).stem or "model", problems, vocab_size)
    layout = build_layout(args, name, model, world, problems)
    implementation = build_implementation(args, name, found.environment)
    if settings:
        layout, implementation = apply(settings, args, model, layout, implementation)
        notes += settings.notes
        problems += settings.problems
        args.unrecognised += [f"DeepSpeed JSON: {key}" for key in settings.unknown()]
        args.not_accounted += settings.not_accounted()
    find_conflicts(Launch(args, model, layout, implementation), problems)
    return MegatronLaunch(
        model=model,
        workload=build_workload(args, name, positive(args, "micro-batch-size", name), layout.dp),
        implementation=implementation,
        layout=layout,
        world_size=world,
        gpus_per_node=found.gpus.per_node if world_size is None else None,
        unrecognised=tuple(args.unrecognised),
        not_accounted=tuple(args.not_accounted),
        notes=tuple(notes),
        problems=tuple(problems),
        stages_before_replicas="use-tp-pp-dp-mapping" in args.given,
    )


def _check_spec(args: Arguments, name: str) -> None:
    """A layer specification of its own: refused where it names another architecture, else named in the report."""
    spec = " ".join(args.get("spec", []))
    if "mamba" in spec or "hybrid" in spec:
        raise NotModelled(f"{name}: --spec: a hybrid of Mamba and attention layers is not modelled.")
    if spec and spec != "local":
        args.not_accounted.append(f"--spec {spec[:80]}: layers are counted as the default specification's")


def _check_words(args: Arguments, name: str) -> None:
    """The default tokenizer tells the script where only its arguments are at hand: pretrain_gpt.py's needs merges,
    pretrain_bert.py's is WordPiece over a vocab.txt (both: args_defaults)."""
    tokens = str(args.get("vocab-file", ""))
    if tokens.endswith("vocab.txt") and "tokenizer-type" not in args and "merge-file" not in args:
        raise NotModelled(
            f"{name}: --vocab-file of WordPiece without --tokenizer-type asks for BERT, which is not modelled."
        )
