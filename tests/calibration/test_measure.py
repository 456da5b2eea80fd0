"""The measuring code on a make-believe torch: it counts what it is asked to time. No GPU, no torch."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from planner.calibration import measure
from planner.calibration.clock import LEAST_WARM_UPS, MOST_BATCH, measure_call, measure_together
from planner.errors import InputError


class Clock:
    """A device on which each call takes `seconds`; the first ones longer."""

    def __init__(self, seconds, cold=0):
        self.now, self.seconds, self.cold, self.calls = 0.0, seconds, cold, 0
        clock = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = clock.now

            def elapsed_time(self, other):
                return (other.at - self.at) * 1000  # milliseconds, as torch

        self.torch = SimpleNamespace(cuda=SimpleNamespace(Event=Event, synchronize=lambda: None))

    def call(self):
        self.calls += 1
        self.now += self.seconds * (50 if self.calls <= self.cold else 1)


@pytest.mark.parametrize("seconds", [2e-6, 1e-3, 0.5])
def test_the_time_of_a_call_whatever_its_length(seconds):
    """Microseconds to half a second are measured in seconds, warm-up left out."""
    clock = Clock(seconds, cold=LEAST_WARM_UPS)
    found = measure_call(clock.torch, clock.call, 20, host_clock=lambda: clock.now)
    assert found.median_seconds == pytest.approx(seconds, rel=1e-6)
    assert found.spread == pytest.approx(0, abs=1e-6)
    assert found.repetitions == 20


def test_short_calls_are_timed_in_batches():
    """Calls shorter than an event's resolution are repeated between two events, within bounds."""
    clock = Clock(1e-9)
    measure_call(clock.torch, clock.call, 2, warm_up_seconds=0)
    assert clock.calls == LEAST_WARM_UPS + 1 + 2 * MOST_BATCH


def test_ranks_make_the_same_number_of_calls():
    """Collectives are called as often on a slow rank as on a fast one."""
    fast, slow = Clock(1e-6), Clock(1.0)
    for clock in (fast, slow):
        assert measure_together(clock.torch, clock.call, 7).median_seconds == pytest.approx(clock.seconds)
    assert fast.calls == slow.calls


def test_without_torch_or_gpu_it_is_one_sentence(monkeypatch):
    """A missing torch and a missing GPU are refused, each by name."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"needs PyTorch, which is not installed here.*planner\[measure\]"):
        measure.load_torch()
    fake = SimpleNamespace(__version__="2.7", cuda=SimpleNamespace(is_available=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", fake)
    with pytest.raises(InputError, match=r"needs a GPU that PyTorch can use, but torch 2\.7 finds none"):
        measure.load_torch()


def test_the_program_refuses_before_it_measures(tmp_path, capsys, monkeypatch):
    """Bad options and a path that cannot be written end with exit code 2 and one sentence, before torch is needed."""
    monkeypatch.setattr(measure, "load_torch", lambda: pytest.fail("measured"))
    for arguments, says in (
        (["-o", str(tmp_path / "none" / "x.json")], "folder that can be written"),
        (["--rows", "5"], "from 128"),
        (["--repetitions", "1"], "from 2"),
        (["--model", "lama-3-8b"], "llama-3-8b"),
    ):
        assert measure.main(arguments) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_the_program_writes_what_was_recorded(tmp_path, monkeypatch):
    """The first rank writes the whole file, the others nothing."""
    from planner.calibration.recording import Machine, Recording, read_recording

    made = Recording("", Machine("card", 8 * 2**30, 10, 0, "x"), None)
    monkeypatch.setattr(measure, "load_torch", lambda: None)
    monkeypatch.setattr(measure, "record", lambda *arguments: made)
    path = tmp_path / "r.json"
    monkeypatch.setenv("RANK", "1")
    assert measure.main(["-o", str(path)]) == 0
    assert not path.exists()
    monkeypatch.delenv("RANK")
    assert measure.main(["-o", str(path)]) == 0
    assert read_recording(path).machine == made.machine


def test_help_needs_no_torch():
    """`python -m planner.calibration.measure --help` works where torch is not installed."""
    code = "import sys; sys.modules['torch'] = None; from planner.calibration.measure import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--rows" in done.stdout
