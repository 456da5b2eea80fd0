"""Training logs of Megatron-LM and its relatives, read as a stream: what each iteration took, what memory each rank
reported, how the job was laid out.

Lines that are understood (megatron/training/training.py: training_log, report_memory; arguments.py: validate_args;
theoretical_memory_usage.py), with their older and forked forms:

    iteration 10/ 500 | ... elapsed time per iteration (ms): 1234.5 | ... global batch size: 256 | ...
    iteration= 10/ 500 | ... elapsed_time_per_iteration_ms=1234.5 | ...          (Megatron-DeepSpeed of ALCF)
    ... elapsed time per iteration (s): 105.43 | ...                             (BigScience)
    ... elapsed time per iteration (ms): 1234.5/1240.1 | ...                     (this one / mean; Megatron of ROCm)
    Step Time : 4.10s GPU utilization: 650.0MODEL_TFLOP/s/GPU                    (Megatron-Bridge)
    [Rank 0] (after 2 iterations) memory (MB) | allocated: 1 | max allocated: 2 | reserved: 3 | max reserved: 4
    [Rank 0] (after 2 iterations) memory (GB) | mem-allocated-gigabytes: 1 | ... | mem-max-reserved-gigabytes: 4
                                                  (Megatron-Bridge, training/utils/train_utils.py: report_memory)
    using world size: 16, data-parallel size: 2, ..., tensor-model-parallel size: 8, pipeline-model-parallel size: 1
    > number of parameters on (tensor, pipeline) model parallel rank (0, 0): 354871296
    Total number of parameters in billions: 13.02

A log is untrusted: lines are cut at MOST_LINE bytes, numbers that cannot be are dropped and counted, several ranks that
print the same iteration count once.
"""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planner.errors import InputError

MOST_LINE = 1 << 16
MOST_ITERATIONS = 5_000_000
"""Kept of one log; a run of months logs fewer."""
MOST_RANKS = 100_000
MEGABYTE = 2**20
"""Megatron's MB (megatron/training/utils.py: report_memory divides by 1024 twice)."""
GIGABYTE = 10**9
"""Megatron-Bridge's GB (training/utils/train_utils.py: report_memory divides by 1e9, to 5 significant digits)."""
LONGEST_STEP_SECONDS = 86_400.0

