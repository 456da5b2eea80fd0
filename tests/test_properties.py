"""What must hold for every small layout, tried on many at random (the same ones in each run)."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, Layout, Recompute
from planner.memory.activations.layer import layer_tape
from planner.memory.exact import ExactAccounting
from planner.memory.form import COMPONENTS
from planner.memory.in_flight import peak_in_flight
from planner.memory.pieces import shape_of, sharding_of
from planner.memory.tape import backward_peak, saved_by_tensor, saved_bytes
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm
from planner.parameters import UNSHARDED, Sharding, embedding_weights, layer_weights, numel, parameters
from planner.rules import broken_rules
from planner.stages import balanced_split, split_from_counts
from planner.workload import Workload

QUICK = settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))

DEGREES = st.sampled_from([1, 2, 4])
SEQ, BATCH = 64, 32


@st.composite
def layers(draw):
    """A decoder layer of width 16 to 64 whose heads, groups and widths divide by 4."""
    if draw(st.booleans()):
        heads = draw(st.sampled_from([4, 8]))
        attention = Attention(
            heads, draw(st.sampled_from([4, heads])), 4, draw(st.booleans()), draw(st.booleans()),
            draw(st.sampled_from(["none", "head"])),
        )  # fmt: skip
    else:
        attention = LatentAttention(4, 8, 4, 4, 4, draw(st.sampled_from([None, 8])))
    mlp = MLP(draw(st.sampled_from([32, 64])), draw(st.booleans()), draw(st.booleans()))
    if draw(st.booleans()):
        shared = draw(st.sampled_from([None, MLP(32)]))
        return Layer(attention, MoE(4, draw(st.sampled_from([1, 2])), replace(mlp, bias=False), shared))
    return Layer(attention, mlp)


@st.composite
def models(draw):
    """A model of one or two kinds of layers, 4 to 8 of them."""
    kinds = tuple(draw(st.lists(layers(), min_size=1, max_size=2)))
    count = draw(st.sampled_from([4, 8]))
    pattern = tuple(draw(st.integers(0, len(kinds) - 1)) for _ in range(count))
    norm = draw(st.sampled_from([Norm(), Norm("LayerNorm", bias=True)]))
    return Model(
        name="random", hidden_size=draw(st.sampled_from([16, 64])), vocab_size=draw(st.sampled_from([96, 1024])),
        layer_kinds=kinds, pattern=pattern, norm=norm, max_positions=SEQ, tied=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.1])), mtp_num_layers=draw(st.sampled_from([0, 0, 1])),
    )  # fmt: skip


@st.composite
def implementations(draw):
    """Choices of the framework that change bytes."""
    return Implementation(
        layer_implementation=draw(st.sampled_from(["local", "transformer_engine"])),
        attention=draw(st.sampled_from(["flash", "fused", "unfused"])),
        cross_entropy=draw(st.sampled_from(["unfused", "native", "te"])),
        rope_fusion=draw(st.booleans()),
        bias_activation_fusion=draw(st.booleans()),
        gradient_accumulation_fusion=draw(st.booleans()),
        grad_reduce_bytes=draw(st.sampled_from([2, 4])),
        overlap_grad_reduce=draw(st.booleans()),
        vocab_divisible_by=draw(st.sampled_from([1, 128])),
    )


@st.composite
def layouts(draw, model):
    """A layout of the model on at most 32 GPUs, its split even or balanced."""
    tp, pp, cp, dp = draw(DEGREES), draw(DEGREES), draw(st.sampled_from([1, 2])), draw(DEGREES)
    vpp = draw(st.sampled_from([1, 2])) if pp > 1 and model.num_layers % (2 * pp) == 0 else 1
    recompute = draw(
        st.sampled_from(
            [NO_RECOMPUTE, FULL, Recompute("selective", ("core_attn",)), Recompute("full", (), "block", 1),
             Recompute("full", (), "uniform", 2), Recompute("selective", ("layernorm", "mlp"))]
        )
    )  # fmt: skip
    return Layout(
        tp=tp, cp=cp, pp=pp, vpp=vpp, dp=dp, ep=draw(DEGREES) if model.is_moe else 1,
        etp=draw(st.sampled_from([1, tp])) if model.is_moe else 1, zero=draw(st.sampled_from([0, 1, 1])),
        micro_batch=draw(st.sampled_from([1, 2])), sequence_parallel=tp > 1 and draw(st.booleans()),
        recompute=recompute, stages=balanced_split(model, pp, vpp),
    )  # fmt: skip


@st.composite
def runs(draw):
    """An accounting and a legal layout of its model."""
    model, impl = draw(models()), draw(implementations())
    layout = draw(layouts(model))
    assume(layout.expert_layout_divides and layout.edp >= 1)
    cluster = parse_gpus(f"{layout.world_size}xA100-80G")
    workload = Workload(SEQ, BATCH)
    assume(not broken_rules(model, workload, impl, layout, layout.world_size, cluster))
    return ExactAccounting(model, workload, impl, cluster), layout


@QUICK
@given(runs())
def test_any_legal_layout_has_a_memory_without_negative_bytes(run):
    """Nothing crashes, no component is negative, and every total is the sum of its components."""
    exact, layout = run
    for stage in exact.report(layout, detail=True).stages:
        assert tuple(stage.components) == COMPONENTS
        assert all(size >= 0 for size in stage.components.values()), stage.components
        assert stage.total_bytes == sum(stage.components.values())
        assert all(p.saved_bytes_per_microbatch >= 0 and p.parameters >= 0 for p in stage.pieces)


@QUICK
@given(runs())
def test_the_form_at_the_counts_is_the_report(run):
    """What the constraint model multiplies equals what the report prints, but for padding within its bound."""
    exact, layout = run
    for i, stage in enumerate(exact.report(layout).stages):
        form = exact.form(layout, i)
        moment, components = form.peak(exact.counts(layout, i))
        added = stage.total_bytes - sum(components.values())
        assert moment.name == stage.moment
        assert added <= form.padding_bytes
        assert added == 0 or layout.zero == 1


@QUICK
@given(runs())
def test_a_stage_split_conserves_layers_and_parameters(run):
    """The stages hold every layer once, and together the model's parameters and the copies that a pipeline needs."""
    exact, layout = run
    model = exact.model
    assume(layout.tp == layout.ep == layout.etp == 1)
    stages = exact.report(layout, detail=True).stages
    assert sum(stage.layers for stage in stages) == model.num_layers
    pieces = [piece for stage in stages for piece in stage.pieces]
    decoder = sum(p.count * p.parameters for p in pieces if p.kind in ("dense", "moe"))
    assert decoder == sum(numel(layer_weights(kind, model.hidden_size, model.norm)) for kind in model.layers)
    if exact.implementation.vocab_divisible_by == 1 and not model.mtp_num_layers:
        copy = model.vocab_size * model.hidden_size if model.tied and layout.pp > 1 else 0
        assert sum(stage.parameters for stage in stages) == parameters(model) + copy


