"""Where the built-in specs lie, and how a name as people write it finds its file.

One file for each card and each cluster, named for it in lower case, so that loading one reads one. Aliases stand on the
second line of every file and are looked up without parsing YAML.
"""

from __future__ import annotations

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Kind = Literal["cards", "clusters"]

_MAKERS = re.compile(r"^(nvidia|amd|intel|huawei|habana|tesla|geforce|instinct)+")
_NOISE = re.compile(r"(tensorcoregpu|tensorcore|hbm2e|hbm3e|hbm3|hbm2|gddr6x|gddr6|gddr7)")


@lru_cache(maxsize=1)
def directory() -> Path:
    """`cluster_specs/`: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "cluster_specs"
    return installed if installed.is_dir() else package.parent / "cluster_specs"


def squash(name: str) -> str:
    """A name without what people vary: `NVIDIA H100 80GB HBM3`, `h100-80g` and `H100_80G` are one."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    text = _MAKERS.sub("", text)
    text = _NOISE.sub("", text)
    return re.sub(r"(\d)gb", r"\1g", text)


def _header(path: str) -> tuple[str, list[str]]:
    """Name and aliases, which are the first two lines of every file (comments apart), without parsing YAML."""
    with open(path, "rb") as stream:
        lines = stream.read(1024).decode().split("\n")
    found = {key: text for key, _, text in (line.partition(": ") for line in lines[:5])}
    return found["name"], json.loads(found["aliases"])


@lru_cache(maxsize=2)
def stems(kind: Kind) -> dict[str, str]:
    """Files of a kind by squashed name."""
    with os.scandir(directory() / kind) as entries:
        found = sorted((entry.name, entry.path) for entry in entries if entry.name.endswith(".yaml"))
    return {squash(name.removesuffix(".yaml")): path for name, path in found}


@lru_cache(maxsize=2)
def aliases(kind: Kind) -> dict[str, str]:
    """Files of a kind by squashed alias."""
    return {squash(alias): path for path in stems(kind).values() for alias in _header(path)[1]}


@lru_cache(maxsize=2)
def names(kind: Kind) -> tuple[str, ...]:
    """Every built-in name of a kind, as written in its file, sorted."""
    return tuple(sorted(_header(path)[0] for path in stems(kind).values()))


def find(kind: Kind, name: str) -> str | None:
    """The built-in file that a name or alias means."""
    key = squash(name)
    return stems(kind).get(key) or aliases(kind).get(key)


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a built-in file (ours, hence trusted; tests validate each with the users' schema)."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with open(path, "rb") as stream:
        return yaml.load(stream.read(), Loader=loader)