_ANSI = re.compile(rb"\x1b\[[0-9;?]{0,16}[A-Za-z]|\x1b[\[\]]?")
_NUMBER = rb"([0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,3})?)(?![0-9.eE])"
_ELAPSED = re.compile(rb"elapsed[ _]time[ _]per[ _]iteration[ _]\(?(ms|s)\)?\s{0,8}[:=]\s{0,16}" + _NUMBER)
_STEP_TIME = re.compile(rb"Step Time\s{0,8}:\s{0,8}" + _NUMBER + rb"\s?s")
_ITERATION = re.compile(rb"iteration[ =:]\s{0,16}([0-9]{1,15})\s{0,16}/")
_BATCH = re.compile(rb"global[ _]batch[ _]size\s{0,8}[:=]\s{0,16}([0-9]{1,12})")
_TFLOPS = re.compile(
    rb"(?:throughput per GPU \(TFLOP/s/GPU\)\s{0,4}:|GPU utilization:|TFLOPs\s{0,4}[:=])\s{0,16}" + _NUMBER
)
_AFTER = rb"\[Rank\s{0,4}([0-9]{1,9})\]\s{0,4}\(after\s{1,4}([0-9]{1,12})\s{1,4}iterations?\)\s{0,4}memory "
_MEMORY = re.compile(
    _AFTER + rb"\(MB\)\s{0,4}\|\s{0,4}allocated:\s{0,4}" + _NUMBER +
    rb"\s{0,4}\|\s{0,4}max allocated:\s{0,4}" + _NUMBER +
    rb"(?:\s{0,4}\|\s{0,4}reserved:\s{0,4}" + _NUMBER + rb")?(?:\s{0,4}\|\s{0,4}max reserved:\s{0,4}" + _NUMBER + rb")?"
)  # fmt: skip
_MEMORY_GB = re.compile(_AFTER + rb"\(GB\)((?:\s{0,4}\|\s{0,4}mem-[a-z-]{1,40}:\s{0,4}[0-9.eE+-]{1,24}){1,20})")
_GIGABYTES = re.compile(rb"mem-((?:max-)?(?:allocated|reserved))-gigabytes:\s{0,4}" + _NUMBER)
_REPORTED = (b"allocated", b"max-allocated", b"reserved", b"max-reserved")
_DEGREES = {
    "world_size": re.compile(rb"using world size:\s{0,4}([0-9]{1,9})"),
    "dp": re.compile(rb"data-parallel[- ]size:\s{0,4}([0-9]{1,9})"),
    "cp": re.compile(rb"(?<!hierarchical )context-parallel size:\s{0,4}([0-9]{1,9})"),
    "tp": re.compile(rb"(?<!encoder-)tensor-model-parallel size:\s{0,4}([0-9]{1,9})"),
    "pp": re.compile(rb"(?<!encoder-)pipeline-model-parallel size:\s{0,4}([0-9]{1,9})"),
}
_SHARD = re.compile(
    rb"number of parameters on (?:\(tensor, pipeline\) )?model parallel rank "
    rb"\(?\s{0,4}([0-9]{1,9})(?:\s{0,4},\s{0,4}([0-9]{1,9})\s{0,4}\))?\s{0,4}:\s{0,4}([0-9]{1,15})(?![0-9])"
)
_BILLIONS = re.compile(rb"Total number of parameters in billions:\s{0,4}" + _NUMBER)
_INTERESTING = re.compile(rb"elapsed[ _]time|Step Time|memory \([MG]B\)|using world size|number of parameters")


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """What a rank's allocator reported [bytes]; None where the line was cut."""

    rank: int
    iteration: int
    allocated_bytes: int
    max_allocated_bytes: int
    reserved_bytes: int | None
    max_reserved_bytes: int | None


@dataclass(slots=True)
class TrainingLog:
    """What a log says. Iterations in the order of the file, each once."""

    name: str
    iterations: array[int] = field(default_factory=lambda: array("q"))
    """Number of the iteration that a line was printed at; 0 where the line has none."""
    seconds: array[float] = field(default_factory=lambda: array("d"))
    batches: array[int] = field(default_factory=lambda: array("q"))
    """Global batch of each; 0 where the line has none."""
    tflops: array[float] = field(default_factory=lambda: array("d"))
    """TFLOP/s of a GPU as the log counts them; 0 where the line has none."""
    memory: dict[int, MemoryRecord] = field(default_factory=dict)
    """By rank, the last report."""
    degrees: dict[str, int] = field(default_factory=dict)
    """world_size, dp, cp, tp, pp as the log states them first."""
    contradictions: dict[str, int] = field(default_factory=dict)
    """The same where a later start in the file states others: figures of several jobs, which cannot be told apart."""
    shard_parameters: dict[tuple[int, int], int] = field(default_factory=dict)
    """Parameters of (tensor, pipeline) rank."""
    parameters_billions: float | None = None
    dropped: int = 0
    """Lines that look like an iteration but whose figures cannot be."""


def called(degree: str) -> str:
    """What a message calls a degree."""
    return "GPUs" if degree == "world_size" else degree


