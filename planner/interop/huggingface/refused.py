"""Model types that are known and not modelled, each with what is missing."""

from __future__ import annotations

from collections.abc import Iterator

_REASONS = {
    "it has state-space (Mamba) layers": (
        "mamba mamba2 falcon_mamba jamba bamba zamba zamba2 falcon_h1 nemotron_h granitemoehybrid plamo2 zaya "
        "codestral_mamba"
    ),
    "it has linear-attention or recurrent layers": (
        "qwen3_next qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text kimi_linear minimax minimax_text_01 minimax_m1 "
        "recurrent_gemma rwkv rwkv5 rwkv6 rwkv7 xlstm retnet olmo_hybrid bailing_hybrid bailing_moe_linear "
        "lfm2 lfm2_moe hyena stripedhyena"
    ),
    "it is an encoder, without a causal decoder": (
        "bert roberta distilbert albert electra deberta deberta-v2 modernbert xlm-roberta camembert ernie mpnet esm "
        "longformer big_bird nomic_bert eurobert layoutlm layoutlmv3 vit clip siglip dinov2 wav2vec2 hubert"
    ),
    "it is an encoder-decoder": (
        "t5 mt5 umt5 t5gemma bart mbart pegasus marian m2m_100 nllb-moe switch_transformers longt5 whisper blenderbot "
        "prophetnet led plbart speech_to_text seamless_m4t fsmt encoder-decoder vision-encoder-decoder"
    ),
    "it has sparse attention with an indexer": "deepseek_v32 deepseek_v4 glm_moe_dsa",
    "its attention output is gated": "afmoe laguna",
    "its values are narrower than its keys": "mimo_v2_flash",
    "it has per-layer embeddings": "gemma3n gemma3n_text gemma4 gemma4_text",
    "its layers differ in heads and widths": "openelm deci nemotron-nas",
    "it has a dense MLP beside the experts": "arctic grok-2",
    "each layer has two attentions and two dense MLPs beside its experts, some of which compute nothing": (
        "longcat_flash"
    ),
    "its attention layers have experts of their own": "jetmoe",
    "it has differential or dynamic-mask attention": "diffllama doge",
}


def refused_types() -> frozenset[str]:
    """Every model type that is known and not modelled."""
    return frozenset(_BY_TYPE)


def reason(model_type: str) -> str | None:
    """What is missing for a known model type, else None."""
    return _BY_TYPE.get(model_type)


def _listed() -> Iterator[tuple[str, str]]:
    for sentence, types in _REASONS.items():
        for model_type in types.split():
            yield model_type, sentence


_BY_TYPE = dict(_listed())
