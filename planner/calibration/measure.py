"""The microbenchmark: `python -m planner.calibration.measure -o h100.json` on a machine with a GPU and PyTorch.

    python -m planner.calibration.measure --model llama-3-8b -o h100.json
    torchrun --nproc-per-node 8 -m planner.calibration.measure -o h100.json      # collectives too

Then, anywhere: `plan calibrate --from-measurement h100.json --gpus 16xH100-80G -o my_cluster.yaml`.
PyTorch is imported when something is measured, so that the rest works without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from planner.calibration.clock import REPETITIONS, measure_call, measure_together
from planner.calibration.recording import (
    AttentionTime,
    CollectiveTime,
    CopyTime,
    Machine,
    ProductTime,
    Recording,
    Sample,
    recording_json,
)
from planner.calibration.shapes import COLLECTIVES, COPIES, MESSAGES, attentions, products
from planner.errors import InputError, PlannerError
from planner.model import Model

KERNELS_IN_GRAPH = 1000
INSTALL = "install it with `pip install 'planner[measure]'` on a machine with an NVIDIA or AMD GPU"
Say = Callable[[str], None]


def load_torch() -> Any:
    """PyTorch with a usable GPU. Raises InputError with one sentence where either is missing."""
    try:
        import torch
    except ImportError:
        raise InputError(f"measuring needs PyTorch, which is not installed here: {INSTALL}.") from None
    if not torch.cuda.is_available():
        raise InputError(f"measuring needs a GPU that PyTorch can use, but torch {torch.__version__} finds none.")
    return torch


def record(torch: Any, model: Model, tokens: int, repetitions: int = REPETITIONS, say: Say | None = None) -> Recording:
    """Everything that this process's GPU can tell. Collectives when it is one of several of torchrun."""
    tell = say or (lambda text: None)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    machine = _machine(torch)
    tell(f"{machine.name}: copies and launches")
    kernel = _kernel(torch, repetitions)
    copies = tuple(_copies(torch, repetitions))
    tell("matrix products")
    product_times = tuple(_products(torch, model, tokens, repetitions))
    tell("attention")
    attention = tuple(_attention(torch, model, tokens, repetitions))
    collectives: tuple[CollectiveTime, ...] = ()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        tell("collectives")
        collectives = tuple(_collectives(torch, repetitions))
    return Recording("", machine, kernel, product_times, attention, copies, collectives)


def _machine(torch: Any) -> Machine:
    """The card; the context is what the card uses beyond the allocator, with nothing else running on it."""
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Machine(
        name=str(properties.name),
        capacity_bytes=int(total),
        multiprocessors=int(properties.multi_processor_count),
        context_bytes=max(0, int(total - free - torch.cuda.memory_reserved())),
        software=f"torch {torch.__version__}, CUDA {torch.version.cuda}",
    )


