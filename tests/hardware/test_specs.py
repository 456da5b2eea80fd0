"""Every built-in card and cluster: valid, sourced, physically plausible, and found by the names people write."""

from __future__ import annotations

import dataclasses
import json

import pytest

from planner.errors import InputError
from planner.hardware import card_names, cluster_names, describe, load_card, load_cluster, spec_hash, specs
from planner.hardware.cards import INTEGERS, RATES, RESERVE
from planner.hardware.consistency import contradictions
from planner.hardware.describe import describe_card
from planner.hardware.schema import validate_card, validate_cluster

GIB = 2**30


def _files(kind: specs.Kind) -> list:
    return [pytest.param(path, id=path.stem) for path in sorted((specs.directory() / kind).glob("*.yaml"))]


@pytest.mark.parametrize("path", _files("cards"))
def test_a_card_is_valid_and_every_figure_has_a_source(path) -> None:
    """The users' schema accepts the file; each figure, rate and reserve item says where it comes from."""
    data = specs.read(path)
    validate_card(data, str(path))
    figures = {**data["figures"], **{f"flops.{k}": v for k, v in data["flops"].items()}, **data["reserve_bytes"]}
    for name, figure in figures.items():
        assert set(figure) == {"value", "source"}, name
        assert len(figure["source"]) >= 8, name
    assert set(INTEGERS + RATES) - set(data["figures"]) <= {"host_bytes_per_node"}
    assert tuple(data["reserve_bytes"]) == RESERVE
    assert specs.squash(path.stem) == specs.squash(data["name"])


@pytest.mark.parametrize("name", card_names())
def test_a_card_is_plausible(name: str) -> None:
    """Capacity is near what is sold, the reserve a small part of it, and rates ordered by precision."""
    card = load_card(name)
    assert 0.9 < card.capacity_bytes / card.sold_bytes < 1.0738  # vendors' GB are often GiB
    assert 0.015 < card.reserve_bytes / card.capacity_bytes < 0.12
    assert card.flops["fp32"] <= card.flops.get("tf32", card.flops["fp16"]) <= card.flops["fp16"]
    assert card.flops["fp16"] <= card.flops.get("bf16", card.flops["fp16"])
    for slower, faster in (("bf16", "fp8"), ("fp8", "fp4")):
        assert card.flops.get(slower, 0) <= card.flops.get(faster, float("inf"))
    assert card.network_bytes_per_second <= card.pcie_bytes_per_second * 1.6
    assert card.scale_up_bytes_per_second >= card.network_bytes_per_second
    assert 20 < card.flops["fp16"] / card.memory_bytes_per_second < 500
    if card.scale_up == "pcie":
        assert card.scale_up_bytes_per_second == card.pcie_bytes_per_second


@pytest.mark.parametrize("path", _files("clusters"))
def test_a_cluster_is_valid_and_sourced(path) -> None:
    """The users' schema accepts the file, its fabric's figures have sources, and it loads and describes as JSON."""
    data = specs.read(path)
    validate_cluster(data, str(path))
    assert data["source"]
    assert all(figure["source"] for key, figure in data["fabric"].items() if key != "kind")
    cluster = load_cluster(path.stem)
    assert cluster.name == data["name"]
    assert contradictions(cluster) == []
    json.dumps(describe(cluster))


def test_what_scripts_may_count_on_is_there() -> None:
    """The contract's cards, and the number of cards and clusters."""
    promised = "A100-80G A100-40G H100-80G H200-141G H20-96G A800-80G H800-80G B200 B300 GB200 GB300 V100-32G MI300X"
    assert set(promised.split()) | {"RTX4090", "A10"} <= set(card_names())
    assert len(card_names()) >= 34
    assert len(cluster_names()) >= 12


