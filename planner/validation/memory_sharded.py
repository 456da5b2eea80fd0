"""Peaks of runs that shard gradients and weights, against `data/memory_sharded.yaml`.

The runs are torchtitan's and DeepSpeed's, so no Megatron argument list says what they are: each record names a model
of the catalogue, a layout and what the framework does, and goes through the accounting that `plan memory` uses. The
sources print reserved memory; the prediction is what is allocated times the ratio that other runs print.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, OPERATIONS, Layout, Recompute
from planner.memory.accounting import make_accounting
from planner.memory.report import MemoryReport
from planner.stages import usual_split
from planner.workload import Workload

DATA = Path(__file__).parent / "data" / "memory_sharded.yaml"
_RECOMPUTE = {"none": NO_RECOMPUTE, "full": FULL, "op": Recompute("selective", (OPERATIONS,))}


@dataclass(frozen=True, slots=True)
class ShardedRun:
    """One measured run and its prediction [bytes]."""

    id: str
    source: str
    card: str
    gpus: int
    stage: int
    """The stage whose peak is the highest."""
    measured_bytes: int
    """Reserved by the allocator."""
    allocated_bytes: int
    """Predicted peak of allocated memory."""
    predicted_bytes: int
    """Predicted reserved memory."""
    moment: str

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.predicted_bytes / self.measured_bytes - 1


@lru_cache(maxsize=1)
def sharded_data() -> Mapping[str, Any]:
    """The file's content."""
    import yaml

    data: dict[str, Any] = yaml.safe_load(DATA.read_text(encoding="utf-8"))
    return data


def sharded_runs() -> Iterator[ShardedRun]:
    """Every run with its prediction."""
    data = sharded_data()
    ratio = data["reserved_over_allocated"]["value"]
    for run in data["runs"]:
        stage = max(predicted(run).stages, key=lambda stage: stage.allocated_bytes)
        yield ShardedRun(
            id=run["id"],
            source=run["source"],
            card=run["card"],
            gpus=run["gpus"],
            stage=stage.stage,
            measured_bytes=round(run["measured"][0]["value"] * 2**30),
            allocated_bytes=stage.allocated_bytes,
            predicted_bytes=round(stage.allocated_bytes * ratio),
            moment=stage.moment,
        )


def left_out() -> Mapping[str, int]:
    """Published records of sharded runs that were not used, by reason."""
    found: Mapping[str, int] = sharded_data().get("left_out", {})
    return found


def predicted(run: Mapping[str, Any]) -> MemoryReport:
    """The memory of a recorded run."""
    model = load_model(run["model"])
    tp, pp, vpp, cp = (run.get(key, 1) for key in ("tp", "pp", "vpp", "cp"))
    layout = Layout(
        tp=tp,
        pp=pp,
        vpp=vpp,
        cp=cp,
        dp=run["gpus"] // (tp * pp * cp),
        zero=run["zero"],
        micro_batch=run["micro_batch"],
        sequence_parallel=tp > 1,
        recompute=_RECOMPUTE[run["recompute"]],
        stages=usual_split(model, pp, vpp),  # as torchtitan's pipelining_utils.py: generate_split_points
    )
    implementation = Implementation(
        gradient_accumulation_fusion=False,
        attention_mask_in_dataloader=False,
        vocab_divisible_by=1,
        sharded_framework=run["framework"],
        cross_entropy=run["loss"],
        # DeepSpeed accumulates in the weights' type, torchtitan reduces in fp32
        grad_reduce_bytes=2 if run["framework"] == "deepspeed" else 4,
        optimizer_offload_fraction=float(run.get("offload_optimizer", False)),
    )
    workload = Workload(run["seq"], run["global_batch"])
    cluster = parse_gpus(f"{run['gpus']}x{run['card']}")
    return make_accounting("exact", model, workload, implementation, cluster).report(layout)