def _kernel(torch: Any, repetitions: int) -> Sample:
    """Device time of one tiny kernel: many of them in a graph, so that the host's launches do not show."""
    x = torch.zeros(32, device="cuda")
    for _ in range(3):
        x.add_(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(KERNELS_IN_GRAPH):
            x.add_(1)
    whole = measure_call(torch, graph.replay, repetitions)
    return replace(
        whole,
        median_seconds=whole.median_seconds / KERNELS_IN_GRAPH,
        lower_quartile_seconds=whole.lower_quartile_seconds / KERNELS_IN_GRAPH,
        upper_quartile_seconds=whole.upper_quartile_seconds / KERNELS_IN_GRAPH,
    )


def _copies(torch: Any, repetitions: int) -> Iterator[CopyTime]:
    for size in COPIES:
        source = torch.empty(size, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        yield CopyTime(2 * size, measure_call(torch, _bind(target.copy_, source), repetitions))


def _bind(function: Callable[..., object], *arguments: object, **named: object) -> Callable[[], object]:
    return lambda: function(*arguments, **named)


def _products(torch: Any, model: Model, tokens: int, repetitions: int) -> Iterator[ProductTime]:
    """Every product in 16 bits, and in fp8 where card and library have it; one that fails is left out."""
    half, name = (torch.bfloat16, "bf16") if torch.cuda.is_bf16_supported() else (torch.float16, "fp16")
    with_fp8 = hasattr(torch, "_scaled_mm") and torch.cuda.get_device_capability() >= (8, 9)
    for p in products(model, tokens):
        a = torch.randn(p.m, p.k, dtype=half, device="cuda")
        b = torch.randn(p.n, p.k, dtype=half, device="cuda")
        out = torch.empty(p.m, p.n, dtype=half, device="cuda")
        call = _bind(torch.mm, a, b.t(), out=out)
        yield ProductTime(p.m, p.n, p.k, p.use, name, measure_call(torch, call, repetitions))
        if with_fp8 and p.k % 16 == 0 and p.n % 16 == 0:
            one = torch.ones((), dtype=torch.float32, device="cuda")
            a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
            call = _bind(torch._scaled_mm, a8, b8.t(), scale_a=one, scale_b=one, out_dtype=half)
            sample = _attempt(torch, call, repetitions)
            if sample:
                yield ProductTime(p.m, p.n, p.k, p.use, "fp8", sample)


def _attempt(torch: Any, call: Callable[[], object], repetitions: int) -> Sample | None:
    """None where the library has no such kernel, or the card no room."""
    try:
        return measure_call(torch, call, repetitions)
    except (RuntimeError, ValueError, NotImplementedError):
        return None


def _attention(torch: Any, model: Model, tokens: int, repetitions: int) -> Iterator[AttentionTime]:
    """PyTorch's flash kernel and cuDNN's, forward and backward, causal."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [("flash", SDPBackend.FLASH_ATTENTION)]
    if hasattr(SDPBackend, "CUDNN_ATTENTION"):
        backends.append(("cudnn", SDPBackend.CUDNN_ATTENTION))
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    for case in attentions(model, tokens):
        q, k, v = (
            torch.randn(case.batch, case.heads, case.seq, d, dtype=half, device="cuda", requires_grad=True)
            for d in (case.qk_dim, case.qk_dim, case.v_dim)
        )
        forward = _bind(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True)
        for kernel, backend in backends:
            with sdpa_kernel(backend):
                sample = _attempt(torch, forward, repetitions)
                if sample is None:
                    continue
                yield AttentionTime(*case, False, kernel, sample)
                out: Any = forward()
                back = _bind(torch.autograd.grad, out, (q, k, v), torch.ones_like(out), retain_graph=True)
                sample = _attempt(torch, back, repetitions)
                if sample:
                    yield AttentionTime(*case, True, kernel, sample)


def _collectives(torch: Any, repetitions: int) -> Iterator[CollectiveTime]:
    """Collectives over all ranks of torchrun."""
    distributed = torch.distributed
    distributed.init_process_group("nccl")
    ranks = distributed.get_world_size()
    each = int(os.environ.get("LOCAL_WORLD_SIZE", str(ranks)))
    try:
        for size in MESSAGES:
            elements = size // 2 // ranks * ranks
            if not elements:
                continue
            whole = torch.zeros(elements, dtype=torch.bfloat16, device="cuda")
            part = torch.zeros(elements // ranks, dtype=torch.bfloat16, device="cuda")
            other = torch.empty_like(whole)
            calls = {
                "all_reduce": _bind(distributed.all_reduce, whole),
                "all_gather": _bind(distributed.all_gather_into_tensor, whole, part),
                "reduce_scatter": _bind(distributed.reduce_scatter_tensor, part, whole),
                "all_to_all": _bind(distributed.all_to_all_single, other, whole),
            }
            for kind in COLLECTIVES:
                sample = measure_together(torch, calls[kind], repetitions)
                yield CollectiveTime(kind, ranks, each, 2 * elements, sample)
    finally:
        distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """The standalone program; its exit code is 0, or 2 with one sentence on stderr."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m planner.calibration.measure",
        description="Times matrix products, attention, copies, launches and (under torchrun) collectives on this "
        "machine's GPU, for `plan calibrate --from-measurement`.",
    )
    parser.add_argument("--model", default="llama-3-8b", help="whose layers' shapes are timed [llama-3-8b]")
    parser.add_argument("--rows", type=int, default=8192, help="tokens of a microbatch [8192]")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help=f"of each measurement [{REPETITIONS}]")
    parser.add_argument("-o", "--output", default="-", help="the JSON file [standard output]")
    options = parser.parse_args(arguments)
    try:
        _check(options.rows, options.repetitions, options.output)
        from planner.catalog import load_model

        model, torch = load_model(options.model), load_torch()
        recording = record(torch, model, options.rows, options.repetitions, _say)
        if int(os.environ.get("RANK", "0")) == 0:  # the first rank writes
            _write(options.output, recording_json(recording))
    except PlannerError as error:
        _say(f"Error: {error}")
        return 2
    return 0


def _check(tokens: int, repetitions: int, output: str) -> None:
    """Refuse before minutes of measuring what would fail after them."""
    if not 128 <= tokens <= 2**20:
        raise InputError(f"--rows must be from 128 to {2**20}, but {tokens} was given.")
    if not 2 <= repetitions <= 10_000:
        raise InputError(f"--repetitions must be from 2 to 10000, but {repetitions} was given.")
    folder = os.path.dirname(os.path.abspath(output))
    if output != "-" and (not os.path.isdir(folder) or os.path.isdir(output) or not os.access(folder, os.W_OK)):
        raise InputError(f"a file in a folder that can be written is required, but '{output}' was given.")


def _write(output: str, text: str) -> None:
    if output == "-":
        sys.stdout.write(text)
        return
    from pathlib import Path

    from planner.atomic import write_atomically

    try:
        write_atomically(Path(output), text)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}.") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