def test_figures_that_are_contract_or_published() -> None:
    """The A100's capacity is the contract's; dense rates are those of the papers, not the sheets' sparse ones."""
    a100, h100, b200 = load_card("A100-80G"), load_card("H100-80G"), load_card("B200")
    assert a100.capacity_bytes == 85_093_711_872
    assert (a100.flops["bf16"], h100.flops["bf16"], b200.flops["bf16"]) == (312e12, 989.4e12, 2250e12)
    assert h100.flops["fp8"] == 1978.9e12
    assert load_card("L4").flops["bf16"] == 121e12
    assert load_card("H800").scale_up_bytes_per_second == 200e9
    # the sum of a GPU's links, also without a switch: 6 of NVLink 4's 25 GB/s to each of 3, 64 GB/s to each of 7
    assert load_card("GH200").scale_up_bytes_per_second == 3 * 6 * 25e9 == h100.scale_up_bytes_per_second
    assert load_card("MI300X").scale_up_bytes_per_second == 7 * 64e9
    assert (load_card("GB200").gpus_per_node, load_card("GB200").scale_up_domain) == (4, 72)
    assert a100.reserve_bytes == 4 * GIB


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("H100", "H100-80G"),
        ("A100-80GB", "A100-80G"),
        ("a100-sxm4-80gb", "A100-80G"),
        ("NVIDIA H100 80GB HBM3", "H100-80G"),
        ("NVIDIA A100-SXM4-40GB", "A100-40G"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIE-80G"),
        ("Tesla V100-SXM2-32GB", "V100-32G"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("gb200", "GB200"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA H200", "H200-141G"),
        ("h20_96gb", "H20-96G"),
    ],
)
def test_cards_are_found_as_people_and_drivers_write_them(written: str, meant: str) -> None:
    """Case, punctuation, makers' names and memory types are forgiven; `GB` and `G` are one."""
    assert load_card(written).name == meant


def test_no_two_files_claim_one_name() -> None:
    """Every name and alias, squashed, belongs to one file of its kind."""
    for kind in ("cards", "clusters"):
        owner: dict[str, str] = {}
        for path in specs.stems(kind).values():
            data = specs.read(path)
            for name in {specs.squash(name) for name in [data["name"], *data["aliases"]]}:
                assert owner.setdefault(name, path) == path, name


@pytest.mark.parametrize(("given", "near"), [("A100-81G", "A100-80G"), ("H101", "H100-80G"), ("MI300", "MI300X")])
def test_an_unknown_card_names_the_nearest(given: str, near: str) -> None:
    """The sentence says what was given and what was probably meant."""
    with pytest.raises(InputError, match=rf"unknown card '{given}': did you mean .*{near}"):
        load_card(given)


@pytest.mark.parametrize("given", ["", "  ", "x" * 10_000, "🙂", "../etc/passwd", "A100\n"])
def test_odd_names_are_refused_shortly(given: str) -> None:
    """Empty, endless and hostile names give one short sentence, or the card when only white space is wrong."""
    try:
        assert load_card(given).name == "A100-80G"
    except InputError as error:
        assert len(str(error)) < 300


def test_loading_a_card_reads_its_file_alone(work) -> None:
    """With nothing cached, a card by its name opens one of the dozens of files, and no file once it is known."""
    from planner.hardware import cards

    load_card("A100")
    for cached in (specs.stems, specs.aliases, specs.names, cards._load):
        cached.cache_clear()
    assert work(lambda: load_card("H100-80G")).opened == 1
    assert work(lambda: load_card("H100-80G")).opened == 0


def test_built_in_specs_do_not_import_what_is_slow() -> None:
    """Neither pydantic nor networkx nor numpy is imported to load a card, parse --gpus and link a layout."""
    import subprocess
    import sys

    code = (
        "import sys; from planner.hardware import parse_gpus, load_cluster; from planner.topology import group_links;"
        "from planner.layout import Layout; group_links(Layout(tp=8), parse_gpus('8xA100')); load_cluster('selene');"
        "print([m for m in ('pydantic', 'networkx', 'numpy', 'ortools', 'rich') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_hash_follows_the_figures_only() -> None:
    """The same figures under another name hash alike; one figure changed hashes differently."""
    cluster = load_cluster("eos")
    renamed = dataclasses.replace(cluster, name="other", source="elsewhere")
    slower = dataclasses.replace(cluster, fabric=dataclasses.replace(cluster.fabric, oversubscription=2.0))
    measured = dataclasses.replace(cluster, calibration={"gemm": 0.7})
    assert spec_hash(cluster) == spec_hash(renamed)
    assert len({spec_hash(cluster), spec_hash(slower), spec_hash(measured)}) == 3


def test_a_card_describes_itself_with_sources() -> None:
    """`describe_card` is JSON with a source for each figure."""
    plain = json.loads(json.dumps(describe_card(load_card("H100"))))
    assert "datasheet" in plain["sources"]["memory_bytes_per_second"]
    assert plain["flops"]["bf16"] == 989.4e12
