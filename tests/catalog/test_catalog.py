"""The catalogue: exact counts, names as people type them, users' files, and every kind of mistake in them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from planner import catalog
from planner.catalog import entries, load_model, model_names, raw_entries
from planner.catalog.schema import LatentFields, ModelFields, MoEFields, validated
from planner.errors import InputError
from planner.model import LatentAttention
from planner.parameters import active_parameters, parameters
from planner.question import LONGEST_TRAINED

COUNTS = json.loads((Path(__file__).parents[1] / "data/models/hf_counts.json").read_text())
CONTRACT = [
    "7b",
    "13b",
    "70b",
    "175b",
    "13b-rule-of-thumb",
    "gpt3-175b",
    "megatron-1t",
    "llama-2-7b",
    "llama-2-13b",
    "llama-2-70b",
    "llama-3-8b",
    "llama-3-70b",
    "llama-3.1-405b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "deepseek-v2",
    "deepseek-v3",
    "qwen3-235b-a22b",
    "megatron-22b",
    "megatron-175b",
    "megatron-530b",
]
SMALL = {"hidden_size": 512, "num_layers": 4, "num_attention_heads": 8, "ffn_hidden_size": 1024, "vocab_size": 1000}


def write(path: Path, spec: dict) -> str:
    """A model YAML (JSON is YAML)."""
    path.write_text(json.dumps(spec))
    return str(path)


@pytest.mark.parametrize("name, spec", raw_entries().items())
def test_every_entry_is_valid_sourced_and_counted(name, spec):
    """Each entry has only known fields of sane values, a source, and the parameter count it states."""
    validated(spec, name)
    assert spec["source"]
    if "given_parameters" in spec:
        assert parameters(load_model(name)) == spec["given_parameters"]
    elif name != "grok-1":  # no published total: its code alone is the source
        assert parameters(load_model(name)) == spec["parameters"]


def test_counts_of_entries_are_those_of_real_classes():
    """The stated counts are not our own arithmetic: each is in the table of counts that transformers gave."""
    counted = {count for _, count in COUNTS["records"] + COUNTS["published"]}
    stated = {name: spec["parameters"] for name, spec in raw_entries().items() if "parameters" in spec}
    missing = [name for name, count in stated.items() if count not in counted]
    assert len(stated) >= 150
    assert missing == []


def test_names_that_scripts_count_on():
    """Every name of the command line's contract is known."""
    for name in CONTRACT:
        load_model(name)
    assert parameters(load_model("13b")) == 13_015_864_320
    assert parameters(load_model("13b-rule-of-thumb")) == 13_000_000_000
    assert parameters(load_model("deepseek-v3")) == 671_026_404_352
    assert parameters(load_model("mixtral-8x7b")) == 46_702_792_704


