"""The measuring code on a make-believe torch: it counts what it is asked to time. No GPU, no torch."""

import contextlib
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest

from planner.calibration import measure
from planner.calibration.clock import LEAST_WARM_UPS, MOST_BATCH, measure_call, measure_together
from planner.calibration.recording import Sample
from planner.calibration.shapes import COPIES, products
from planner.catalog import load_model
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


class OutOfMemoryError(RuntimeError):
    """As torch's."""


def make_believe(monkeypatch, capability=(9, 0), hip=None, gfx="", room=2**40):
    """A torch whose tensors are their number of elements, on a card with room for so many; it keeps what _scaled_mm
    was called with."""
    torch = Clock(1e-3).torch
    torch.made = []

    class Tensor(SimpleNamespace):
        def to(self, dtype):
            return Tensor(elements=self.elements, dtype=dtype)

        def t(self):
            return self

        def copy_(self, other):
            pass

    def tensor(*shape, dtype=None, **named):
        elements = math.prod(n for n in shape if n != ())
        if elements > room:
            raise OutOfMemoryError("CUDA out of memory.")
        return Tensor(elements=elements, dtype=dtype)

    def scaled_mm(a, b, **named):
        torch.made.append((a.dtype, named["use_fast_accum"]))

    def attention(q, k, v, is_causal):
        return q

    torch.cuda.get_device_capability = lambda: capability
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda device: SimpleNamespace(gcnArchName=gfx)
    torch.cuda.empty_cache = lambda: None
    torch.version = SimpleNamespace(hip=hip)
    torch.float32, torch.float16, torch.bfloat16, torch.uint8 = "float32", "float16", "bfloat16", "uint8"
    torch.float8_e4m3fn, torch.float8_e4m3fnuz = "e4m3fn", "e4m3fnuz"
    torch.randn = torch.empty = torch.ones = tensor
    torch.empty_like = torch.ones_like = lambda x: tensor(x.elements)
    torch.mm, torch._scaled_mm = lambda a, b, out: None, scaled_mm
    torch.nn = SimpleNamespace(functional=SimpleNamespace(scaled_dot_product_attention=attention))
    torch.autograd = SimpleNamespace(grad=lambda *arguments, **named: None)
    backends = SimpleNamespace(FLASH_ATTENTION=1)
    modules = {"torch": torch, "torch.nn": torch.nn}
    modules["torch.nn.attention"] = SimpleNamespace(SDPBackend=backends, sdpa_kernel=lambda b: contextlib.nullcontext())
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(measure, "measure_call", lambda torch, call, n: call() or Sample(1e-3, 1e-3, 1e-3, n))
    return torch


@pytest.mark.parametrize(
    ("where", "half", "fp8"),
    [
        ({"capability": (7, 0)}, "fp16", None),  # V100: bf16 is emulated
        ({"capability": (7, 5)}, "fp16", None),  # T4, 2080 Ti
        ({"capability": (8, 0)}, "bf16", None),
        ({"capability": (8, 9)}, "bf16", "e4m3fn"),
        ({"capability": (9, 0), "hip": "6.2", "gfx": "gfx90a:sramecc+:xnack-"}, "bf16", None),  # MI250X
        ({"capability": (9, 4), "hip": "6.2", "gfx": "gfx942:sramecc+:xnack-"}, "bf16", "e4m3fnuz"),  # MI300X
        ({"capability": (9, 5), "hip": "7.0", "gfx": "gfx950:sramecc+:xnack-"}, "bf16", "e4m3fn"),  # MI355X
    ],
)
def test_a_card_is_timed_in_the_types_that_it_has(monkeypatch, where, half, fp8):
    """Emulated types are not timed; fp8 in the form of the card's own products."""
    torch = make_believe(monkeypatch, **where)
    found = list(measure._products(torch, load_model("llama-3-8b"), 128, 2, print))
    assert {p.precision for p in found} == {half} | ({"fp8"} if fp8 else set())
    assert {dtype for dtype, _ in torch.made} == ({fp8} if fp8 else set())


def test_fp8_products_accumulate_as_transformer_engine_has_it(monkeypatch):
    """Fast in the forward pass, split in both gradients."""
    torch = make_believe(monkeypatch)
    found = list(measure._products(torch, load_model("llama-3-8b"), 128, 2, print))
    uses = [p.use for p in found if p.precision == "fp8"]
    assert {*uses} == {"forward", "dgrad", "wgrad", "sweep"}
    assert [fast for _, fast in torch.made] == [use in ("forward", "sweep") for use in uses]


def test_what_has_no_room_is_left_out_and_counted(monkeypatch):
    """Tensors that the card cannot hold cost their measurement, not the others, and the user is told how many."""
    said = []
    torch, model = make_believe(monkeypatch, room=2**26), load_model("llama-3-8b")
    found = list(measure._products(torch, model, 8192, 2, said.append))
    shapes = products(model, 8192)
    kept = [p for p in shapes if max(p.m * p.k, p.n * p.k, p.m * p.n) <= 2**26]
    assert 0 < len(kept) < len(shapes)
    assert [(p.m, p.n, p.k) for p in found if p.precision == "bf16"] == [p[:3] for p in kept]
    list(measure._attention(torch, model, 32768, 2, said.append))
    assert [c.moved_bytes for c in measure._copies(torch, 2)] == [2 * n for n in COPIES if n <= 2**26]
    assert (
        said[0]
        == f"{len(shapes) - len(kept)} of {len(shapes)} products in bf16 left out: no room on the card, or no kernel"
    )
    assert "products in fp8 left out" in said[1] and "passes of flash attention left out" in said[2]


def test_a_collective_that_fails_keeps_what_was_measured():
    """What was timed before it is used, and the reason is said in a line."""

    def times():
        yield 1
        raise OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    said = []
    assert list(measure._until_failure(times(), said.append)) == [1]
    assert said == ["collectives end here: CUDA out of memory."]


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