@QUICK
@given(models(), st.lists(st.integers(1, 7), min_size=2, max_size=4))
def test_moving_layers_between_stages_conserves_states(model, cuts):
    """Weights and gradients of all stages together do not depend on where the layers are cut."""
    model = replace(model, mtp_num_layers=0)
    pp = len(cuts)
    assume(pp <= model.num_layers)
    counts = [1] * pp
    for i in range(model.num_layers - pp):
        counts[cuts[i % pp] % pp] += 1
    cluster = parse_gpus("4xA100-80G")
    exact = ExactAccounting(model, Workload(SEQ, BATCH), Implementation(), cluster)
    totals = []
    for split in (counts, [model.num_layers - pp + 1] + [1] * (pp - 1)):
        report = exact.report(Layout(pp=pp, stages=split_from_counts(model, split)))
        totals.append(sum(stage.components["weights"] for stage in report.stages))
    assert totals[0] == totals[1]


@QUICK
@given(layers(), DEGREES, DEGREES, st.sampled_from([1, 2]))
def test_shards_sum_to_the_whole(layer, tp, ep, etp):
    """Over all ranks the divided tensors have the whole's elements; what is whole on each is a norm, a bias, the router
    or a latent projection of Transformer Engine's."""
    whole = {w.name: w for w in layer_weights(layer, 16, Norm(), UNSHARDED) if w.part != "shared_experts"}
    rank = {
        w.name: w
        for w in layer_weights(layer, 16, Norm(), Sharding(tp, ep, etp, mla_down_sharded=True))
        if w.part != "shared_experts"
    }
    assert rank.keys() == whole.keys()
    for name, w in rank.items():
        ranks = ep * etp if w.expert else tp
        if w.numel == whole[name].numel:
            continue
        if w.expert and len(w.shape) == 1:
            continue
        assert w.numel * ranks == whole[name].numel, name
    matrices = [w for w in rank.values() if len(w.shape) == 2 and w.part != "router" and "gate" not in w.name]
    divided = [w for w in matrices if (ep * etp if w.expert else tp) > 1]
    assert all(w.numel < whole[w.name].numel for w in divided)


@QUICK
@given(st.sampled_from([96, 1000, 1024]), DEGREES, st.sampled_from([1, 128]))
def test_vocabulary_shards_sum_to_the_padded_vocabulary(vocab, tp, unit):
    """At least the vocabulary, less than one unit more for each rank."""
    model = Model("v", 16, vocab, (Layer(Attention(4, 4, 4), MLP(32)),), (0,))
    rows = tp * numel(embedding_weights(model, tp, unit)) // 16
    assert vocab <= rows < vocab + unit * tp
    assert rows % (unit * tp) == 0


