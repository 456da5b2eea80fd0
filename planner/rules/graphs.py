"""Rules about what CUDA graphs can capture."""

from __future__ import annotations

from planner.model import MLP
from planner.rules.rule import Case, Rule

_CONFIG = "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__ (cuda_graph_impl)"


def _given(c: Case) -> str:
    return f"the graphs are of {', '.join(c.implementation.cuda_graphs)}"


def _modules_exist(c: Case) -> bool:
    graphs = c.implementation.cuda_graphs
    dense = any(isinstance(layer.mlp, MLP) for layer in c.kinds)
    return (
        (bool(c.experts) or not {"moe", "moe_router"} & {*graphs})
        and (dense or "mlp" not in graphs)
        and not {"moe", "moe_router"} <= {*graphs}
        and ("moe_preprocess" not in graphs or "moe_router" in graphs)
    )


GRAPH_MODULES = Rule(
    "graph-modules",
    "CUDA graphs of mlp need dense layers, of moe or moe_router (not both) experts, of moe_preprocess also moe_router",
    _CONFIG,
    (),
    _modules_exist,
    lambda c: f"{_given(c)} and {c.model.name} has {'experts' if c.experts else 'no experts'}",
)


def _static_shapes(c: Case) -> bool:
    """Dropless routing gives the experts another number of tokens each time."""
    captured = bool(c.experts) and bool({"moe", "layer"} & {*c.implementation.cuda_graphs})
    padded = c.implementation.moe_capacity_factor is not None and c.implementation.moe_pad_to_capacity
    return padded or not captured


GRAPH_SHAPES = Rule(
    "graph-shapes",
    "a CUDA graph of a whole mixture of experts needs a capacity factor and padding to it",
    f"{_CONFIG}; megatron/core/transformer/moe/README.md",
    (),
    _static_shapes,
    lambda c: f"{_given(c)} and routing is dropless or unpadded",
    lambda c: "attn, moe_router and moe_preprocess can be captured",
)


def _recompute_fits(c: Case) -> bool:
    """Recomputing a mixture around the graph of its router is refused for Transformer Engine's graphs alone."""
    graphs, recompute = c.implementation.cuda_graphs, c.layout.recompute
    if not graphs or "iteration" in graphs:
        return True
    around = "moe" in recompute.modules and "moe_router" in graphs
    return recompute.granularity != "full" and not (around and c.implementation.cuda_graph_impl != "local")


GRAPH_RECOMPUTE = Rule(
    "graph-recompute",
    "with CUDA graphs of layers or modules there is no full recompute, with Transformer Engine's graph of moe_router "
    "none of moe",
    _CONFIG,
    ("recompute",),
    _recompute_fits,
    lambda c: f"{_given(c)} and recompute is {c.layout.recompute.granularity} {' '.join(c.layout.recompute.modules)}",
)


def _random_recompute(c: Case) -> list[str]:
    """Modules with dropout that are recomputed within a graph, which takes no random numbers."""
    i, modules = c.implementation, c.layout.recompute.modules
    attention = c.model.dropout if i.attention_dropout is None else i.attention_dropout
    hidden = c.model.dropout if i.hidden_dropout is None else i.hidden_dropout
    candidates = (("core_attn", "attn", attention), ("mlp", "mlp", hidden), ("moe", "moe", hidden))
    return [
        module
        for module, graph, dropout in candidates
        if module in modules and dropout > 0 and {graph, "layer", "iteration"} & {*i.cuda_graphs}
    ]


GRAPH_DROPOUT = Rule(
    "graph-dropout",
    "what is recomputed within a CUDA graph has no dropout",
    f"{_CONFIG} (recompute_modules)",
    ("recompute",),
    lambda c: not _random_recompute(c),
    lambda c: f"{_given(c)} and {' and '.join(_random_recompute(c))} is recomputed with dropout",
    lambda c: "--attention-dropout 0 --hidden-dropout 0, or other modules, would do",
)
GRAPH_OFFLOAD = Rule(
    "graph-offload",
    "CUDA graphs of layers or modules exclude offloading layers' activations",
    _CONFIG,
    (),
    lambda c: (
        not c.implementation.cuda_graphs
        or "iteration" in c.implementation.cuda_graphs
        or not c.implementation.offload_activation_layers
    ),
    lambda c: f"{_given(c)} and {c.implementation.offload_activation_layers} layers are offloaded",
)
GRAPH_RULES = (GRAPH_MODULES, GRAPH_SHAPES, GRAPH_RECOMPUTE, GRAPH_DROPOUT, GRAPH_OFFLOAD)
