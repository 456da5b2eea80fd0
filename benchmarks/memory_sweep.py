"""Layouts a second: `python benchmarks/memory_sweep.py [count]`. Goal: the memory of 10 000 in under 2 s on one core.

Every layout goes through ExactAccounting.report, the code that `plan memory` prints: all stages, all moments, bucket
padding. Caches are cold at the start and the collector of cycles is paused, as in a search.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from itertools import product

from planner.catalog import load_model
from planner.collector import collector_paused
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, SELECTIVE, Layout
from planner.memory.accounting import make_accounting
from planner.model import Model
from planner.stages import split_from_counts
from planner.workload import Workload

GPUS = 512
SEQ, BATCH = 4096, 4096


def layouts(model: Model) -> Iterator[Layout]:
    """Distinct layouts of a model on 512 GPUs: every degree, split, recomputation and sharding that divides."""
    powers = [1, 2, 4, 8, 16, 32, 64]
    experts = powers[:4] if model.is_moe else [1]
    for tp, pp, cp, ep, vpp, micro, recompute, zero, sp in product(
        powers[:4], powers, powers[:4], experts, (1, 2, 4, 5), powers[:4],
        (NO_RECOMPUTE, SELECTIVE, FULL), (0, 1, 3), (False, True),
    ):  # fmt: skip
        dp, rest = divmod(GPUS, tp * pp * cp)
        if rest or model.num_layers % (pp * vpp) or (pp == 1 and vpp > 1) or (sp and tp == 1) or (zero == 3 and pp > 1):
            continue
        if BATCH % (micro * dp) or (tp * cp * dp) % ep:
            continue
        yield Layout(
            tp=tp, cp=cp, pp=pp, vpp=vpp, ep=ep, dp=dp, zero=zero, micro_batch=micro, sequence_parallel=sp,
            recompute=recompute, stages=split_from_counts(model, [[model.num_layers // (pp * vpp)] * vpp] * pp),
        )  # fmt: skip


def sweep(name: str, what: str, chosen: list[Layout]) -> None:
    """Time the reports of these layouts, caches cold."""
    workload, cluster = Workload(SEQ, BATCH), parse_gpus(f"{GPUS}xH100-80G")
    exact = make_accounting("exact", load_model(name), workload, Implementation(), cluster)
    start = time.process_time()
    with collector_paused():
        stages = sum(len(exact.report(layout).stages) for layout in chosen)
    seconds = time.process_time() - start
    rate = len(chosen) / seconds
    print(f"{name}, {what}: {len(chosen)} layouts ({stages} stages) in {seconds:.2f} s, {rate:.0f} a second")  # noqa: T201


def main() -> None:
    """Distinct layouts of a dense and of a mixture-of-experts model on 512 H100; virtual stages apart, a tenth as many,
    for their schedules have many states."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for name in ("llama-2-70b", "mixtral-8x22b"):
        every = list(layouts(load_model(name)))
        plain = [layout for layout in every if layout.vpp == 1]
        virtual = [layout for layout in every if layout.vpp > 1]
        sweep(name, "1F1B", plain[:: max(1, len(plain) // count)][:count])
        sweep(name, "interleaved", virtual[:: max(1, 10 * len(virtual) // count)][: count // 10])


if __name__ == "__main__":
    main()
