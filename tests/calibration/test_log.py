"""Training logs: every known form of a line, interleaved, cut, coloured and hostile ones, and their steady state."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration.log import MOST_LINE, _lines, parse_log, read_log
from planner.calibration.summary import summarise
from planner.errors import InputError

DATA = Path(__file__).parents[1] / "data" / "calibration"


def parse(text):
    return parse_log([line.encode() + b"\n" for line in text.split("\n")], "a.log")


def line(iteration, milliseconds, batch=64):
    time_ms = f"elapsed time per iteration (ms): {milliseconds:.1f}"
    return f" iteration {iteration:8d}/{500:8d} | {time_ms} | global batch size: {batch:5d} |"


FORMS = {
    "current Megatron-LM": (
        " [2025-10-06 03:27:07.123] iteration       10/      50 | consumed samples: 5120 | elapsed time per iteration "
        "(ms): 4647.8 | throughput per GPU (TFLOP/s/GPU): 401.5 | learning rate: 1.5E-06 | global batch size:   512 | "
        "lm loss: 9.76E+00 | loss scale: 1.0 |",
        (10, 4.6478, 512, 401.5),
    ),
    "the first releases": (
        " iteration      200/  320000 | elapsed time per iteration (ms): 1029.5 | learning rate 1.500E-04 |",
        (200, 1.0295, 0, 0.0),
    ),
    "BigScience, in seconds, behind a rank's name": (
        "[default7]: iteration    12695/  115311 | consumed samples: 984 | elapsed time per iteration (s): 105.22 | "
        "global batch size:  2048 | TFLOPs: 149.02 |",
        (12695, 105.22, 2048, 149.02),
    ),
    "Megatron-DeepSpeed with key=value": (
        "[2024-06-21 10:50:42][INFO][utils:190] -  iteration=       1/  317892 | consumed_samples=  768 | "
        "elapsed_time_per_iteration_ms=108893.2 | global_batch_size=  768 | lm loss=11.13 |",
        (1, 108.8932, 768, 0.0),
    ),
    "ROCm's fork, this one and the mean": (
        " iteration        5/      50 | elapsed time per iteration (ms): 8123.4/8200.1 | throughput per GPU "
        "(TFLOP/s/GPU): 512.3/510.9 | global batch size:   256 |",
        (5, 8.1234, 256, 512.3),
    ),
    "coloured": (
        "\x1b[32m iteration \x1b[1m      7/      50 |\x1b[0m elapsed time per iteration (ms): \x1b[33m1000.0\x1b[0m |",
        (7, 1.0, 0, 0.0),
    ),
    "Megatron-Bridge alone": ("Step Time : 4.10s GPU utilization: 650.5MODEL_TFLOP/s/GPU", (0, 4.1, 0, 650.5)),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_an_iteration_is_read(form):
    """Iteration, seconds, global batch and TFLOP/s of every known form of the line."""
    text, expected = FORMS[form]
    log = parse(text)
    assert (log.iterations[0], log.seconds[0], log.batches[0], log.tflops[0]) == pytest.approx(expected)


def test_iteration_lines_win_over_step_time_lines():
    """Where Megatron-Bridge prints both, the more precise one counts, once."""
    log = parse("Step Time : 4.10s GPU utilization: 1.0MODEL_TFLOP/s/GPU\n" + line(10, 4123.4))
    assert list(log.seconds) == pytest.approx([4.1234])


def test_memory_of_interleaved_ranks():
    """Two reports on one line, one that was cut before `max reserved`; the last report of a rank counts."""
    log = parse(
        "[Rank 2] (after 1 iterations) memory (MB) | allocated: 100.5 | max allocated: 200.25 | reserved: 300.0 | "
        "max reserved: 301.0[Rank 6] (after 1 iterations) memory (MB) | allocated: 1 | max allocated: 2 | reserved: 3\n"
        "[Rank 2] (after 100 iterations) memory (MB) | allocated: 100.5 | max allocated: 210.0 | reserved: 300.0 | "
        "max reserved: 310.0"
    )
    two, six = log.memory[2], log.memory[6]
    assert (two.iteration, two.max_allocated_bytes, two.max_reserved_bytes) == (100, 210 * 2**20, 310 * 2**20)
    assert (six.reserved_bytes, six.max_reserved_bytes) == (3 * 2**20, None)


def test_memory_of_megatron_bridge():
    """Its lines name what Megatron-LM's do in gigabytes of 10^9 bytes, among figures that are not needed, in any order;
    one that was cut before the peak says nothing."""
    log = parse(
        "[Rank 3] (after 2 iterations) memory (GB) | mem-allocated-gigabytes: 29.37 | mem-active-gigabytes: 29.37 | "
        "mem-inactive-gigabytes: 0.20112 | mem-reserved-gigabytes: 47.29 | mem-max-allocated-gigabytes: 45.352 | "
        "mem-max-active-gigabytes: 45.36 | mem-max-inactive-gigabytes: 1.1 | mem-max-reserved-gigabytes: 47.305 | "
        "mem-alloc-retires: 0 | mem-allocated-count: 5123\n"
        "[Rank 7] (after 2 iterations) memory (GB) | mem-allocated-gigabytes: 29.37 | mem-active-giga"
    )
    record = log.memory.pop(3)
    assert (record.iteration, record.allocated_bytes, record.max_allocated_bytes) == (2, 29_370_000_000, 45_352_000_000)
    assert (record.reserved_bytes, record.max_reserved_bytes) == (47_290_000_000, 47_305_000_000)
    assert not log.memory and not log.dropped


def test_degrees_and_parameters():
    """Old and new lines about the layout and the size of the model."""
    log = parse(
        "using world size: 64, data-parallel-size: 4, tensor-model-parallel size: 8, pipeline-model-parallel size: 2 \n"
        " > number of parameters on (tensor, pipeline) model parallel rank (3, 1): 2822928384\n"
        " > number of parameters on model parallel rank 0: 354871296\n"
        "Total number of parameters in billions: 13.02"
    )
    assert log.degrees == {"world_size": 64, "dp": 4, "tp": 8, "pp": 2}
    assert log.shard_parameters == {(3, 1): 2822928384, (0, 0): 354871296}
    assert log.parameters_billions == 13.02
    newer = parse(
        "using world size: 16, data-parallel size: 2, context-parallel size: 4, hierarchical context-parallel sizes: "
        "None, tensor-model-parallel size: 2, pipeline-model-parallel size: 1"
    )
    assert newer.degrees == {"world_size": 16, "dp": 2, "cp": 4, "tp": 2, "pp": 1}


def test_a_file_with_jobs_of_different_degrees_is_refused(tmp_path):
    """A restart of the same job prints the same degrees; other ones are another job, whose steps and memory would be
    taken for this one's."""
    said = "using world size: 16, data-parallel size: {}, tensor-model-parallel size: {}\n"
    path = tmp_path / "a.log"
    path.write_text(said.format(2, 8) + line(1, 1000) + "\n" + said.format(2, 8) + line(2, 1000) + "\n")
    assert read_log(path).degrees == {"world_size": 16, "dp": 2, "tp": 8}
    path.write_text(said.format(2, 8) + line(1, 1000) + "\n" + said.format(4, 4) + line(2, 1000) + "\n")
    with pytest.raises(InputError, match="states dp = 2 and later 4: give a file for each"):
        read_log(path)


