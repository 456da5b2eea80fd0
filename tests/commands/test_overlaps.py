"""--tp-comm-overlap and --overlap-moe-expert-parallel-comm: exchanges that run beside the products."""

from __future__ import annotations

DENSE = ("--model", "llama-2-13b", "--gpus", "8xH100-80G", "--seq-length", "4096", "--global-batch", "256")
MIXTURE = ("--model", "qwen3-30b-a3b", "--gpus", "16xH100-80G", "--seq-length", "4096", "--global-batch", "512")
SPLIT = ("--tp", "4", "--zero", "1", "--recompute", "full")


def test_tensor_parallel_exchanges_can_be_hidden(plan) -> None:
    """The rest of the step stays, twelve buffers of 4,096 tokens by 5,120 stand with the reserve, and the report says
    which of both it is."""
    waits, hidden = (plan("memory", *DENSE, *SPLIT, *more, "--time", "--json").data for more in ((), _TP))
    held = [data["memory"]["stages"][0] for data in (waits, hidden)]
    assert held[0]["allocated_bytes"] == held[1]["allocated_bytes"]
    assert held[1]["total_bytes"] - held[0]["total_bytes"] == 12 * 4096 * 5120 * 2
    before, after = (data["step"]["components"] for data in (waits, hidden))
    assert 0 < after["tensor_parallel"] < 0.7 * before["tensor_parallel"]
    assert after["compute"] == before["compute"]
    assert any("--tp-comm-overlap hides" in line for line in waits["step"]["assumptions"])
    assert not any("--tp-comm-overlap" in line for line in hidden["step"]["assumptions"])
    assert hidden["inputs"]["implementation"]["tp_comm_overlap"]


def test_a_search_overlaps_where_there_is_something_to(plan) -> None:
    """Layouts without tensor parallelism stay in the search and are launched without the argument, which Megatron-LM
    would refuse there; wider ones gain."""
    free = plan(*DENSE, *_TP, "--top", "50", "--json").data
    assert {p["layout"]["tp"] for p in free["plans"]} >= {1, 2}
    pinned = [plan(*DENSE, *more, "--tp", "4", "--json").data["plans"][0]["step"]["seconds"] for more in ((), _TP)]
    assert pinned[1] < pinned[0]
    assert "--tp-comm-overlap" not in plan("memory", *DENSE, "--pp", "4", *_TP, "--flags", "megatron").out
    words = plan("memory", *DENSE, *SPLIT, *_TP, "--flags", "megatron").out
    assert "--tp-comm-overlap" in words and "--sequence-parallel" in words
    text = plan(*DENSE, *_TP, "--tp", "4").out
    assert "tensor-parallel overlap" in " ".join(text.split()) and "--tp-comm-overlap" in text


def test_the_experts_exchange_can_be_hidden(plan) -> None:
    """Less of it shows; a search keeps to layouts that may."""
    degrees = ("--ep", "8", "--etp", "1")
    waits, hidden = (plan("memory", *MIXTURE, *degrees, *more, "--time", "--json").data for more in ((), _EP))
    assert hidden["step"]["components"]["expert_parallel"] < 0.5 * waits["step"]["components"]["expert_parallel"]
    found = plan(*MIXTURE, *_EP, "--json").data
    assert all(p["layout"]["ep"] > 1 and (p["layout"]["pp"] == 1 or p["layout"]["vpp"] > 1) for p in found["plans"])
    assert plan("memory", *MIXTURE, "--ep", "8", "--etp", "1", "--pp", "2", *_EP).code == 2
    refused = plan("memory", *DENSE, *_EP)
    assert refused.code == 2 and "needs a model with experts, but" in " ".join(refused.err.split())


_TP = ("--tp-comm-overlap",)
_EP = ("--overlap-moe-expert-parallel-comm",)
