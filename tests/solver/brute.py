"""Every layout and every split of a small instance, tried one by one with the reports."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from planner.layout import NO_RECOMPUTE, Layout, Recompute
from planner.model import Model
from planner.rules import RULES
from planner.rules.rule import Case
from planner.solver.candidates import selective_sets
from planner.stages import split_from_counts


def degrees(cluster, model, workload, implementation, micro_batches=(1, 2, 4, 8, 16)) -> Iterator[Layout]:
    """Every legal choice of degrees, recomputation included, by plain enumeration."""
    world = cluster.gpus
    sizes = range(1, world + 1)
    experts = sizes if model.is_moe else (1,)
    modes = [NO_RECOMPUTE, *selective_sets(model, implementation), Recompute("full", method="block")]
    rules = list(RULES)
    for tp, cp, pp in product(sizes, sizes, sizes):
        if world % (tp * cp * pp):
            continue
        dp = world // (tp * cp * pp)
        for ep, etp, vpp in product(experts, experts, range(1, len(model.pattern) + 3)):
            if tp % etp:  # expert tensor parallelism divides tp
                continue
            for zero, micro_batch, recompute in product(range(4), micro_batches, modes):
                layout = Layout(tp, cp, pp, vpp, ep, etp, dp, zero, micro_batch, tp > 1, recompute)
                if zero in (1, 2) and dp * cp == 1 and not (model.is_moe and layout.edp > 1):
                    continue  # with nothing to shard over, they are what ZeRO 0 and 3 are
                judged = layout if recompute.granularity != "full" else layout_with(layout, (1,) * pp)
                if is_legal(rules, Case(model, workload, implementation, judged, world, cluster)):
                    yield layout
                    yield from hybrid(layout, cluster)


def is_legal(rules: list, case: Case) -> bool:
    """Whether no rule is broken. One that is moves to the front of the list, for layouts that differ little mostly
    break the same: nearly all that is enumerated is illegal, and judging it was three quarters of the work."""
    for place, rule in enumerate(rules):
        if not rule.holds(case):
            rules.insert(0, rules.pop(place))
            return False
    return True


def hybrid(layout: Layout, cluster) -> Iterator[Layout]:
    """The same sharded over the ranks of a node only, where there are several nodes."""
    from dataclasses import replace

    node, ranks = cluster.groups[0].gpus_per_node, layout.dp * layout.cp
    inside = max(n for n in range(1, ranks + 1) if ranks % n == 0 and max(1, node // layout.tp) % n == 0)
    if layout.zero >= 2 and layout.ep == 1 and len(cluster.groups) == 1 and 1 < inside < ranks:
        yield replace(layout, hsdp_replicas=ranks // inside)


def layout_with(layout: Layout, redo: tuple[int, ...]) -> Layout:
    from dataclasses import replace

    return replace(layout, recompute=Recompute("full", method="block", stage_layers=redo))


def splits(model: Model, layout: Layout) -> Iterator[Layout]:
    """Every split and every number of recomputed layers."""
    from dataclasses import replace

    slices = layout.pp * layout.vpp
    for counts in _compositions(len(model.pattern), slices):
        inner = counts[1:-1] if slices > 1 else counts
        if any(n == 0 for n in inner):
            continue
        rows = [list(counts[stage :: layout.pp]) for stage in range(layout.pp)]
        if layout.vpp > 1 and not _equal_chunks(rows, max(1, len(model.pattern) // slices)):
            continue
        stages = split_from_counts(model, rows)
        if layout.recompute.granularity != "full":
            yield replace(layout, stages=stages)
            continue
        for redo in product(*(range(sum(row) + 1) for row in rows)):
            if any(redo):
                yield replace(layout_with(layout, redo), stages=stages)


def _equal_chunks(rows: list[list[int]], least: int) -> bool:
    """Whether each stage's chunks hold `least` layers or all one more, the model's first and last perhaps fewer."""
    first, last = rows[0][0], rows[-1][-1]
    alike = [rows[0][1:], *rows[1:-1], rows[-1][:-1]]
    whole = all(len(set(row)) == 1 and row[0] in (least, least + 1) for row in alike)
    return whole and first <= rows[0][1] and last <= rows[-1][0]


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def best_ns(layouts, model: Model, accounting, timing) -> int | None:
    """The fastest step of any split of these layouts that fits; None when none fits."""
    best = None
    for layout in layouts:
        for whole in splits(model, layout):
            step_ns = timing.step(whole).step_ns
            if (best is None or step_ns < best) and accounting.report(whole).fits:
                best = step_ns
    return best
