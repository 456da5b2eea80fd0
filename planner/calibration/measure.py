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
from planner.calibration.shapes import COLLECTIVES, COPIES, MESSAGES, AttentionCase, Product, attentions, products
from planner.errors import InputError, PlannerError
from planner.model import Model

KERNELS_IN_GRAPH = 1000
INSTALL = "install it with `pip install 'planner[measure]'` on a machine with an NVIDIA or AMD GPU"
Say = Callable[[str], None]
Call = Callable[[], object]


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
    product_times = tuple(_products(torch, model, tokens, repetitions, tell))
    tell("attention")
    attention = tuple(_attention(torch, model, tokens, repetitions, tell))
    collectives: tuple[CollectiveTime, ...] = ()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        tell("collectives")
        torch.cuda.empty_cache()  # NCCL's buffers come from outside the allocator
        collectives = tuple(_until_failure(_collectives(torch, repetitions), tell))
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

        def copy(size: int = size) -> Call:
            source = torch.empty(size, dtype=torch.uint8, device="cuda")
            return _bind(torch.empty_like(source).copy_, source)

        if sample := _attempt(torch, copy, repetitions):
            yield CopyTime(2 * size, sample)


def _bind(function: Callable[..., object], *arguments: object, **named: object) -> Call:
    return lambda: function(*arguments, **named)


def _half(torch: Any) -> tuple[Any, str]:
    """The 16-bit type whose products the card has. `torch.cuda.is_bf16_supported` says yes to Volta and Turing too,
    where bf16 is emulated in fp32 (its `including_emulation`)."""
    if torch.version.hip or torch.cuda.get_device_capability() >= (8, 0):
        return torch.bfloat16, "bf16"
    return torch.float16, "fp16"


def _fp8(torch: Any) -> Any:
    """The 8-bit type of the card's products, None where card or library has none. MI300's (gfx942) has no negative zero
    and another bias; MI350's (gfx950) and NVIDIA's from Ada on are OCP's."""
    if not hasattr(torch, "_scaled_mm"):
        return None
    if torch.version.hip:
        name = str(torch.cuda.get_device_properties(torch.cuda.current_device()).gcnArchName).partition(":")[0]
        found = {"gfx942": "float8_e4m3fnuz", "gfx950": "float8_e4m3fn"}.get(name)
    else:
        found = "float8_e4m3fn" if torch.cuda.get_device_capability() >= (8, 9) else None
    return found and getattr(torch, found, None)


def _products(torch: Any, model: Model, tokens: int, repetitions: int, tell: Say) -> Iterator[ProductTime]:
    """Every product in 16 bits, and in fp8 where card and library have it; those that fail are left out and counted."""
    (half, name), fp8 = _half(torch), _fp8(torch)
    shapes = products(model, tokens)
    kinds: list[tuple[str, list[Product], Callable[[Product], Call]]] = [
        (name, shapes, lambda p: _half_product(torch, p, half))
    ]
    if fp8 is not None:
        aligned = [p for p in shapes if p.k % 16 == 0 and p.n % 16 == 0]
        kinds.append(("fp8", aligned, lambda p: _fp8_product(torch, p, fp8, half)))
    for precision, asked, prepare in kinds:
        timed = 0
        for p in asked:
            if sample := _attempt(torch, _bind(prepare, p), repetitions):
                timed += 1
                yield ProductTime(p.m, p.n, p.k, p.use, precision, sample)
        _left_out(tell, len(asked) - timed, len(asked), f"products in {precision}")


def _half_product(torch: Any, p: Product, half: Any) -> Call:
    a = torch.randn(p.m, p.k, dtype=half, device="cuda")
    b = torch.randn(p.n, p.k, dtype=half, device="cuda")
    return _bind(torch.mm, a, b.t(), out=torch.empty(p.m, p.n, dtype=half, device="cuda"))


def _fp8_product(torch: Any, p: Product, fp8: Any, half: Any) -> Call:
    """As Transformer Engine runs it: the forward pass accumulates fast, both gradients with a split accumulator
    (common/recipe: fp8_gemm_fprop, fp8_gemm_dgrad, fp8_gemm_wgrad; pytorch/module/base.py: _2X_ACC_FPROP). Sweeps are
    of forward products. AMD's library has one way only."""
    a = torch.randn(p.m, p.k, dtype=half, device="cuda").to(fp8)
    b = torch.randn(p.n, p.k, dtype=half, device="cuda").to(fp8)
    one = torch.ones((), dtype=torch.float32, device="cuda")
    fast = not torch.version.hip and p.use in ("forward", "sweep")
    return _bind(torch._scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=half, use_fast_accum=fast)


def _attempt(torch: Any, prepare: Callable[[], Any], repetitions: int) -> Sample | None:
    """The time of the call that `prepare` makes with its tensors. None where the library has no such kernel, or the
    card no room for the tensors or the call."""
    try:
        return measure_call(torch, prepare(), repetitions)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # torch.OutOfMemoryError is a RuntimeError
        pass
    torch.cuda.empty_cache()
    return None


def _left_out(tell: Say, count: int, whole: int, what: str) -> None:
    if count:
        tell(f"{count} of {whole} {what} left out: no room on the card, or no kernel")


def _attention(torch: Any, model: Model, tokens: int, repetitions: int, tell: Say) -> Iterator[AttentionTime]:
    """PyTorch's flash kernel and cuDNN's, forward and backward, causal; a case that fails is left out and counted."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [("flash", SDPBackend.FLASH_ATTENTION)]
    if hasattr(SDPBackend, "CUDNN_ATTENTION"):
        backends.append(("cudnn", SDPBackend.CUDNN_ATTENTION))
    half, _ = _half(torch)
    cases = attentions(model, tokens)
    for kernel, backend in backends:
        timed = 0
        for case in cases:
            for backward in (False, True):
                with sdpa_kernel(backend):
                    sample = _attempt(torch, _bind(_attention_call, torch, case, half, backward), repetitions)
                if sample is None:
                    break
                timed += 1
                yield AttentionTime(*case, backward, kernel, sample)
        _left_out(tell, 2 * len(cases) - timed, 2 * len(cases), f"passes of {kernel} attention")


def _attention_call(torch: Any, case: AttentionCase, half: Any, backward: bool) -> Call:
    q, k, v = (
        torch.randn(case.batch, case.heads, case.seq, d, dtype=half, device="cuda", requires_grad=True)
        for d in (case.qk_dim, case.qk_dim, case.v_dim)
    )
    forward = _bind(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=True)
    if not backward:
        return forward
    out: Any = forward()
    return _bind(torch.autograd.grad, out, (q, k, v), torch.ones_like(out), retain_graph=True)


def _until_failure(times: Iterator[CollectiveTime], tell: Say) -> Iterator[CollectiveTime]:
    """What is timed before one fails: minutes of other measurements are not thrown away for it."""
    try:
        yield from times
    except RuntimeError as error:
        tell(f"collectives end here: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


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
