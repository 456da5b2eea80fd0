"""Users' own cluster files: what they may say, and that every mistake is listed at once."""

from __future__ import annotations

import pytest

from planner.errors import InputError
from planner.hardware import load_card, load_cluster


@pytest.fixture
def written(tmp_path):
    """Write a cluster file and give its path."""

    def write(text: str, name: str = "mine.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_a_built_in_card_by_name(written) -> None:
    """Groups by name; the fabric defaults to the card's reference node; the file's stem names the cluster."""
    cluster = load_cluster(written("groups: [{card: h100, nodes: 2}]"))
    assert (cluster.name, cluster.gpus, cluster.card.name) == ("mine", 16, "H100-80G")
    assert cluster.fabric.bytes_per_second_per_gpu == 50e9


def test_a_card_with_changed_figures(written) -> None:
    """`like` takes what is not said from a built-in card, and the source of a changed figure is the user's."""
    cluster = load_cluster(
        written(
            "groups:\n- card: {like: A100-80G, figures: {capacity_bytes: 60e9,"
            " memory_bytes_per_second: {value: 1.8e12, source: measured}}, reserve_bytes: 2e9}\n  nodes: 3\n"
            "  gpus_per_node: 4\n"
        )
    )
    base, card = load_card("A100-80G"), cluster.card
    assert (cluster.gpus, card.capacity_bytes, card.reserve_bytes) == (12, 60 * 10**9, 2 * 10**9)
    assert card.sources["memory_bytes_per_second"] == "measured"
    assert card.sources["capacity_bytes"] == "the user's file"
    assert card.flops == base.flops
    assert card.name == "A100-80G (changed)"


def test_a_card_of_ones_own(written) -> None:
    """A complete inline card needs no built-in one."""
    cluster = load_cluster(
        written(
            "name: new\n"
            "groups:\n- nodes: 1\n  card:\n    name: X1\n    vendor: acme\n    architecture: x\n    scale_up: nvlink\n"
            "    flops: {bf16: 1.0e15, fp32: 1.0e14}\n    reserve_bytes: {context: 1000000000}\n"
            "    figures: {sold_bytes: 80e9, capacity_bytes: 80e9, gpus_per_node: 8, scale_up_domain: 8,\n"
            "      memory_bytes_per_second: 3e12, scale_up_bytes_per_second: 4e11, pcie_bytes_per_second: 6e10,\n"
            "      network_bytes_per_second: 5e10}\n"
        )
    )
    assert (cluster.name, cluster.card.name, cluster.card.reserve_bytes) == ("new", "X1", 10**9)


def test_calibration_is_carried(written) -> None:
    """Measured efficiencies pass through untouched."""
    cluster = load_cluster(written("groups: [{card: A100, nodes: 1}]\ncalibration: {gemm: {bf16: 0.7}}"))
    assert cluster.calibration == {"gemm": {"bf16": 0.7}}


def test_json_is_read_as_well(written) -> None:
    """The same content as JSON."""
    assert load_cluster(written('{"groups": [{"card": "A100", "nodes": 1}]}', "mine.json")).gpus == 8


def test_every_mistake_is_listed_with_its_place(written) -> None:
    """Unknown cards and keys with the nearest names, negative and missing values: all in one sentence."""
    path = written(
        "groups:\n"
        "- {card: H101, nodes: 0}\n"
        "- {card: {like: A100, figures: {memory_bytes_per_second: -5, capcity_bytes: 3}}, nodes: 1, gpus_per_node: x}\n"
        "- {nodes: 3}\n"
        "fabric: {kind: token-ring, latency_seconds: -1, bytes_per_second_per_gpu: .nan, oversubscripton: 2}\n"
    )
    with pytest.raises(InputError) as error:
        load_cluster(path)
    sentence = str(error.value)
    for part in (
        "groups[0].card: unknown card 'H101': did you mean H100-80G",
        "groups[0].nodes: must be greater than or equal to 1, but 0 was given",
        "groups[1].card.figures.memory_bytes_per_second: must be greater than or equal to 1000000, but -5 was given",
        "groups[1].card.figures.capcity_bytes: unknown key, did you mean capacity_bytes",
        "groups[1].gpus_per_node: must be a whole number, but 'x' was given",
        "groups[2].card: is required",
        "fabric.kind: must be 'infiniband', 'ethernet' or 'none'",
        "fabric.latency_seconds: must be greater than or equal to 0, but -1",
        "fabric.bytes_per_second_per_gpu: must be",
        "fabric.oversubscripton: unknown key, did you mean oversubscription",
    ):
        assert part in sentence
    assert "10 mistakes" in sentence


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("groups: []", "groups"),
        ("groups: [{card: A100, nodes: 1}]\nfabric: {bytes_per_second_per_gpu: 1e-300}", "equal to 1000000"),
        ("groups: [{card: {like: A100, figures: {network_bytes_per_second: 25}}, nodes: 1}]", "0 or at least 1000000"),
        ("name: x", "groups: is required"),
        ("[1, 2]", "mapping"),
        ("groups: [{card: [1], nodes: 1}]", "a card's name or a mapping"),
        ("groups: [{card: {name: X}, nodes: 1}]", "lacks vendor"),
        ("groups: [{card: A100, nodes: 200000}]", "at most 1000000 GPUs"),
        ("groups: [{card: {like: A100, flops: {bf17: 1e12}}, nodes: 1}]", "bf17"),
        ("groups: [{card: {like: A100, reserve_bytes: {contxt: 1}}, nodes: 1}]", "context"),
        ("groups: [{card: A100, nodes: true}]", "number"),
        ("groups: [{card: A100, nodes: {value: 2, sauce: x}}]", "sauce"),
    ],
)
def test_single_mistakes(written, text: str, says: str) -> None:
    """Each is one InputError that names the place."""
    with pytest.raises(InputError, match=says.replace("[", r"\[")):
        load_cluster(written(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "groups: [{card: {like: H100-80G, reserve_bytes: 9e10}, nodes: 1}]",
            "groups[0].card.reserve_bytes: must be less than the memory of H100-80G (changed) (79.1 GiB), but 83.8 GiB",
        ),
        ("groups: [{card: H100-80G, nodes: 2, domain_gpus: 72}]", "domain_gpus: must be at most the group's 16 GPUs"),
        (
            "{groups: [{card: H100-80G, nodes: 2}], fabric: {kind: none}}",
            "none was given for 2 nodes with domains of 8",
        ),
        (
            "{groups: [{card: H100-80G, nodes: 1}, {card: A100-80G, nodes: 1}], fabric: {kind: none}}",
            "fabric.kind: must be infiniband or ethernet",
        ),
        (
            "{groups: [{card: H100-80G, nodes: 4}], fabric: {oversubscription: 8}}",
            "fabric.oversubscription: needs nodes_per_leaf",
        ),
        (
            "{groups: [{card: H100-80G, nodes: 1}], calibration: {gemm: {bf17: 0.5}}}",
            "calibration.gemm: unknown key 'bf17', did you mean bf16",
        ),
        (
            "{groups: [{card: H100-80G, nodes: 1}], calibration: {sustained: {H100-80GB: {value: 0.5, source: me}}}}",
            "calibration.sustained: unknown key 'H100-80GB', did you mean H100-80G",
        ),
    ],
)
def test_figures_that_contradict_each_other(written, text: str, says: str) -> None:
    """What each figure may be alone, but not beside the others, is one sentence that names the file and the place; none
    of it was obeyed in silence before."""
    path = written(text)
    with pytest.raises(InputError) as error:
        load_cluster(path)
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "{groups: [{card: H100-80G, nodes: 1}], fabric: {kind: none}}",
        "{groups: [{card: GB200, nodes: 18}], fabric: {kind: none}}",  # an NVL72 rack is one domain
        "{groups: [{card: H100-80G, nodes: 4}], fabric: {oversubscription: 1, nodes_per_leaf: 0}}",
        "{groups: [{card: H100-80G, nodes: 4, domain_gpus: 32}]}",
        "{groups: [{card: H100-80G, nodes: 1}], calibration: {gemm: {fp8: 0.5}, sustained: {'': 0.9, H100-80G: 0.8}}}",
    ],
)
def test_figures_that_agree(written, text: str) -> None:
    """The same figures where they have a meaning."""
    assert load_cluster(written(text)).gpus >= 8


def test_names_and_paths_that_lead_nowhere(tmp_path) -> None:
    """An unknown name gets the nearest one, a missing file and a directory their own sentence."""
    with pytest.raises(InputError, match="unknown cluster 'selenee': did you mean selene"):
        load_cluster("selenee")
    with pytest.raises(InputError, match="no such file"):
        load_cluster(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="directory"):
        load_cluster(str(tmp_path))
    with pytest.raises(InputError, match="required"):
        load_cluster(" ")


def test_the_example_of_the_readme_loads(written) -> None:
    """The YAML in cluster_specs/README.md is what it says."""
    from planner.hardware import specs

    text = (specs.directory() / "README.md").read_text()
    cluster = load_cluster(written(text.split("```yaml\n")[1].split("```")[0]))
    assert [(group.nodes, group.gpus_per_node) for group in cluster.groups] == [(16, 8), (4, 4)]
    assert cluster.groups[1].card.memory_bytes_per_second == 1.8e12
    assert cluster.fabric.oversubscription == 2.0
