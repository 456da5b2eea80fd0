"""The microbenchmark without a GPU: recordings made by hand from planted constants give the constants back."""

import json
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from planner.calibration.curves import calibration_of_recording, constants_of_recording, unused
from planner.calibration.recording import (
    AttentionTime,
    CollectiveTime,
    CopyTime,
    Machine,
    ProductTime,
    Recording,
    Sample,
    read_recording,
    recording_json,
)
from planner.calibration.reserve import reserve_of
from planner.calibration.shapes import COLLECTIVES, COPIES, MESSAGES, attentions, products
from planner.catalog import load_model
from planner.errors import InputError
from planner.hardware import parse_gpus
from planner.layout import Layout
from planner.timing.collectives import all_reduce_seconds, all_to_all_seconds, gather_seconds
from planner.timing.efficiency import efficiency
from planner.timing.kernels import Device, flash_seconds, gemm_seconds, memory_seconds
from planner.topology import group_links

CLUSTER = parse_gpus("16xH100-80G")
MODEL = load_model("llama-3-8b")
MACHINE = Machine("NVIDIA H100 80GB HBM3", 84_943_044_608, 132, 600 * 2**20, "by hand")


def sample(seconds, spread=0.01):
    return Sample(seconds, seconds * (1 - spread / 2), seconds * (1 + spread / 2), 20)


def recording(noise=lambda i: 1.0, kernel=2e-6, ranks=(8, 16), **planted):
    """What a machine with the planted constants would measure."""
    e = replace(efficiency(CLUSTER), kernel_seconds=kernel, **planted)
    gemm = Device(CLUSTER.card, replace(e, sustained={}))
    device = Device(CLUSTER.card, e)
    shapes = products(MODEL, 8192)
    times = [
        ProductTime(*p, precision, sample(gemm_seconds(gemm, p.m, p.n, p.k, precision) * noise(i)))
        for i, p in enumerate(shapes)
        for precision in ("bf16", "fp8")
    ]
    attention = [
        AttentionTime(*c, back, kernel_name, sample(flash_seconds(device, *c, None, 1, back, older)))
        for c in attentions(MODEL, 8192)
        for back in (False, True)
        for kernel_name, older in (("cudnn", False), ("flash", True))
    ]
    copies = [CopyTime(2 * n, sample(memory_seconds(device, 2 * n))) for n in COPIES]
    functions = {"all_reduce": all_reduce_seconds, "all_to_all": all_to_all_seconds}
    collectives = [
        CollectiveTime(kind, n, 8, size, sample(functions.get(kind, gather_seconds)(link, float(size), e)))
        for n in ranks
        for link in [group_links(Layout(dp=n), CLUSTER)["dp_cp"]]
        for kind in COLLECTIVES
        for size in MESSAGES
    ]
    return Recording(
        "by_hand.json",
        MACHINE,
        sample(kernel),
        tuple(times),
        tuple(attention),
        tuple(copies),
        tuple(collectives),
    )


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.floats(0.45, 0.95), st.integers(100, 400), st.floats(0.5, 0.95), st.floats(0.25, 0.75), st.floats(0.5, 1.0))
def test_planted_constants_are_recovered(best, ramp, memory, attention, link):
    """Best fraction, ramp, memory, attention and links of a made-up machine come back from its measurements."""
    planted = {
        "gemm": {"bf16": best, "fp16": best, "fp8": best * 0.9},
        "gemm_ramp": ramp,
        "memory": memory,
        "attention_forward": attention,
        "attention_backward": attention * 0.8,
        "older_attention": 0.6,
        "scale_up": link,
        "scale_up_all_reduce": link * 1.2,
        "network": link * 0.9,
        "collective_seconds": 2e-5,
    }
    found = {(c.name, c.key): c for c in constants_of_recording(recording(**planted), CLUSTER)}
    assert all(c.determined for c in found.values())
    for name, value in planted.items():
        for key, one in value.items() if isinstance(value, dict) else [("", value)]:
            if key == "fp16":
                assert ("gemm", "fp16") not in found
                continue
            tolerance = 0.15 if name in ("gemm_ramp", "collective_seconds") else 0.03
            assert found[name, key].value == pytest.approx(one, rel=tolerance), name
    assert all(c.median_error < 0.02 for c in found.values())


def test_a_few_bad_shapes_move_little():
    """Every tenth shape four times too slow (no good kernel for it) moves the best fraction by less than 5 %."""
    planted = {"gemm": {"bf16": 0.7, "fp8": 0.6}, "gemm_ramp": 192}
    made = recording(noise=lambda i: 4.0 if i % 10 == 0 else 1.0, **planted)
    found = {(c.name, c.key): c.value for c in constants_of_recording(made, CLUSTER)}
    assert found["gemm", "bf16"] == pytest.approx(0.7, rel=0.05)