def test_several_ranks_that_print_the_same_iteration_count_once():
    """Interleaved output of two ranks gives each iteration once, in order."""
    log = parse("\n".join(line(i, 1000 + i) for i in (1, 1, 2, 3, 2, 3, 4)))
    assert list(log.iterations) == [1, 2, 3, 4]


@pytest.mark.parametrize("figure", ["nan", "inf", "-5.0", "0.0", "1.2.3", "9" * 400, "1e999", "", "99999999999999"])
def test_impossible_figures_are_never_used(figure):
    """A step that took no time, for ever, or not a number is not a step."""
    log = parse(f" iteration 1/ 5 | elapsed time per iteration (ms): {figure} |")
    assert not log.seconds


@pytest.mark.parametrize("figure", ["0", "9e999", "99999999999999999"])
def test_impossible_memory_is_never_used(figure):
    """A peak of nothing, or of more than any card has, is dropped and counted."""
    log = parse(f"[Rank 0] (after 2 iterations) memory (MB) | allocated: 1 | max allocated: {figure} | reserved: 3")
    assert not log.memory and log.dropped == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=80), st.sampled_from([f[0].encode() for f in FORMS.values()])), max_size=20)
)
def test_no_bytes_can_break_the_parser(pieces):
    """Any bytes between and inside known lines give a log whose figures are possible."""
    log = parse_log(b"".join(pieces).splitlines(keepends=True), "a.log")
    assert all(0 < s <= 86_400 for s in log.seconds)
    assert len(log.seconds) == len(log.iterations) == len(log.batches) == len(log.tflops)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_log_cut_anywhere_gives_a_prefix(data):
    """A log cut in the middle of a line has the iterations before it, unchanged but for the one that was cut."""
    whole = (DATA / "run_tp2pp2.log").read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    full = parse_log(whole.splitlines(keepends=True), "a")
    part = parse_log(whole[:cut].splitlines(keepends=True), "a")
    kept = max(0, len(part.seconds) - 1)
    assert list(part.seconds[:kept]) == list(full.seconds[:kept])


