"""What the host issues for a layer, and what CUDA graphs replay of it."""

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import GRAPHED, Implementation
from planner.layout import Layout
from planner.stages import balanced_split
from planner.timing.step import Timing
from planner.workload import Workload

MIXTURE, DENSE = load_model("qwen3-30b-a3b"), load_model("llama-3-8b")


def components(model, graphs, micro_batch=1):
    """Seconds of one step on 8 B200, a microbatch small enough that the host is what the GPU waits for."""
    layout = Layout(dp=8, ep=8 if model.is_moe else 1, zero=1, micro_batch=micro_batch, stages=balanced_split(model, 1))
    timing = Timing(model, Workload(2048, 64), Implementation(cuda_graphs=graphs), parse_gpus("8xB200"))
    return timing.step(layout).components


def test_each_further_module_leaves_the_host_less_to_do():
    """Attention, the router and what precedes the dispatch, one after the other; the kernels take what they took."""
    scopes = [(), ("attn",), ("attn", "moe_router"), ("attn", "moe_router", "moe_preprocess"), ("iteration",)]
    found = [components(MIXTURE, scope) for scope in scopes]
    launches = [c.get("launch", 0.0) for c in found]
    assert launches == sorted(launches, reverse=True) and len(set(launches)) == len(launches)
    assert launches[-1] == 0
    assert len({c["compute"] for c in found}) == 1


def test_a_graph_of_the_whole_layer_is_one_launch():
    """A dense layer captured whole waits for nothing; its parts leave the operations between them."""
    alone = components(DENSE, ())
    assert alone["launch"] > components(DENSE, ("attn", "mlp")).get("launch", 0.0)
    assert "launch" not in components(DENSE, ("layer",))


@pytest.mark.parametrize("module", [name for name in GRAPHED if name not in ("layer", "iteration")])
def test_modules_that_a_layer_lacks_change_nothing(module):
    """Graphs of a mixture's parts leave dense layers as they are, and the other way round."""
    model = DENSE if module.startswith("moe") else MIXTURE
    if module == "attn":
        assert components(model, (module,)) != components(model, ())
    else:
        assert components(model, (module,)) == components(model, ())