def read_log(path: str | Path) -> TrainingLog:
    """The training log in a file of any size. Raises InputError unless it is a readable file with at least one line
    that says how long an iteration took."""
    name = str(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: a training log is required, but this is a directory.")
        if not stat.S_ISREG(mode):
            raise InputError(f"{name}: a regular file is required, but this is a device, socket or pipe.")
        with open(path, "rb") as stream:
            log = parse_log(_lines(stream), name)
    except FileNotFoundError:
        raise InputError(f"{name}: no such file.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if log.contradictions:
        degree, other = next(iter(log.contradictions.items()))
        raise InputError(
            f"{name}: the log of one job is required, but it states {called(degree)} = {log.degrees[degree]} and later "
            f"{other}: give a file for each."
        )
    if not log.seconds:
        why = f" ({log.dropped} were found, but their figures cannot be)" if log.dropped else ""
        raise InputError(
            f"{name}: a Megatron-LM log is required, with lines such as 'iteration 10/ 500 | elapsed time per "
            f"iteration (ms): 1234.5 |', but none was found{why}."
        )
    return log


def parse_log(lines: Iterable[bytes], name: str) -> TrainingLog:
    """As read_log, from lines; a log without iterations is an empty one."""
    log, steps = TrainingLog(name), TrainingLog(name)
    for line in lines:
        if not _INTERESTING.search(line):
            continue
        if b"\x1b" in line:
            line = _ANSI.sub(b"", line)
        for found in _MEMORY.finditer(line):
            _add_memory(log, found, found.groups()[2:], MEGABYTE)
        for found in _MEMORY_GB.finditer(line):
            named = dict(_GIGABYTES.findall(found[3]))
            if b"max-allocated" in named and b"allocated" in named:  # not cut
                _add_memory(log, found, [named.get(name) for name in _REPORTED], GIGABYTE)
        if match := _ELAPSED.search(line):
            _add_iteration(log, line, float(match[2]) / (1000.0 if match[1] == b"ms" else 1.0))
        elif match := _STEP_TIME.search(line):
            _add_iteration(steps, line, float(match[1]))
        elif b"world size" in line or b"number of parameters" in line:
            _add_setting(log, line)
    if not log.seconds:
        log.iterations, log.seconds, log.batches, log.tflops = (
            steps.iterations,
            steps.seconds,
            steps.batches,
            steps.tflops,
        )
    log.dropped += steps.dropped
    return log


def _lines(stream: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a binary stream, longer ones in pieces, so that a file without line ends takes no memory."""
    read = stream.readline  # type: ignore[attr-defined]
    while line := read(MOST_LINE):
        yield line


def _add_iteration(log: TrainingLog, line: bytes, seconds: float) -> None:
    if not 0 < seconds <= LONGEST_STEP_SECONDS or len(log.seconds) >= MOST_ITERATIONS:
        log.dropped += 1
        return
    match = _ITERATION.search(line)
    iteration = int(match[1]) if match else 0
    if iteration and iteration in log.iterations[-2:]:
        return  # another rank says the same
    batch, tflops = _BATCH.search(line), _TFLOPS.search(line)
    log.iterations.append(iteration)
    log.seconds.append(seconds)
    log.batches.append(int(batch[1]) if batch else 0)
    log.tflops.append(float(tflops[1]) if tflops else 0.0)


def _add_memory(log: TrainingLog, match: re.Match[bytes], texts: Sequence[bytes | None], unit_bytes: int) -> None:
    """A rank's report; `texts` are the figures of `_REPORTED`, in units of so many bytes."""
    rank = int(match[1])
    figures = [None if text is None else round(min(float(text) * unit_bytes, 2.0**60)) for text in texts]
    allocated, peak = figures[0], figures[1]
    if allocated is None or peak is None or not 0 < peak < 2**50 or len(log.memory) >= MOST_RANKS:
        log.dropped += 1
        return
    log.memory[rank] = MemoryRecord(rank, int(match[2]), allocated, peak, figures[2], figures[3])


def _add_setting(log: TrainingLog, line: bytes) -> None:
    if b"using world size" in line:
        for name, pattern in _DEGREES.items():
            if match := pattern.search(line):
                degree = int(match[1])
                if log.degrees.setdefault(name, degree) != degree:
                    log.contradictions[name] = degree
    for match in _SHARD.finditer(line):
        if len(log.shard_parameters) < MOST_RANKS:
            log.shard_parameters[int(match[1]), int(match[2] or 0)] = int(match[3])
    if match := _BILLIONS.search(line):
        log.parameters_billions = float(match[1])
