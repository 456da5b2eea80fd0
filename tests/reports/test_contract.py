"""The JSON bodies keep the contract: its keys, its types, its sums."""

from __future__ import annotations

import json

from planner.layout import Layout
from planner.memory.report import MemoryReport
from planner.reports import body, render
from planner.reports.memory_report import memory_report
from planner.reports.search_report import search_report
from planner.solver.result import SearchResult, Status

LAYOUT_KEYS = {
    "tp", "cp", "pp", "vpp", "ep", "etp", "dp", "zero", "micro_batch", "num_microbatches", "sequence_parallel",
    "recompute", "stage_layers",
}  # fmt: skip
STAGE_KEYS = {
    "stage", "ranks", "layers", "parameters", "in_flight_microbatches", "components", "allocated_bytes", "total_bytes",
    "headroom_bytes", "fits", "rule_of_thumb_bytes",
}  # fmt: skip
COMPONENTS = ["weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve"]
STEP_KEYS = {
    "seconds", "components", "tokens_per_second", "tokens_per_second_per_gpu", "model_tflops_per_gpu", "mfu", "hfu",
    "bubble_fraction", "lower_bound_seconds",
}  # fmt: skip


def test_search_json_keeps_the_contract(question, found: SearchResult) -> None:
    """Every key that the contract names is there, and only `meta` holds what may vary."""
    data = json.loads(render(search_report(question, found), "json"))
    assert list(data) == ["version", "status", "objective", "inputs", "plans", "explanation", "meta"]
    assert data["version"] == 1
    assert data["status"] == "optimal"
    assert data["objective"] == {
        "name": "step_seconds", "value": 50.0, "lower_bound": 50.0, "unit": "seconds", "proved": True,
    }  # fmt: skip
    assert data["inputs"].keys() >= {"model", "cluster", "workload", "accounting"}
    assert data["inputs"]["model"].keys() >= {"name", "parameters"}
    assert data["inputs"]["cluster"].keys() >= {"gpus", "card"}
    assert data["meta"]["candidates"] == 1234
    plan = data["plans"][0]
    assert plan["layout"].keys() >= LAYOUT_KEYS
    assert plan["memory"].keys() >= {"fits", "peak_stage", "peak_component", "capacity_bytes", "stages", "assumptions"}
    assert plan["step"].keys() >= STEP_KEYS
    for stage in plan["memory"]["stages"]:
        assert stage.keys() >= STAGE_KEYS
        assert list(stage["components"]) == COMPONENTS
        assert sum(stage["components"].values()) == stage["total_bytes"]
        assert stage["total_bytes"] - stage["components"]["reserve"] == stage["allocated_bytes"]


def test_in_flight_is_whole_where_it_can_be(question, layout: Layout, memory: MemoryReport) -> None:
    """Whole microbatches are integers; the interleaved schedule's are fractions."""
    stages = body.memory(memory)["stages"]
    assert [stage["in_flight_microbatches"] for stage in stages] == [4.5, 1, 1, 1]
    assert isinstance(stages[1]["in_flight_microbatches"], int)


def test_detail_adds_pieces_and_parts(memory: MemoryReport) -> None:
    """--detail adds keys and changes none."""
    plain, detailed = body.memory(memory)["stages"][0], body.memory(memory, detail=True)["stages"][0]
    assert plain.items() <= detailed.items()
    assert detailed["parameters_by_part"] == {"attention": 4000, "mlp": 6000}
    assert detailed["pieces"][0].keys() >= {
        "kind", "count", "parameters", "saved_bytes_per_microbatch", "transient_bytes",
    }  # fmt: skip


def test_per_rank_names_every_gpu(question, layout: Layout, memory: MemoryReport) -> None:
    """16 GPUs in Megatron's order: tp fastest, then dp, then pp, 8 to a node; the total is the stage's."""
    from planner.reports.ranks import rank_entries

    entries = rank_entries(memory, layout, question.cluster)
    assert [e["rank"] for e in entries] == list(range(16))
    assert [(e["tp"], e["dp"], e["pp"]) for e in entries[:5]] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)]
    assert [e["node"] for e in entries] == [0] * 8 + [1] * 8
    assert [e["total_bytes"] for e in entries] == [memory.stages[e["stage"]].total_bytes for e in entries]
    data = memory_report(question, layout, memory, None, ranks=entries).data
    assert data["memory"]["ranks"] == entries


def test_infeasible_json_explains(question, impossible: SearchResult) -> None:
    """Facts are sentences with their numbers; a hint carries the plan that proves it."""
    data = search_report(question, impossible).data
    assert data["status"] == Status.INFEASIBLE == "infeasible"
    assert data["plans"] == []
    assert data["objective"]["value"] is None
    assert data["explanation"]["facts"][0]["data"] == {"bytes": 7}
    assert data["explanation"]["hints"][0]["plan"]["memory"]["fits"] is True
