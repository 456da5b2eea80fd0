"""What a search says of a plan that Megatron's arguments cannot say: other numbers of recomputed layers by stage."""

from dataclasses import replace

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout, Recompute
from planner.memory.accounting import make_accounting
from planner.question import Question
from planner.reports.one_count_report import one_count_section
from planner.solver.result import Plan
from planner.stages import even_split
from planner.timing.step import Timing
from planner.workload import Workload

MODEL, CLUSTER, WORKLOAD = load_model("llama-2-7b"), parse_gpus("8xA100-80G"), Workload(4096, 64)
ASKED = (MODEL, WORKLOAD, Implementation(), CLUSTER)
QUESTION = Question(MODEL, CLUSTER, WORKLOAD, Implementation(), "exact", CLUSTER.reserve_bytes, defaults=())


def plan(counts):
    layout = Layout(pp=2, dp=4, zero=1, stages=even_split(MODEL, 2),
                    recompute=Recompute("full", method="block", stage_layers=counts))  # fmt: skip
    accounting = make_accounting("exact", *ASKED, CLUSTER.reserve_bytes)
    return Plan(layout, accounting.report(layout), Timing(*ASKED).step(layout))


def test_the_largest_number_on_every_stage_takes_longer_and_holds_no_more():
    """6 and 2 layers become 6 on both, and the report says what that costs."""
    chosen, written = plan((6, 2)), plan((6, 6))
    section = one_count_section(QUESTION, chosen)
    assert section is not None
    assert section.data == {
        "recompute_num_layers": 6,
        "step_seconds": written.step.seconds,
        "peak_bytes": written.memory.peak_stage.total_bytes,
        "fits": True,
    }
    assert section.data["step_seconds"] > chosen.step.seconds
    assert section.data["peak_bytes"] <= chosen.memory.peak_stage.total_bytes
    assert "with 6 on each" in section.blocks[0].text


def test_one_number_needs_no_word():
    """Equal numbers, and layouts that recompute by module or not at all, are launched as planned."""
    assert one_count_section(QUESTION, plan((3, 3))) is None
    chosen = plan((3, 3))
    assert one_count_section(QUESTION, replace(chosen, layout=replace(chosen.layout, recompute=Recompute()))) is None