def test_the_calibration_has_every_constant_with_its_provenance_and_is_used():
    """What is written names file, card and error of the fit, and the model of time takes it."""
    made = recording(memory=0.6, gemm={"bf16": 0.6, "fp8": 0.5})
    constants = constants_of_recording(made, CLUSTER)
    calibration = calibration_of_recording(made, constants, CLUSTER)
    assert "by_hand.json, NVIDIA H100 80GB HBM3" in calibration["gemm"]["bf16"]["source"]
    e = efficiency(replace(CLUSTER, calibration=calibration))
    assert e.memory == pytest.approx(0.6, rel=0.01)
    assert e.gemm["bf16"] == pytest.approx(0.6, rel=0.01)
    assert e.gemm["tf32"] == efficiency(CLUSTER).gemm["tf32"]
    assert e.sustained == efficiency(CLUSTER).sustained


def test_a_recording_of_one_card_says_nothing_of_links():
    """Without collectives no link is touched; without products no matrix rate is."""
    made = recording(ranks=())
    names = {c.name for c in constants_of_recording(made, CLUSTER)}
    assert not names & {"scale_up", "scale_up_all_reduce", "network", "all_to_all", "collective_seconds"}
    bare = Recording("bare.json", MACHINE, None)
    assert constants_of_recording(bare, CLUSTER) == []


def test_what_a_recording_holds_in_vain_is_said():
    """bf16 on a card without it (a recording of older releases, which timed its emulation), cuDNN's attention where
    the flash kernel runs in training. On the card that was measured everything is used."""
    made = recording(ranks=())
    assert unused(made, CLUSTER) == []
    said = unused(made, parse_gpus("8xV100-32G"))
    counts = [sum(p.precision == precision for p in made.products) for precision in ("bf16", "fp8")]
    assert said[:2] == [
        f"{count} products in {precision} are not used: V100-32G has no such rate"
        for count, precision in zip(counts, ("bf16", "fp8"), strict=True)
    ]
    assert "cuDNN's attention" in said[2]


def test_collectives_must_fit_the_cluster():
    """More ranks than GPUs, and nodes of another size, are refused with both figures."""
    made = recording()
    with pytest.raises(InputError, match="ran on 16 GPUs, but the cluster has 8"):
        constants_of_recording(made, parse_gpus("8xH100-80G"))
    with pytest.raises(InputError, match="nodes have 8 GPUs, but those of the cluster have 4"):
        constants_of_recording(made, parse_gpus("8x4xH100-80G"))


def test_the_measured_context_replaces_the_sheet_s():
    """The context is the benchmark's, the rest of the reserve the sheet's."""
    reserve, _ = reserve_of(CLUSTER, (), [recording(ranks=())])
    assert reserve.items["context"]["value"] == 600 * 2**20
    assert reserve.total_bytes == CLUSTER.card.reserve_bytes - 512 * 2**20 + 600 * 2**20


def test_a_recording_survives_its_file(tmp_path):
    """Writing and reading back gives the same recording."""
    path = tmp_path / "r.json"
    made = recording(ranks=(8,))
    path.write_text(recording_json(made))
    assert read_recording(path) == replace(made, name=str(path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d.update(version=9), "version 1"),
        (lambda d: d.update(gems=[]), "unknown key 'gems'"),
        (lambda d: d.pop("machine"), "machine must be a mapping"),
        (
            lambda d: d["machine"].update(capacity_bytes="80GB"),
            "machine.capacity_bytes must be a number, but is '80GB'",
        ),
        (lambda d: d["copies"][0].pop("moved_bytes"), r"copies\[0\] lacks moved_bytes"),
        (lambda d: d["copies"][0]["sample"].update(median_seconds=0), "more than 0 and at most 3600 s, but is 0"),
        (lambda d: d["copies"][0]["sample"].update(median_seconds=float("nan")), "must be a number"),
        (lambda d: d["products"][3].update(m=0.5), r"products\[3\].m must be a whole number"),
        (lambda d: d["products"][0].update(precision="int4"), "one of bf16, fp16, fp8, but is 'int4'"),
        (lambda d: d["attention"][0].update(backward="no"), "true or false"),
        (lambda d: d["kernel"].update(extra=1), "unknown key 'extra'"),
        (lambda d: d.update(products={}), "products must be a list"),
        (lambda d: d["collectives"][0].update(ranks=1), "at least 2 ranks"),
    ],
)
def test_what_is_wrong_with_a_recording_is_one_sentence(tmp_path, change, says):
    """Each mistake is named by its place."""
    data = json.loads(recording_json(recording(ranks=(8,))))
    change(data)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=says) as error:
        constants_of_recording(read_recording(path), CLUSTER)
    assert "\n" not in str(error.value)


def test_shapes_cover_forward_and_both_gradients():
    """Every linear map of the layer appears forward, for its input's gradient and for its own; each shape once."""
    shapes = products(MODEL, 8192)
    assert {p.use for p in shapes} == {"sweep", "forward", "dgrad", "wgrad"}
    assert len(set(shapes)) == len(shapes) <= 120
    qkv = next(p for p in shapes if p.use == "forward")
    assert (qkv.m, qkv.k) == (8192, MODEL.hidden_size)
    assert any((p.m, p.n, p.k) == (qkv.n, qkv.k, qkv.m) for p in shapes if p.use == "wgrad")