@pytest.mark.parametrize(
    "typed, name",
    [
        ("Llama-2-13B", "llama-2-13b"),
        ("llama2_13b", "llama-2-13b"),
        ("llama2-13b", "llama-2-13b"),
        ("meta-llama/Llama-2-13b-hf", "llama-2-13b"),
        ("meta-llama/Llama-2-13b-chat-hf", "llama-2-13b"),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("Llama-3.1-405B", "llama-3.1-405b"),
        ("llama-3-1-405b", "llama-3.1-405b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
        ("qwen2-57b-a14b", "qwen2-57b-a14b"),
        ("DeepSeek-R1", "deepseek-v3"),
        ("GPT3_175B", "gpt3-175b"),
        ("gpt-3", "gpt3-175b"),
        (" 13B ", "llama-2-13b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
    ],
)
def test_case_punctuation_and_organisation_are_forgiven(typed, name):
    """A name is understood as people type or copy it."""
    assert load_model(typed).name == name


def test_no_two_models_share_a_name():
    """Names and aliases, as they are compared, belong to one model each."""
    from planner.catalog import _key

    owners: dict[str, str] = {}
    for name, spec in raw_entries().items():
        for alias in (name, *spec.get("aliases", [])):
            assert owners.setdefault(_key(alias), name) == name, alias


@pytest.mark.parametrize("name", ["14bb", "", "   ", "llama-99", "x" * 5000, "a\0b", "../nothing", "none.yaml", "."])
def test_unknown_names_are_one_sentence(name):
    """What is neither a name nor a file is refused in one line, with the nearest names where there are some."""
    with pytest.raises(InputError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_unknown_name_comes_with_the_nearest():
    """A typing mistake is answered with the name that was probably meant."""
    with pytest.raises(InputError, match="did you mean llama-2-13b"):
        load_model("lama-2-13b")


def test_loading_is_cached_and_reads_one_entry(monkeypatch):
    """A name gives the same object each time, and a first load does not read the whole catalogue."""
    assert load_model("falcon-40b") is load_model("Falcon-40B")
    parse, parsed = catalog._parsed, []
    monkeypatch.setattr(catalog, "_parsed", lambda *entry: parsed.append(entry) or parse(*entry))
    catalog._built_in.cache_clear()
    load_model("bloom-176b")
    assert len(parsed) == 1


def test_entries_list_every_model():
    """The listing has each name once, with its count, context and source."""
    listed = entries()
    assert [entry.name for entry in listed] == model_names() and len(listed) >= 150
    assert all(entry.parameters > 0 and entry.max_positions >= 512 and entry.source for entry in listed)


def test_shapes_beyond_the_dense_layer():
    """Latent attention, dense first layers, alternating experts and windows survive the way through YAML."""
    v3, maverick, gemma = load_model("deepseek-v3"), load_model("llama-4-maverick"), load_model("gemma-3-27b")
    assert isinstance(v3.layers[0].attention, LatentAttention) and v3.mtp_num_layers == 1
    assert [layer.kind for layer in v3.layers[:4]] == ["dense", "dense", "dense", "moe"]
    assert [layer.kind for layer in maverick.layers[:4]] == ["dense", "moe", "dense", "moe"]
    assert [bool(layer.attention.window) for layer in gemma.layers[:7]] == [True] * 5 + [False, True]
    assert round(active_parameters(v3) / 1e9) == 38 and round(active_parameters(load_model("gpt-oss-120b")) / 1e9) == 6


def test_no_entry_was_trained_on_more_than_is_called_long():
    """What a report calls longer than usual is longer than every training context of the catalogue."""
    assert max(entry.max_positions for entry in entries()) == LONGEST_TRAINED


def test_only_the_largest_starcoder2_has_a_head_of_its_own():
    """NeMo trained the 15B without sharing (megatron_starcoder2_config.yaml); the 3B and 7B have no lm_head
    (bigcode-project/starcoder2#18)."""
    assert [load_model(f"starcoder2-{size}").tied for size in ("3b", "7b", "15b")] == [True, True, False]
    assert parameters(load_model("starcoder2-15b")) == 15_957_889_024


def test_a_users_yaml_is_a_model(tmp_path):
    """A file in the catalogue's own format is read, named after its file unless it has a name."""
    model = load_model(write(tmp_path / "mine.yaml", SMALL))
    assert model.name == "mine" and model.num_layers == 4 and model.layers[0].attention.head_dim == 64
    assert load_model(write(tmp_path / "b.yaml", {**SMALL, "name": "ours"})).name == "ours"
    moe = {**SMALL, "moe": {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 256, "first_dense_layers": 1}}
    assert [layer.kind for layer in load_model(write(tmp_path / "moe.yaml", moe)).layers] == ["dense"] + ["moe"] * 3


def test_every_built_in_entry_reads_the_same_as_a_users_file(tmp_path):
    """Written to a file, an entry goes through the checks for users' files and gives the same count."""
    for name in ("gpt3-175b", "deepseek-v3", "gemma-3-27b", "falcon-40b", "opt-350m", "gpt-oss-20b"):
        path = write(tmp_path / f"{name}.yaml", raw_entries()[name])
        assert parameters(load_model(path)) == parameters(load_model(name))


def test_a_hugging_face_config_or_its_folder_is_a_model(tmp_path):
    """A config.json, or the folder that holds it, is read and named after the folder."""
    config, count = COUNTS["records"][0]
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for path in (folder, folder / "config.json"):
        model = load_model(str(path))
        assert parameters(model) == count and model.name == "my-model"


PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()


@pytest.mark.parametrize(
    ("section", "fields"), [("The model", ModelFields), ("`moe`", MoEFields), ("`mla`", LatentFields)]
)
def test_the_page_of_the_format_has_every_field_with_its_default(section, fields):
    """docs/models.md lists what the schema has, in its order, and says of each what leaving it out means."""
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| (.+) \|$", PAGE.split(f"## {section}\n")[1].split("\n## ")[0], re.M)

    def left_out(field) -> str:
        if field.is_required():
            return "required"
        plain = field.default in (None, "", [])
        return "" if plain else f"`{json.dumps(field.default)}`".replace('"', "")

    assert [(name, default.strip()) for name, default, _ in rows] == [
        (name, left_out(field)) for name, field in fields.model_fields.items()
    ]
    assert all(meaning.strip() for _, _, meaning in rows)


def test_the_example_of_the_format_is_a_model(tmp_path):
    """The YAML of docs/models.md loads; its parameters by hand: the embedding and the head, attention with 8 groups of
    128, a dense layer, 31 of 64 experts and a shared one."""
    path = tmp_path / "my-moe.yaml"
    path.write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    model = load_model(str(path))
    h, attention = 4096, 4096 * (4096 + 2 * 1024 + 4096) + 2 * 4096
    experts = 64 * 3 * h * 1792 + 3 * h * 3584 + h * 64
    assert parameters(model) == 2 * 128256 * h + 32 * attention + 3 * h * 14336 + 31 * experts + h


def test_every_mistake_of_a_file_is_named(tmp_path):
    """All wrong fields are in the one sentence: unknown with the nearest, missing, of a wrong type, out of range."""
    spec = {
        "hidden_sise": 512,
        "num_layers": "four",
        "num_attention_heads": -8,
        "vocab_size": 1000,
        "moe": {"top_k": 2},
    }
    with pytest.raises(InputError) as caught:
        load_model(write(tmp_path / "bad.yaml", spec))
    sentence = str(caught.value)
    expected = [
        "hidden_sise is not a field (did you mean hidden_size?)",
        "num_layers must be",
        "'four'",
        "num_attention_heads must be",
        "-8",
        "hidden_size is required",
        "moe.num_experts is required",
    ]
    assert [words for words in expected if words not in sentence] == []
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "content, words",
    [
        ({"train_batch_size": 8, "zero_optimization": {"stage": 1}}, "neither a Hugging Face config"),
        ({"dim": 4096, "n_layers": 32, "n_heads": 32}, "neither a Hugging Face config"),
        ({"hidden_size": 4096, "num_hidden_layers": 32}, "model_type must be text"),
    ],
)
def test_a_file_of_another_kind_is_told_so(tmp_path, content, words):
    """A DeepSpeed config, a params.json or a config without model_type is refused for what it is."""
    with pytest.raises(InputError, match=words):
        load_model(write(tmp_path / "other.json", content))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_attention_heads": 7}, "multiple of num_attention_heads"),
        ({"num_query_groups": 3}, "multiple of num_query_groups"),
        ({"ffn_hidden_size": None}, "ffn_hidden_size is required"),
        ({"dropout": 1.5}, "dropout"),
        ({"position": "sinus"}, "position"),
        ({"window_pattern": "wx"}, "window_pattern"),
        ({"parameters": 5}, "come to"),
        ({"moe": {"num_experts": 2, "top_k": 4, "ffn_hidden_size": 8}}, "top_k must be at most"),
    ],
)
def test_absurd_files_are_refused_before_they_are_built(tmp_path, work, change, words):
    """Out-of-range or contradictory sizes are one sentence, and nothing of their size is made."""
    path = write(tmp_path / "bad.yaml", {**SMALL, **change})
    refused = work(lambda: load_model(path))
    assert refused.calls < 50_000 and refused.peak_bytes < 5e6
    with pytest.raises(InputError, match=words):
        raise refused.result
