"""What a layer keeps where operations, not modules, are chosen for saving (torchtitan's default).

Source: torchtitan, distributed/activation_checkpoint.py: a policy over aten operations saves the outputs of attention
and of every second matrix product; all else is computed again from the layer's input.
"""

from __future__ import annotations

from planner.errors import NotModelled
from planner.memory.activations.shape import Shape
from planner.model import Attention, Layer, MoE


def saved_by_policy(shape: Shape, layer: Layer) -> dict[str, int]:
    """Name and bytes of each tensor that the policy keeps of one layer.

    The matrix products in order are query, key, value, output projection, gate, up, down: the first, third, fifth and
    seventh are saved. A plain MLP has no gate. Raises NotModelled for other kinds of layers.
    """
    a = layer.attention
    if not isinstance(a, Attention) or isinstance(layer.mlp, MoE):
        raise NotModelled(
            "selective recomputation by operation is modelled for dense layers with plain attention only."
        )
    row = shape.element * shape.tokens
    products = {
        "query": row * a.query_width // shape.tp,
        "key": row * a.key_width // shape.tp,
        "value": row * a.key_width // shape.tp,
        "output projection": shape.stream,
    }
    inner = row * layer.mlp.ffn_hidden_size // shape.tp
    products |= {"gate": inner, "up": inner} if layer.mlp.gated else {"up": inner}
    products["down projection"] = shape.stream
    kept = {name: size for i, (name, size) in enumerate(products.items()) if i % 2 == 0}
    attention = {
        "attention output": row * a.query_width // shape.tp,
        "attention logsumexp": 4 * shape.tokens * a.num_heads // shape.tp,
    }
    return {"layer input": shape.stream, **kept, **attention}


def kept_products(layer: Layer, hidden: int, tp: int = 1) -> list[tuple[int, int]]:
    """(outputs, inputs) of the matrix products whose outputs the policy keeps, on one of `tp` ranks: query, value, the
    first of the MLP, and the last of a gated one. None of layers that `saved_by_policy` refuses."""
    a = layer.attention
    if not isinstance(a, Attention) or isinstance(layer.mlp, MoE):
        return []
    inner = layer.mlp.ffn_hidden_size // tp
    products = [(a.query_width // tp, hidden), (a.key_width // tp, hidden), (inner, hidden)]
    return [*products, (hidden, inner)] if layer.mlp.gated else products