@QUICK
@given(runs())
def test_activations_grow_with_the_micro_batch(run):
    """Twice the sequences keep at least as much, and exactly twice as much but for what is not per sequence: rotary
    tables, masks of the scores, random states, and a kernel that needs heads in fours."""
    exact, layout = run
    double = replace(layout, micro_batch=2 * layout.micro_batch)
    model, impl = exact.model, exact.implementation
    assume(impl.attention == "fused")
    for kind in model.layer_kinds:
        once, twice = (
            saved_by_tensor(
                layer_tape(shape_of(model, exact.workload, impl, at), impl, kind, model.norm, model.rotary_dim)
            )
            for at in (layout, double)
        )
        fixed = {"rope cos and sin", "attention rng"}
        assert once.keys() == twice.keys()
        assert all(twice[k] == (size if k in fixed else 2 * size) for k, size in once.items())


@QUICK
@given(runs(), st.sampled_from(["tp", "cp"]))
def test_more_sharding_never_keeps_more(run, degree):
    """Twice the tensor (with sequence) or context parallelism never keeps more of a layer's activations, nor holds more
    of its parameters."""
    exact, layout = run
    one = replace(layout, sequence_parallel=layout.tp > 1, ep=1, etp=1)
    assume(one.tp <= 2 and one.cp <= 2)
    more = replace(one, **{degree: 2 * getattr(one, degree)})
    more = replace(more, sequence_parallel=more.tp > 1)
    model, impl = exact.model, exact.implementation
    # with two heads on a rank the fused softmax kernel is not available and torch's keeps more
    assume(impl.attention != "unfused")
    for kind in model.layer_kinds:
        less, base = (
            saved_bytes(layer_tape(shape_of(model, exact.workload, impl, at), impl, kind, model.norm, model.rotary_dim))
            for at in (more, one)
        )
        assert less <= base
        held = [numel(layer_weights(kind, model.hidden_size, model.norm, sharding_of(impl, at))) for at in (more, one)]
        assert held[0] <= held[1]


@QUICK
@given(runs())
def test_sharding_the_optimizer_never_costs_more_than_its_padding(run):
    """ZeRO-1 keeps no more than ZeRO-0, but for bucket padding."""
    exact, layout = run
    assume(layout.dp * layout.cp > 1)
    whole, sharded = replace(layout, zero=0), replace(layout, zero=1)
    for i, (a, b) in enumerate(zip(exact.report(whole).stages, exact.report(sharded).stages, strict=True)):
        assert b.total_bytes <= a.total_bytes + exact.form(sharded, i).padding_bytes


@QUICK
@given(runs())
def test_recomputing_everything_keeps_no_more_for_each_microbatch(run):
    """A checkpointed layer keeps its input alone, never more than the layer itself."""
    exact, layout = run
    for cost in exact.pieces(layout)[0]:
        assert 0 < cost.checkpoint_bytes <= cost.saved_bytes


@QUICK
@given(layers(), implementations())
def test_backward_needs_at_least_its_own_gradients(layer, impl):
    """Over what is alive, backward holds at least the gradient of the output; a rebuilt layer at least as much."""
    model = Model("one", 16, 96, (layer,), (0, 0), max_positions=SEQ)
    exact = ExactAccounting(model, Workload(SEQ, BATCH), impl, parse_gpus("1xA100-80G"))
    layout = Layout(stages=balanced_split(model, 1))
    cost = exact.pieces(layout)[0][0]
    stream = shape_of(model, exact.workload, impl, layout).stream
    assert cost.backward_bytes == backward_peak(cost.tape, stream) >= 2 * stream
    assert cost.recompute_bytes >= cost.saved_bytes - cost.checkpoint_bytes


@QUICK
@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 40), st.integers(0, 7))
def test_more_microbatches_never_hold_fewer_in_flight(pp, vpp, m, stage):
    """In flight grows with the microbatches, up to a bound of the schedule; earlier stages hold no less."""
    assume(stage < pp and (pp > 1 or vpp == 1))
    now, later = peak_in_flight(pp, stage, vpp, m), peak_in_flight(pp, stage, vpp, m + 1)
    assert now * vpp >= 1 and now <= later <= m + 1
    assert now <= peak_in_flight(pp, 0, vpp, m)
    assert peak_in_flight(pp, stage, vpp, 1000) == peak_in_flight(pp, stage, vpp, 2000)


@QUICK
@given(runs(), st.integers(0, 40))
def test_more_memory_never_hurts(run, gigabytes):
    """A card of more memory has more headroom by just as much, and fits whatever a smaller one does."""
    exact, layout = run
    small, large = parse_gpus("8xA100-40G"), parse_gpus("8xA100-80G")
    reports = [
        ExactAccounting(exact.model, exact.workload, exact.implementation, c, gigabytes * 2**30).report(layout)
        for c in (small, large)
    ]
    for a, b in zip(reports[0].stages, reports[1].stages, strict=True):
        assert a.total_bytes == b.total_bytes
        assert b.headroom_bytes - a.headroom_bytes == large.capacity_bytes - small.capacity_bytes
        assert b.fits or not a.fits
