"""`--flags`: a layout as the arguments of the framework that will run it.

Megatron: arguments of `pretrain_gpt.py` (megatron/training/arguments.py). DeepSpeed: the JSON of `--deepspeed_config`
(deepspeed/runtime/config.py); degrees that DeepSpeed takes from the code of the training script stand beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.errors import NotModelled
from planner.reports.blocks import Code, Report
from planner.reports.body import VERSION
from planner.reports.body import layout as layout_body

if TYPE_CHECKING:
    from planner.commands.question import Question
    from planner.layout import Layout, Recompute
    from planner.model import LatentAttention, Layer, Model

_POSITIONS = {"rope": "rope", "learned": "learned_absolute", "none": "none"}


def flags_report(framework: str, question: Question, layout: Layout) -> Report:
    """Only the arguments, ready to paste; the data holds them as a list (Megatron) or a mapping (DeepSpeed)."""
    data: dict[str, object] = {
        "version": VERSION,
        "framework": framework,
        "layout": layout_body(layout, question.workload.global_batch),
    }
    if framework == "megatron":
        arguments = [*megatron_layout(question, layout), *megatron_model(question.model)]
        notes = tuple(megatron_notes(layout))
        data |= {"arguments": arguments, "notes": list(notes)}
        text = " \\\n".join(arguments)
    else:
        config = deepspeed_config(question, layout)
        notes = tuple(deepspeed_notes(layout))
        data |= {"config": config, "notes": list(notes)}
        text = json.dumps(config, indent=2)
    rows = [{"argument": line} for line in text.splitlines()]
    comments = [f"# {note}" for note in notes] if framework == "megatron" else []
    return Report(f"{framework} arguments", data, (Code("\n".join([*comments, text])),), rows)


def megatron_layout(question: Question, layout: Layout) -> Iterator[str]:
    """Degrees, batch, precision, optimizer and recomputation."""
    workload, implementation = question.workload, question.implementation
    yield f"--tensor-model-parallel-size {layout.tp}"
    yield f"--pipeline-model-parallel-size {layout.pp}"
    if layout.cp > 1:
        yield f"--context-parallel-size {layout.cp}"
    if question.model.is_moe:
        yield f"--expert-model-parallel-size {layout.ep}"
        yield f"--expert-tensor-parallel-size {layout.etp}"
    yield from _split(layout)
    if layout.sequence_parallel:
        yield "--sequence-parallel"
    yield f"--micro-batch-size {layout.micro_batch}"
    yield f"--global-batch-size {workload.global_batch}"
    yield f"--seq-length {workload.seq_length}"
    yield from _states(question, layout)
    yield from _recompute(layout.recompute)
    yield f"--attention-backend {implementation.attention}"
    yield "--fp16" if workload.precision == "fp16" else "--bf16"
    if workload.precision == "fp8":
        yield "--fp8-format hybrid"
    yield f"--transformer-impl {implementation.layer_implementation}"


def _split(layout: Layout) -> Iterator[str]:
    """The stage split: nothing where it is even, else the layout string, which says everything."""
    from planner.stages import layout_string

    counts = {chunk.num_layers for stage in layout.stages for chunk in stage}
    if len(counts) > 1 or any(chunk.mtp_layers for stage in layout.stages for chunk in stage):
        if layout.pp > 1:
            yield f"--pipeline-model-parallel-layout '{layout_string(layout.stages)}'"
    elif layout.vpp > 1:
        yield f"--num-virtual-stages-per-pipeline-rank {layout.vpp}"


def _states(question: Question, layout: Layout) -> Iterator[str]:
    """Who holds weights, gradients and optimizer states."""
    optimizer = question.workload.optimizer
    names = {"adamw": "adam", "sgd": "sgd", "sgd-momentum": "sgd", "muon": "muon"}
    if optimizer not in names:
        raise NotModelled(f"Megatron has no argument for the optimizer {optimizer}; it has adam, sgd and muon.")
    yield f"--optimizer {names[optimizer]}"
    if optimizer == "sgd":
        yield "--sgd-momentum 0.0"
    if layout.zero == 1:
        yield "--use-distributed-optimizer"
        yield from ("--overlap-grad-reduce", "--overlap-param-gather")
    elif layout.zero == 0:
        yield "--overlap-grad-reduce"
    elif question.implementation.sharded_framework == "fsdp2" and layout.zero == 3:
        yield "--use-torch-fsdp2"
    else:
        strategy = "optim_grads" if layout.zero == 2 else "optim_grads_params"
        yield from ("--use-megatron-fsdp", f"--data-parallel-sharding-strategy {strategy}")


def _recompute(recompute: Recompute) -> Iterator[str]:
    if recompute.granularity == "none":
        return
    yield f"--recompute-granularity {recompute.granularity}"
    if recompute.granularity == "selective":
        if recompute.modules:
            yield f"--recompute-modules {' '.join(recompute.modules)}"
        return
    yield f"--recompute-method {recompute.method}"
    yield f"--recompute-num-layers {max(recompute.stage_layers, default=recompute.num_layers or 1)}"


def megatron_notes(layout: Layout) -> Iterator[str]:
    """What the arguments cannot say."""
    if len(set(layout.recompute.stage_layers)) > 1:
        counts = ",".join(map(str, layout.recompute.stage_layers))
        yield (
            f"Megatron recomputes the same number of layers on every stage; the plan needs {counts}. "
            "The largest is given: it fits, and is slower than planned."
        )


def megatron_model(model: Model) -> Iterator[str]:
    """The model's shape. Raises NotModelled for what Megatron has no argument for."""
    from planner.model import LatentAttention

    layer = model.layer_kinds[0]
    if model.position not in _POSITIONS:
        raise NotModelled(f"Megatron has no argument for {model.position} positions, which {model.name} uses.")
    yield f"--num-layers {model.num_layers}"
    yield f"--hidden-size {model.hidden_size}"
    yield f"--vocab-size {model.vocab_size}"
    yield f"--max-position-embeddings {model.max_positions}"
    yield f"--position-embedding-type {_POSITIONS[model.position]}"
    yield f"--normalization {model.norm.type}"
    dense = next((kind for kind in model.layer_kinds if kind.kind == "dense"), None)
    yield from _megatron_mlp(dense or layer)
    if isinstance(layer.attention, LatentAttention):
        yield from _megatron_latent(layer.attention)
    else:
        a = layer.attention
        yield f"--num-attention-heads {a.num_heads}"
        if a.num_query_groups != a.num_heads:
            yield f"--group-query-attention --num-query-groups {a.num_query_groups}"
        if a.head_dim * a.num_heads != model.hidden_size:
            yield f"--kv-channels {a.head_dim}"
        if a.qkv_bias and not a.output_bias:
            yield "--add-qkv-bias"
        if a.qk_norm != "none":
            yield "--qk-layernorm"
    if not model.tied:
        yield "--untie-embeddings-and-output-weights"
    if model.mtp_num_layers:
        yield f"--mtp-num-layers {model.mtp_num_layers}"
    yield from _megatron_experts(model)


