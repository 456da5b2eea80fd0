"""Small random models and clusters under the real accounting and model of time, for a brute force to try whole."""

from __future__ import annotations

import random
from dataclasses import replace

from planner.cluster import Cluster, Fabric, NodeGroup
from planner.hardware import load_card
from planner.implementation import Implementation
from planner.memory.accounting import make_accounting
from planner.model import MLP, Attention, Layer, Model, MoE
from planner.timing.step import Timing
from planner.workload import Workload

ALIKE = [(0,) * 2, (0,) * 3, (0,) * 4, (0,) * 5, (1,) * 3, (1,) * 4]
PATTERNS = [*ALIKE, (0, 1, 1), (0, 0, 1, 1), (0, 1, 0, 1), (1, 0, 1)]
"""Dense layers (0) and layers of experts (1): alike, behind dense ones as DeepSeek's, in turn as Llama 4's."""


def real_case(rng: random.Random):
    """(model, workload, implementation, cluster, accounting, timing) with so little memory that it decides."""
    pattern = rng.choice(PATTERNS)
    dense = Layer(Attention(8, rng.choice((2, 4, 8)), 64), MLP(rng.choice((1024, 2048))))
    experts = Layer(dense.attention, MoE(rng.choice((2, 4)), rng.choice((1, 2)), MLP(rng.choice((512, 1024)))))
    kinds = {(0,): (dense,), (1,): (experts,)}.get(tuple(sorted(set(pattern))), (dense, experts))
    if kinds == (experts,):
        pattern = (0,) * len(pattern)
    model = Model("small", 512, rng.choice((2048, 8192)), kinds, pattern, tied=rng.random() < 0.3)
    card = load_card(rng.choice(("A100-80G", "H100-80G")))
    gpus = rng.choice((1, 2, 2, 4, 4))
    workload = Workload(rng.choice((256, 1024)), rng.choice((2, 4, 6, 8)))
    implementation = Implementation(attention=rng.choice(("flash", "unfused")))

    def on(mebibytes: int) -> Cluster:
        size = mebibytes * 2**20
        small = replace(card, capacity_bytes=size, sold_bytes=size, reserve_bytes=0)
        return Cluster("small", (NodeGroup(small, 1, gpus),), Fabric())

    # between what the parameters alone take on all cards and what they take on one
    states = sum(layer_parameters(model, kind) for kind in pattern) * 18 / 2**20
    cluster = on(int(64 + states / gpus * rng.uniform(0.4, 2.0) + rng.uniform(0, 150)))
    accounting = make_accounting("exact", model, workload, implementation, cluster)
    return model, workload, implementation, cluster, accounting, Timing(model, workload, implementation, cluster)


def layer_parameters(model: Model, kind: int) -> int:
    """Parameters of a layer, roughly: for the choice of a memory size only."""
    mlp = model.layer_kinds[kind].mlp
    width = mlp.num_experts * mlp.expert.ffn_hidden_size if isinstance(mlp, MoE) else mlp.ffn_hidden_size
    return model.hidden_size * (4 * model.hidden_size + 3 * width)
