"""On how many GPUs a launch starts: the options of torchrun, DeepSpeed, mpirun, Accelerate or srun, the usual
variables, SLURM's header."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from planner.interop.megatron.expand import Variables

MAX_WORLD = 10_000_000

_DIRECTIVE = re.compile(r"^#SBATCH\s+(.*)$", re.MULTILINE)
_FLAGS = {"standalone", "no-python", "use-env", "run-path", "exclusive", "overcommit", "no-local-rank"}
_SHORT = {"N": "nodes", "n": "ntasks", "G": "gpus"}
_PER_NODE = ("nproc-per-node", "gpus-per-node", "ntasks-per-node", "num-gpus")
_MPI = {"mpirun", "mpiexec", "mpiexec.hydra", "orterun", "prun"}
_NODES = ("nnodes", "nodes", "num-nodes")
_VARIABLES = (
    ("NNODES", "NUM_NODES", "N_NODES", "SLURM_NNODES", "NODES", "NODE_COUNT"),
    ("GPUS_PER_NODE", "NPROC_PER_NODE", "NGPUS_PER_NODE", "NUM_GPUS_PER_NODE", "GPU_PER_NODE", "N_GPUS", "NUM_GPUS"),
)

WORLD_VARIABLES = ("WORLD_SIZE", *_VARIABLES[0], *_VARIABLES[1])
"""Variables that say the number of GPUs where the launcher's own options do not."""


def options(words: list[str]) -> dict[str, str]:
    """A launcher's options by their long names."""
    found: dict[str, str] = {}
    for i, word in enumerate(words):
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        name = name.replace("_", "-")
        if equals:
            found[name] = value
        elif i + 1 < len(words) and name not in _FLAGS:
            found[name] = words[i + 1]
    for short, name in _SHORT.items():
        if short in found:
            found.setdefault(name, found[short])
    return found


def batch_header(text: str) -> dict[str, str]:
    """The options of a script's `#SBATCH` lines by their long names."""
    if "#SBATCH" not in text:
        return {}
    return options([word for line in _DIRECTIVE.findall(text) for word in line.partition(" #")[0].split()])


def batch_variables(header: dict[str, str]) -> Variables:
    """The variables that SLURM sets for a job with this header (sbatch's manual, "Output environment variables")."""
    nodes, per_node = _number(header.get("nodes")), _header_gpus(header)
    tasks_per_node = _number(header.get("ntasks-per-node"))
    tasks = _number(header.get("ntasks")) or (tasks_per_node or 0) * (nodes or 1)
    values = {
        "SLURM_NNODES": nodes,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_NTASKS_PER_NODE": tasks_per_node,
        "SLURM_NTASKS": tasks,
        "SLURM_NPROCS": tasks,
        "SLURM_GPUS_PER_NODE": per_node if "gpus-per-node" in header else None,
        "SLURM_GPUS_ON_NODE": per_node,
    }
    return {name: str(value) for name, value in values.items() if value}


class Gpus(NamedTuple):
    """What a launch starts on."""

    total: int | None = None
    per_node: int | None = None
    """Of each node, where the launch tells; divides the total."""


UNKNOWN = Gpus()


def gpus_of(launcher: list[str], commands: list[list[str]], variables: Variables, header: dict[str, str]) -> Gpus:
    """GPUs of the launch: its launcher's options, else WORLD_SIZE, NNODES x GPUS_PER_NODE, or the batch header."""
    given = options(launcher)
    if total := _processes(launcher, given):
        return _sane(total)
    per_node = next((given[name] for name in _PER_NODE if name in given), None)
    nodes = next((given[name] for name in _NODES if name in given), None)
    many = "hostfile" in given and nodes is None  # --num_gpus of each host in DeepSpeed's file
    if per_node is not None and not many and (count := _number(per_node)):
        known = nodes is None or _number(nodes)
        return _sane(count * (_number(nodes) or 1), count) if known else UNKNOWN
    world = _number(variables.get("WORLD_SIZE"))
    count_nodes, count_gpus = (next((n for v in names if (n := _number(variables.get(v)))), 0) for names in _VARIABLES)
    header = header | options([word for command in commands if command[0] == "srun" for word in command[1:]])
    gpus, tasks = _header_gpus(header), _number(header.get("ntasks-per-node"))
    nodes_of_header = _number(header.get("nodes"))
    if world:
        return _sane(world, count_gpus or gpus or (world // nodes_of_header if nodes_of_header else 0))
    if count_gpus:
        return _sane(count_gpus * (count_nodes or 1), count_gpus)
    if gpus:
        return _sane(gpus * (nodes_of_header or 1), gpus)
    # one task a node mostly starts a process for each of its GPUs itself
    return _sane(tasks * (nodes_of_header or 1), tasks if tasks > 1 else 0) if tasks else UNKNOWN


def _processes(launcher: list[str], given: dict[str, str]) -> int | None:
    """All processes, where the launcher is told their number or each of them: mpirun's -np (mpirun's manual),
    Accelerate's --num_processes, DeepSpeed's `--include host1:0,1@host2:0,1` (deepspeed/launcher/runner.py:
    parse_resource_filter)."""
    names = {word.rpartition("/")[2] for word in launcher}
    if names & _MPI and "nproc-per-node" not in given:  # else torchrun starts more on each
        return next((n for name in ("np", "n") if (n := _number(given.get(name)))), None)
    if "accelerate" in names:
        return _number(given.get("num-processes"))
    hosts = [host.partition(":")[2].split(",") for host in given.get("include", "").split("@")]
    named = all(slot.isascii() and slot.isdigit() for slots in hosts for slot in slots)
    return sum(map(len, hosts)) if "include" in given and named else None


def _header_gpus(header: dict[str, str]) -> int | None:
    """GPUs of a node: `--gpus-per-node=a100:8`, `--gres=gpu:8`, or `--gpus` over the nodes."""
    if given := _number(header.get("gpus-per-node", "").rpartition(":")[2]):
        return given
    gres = next((part for part in header.get("gres", "").split(",") if part.startswith("gpu")), "")
    if given := _number(gres.rpartition(":")[2]):
        return given
    total, nodes = _number(header.get("gpus", "").rpartition(":")[2]), _number(header.get("nodes")) or 1
    return total // nodes if total and total % nodes == 0 else None


def _number(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) else None


def _sane(world: int, per_node: int = 0) -> Gpus:
    if world > MAX_WORLD:
        return UNKNOWN
    return Gpus(world, per_node if per_node and world % per_node == 0 else None)