def test_a_large_file_without_line_ends_is_read_in_pieces(tmp_path):
    """Hundreds of kilobytes without a newline, NUL bytes and what tempts a regular expression are never searched in
    more than MOST_LINE bytes at once."""
    path = tmp_path / "hostile.log"
    junk = b"elapsed time per iteration (ms):" + b" " * (4 * MOST_LINE) + b"iteration" * 20_000 + b"\0" * 100_000
    path.write_bytes(junk + b"\n" + line(3, 1500).encode() + b"\n")
    with path.open("rb") as stream:
        pieces = list(_lines(stream))
    assert len(pieces) == -(-len(junk) // MOST_LINE) + 1 and max(map(len, pieces)) == MOST_LINE
    assert list(read_log(path).seconds) == [1.5]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "no such file"),
        ("folder", "this is a directory"),
        ("empty", "none was found"),
        ("bad\0", "cannot be read"),
    ],
)
def test_what_is_no_log_is_one_sentence(tmp_path, name, says):
    """Missing files, folders and files without iterations are refused by name."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("nothing here\n")
    with pytest.raises(InputError, match=says):
        read_log(f"{tmp_path}/{name}")


def test_the_steady_state_of_a_log():
    """Warm-up is discarded, a slow iteration is an outlier and does not move the median."""
    summary = summarise(read_log(DATA / "run_tp2pp2.log"))
    assert (summary.warm_up, summary.first, summary.last, summary.outliers) == (10, 11, 60, 1)
    assert summary.median_seconds == pytest.approx(6.0, rel=2e-3)
    assert summary.spread < 0.01
    assert summary.tflops_per_gpu == pytest.approx(2691 / 6.0, rel=5e-3)


def test_warm_up_after_each_restart_and_by_interval():
    """A restart warms up again; with a logging interval of 100 just the first figure goes; a short log keeps half."""
    restarted = [*range(1, 31), *range(21, 51)]
    assert summarise(parse("\n".join(line(i, 1000) for i in restarted))).warm_up == 20
    assert summarise(parse("\n".join(line(i, 1000) for i in range(100, 1100, 100)))).warm_up == 1
    assert summarise(parse("\n".join(line(i, 1000) for i in (1, 2, 3, 4)))).count == 2
    assert summarise(parse(line(1, 1000))).count == 1


def test_a_batch_ramp_is_left_out():
    """Only iterations with the launch's global batch count; a launch with another batch is refused with both."""
    log = parse("\n".join([line(i, 100, 32) for i in range(1, 41)] + [line(i, 200, 64) for i in range(41, 101)]))
    summary = summarise(log, global_batch=64)
    assert (summary.median_seconds, summary.other_batch, summary.global_batch) == (0.2, 40, 64)
    assert summarise(log).global_batch == 64
    with pytest.raises(InputError, match="global batch of 128, but the log says 64, 32"):
        summarise(log, global_batch=128)


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 500), st.integers(0, 10), st.randoms(use_true_random=False))
def test_a_tenth_of_slow_iterations_moves_nothing(base, slow, rng: random.Random):
    """Up to a tenth of iterations, however slow, leave the median within the noise and are counted."""
    times = [base * (1 + rng.uniform(-0.01, 0.01)) for _ in range(110)]
    for i in rng.sample(range(10, 110), slow):
        times[i] *= rng.uniform(2, 30)
    summary = summarise(parse("\n".join(line(i + 1, 1000 * t) for i, t in enumerate(times))))
    assert summary.median_seconds == pytest.approx(base, rel=0.015, abs=1e-4)
    assert summary.outliers >= slow - 1
