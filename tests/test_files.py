"""Reading users' files: each kind of bad file is one sentence, quickly, and good files give their mapping."""

from __future__ import annotations

import os

import pytest

from planner.errors import InputError
from planner.files import MAX_BYTES, read_mapping, read_text

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{key}: &{key} [{','.join(['*' + before] * 9)}]\n" for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {k: [x,x,x,x,x,x,x,x,x]}\n" + "".join(
    f"{key}: &{key} {{<<: [{','.join(['*' + before] * 9)}]}}\n"
    for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Merges of merges."""
DEEP = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 50))
"""No line is deeper than two levels."""

BAD = {
    "empty.yaml": (b"", "empty"),
    "blank.json": (b" \n\t", "empty"),
    "binary": (bytes(range(256)), "binary"),
    "latin1.yaml": ("name: é".encode("latin-1"), "UTF-8"),
    "bomb.yaml": (BOMB.encode(), "anchors and aliases"),
    "mergebomb.yaml": (MERGES.encode(), "anchors and aliases"),
    "itself.yaml": (b"a: &a [1, *a]\n", "an alias (*) needs an anchor (&) before it, but line 1 has none"),
    "nowhere.yaml": (b"a: *b\n", "an alias (*) needs an anchor (&) before it"),
    "deepalias.yaml": (DEEP.encode(), "nested"),
    "tag.yaml": (b"!!python/object/apply:os.system ['touch pwned']\n", "tags"),
    "innertag.yaml": (b"a: !custom 3\n", "tags"),
    "list.json": (b"[1, 2, 3]", "a list"),
    "list.yaml": (b"- 1\n- 2\n", "a list"),
    "text.yaml": (b"just words\n", "a piece of text"),
    "number.json": (b"13", "a number"),
    "null.yaml": (b"# nothing but a comment\n", "empty"),
    "broken.json": (b'{"a": 1,', "JSON"),
    "broken.yaml": (b"a: [1, 2\nb: 3\n", "YAML"),
    "deep.json": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    "deep50.json": (b'{"a":' + b"[" * 50 + b"]" * 50 + b"}", "nested"),
    "deep.yaml": (b"a: " + b"[" * 100_000 + b"]" * 100_000, "nested"),
    "digits.json": (b'{"a": ' + b"9" * 5000 + b"}", "JSON"),
    "digits.yaml": (b"a: " + b"9" * 5000, "YAML"),
    "date.yaml": (b"a: 2024-99-99\n", "YAML"),
    "keys.yaml": (b"1: one\n", "key"),
    "unhashable.yaml": (b"{[1, 2]: 3}\n", "YAML"),
    "twice.json": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "each key must have one value, but c is given two"),
    "twice.yaml": (b"a: 1\nb:\n  c: 1\n  c: 2\n", "but c is given two, the second in line 4"),
    "nested_twice.yaml": (b"a: {c: 1}\nb: [{c: 2}]\na: {c: 1}\n", "but a is given two, the second in line 3"),
    "two.yaml": (b"a: 1\n---\nb: 2\n", "YAML"),
    "large.yaml": (b"a: " + b"x" * MAX_BYTES, "larger"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence(tmp_path, work, name):
    """Each malformed file raises InputError with one line that names the file and the fault, and makes nothing much
    larger than the largest file that is read."""
    content, fault = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    refused = work(lambda: read_mapping(path))
    assert isinstance(refused.result, InputError)
    assert refused.calls < 1_000_000 and refused.peak_bytes < 20 * MAX_BYTES
    sentence = str(refused.result)
    assert name in sentence and fault in sentence and "\n" not in sentence and len(sentence) < 400


def test_a_directory_a_missing_file_and_a_pipe_are_refused(tmp_path):
    """What is not a file is refused by name, and a pipe without a writer does not hang."""
    os.mkfifo(tmp_path / "pipe")
    for path, fault in [(tmp_path, "directory"), (tmp_path / "none", "no such file"), (tmp_path / "pipe", "pipe")]:
        with pytest.raises(InputError, match=fault):
            read_text(path)
    with pytest.raises(InputError):
        read_text("a\0b")


def test_good_files_give_their_mapping(tmp_path):
    """YAML and JSON, with or without a telling suffix, with a byte order mark or a key repeated with the same value (as
    some of Megatron-LM's own YAML have), are read."""
    good = {
        "a.yaml": b"a: 1\nb: [x, 2]\n",
        "a.json": b'{"a": 1, "b": ["x", 2]}',
        "a.txt": b'{\n\t"a": 1, "b": ["x", 2]}',
        "b.json": b'\xef\xbb\xbf{"a": 1, "a": 1, "b": ["x", 2]}',
        "plain": b"a: 1\nb:\n- x\n- 2\n",
        "twice.yaml": b"a: 1\na: 1\nb: [x, 2]\n",
    }
    for name, content in good.items():
        (tmp_path / name).write_bytes(content)
        assert read_mapping(tmp_path / name) == {"a": 1, "b": ["x", 2]}


def test_aliases_of_bounded_size_are_written_out(tmp_path):
    """Anchors, aliases and merges as Megatron-LM's checks of gradients use them (gpt3_mcore_reruns_resume_check_grads):
    what stands beside a merge goes before it."""
    path = tmp_path / "merged.yaml"
    path.write_text("base: &base {a: 1, b: [x, y]}\nother: &n 7\nown:\n  <<: *base\n  a: 2\n  c: *n\n")
    assert read_mapping(path)["own"] == {"a": 2, "b": ["x", "y"], "c": 7}