def _megatron_mlp(layer: Layer) -> Iterator[str]:
    from planner.model import MoE

    mlp = layer.mlp.expert if isinstance(layer.mlp, MoE) else layer.mlp
    yield f"--ffn-hidden-size {mlp.ffn_hidden_size}"
    if mlp.gated:
        yield "--swiglu"
    if not mlp.bias:
        yield "--disable-bias-linear"


def _megatron_latent(a: LatentAttention) -> Iterator[str]:
    yield "--multi-latent-attention"
    yield f"--num-attention-heads {a.num_heads}"
    if a.q_lora_rank:
        yield f"--q-lora-rank {a.q_lora_rank}"
    yield f"--kv-lora-rank {a.kv_lora_rank}"
    yield f"--qk-head-dim {a.qk_head_dim}"
    yield f"--qk-pos-emb-head-dim {a.qk_pos_emb_head_dim}"
    yield f"--v-head-dim {a.v_head_dim}"
    if a.latent_norms:
        yield "--qk-layernorm"


def _megatron_experts(model: Model) -> Iterator[str]:
    from planner.model import MoE

    moe = next((kind.mlp for kind in model.layer_kinds if isinstance(kind.mlp, MoE)), None)
    if moe is None:
        return
    yield f"--num-experts {moe.num_experts}"
    yield f"--moe-router-topk {moe.top_k}"
    yield f"--moe-ffn-hidden-size {moe.expert.ffn_hidden_size}"
    yield "--moe-grouped-gemm"
    yield "--moe-token-dispatcher-type alltoall"
    if moe.shared:
        yield f"--moe-shared-expert-intermediate-size {moe.shared.ffn_hidden_size}"
        if moe.shared_gate:
            yield "--moe-shared-expert-gate"
    if any(layer.kind == "dense" for layer in model.layers):
        pattern = ",".join(str(int(layer.kind == "moe")) for layer in model.layers)
        yield f"--moe-layer-freq '[{pattern}]'"


def deepspeed_config(question: Question, layout: Layout) -> dict[str, object]:
    """The DeepSpeed JSON: batch, ZeRO stage and precision."""
    workload = question.workload
    config: dict[str, object] = {
        "train_batch_size": workload.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.num_microbatches(workload.global_batch),
        "zero_optimization": {"stage": layout.zero, "overlap_comm": layout.pp == 1},
    }
    config["fp16" if workload.precision == "fp16" else "bf16"] = {"enabled": True}
    if layout.tp > 1:
        config["tensor_parallel"] = {"autotp_size": layout.tp}
    if layout.recompute.granularity == "full":
        config["activation_checkpointing"] = {"partition_activations": False}
    return config


def deepspeed_notes(layout: Layout) -> Iterator[str]:
    """What DeepSpeed takes from the training script instead."""
    if layout.pp > 1:
        yield f"the pipeline of {layout.pp} stages is made in code: PipelineModule(num_stages={layout.pp})"
    if layout.cp > 1:
        yield f"the sequence is split in code: Ulysses with sequence_parallel_size {layout.cp}"
    if layout.ep > 1:
        yield f"the experts are split in code: deepspeed.moe.layer.MoE(ep_size={layout.ep})"
