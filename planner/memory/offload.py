"""What is moved to host memory: bytes that it frees on the GPU, and bytes that it takes on the host, for each rank.

    optimizer      Megatron's HybridDeviceOptimizer (megatron/core/optimizer/cpu_offloading/hybrid_optimizer.py): a part
                   of the shard is updated on the host, with pinned fp32 weights and gradients beside the moments;
                   DeepSpeed's offload_optimizer (deepspeed/runtime/zero/{stage_1_and_2,stage3}.py): the reduced
                   gradients go there too, in fp32 and in the model's type
    parameters     DeepSpeed ZeRO-3's offload_param: the 16-bit shards; torch FSDP2's CPUOffloadPolicy: shards of
                   weights, gradients and optimizer together (torch/distributed/fsdp/_fully_shard/_fsdp_api.py)
    activations    Megatron's --cpu-offloading-num-layers (Transformer Engine, pytorch/cpu_offload.py): all that the
                   first layers keep; --fine-grained-activation-offloading (megatron/core/pipeline_parallel/
                   fine_grained_activation_offload.py): what chosen modules keep, in tensors of a million elements or
                   more, except in the layer whose backward comes next

Whatever is offloaded for a backward is on the GPU again when its layer's turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.errors import NotModelled
from planner.implementation import Implementation
from planner.memory.additions import Additions
from planner.memory.form import Counts, Term
from planner.memory.tape import Branch, Checkpoint, Item, Op, Tape

OFFLOAD_MODULES = ("attn_norm", "attn_proj", "core_attn", "expert_fc1", "mlp_norm", "moe_act", "qkv_linear")
"""Modules of --offload-modules that are modelled."""

_BEFORE_CORE = ("linear_q", "linear_kv", "q_layernorm", "kv_layernorm", "qk_layernorm", "mla_up_proj", "split")
_CORE = ("core_attention", "core_attn", "repeat", "scores", "softmax", "attention_dropout", "context")


def module_of(name: str) -> str | None:
    """The offloadable module that an operation of a layer's tape belongs to."""
    if name == "input_layernorm":
        return "attn_norm"
    if name == "pre_mlp_layernorm":
        return "mlp_norm"
    if name in _CORE:
        return "core_attn"
    if name == "linear_proj":
        return "attn_proj"
    if name == "expert fc1":
        return "expert_fc1"
    if name in ("moe_act", "activation"):
        return "moe_act"
    return "qkv_linear" if name.startswith(_BEFORE_CORE) else None


def offloaded_bytes(impl: Implementation, tape: Tape, element: int, *, experts: bool) -> int:
    """Bytes of one layer that chosen modules keep and that go to the host. Storages that other operations keep as well
    go too: the module's input is released by force. `experts`: the layer has a mixture of experts."""
    chosen = frozenset(impl.offload_modules)
    if not chosen:
        return 0
    storages: dict[str, int] = {}
    for item in _kept_items(tape):
        module = module_of(item.name)
        if module not in chosen or (module == "moe_act" and not experts):
            continue
        for s in item.saves:
            if s.bytes >= impl.least_offloaded_elements * element:
                storages[s.key] = max(s.bytes, storages.get(s.key, 0))
    return int(sum(storages.values()) * impl.activation_offload_fraction)


def _kept_items(items: tuple[Item, ...]) -> Iterator[Op | Checkpoint]:
    for item in items:
        if isinstance(item, Branch):
            yield from _kept_items(item.items)
        else:
            yield item


def activation_offload(
    impl: Implementation, pattern: Sequence[int], kept: Sequence[int], offloaded: Sequence[int]
) -> Additions:
    """What offloaded activations change at each moment. `pattern`: the kind of each decoder layer; `kept[k]`: bytes
    that stay for a layer of kind k, `offloaded[k]`: bytes that chosen modules send away (their reload is part of the
    layer's backward)."""
    first = pattern[: impl.offload_activation_layers]
    if first:
        # at most one of them is back at a time while the one before it is on its way
        gone = Term("activations", "offloaded layers", -sum(kept[k] for k in first), certainty="estimated")
        back = tuple(Term("activations", "reloaded layer", kept[k], certainty="estimated") for k in range(len(kept)))
        return Additions(tuple((gone, b) for b in back), (gone,))
    if not any(offloaded):
        return Additions(tuple(() for _ in kept))
    # the groups whose backward comes next are never sent, so that reloads run one layer ahead of the backward
    # (PipelineOffloadManager.post_warmup_callback: _offload_margin; ChunkOffloadHandler.bulk_reload)
    ahead = [Term("activations", "reloaded ahead", sent, certainty="estimated") for sent in offloaded]
    return Additions(tuple((term,) for term in ahead), (ahead[pattern[-1]],))


def activation_host_bytes(
    impl: Implementation,
    pattern: Sequence[int],
    kept: Sequence[int],
    offloaded: Sequence[int],
    counts: Counts,
    in_flight: Sequence[int],
) -> int:
    """Pinned host memory of one rank for activations: whole layers, or what chosen modules send of every microbatch in
    flight (`in_flight`: microbatches of each virtual chunk)."""
    if impl.offload_activation_layers:
        return sum(kept[k] for k in pattern[: impl.offload_activation_layers])
    return sum(
        alive * n * sent
        for alive, layers in zip(in_flight, counts.layers, strict=True)
        for n, sent in zip(layers, offloaded, strict=True)
    )


def check_offload(impl: Implementation, zero: int) -> None:
    """Raise NotModelled for what no framework moves to the host."""
    if impl.offload_parameters and zero < 2:
        raise NotModelled("weights stay on the GPU with zero 0 and 1: offloading them is modelled for zero 3 only.")
    if impl.offload_parameters and impl.sharded_framework == "megatron_fsdp":
        raise NotModelled("Megatron-FSDP keeps its weights on the GPU: offloading them is not modelled.")
    if impl.offload_parameters and impl.sharded_framework == "deepspeed" and zero == 2:
        raise NotModelled("DeepSpeed offloads weights with zero 3 only: zero 2 keeps them whole on the GPU.")
    if zero >= 2 and impl.sharded_framework == "fsdp2" and impl.optimizer_offload_fraction and not all_offloaded(impl):
        raise NotModelled("torch FSDP2 offloads weights, gradients and optimizer together: offload the parameters too.")


def all_offloaded(impl: Implementation) -> bool:
    """Whether FSDP2's CPUOffloadPolicy is meant, which moves every shard to the host."""
    return impl.sharded_framework == "fsdp2" and impl.offload_parameters
