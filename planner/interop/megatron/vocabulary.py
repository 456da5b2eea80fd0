"""The vocabulary of a launch, before padding: given, or that of a tokenizer which is the same everywhere.

Sources: pretrain_gpt.py (args_defaults: the tokenizer type is GPT2BPETokenizer); megatron/core/tokenizers/utils/
build_tokenizer.py; megatron/core/tokenizers/text/libraries/tiktoken_tokenizer.py: DEFAULT_TIKTOKEN_MAX_VOCAB; the
length of each Hugging Face tokenizer as published with its model.
"""

from __future__ import annotations

import re

from planner.errors import InputError
from planner.interop.megatron.parse import UNRESOLVED, Arguments, readable

_BY_TYPE = {"GPT2BPETokenizer": 50257, "Llama2Tokenizer": 32000, "TikTokenizer": 2**17}
"""GPT-2's merges, Llama 2's SentencePiece model, and the size that TikTokenizer cuts every vocabulary to."""

_BY_NAME = (
    (re.compile(r"llama-?2-(7b|13b|70b)"), 32000),
    (re.compile(r"llama-?3(\.[0-3])?-"), 128256),
    (re.compile(r"mixtral-8x7b"), 32000),
    (re.compile(r"qwen2\.5-"), 151665),
    (re.compile(r"qwen3-(?!next|vl|omni)"), 151669),
    (re.compile(r"deepseek-(v3|r1)(?!-distill)"), 128815),
    (re.compile(r"(^|/)gpt2(-medium|-large|-xl)?$"), 50257),
)
"""Hugging Face tokenizers, by the name of the model that they are published with."""


def vocabulary(args: Arguments, source: str, fallback: int | None = None) -> int:
    """Tokens of the vocabulary. Raises InputError where neither the arguments nor `fallback` tell them."""
    for name in ("padded-vocab-size", "pad-vocab-size-to", "vocab-size"):
        if name in args:
            size = args.get(name)
            if size < 1:
                raise InputError(f"{source}: --{name} must be at least 1, but was given {size}.")
            return size
    kind = args.get("tokenizer-type")
    if kind is None and ("merge-file" in args or "vocab-file" in args):
        kind = "GPT2BPETokenizer"
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    model = args.get("tokenizer-model", "")
    if kind == "HuggingFaceTokenizer" and UNRESOLVED not in model:
        for pattern, size in _BY_NAME:
            if pattern.search(model.lower()):
                args.not_accounted.append(f"--tokenizer-model {readable(model)}: its vocabulary is taken as {size}")
                return size
    if fallback is not None:
        return fallback
    if kind is None:
        raise InputError(
            f"{source}: --vocab-size must be given, but is absent, and so is --tokenizer-type: add it, or give it to "
            "`plan check --vocab-size N`."
        )
    shown = readable(f"{kind} {model}".strip())
    raise InputError(
        f"{source}: --vocab-size must be given, because the vocabulary of {shown} is in a file of its own: "
        "add it, or give it to `plan check --vocab-size N`."
    )
