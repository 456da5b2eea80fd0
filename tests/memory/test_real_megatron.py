"""The exact accounting against what real megatron-core allocates (tests/data/memory: how each figure was obtained)."""

import json
from functools import cache
from pathlib import Path

import pytest

from planner.hardware import parse_gpus
from planner.interop.megatron.launch import launch_from_words
from planner.memory.accounting import make_accounting
from planner.validation.memory import words_of

DATA = Path(__file__).parents[1] / "data" / "memory"
STATES = ("weights", "gradients", "optimizer")


@cache
def table(name):
    return json.loads((DATA / f"{name}.json").read_text())


def records(name):
    """Each record of a file as a case named after its model and degrees."""
    short = {"tensor-model-parallel-size": "tp", "pipeline-model-parallel-size": "pp", "recompute-granularity": ""}
    cases = []
    for i, r in enumerate(table(name)["records"]):
        degrees = "".join(f"-{short[k]}{v}" for k, v in r["args"].items() if k in short)
        cases.append(pytest.param(name, r, id=f"{i}-{r['model']}{degrees}"))
    return cases


def report(name, record):
    """Our report of a record's launch, as `plan check --detail` makes it."""
    words = words_of(table(name)["models"][record["model"]] | record["args"])
    launch = launch_from_words(words, record["model"], record["gpus"])
    assert not launch.problems and not launch.unrecognised
    cluster = parse_gpus(f"{record['gpus']}xH100-80G")
    exact = make_accounting("exact", launch.model, launch.workload, launch.implementation, cluster)
    return exact.report(launch.layout, detail=True)


@pytest.mark.parametrize(("name", "record"), records("parameters"))
def test_parameters_of_each_stage(name, record):
    """The first rank of every pipeline stage holds exactly these parameters."""
    assert [stage.parameters for stage in report(name, record).stages] == record["stages"]


@pytest.mark.parametrize(("name", "record"), records("activations"))
def test_bytes_kept_by_each_piece(name, record):
    """A layer, the embedding, the final norm, the head and the loss keep exactly these bytes."""
    pieces = report(name, record).stages[0].pieces
    kept = {p.kind: p.saved_bytes_per_microbatch for p in pieces}
    layer = kept.pop("moe", None)
    kept["layer"] = kept.pop("dense", None) if layer is None else layer
    assert {k: kept[k] for k in record["saved"]} == record["saved"]


@pytest.mark.parametrize(("name", "record"), records("peaks"))
def test_activation_peaks_within_one_percent(name, record):
    """The most activation bytes alive in a step of one microbatch, gradients and scratch included."""
    stage = report(name, record).stages[0]
    activations = stage.allocated_bytes - sum(stage.components[c] for c in STATES)
    assert activations == pytest.approx(record["peak"], rel=0.01)


@pytest.mark.parametrize(("name", "record"), records("optimizer"))
def test_model_states_of_each_stage(name, record):
    """Weights, gradient buffers, fp32 master and Adam state, bucket padding included."""
    stages = report(name, record).stages
    for index, size in record["stages"].items():
        assert sum(stages[int(index)].components[c] for c in STATES) == size


def test_the_golden_figures_are_many_and_varied():
    """The subset covers dense, mixture and latent attention, both kinds of recomputation and of optimizer."""
    words = json.dumps([table(n) for n in ("parameters", "activations", "peaks", "optimizer")])
    for what in ("num-experts", "kv-lora-rank", "selective", "uniform", "use-distributed-optimizer"):
        assert what in words
    assert len(table("activations")["records"]) >= 40
