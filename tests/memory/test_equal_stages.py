"""Numbers added up once for equal stages are those of the terms, one by one."""

from dataclasses import replace

import pytest
from tiny import LATENT, LLAMA, LOCAL, MIXTURE, TE, accounting, laid_out, model

from planner.layout import FULL, SELECTIVE, Recompute
from planner.memory.form import COMPONENTS

GROUPS = Recompute("full", num_layers=2)
BLOCK = Recompute("full", method="block", num_layers=1)


@pytest.mark.parametrize("degrees", [{}, {"pp": 2}, {"pp": 4}, {"pp": 2, "vpp": 2}, {"pp": 4, "vpp": 2}])
@pytest.mark.parametrize("recompute", [Recompute(), SELECTIVE, FULL, GROUPS, BLOCK])
@pytest.mark.parametrize("zero", [0, 1])
def test_a_report_adds_up_every_term_of_its_form(degrees, recompute, zero):
    """Moment and components of each stage are those of the largest of all moments spelled out; the optimizer also has
    what bucket padding adds, never more than the form says."""
    m = model(layers=8, layer_kinds=(LLAMA, MIXTURE, LATENT), pattern=(0, 1, 1, 2, 2, 1, 1, 0))
    impl = replace(TE, grad_reduce_bytes=2, gradient_accumulation_fusion=False)
    exact = accounting(m, impl, reserve=7)
    layout = laid_out(m, recompute=recompute, zero=zero, **degrees)
    for stage in exact.report(layout).stages:
        form, counts = exact.form(layout, stage.stage), exact.counts(layout, stage.stage)
        moment, components = form.peak(counts)
        assert stage.moment == moment.name
        padding = stage.components["optimizer"] - components["optimizer"]
        assert 0 <= padding <= form.padding_bytes if zero else padding == 0
        assert {c: stage.components[c] for c in COMPONENTS if c != "optimizer"} == {
            c: components[c] for c in COMPONENTS if c != "optimizer"
        }
        assert form.peak_bytes(counts) == sum(components.values())
        spelled_out = [m.values(counts)[0] for m in form.moments]
        assert max(spelled_out) == sum(components.values())


def test_the_rule_of_thumb_beside_each_stage_is_its_own_report():
    """The figure for comparison is what `--accounting rule-of-thumb` says of the stage, virtual chunks included."""
    m = model(layers=8)
    layout = laid_out(m, pp=2, vpp=2, recompute=BLOCK)
    exact = accounting(m, LOCAL)
    by_hand = exact._hand.report(layout).stages
    assert [s.rule_of_thumb_bytes for s in exact.report(layout).stages] == [s.total_bytes for s in by_hand]


def test_sums_of_a_form_are_those_of_its_terms():
    """What the constraint model reads, chunk by chunk, gives the bytes of the terms."""
    m = model(layers=8, layer_kinds=(LLAMA, MIXTURE), pattern=(0, 1, 0, 1, 1, 1, 0, 1))
    exact, layout = accounting(m), laid_out(m, pp=2, vpp=2, recompute=FULL)
    for stage in range(2):
        form, counts = exact.form(layout, stage), exact.counts(layout, stage)
        always = sum(sums.bytes(counts) for _, sums in form.always.sums)
        for moment in form.additions:
            assert always + moment.sums.bytes(counts) == form.always.values(counts)[0] + moment.values(counts)[0]
