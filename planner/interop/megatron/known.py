"""Megatron-LM's arguments that change memory or time, and what each of them sets.

Three tables: HONOURED become fields of our objects; NOT_ACCOUNTED are understood but have no term in the accounting, so
that the report names them; REFUSED describe models that are not accounted for at all. Arguments that change neither
memory nor time are in `ignored.py`. Whatever is in none of them is reported as unrecognised.

Source of names, arities and defaults: megatron/training/arguments.py and the configuration classes it reads
(core/transformer/transformer_config.py, core/model_parallel_config.py, training/config/*.py). Arguments of older
releases and of Megatron-DeepSpeed that launch scripts still carry are marked.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["flag", "int", "float", "str", "list"]


class Argument(NamedTuple):
    """How many words an argument takes, of which type, and what it changes."""

    kind: Kind
    effect: str
    """The field it sets, `none`, or why it is not accounted for."""


def _table(kind: Kind, text: str) -> dict[str, Argument]:
    """Lines of `name effect...`."""
    rows = (line.split(None, 1) for line in text.strip().splitlines())
    return {name: Argument(kind, effect) for name, effect in rows}


HONOURED: dict[str, Argument] = {
    **_table(
        "int",
        """
        num-layers Model.pattern
        encoder-num-layers Model.pattern (another name of num-layers)
        hidden-size Model.hidden_size
        num-attention-heads Attention.num_heads
        num-query-groups Attention.num_query_groups
        num-key-value-heads Attention.num_query_groups (Megatron-DeepSpeed)
        kv-channels Attention.head_dim
        ffn-hidden-size MLP.ffn_hidden_size
        max-position-embeddings Model.max_positions, Model.learned_positions
        vocab-size Model.vocab_size
        padded-vocab-size Model.vocab_size
        pad-vocab-size-to Model.vocab_size (Megatron-DeepSpeed)
        ds-sequence-parallel-size Layout.cp (Megatron-DeepSpeed)
        make-vocab-size-divisible-by Implementation.vocab_divisible_by
        mtp-num-layers Model.mtp_num_layers
        num-experts MoE.num_experts
        moe-router-topk MoE.top_k
        topk MoE.top_k (Megatron-DeepSpeed)
        moe-ffn-hidden-size MoE.expert
        moe-shared-expert-intermediate-size MoE.shared
        q-lora-rank LatentAttention.q_lora_rank
        kv-lora-rank LatentAttention.kv_lora_rank
        qk-head-dim LatentAttention.qk_head_dim
        qk-pos-emb-head-dim LatentAttention.qk_pos_emb_head_dim
        v-head-dim LatentAttention.v_head_dim
        seq-length Workload.seq_length
        encoder-seq-length Workload.seq_length (another name of seq-length)
        micro-batch-size Layout.micro_batch
        global-batch-size Workload.global_batch
        tensor-model-parallel-size Layout.tp
        pipeline-model-parallel-size Layout.pp
        context-parallel-size Layout.cp
        expert-model-parallel-size Layout.ep
        moe-expert-parallel-size Layout.ep (Megatron-DeepSpeed)
        expert-tensor-parallel-size Layout.etp
        num-layers-per-virtual-pipeline-stage Layout.vpp
        num-virtual-stages-per-pipeline-rank Layout.vpp
        decoder-first-pipeline-num-layers Layout.stages
        decoder-last-pipeline-num-layers Layout.stages
        microbatch-group-size-per-virtual-pipeline-stage Implementation.microbatch_group_size
        recompute-num-layers Recompute.num_layers
        checkpoint-num-layers Recompute.num_layers (Megatron-DeepSpeed)
        num-distributed-optimizer-instances Implementation.num_distributed_optimizer_instances, Layout.hsdp_replicas
        ddp-bucket-size Implementation.ddp_bucket_elements
        wgrad-deferral-limit Implementation.deferred_embedding_wgrads
        cpu-offloading-num-layers Implementation.offload_activation_layers
        min-offloaded-tensor-size Implementation.least_offloaded_elements
        flash-attention-version Implementation.flash_attention_version
        zero-stage Layout.zero (Megatron-DeepSpeed)
        """,
    ),
    **_table(
        "float",
        """
        hidden-dropout Implementation.hidden_dropout
        attention-dropout Implementation.attention_dropout
        rotary-percent Model.rotary_percent
        moe-expert-capacity-factor Implementation.moe_capacity_factor
        sgd-momentum Workload.optimizer (0 keeps no state)
        optimizer-offload-fraction Implementation.optimizer_offload_fraction
        activation-offload-fraction Implementation.activation_offload_fraction
        activation-func-clamp-value MLP.clamp
        glu-linear-offset MLP.linear_offset
        """,
    ),
    **_table(
        "str",
        """
        position-embedding-type Model.position
        glu-activation MLP.gated (BigScience's Megatron-DeepSpeed)
        normalization Model.norm
        softmax-type Attention.sinks
        window-size Attention.window
        window-attn-skip-freq Attention.window
        moe-layer-freq Model.pattern
        tokenizer-type Model.vocab_size where --vocab-size is absent
        tokenizer-model Model.vocab_size where --vocab-size is absent
        vocab-file Model.vocab_size where --vocab-size is absent
        merge-file Model.vocab_size where --vocab-size is absent
        transformer-impl Implementation.layer_implementation
        attention-backend Implementation.attention
        pp-partition-method Layout.stages (Megatron-DeepSpeed)
        deepspeed-config Layout.zero, Workload.precision, sizes and offloading (Megatron-DeepSpeed)
        cuda-graph-impl Implementation.cuda_graphs, Implementation.cuda_graph_impl
        cross-entropy-fusion-impl Implementation.cross_entropy
        moe-token-dispatcher-type Implementation.moe_dispatcher
        moe-router-score-function MoE.score_function
        moe-router-dtype Implementation.moe_router_fp32
        fp8-format Workload.precision
        fp8-recipe Implementation.fp8_recipe
        fp8 Workload.precision (older name of fp8-format)
        optimizer Workload.optimizer
        muon-scalar-optimizer Implementation.muon_scalar_optimizer
        main-grads-dtype Implementation.main_grads_bytes
        main-params-dtype Implementation.main_params_bytes
        exp-avg-dtype Implementation.exp_avg_bytes
        exp-avg-sq-dtype Implementation.exp_avg_sq_bytes
        pipeline-model-parallel-layout Layout.stages
        recompute-granularity Layout.recompute
        recompute-method Layout.recompute
        data-parallel-sharding-strategy Layout.zero
        megatron-fsdp-main-grads-dtype Implementation.grad_reduce_bytes
        """,
    ),
    **_table(
        "list",
        """
        recompute-modules Layout.recompute
        offload-modules Implementation.offload_modules
        cuda-graph-modules Implementation.cuda_graphs
        cp-comm-type Implementation.cp_comm_type
        cuda-graph-scope Implementation.cuda_graphs (older name of cuda-graph-modules)
        step-batch-size-schedule Workload.global_batch (the last step's)
        spec none, unless it names a hybrid or Mamba stack (refused) or `local` (Implementation.layer_implementation)
        """,
    ),
    **_table(
        "flag",
        """
        group-query-attention Attention.num_query_groups
        multi-latent-attention LatentAttention
        swiglu MLP.gated
        quick-geglu MLP.gated, MLP.quick_gelu
        use-bnb-optimizer Workload.optimizer (BigScience's Megatron-DeepSpeed)
        disable-bias-linear MLP.bias, Attention.output_bias, MoE.router_bias
        add-qkv-bias Attention.qkv_bias
        qk-layernorm Attention.qk_norm, LatentAttention.latent_norms
        moe-shared-expert-gate MoE.shared_gate
        untie-embeddings-and-output-weights Model.tied
        use-rotary-position-embeddings Model.position
        no-position-embedding Model.position
        no-pad-vocab-size Implementation.vocab_divisible_by
        disable-pad-vocab-size Implementation.vocab_divisible_by
        bf16 Workload.precision
        fp16 Workload.precision
        sequence-parallel Layout.sequence_parallel
        account-for-embedding-in-pipeline-split Layout.stages
        account-for-loss-in-pipeline-split Layout.stages
        recompute-activations Layout.recompute (selective)
        checkpoint-activations Layout.recompute (full; older releases and Megatron-DeepSpeed)
        distribute-saved-activations Recompute.distribute_saved_activations
        distribute-checkpointed-activations Recompute.distribute_saved_activations (older name)
        moe-layer-recompute Layout.recompute (selective, moe)
        use-distributed-optimizer Layout.zero
        use-megatron-fsdp Layout.zero
        use-custom-fsdp Layout.zero (older name)
        torch-fsdp2-no-reshard-after-forward Layout.zero (2: weights stay from forward to backward)
        use-torch-fsdp2 Layout.zero
        use-flash-attn Implementation.attention (Megatron-DeepSpeed and the legacy models)
        use-flash-attn-v1 Implementation.attention (Megatron-DeepSpeed)
        use-flash-attn-v2 Implementation.attention (Megatron-DeepSpeed)
        use-flash-attn-triton Implementation.attention (Megatron-DeepSpeed)
        use-flash-attn-builder Implementation.attention (Megatron-DeepSpeed)
        no-masked-softmax-fusion Implementation.masked_softmax_fusion
        attention-softmax-in-fp32 Implementation.attention_softmax_in_fp32 (Megatron-DeepSpeed)
        no-query-key-layer-scaling Implementation.attention_softmax_in_fp32 (Megatron-DeepSpeed)
        no-bias-gelu-fusion Implementation.bias_activation_fusion
        no-bias-swiglu-fusion Implementation.bias_activation_fusion
        no-bias-dropout-fusion Implementation.bias_dropout_fusion
        no-rope-fusion Implementation.rope_fusion
        cross-entropy-loss-fusion Implementation.cross_entropy
        no-gradient-accumulation-fusion Implementation.gradient_accumulation_fusion
        accumulate-allreduce-grads-in-fp32 Implementation.grad_reduce_bytes
        grad-reduce-in-bf16 Implementation.grad_reduce_bytes
        ddp-average-in-collective Implementation.prescales_gradients
        calculate-per-token-loss Implementation.prescales_gradients
        embed-layernorm Model.embedding_norm (Megatron-DeepSpeed)
        enable-cuda-graph Implementation.cuda_graphs (older: --cuda-graph-impl local)
        external-cuda-graph Implementation.cuda_graphs (older: --cuda-graph-impl transformer_engine)
        overlap-grad-reduce Implementation.overlap_grad_reduce
        overlap-param-gather Implementation.overlap_param_gather
        tp-comm-overlap Implementation.tp_comm_overlap
        deterministic-mode Implementation.deterministic
        defer-embedding-wgrad-compute Implementation.deferred_embedding_wgrads
        no-create-attention-mask-in-dataloader Implementation.attention_mask_in_dataloader
        ddp-pad-buckets-for-high-nccl-busbw Implementation.pad_buckets_for_high_nccl_busbw
        moe-pad-expert-input-to-capacity Implementation.moe_pad_to_capacity
        moe-grouped-gemm Implementation.moe_grouped_gemm
        moe-permute-fusion Implementation.moe_permute_fusion
        moe-shared-expert-overlap Implementation.moe_shared_expert_overlap
        overlap-moe-expert-parallel-comm Implementation.overlap_moe_expert_parallel_comm
        fp8-param-gather Implementation.fp8_param_gather
        use-precision-aware-optimizer Implementation.precision_aware_optimizer
        optimizer-cpu-offload Implementation.optimizer_offload_fraction
        fine-grained-activation-offloading Implementation.offload_modules
        no-use-layer-wise-param-layout Implementation.layer_wise_param_layout
        cpu-optimizer Implementation.optimizer_offload_fraction (Megatron-DeepSpeed)
        deepspeed Implementation.framework (Megatron-DeepSpeed)
        no-pipeline-parallel Layout.pp (Megatron-DeepSpeed)
        """,
    ),
}

NOT_ACCOUNTED: dict[str, Argument] = {
    **_table(
        "flag",
        """
        no-overlap-p2p-communication pipeline sends of the interleaved schedule are taken as overlapped
        overlap-p2p-communication-warmup-flush the flush of the warm-up is not timed
        overlap-param-gather-with-optimizer-step the first bucket's gather is timed as the others
        no-align-param-gather gathers of the pipeline stages are timed as aligned
        delay-wgrad-compute the delayed weight gradients are neither timed nor counted
        overlap-dispatch-backward-with-experts-wgrad this overlap is not timed
        ep-overlap-early-attn-memory-release this earlier release is not counted
        moe-router-fusion the fused router is counted as the unfused
        moe-enable-deepep DeepEP's buffers are not counted
        moe-permute-fusion-into-hybridep HybridEP's buffers are not counted
        moe-router-padding-for-quantization padded tokens of the experts are not counted
        moe-router-padding-for-fp8 padded tokens of the experts are not counted
        moe-apply-probs-on-input probabilities are counted as applied to the output
        moe-paged-stash the paged stash is not counted
        moe-single-grouped-weight gradient buffers of single grouped weights are counted as separate ones
        use-transformer-engine-op-fuser fused operators are counted as unfused modules
        use-te-activation-func the activation is counted as Megatron's
        fused-residual-rmsnorm the fused norm is counted as unfused
        mla-down-proj-fusion the fused down projection is counted as two
        use-fused-weighted-squared-relu the activation is counted as unfused
        apply-residual-connection-post-layernorm the residual is counted as before the norm
        fp32-residual-connection the residual stream is counted in the model's precision
        qk-l2-norm the weightless norm of queries and keys is not counted
        optimizer-cuda-graph buffers of CUDA graphs are not counted
        openai-gelu the activation is counted as the default GELU
        disable-jit-fuser fused elementwise operations are counted as fused
        use-tp-pp-dp-mapping ranks are placed in the default order (tp-cp-ep-dp-pp)
        first-last-layers-bf16 all layers are counted in FP8
        fp8-output-proj the head is counted in bf16
        no-fp8-wgrad weight gradients are timed in FP8
        disable-fp8-wgrad weight gradients are timed in FP8
        keep-fp8-transpose-cache the kept transposes are not counted
        fp16-lm-cross-entropy the loss is counted in fp32
        fsdp-double-buffer the double buffer is not counted
        enable-full-sharding-in-hsdp replicas are counted as replicated
        megatron-fsdp-max-pool-double-buffer the double buffer is not counted
        megatron-fsdp-enable-fine-grained-param-gather gathers are counted for whole layers
        hybrid-context-parallel context parallelism is taken as static
        create-all-gather-group the separate group is timed as the shared one
        ddp-reduce-scatter-with-fp32-accumulation the scratch buffer is not counted
        use-nccl-ub user buffers are not counted
        use-ring-exchange-p2p ring exchange is timed as plain sends
        decrease-batch-size-if-needed the given global batch is used
        freeze-all-layers all layers are counted as trained
        mtp-detach-heads the modules are counted as attached
        mtp-hsm hidden state mixing is not counted
        use-grouped-gemm-for-shared-expert the shared expert is timed as a plain MLP
        use-grouped-gemm-for-dense-mlp the MLP is timed as plain
        sft packed sequences are counted as full ones
        moe-use-upcycling the dense checkpoint that is read is not counted
        use-legacy-models layers are counted as Megatron-Core's
        ds-inference the inference engine is not counted
        use-cpu-initialization initialisation on the host is not counted
        mos mixture of students is not counted (Megatron-DeepSpeed)
        kd distillation is not counted (Megatron-DeepSpeed)
        random-ltd dropped tokens are counted (Megatron-DeepSpeed)
        embedding-weights-in-fp32 embeddings are counted in half precision (Megatron-DeepSpeed)
        enable-zbh1-pipeline the schedule is counted as 1F1B (Megatron-DeepSpeed)
        enable-zbh1-exact-semantics the schedule is counted as 1F1B (Megatron-DeepSpeed)
        partition-activations checkpoints are counted as whole (Megatron-DeepSpeed)
        checkpoint-in-cpu checkpoints are counted on the GPU (Megatron-DeepSpeed)
        contigious-checkpointing the contiguous buffer is not counted (Megatron-DeepSpeed)
        synchronize-each-layer synchronisation is not timed (Megatron-DeepSpeed)
        """,
    ),
    **_table(
        "str",
        """
        delta-offload-bytes-across-pp-ranks later stages are counted as offloading as much as the first
        ddp-num-buckets buckets are counted at their default size
        moe-flex-dispatcher-backend the backend's buffers are not counted
        moe-expert-rank-capacity-factor a rank's capacity is taken as balanced
        moe-token-drop-policy dropped tokens are those beyond the capacity whichever they are
        moe-dispatch-fwd-dtype tokens are sent in bf16
        moe-combine-bwd-dtype tokens are sent in bf16
        no-rope-freq rotary positions are counted on every layer
        num-layers-at-start-in-bf16 all layers are counted in FP8
        num-layers-at-end-in-bf16 all layers are counted in FP8
        output-logit-dtype logits are counted in the model's precision
        megatron-fsdp-main-params-dtype main weights are counted in fp32
        megatron-fsdp-grad-comm-dtype gradients are sent as they are kept
        megatron-fsdp-version version 2 is counted as version 1
        outer-dp-sharding-strategy replicas are counted as replicated
        suggested-communication-unit-size the unit of communication is the layer
        max-seqlen-per-dp-cp-rank sequences are taken as full
        te-precision-config-file all layers have the given precision
        empty-unused-memory-level the allocator's cache is not counted
        sp-world-size Ulysses sequence parallelism is not counted
        remote-device weights are counted on the GPU (Megatron-DeepSpeed)
        num-layers-teacher the teacher is not counted (Megatron-DeepSpeed)
        num-experts-teacher the teacher is not counted (Megatron-DeepSpeed)
        """,
    ),
    **_table(
        "list",
        """
        hierarchical-context-parallel-sizes context parallelism is timed as one ring
        ddp-param-name-patterns-for-fp32-local-accumulation these fp32 copies are not counted
        """,
    ),
}

REFUSED: dict[str, Argument] = {
    **_table(
        "str",
        """
        hybrid-layer-pattern a hybrid of Mamba and attention layers
        hybrid-override-pattern a hybrid of Mamba and attention layers
        mtp-hybrid-override-pattern a hybrid of Mamba and attention layers
        hybrid-attention-ratio a hybrid of Mamba and attention layers
        hybrid-mlp-ratio a hybrid of Mamba and attention layers
        experimental-attention-variant an experimental attention variant
        linear-attention-freq linear attention
        moe-latent-size experts in a latent space
        heterogeneous-layers-config-path layers that differ by a configuration file
        heterogeneous-layers-config-encoded-json layers that differ by a configuration file
        decoder-num-layers an encoder-decoder model
        decoder-seq-length an encoder-decoder model
        encoder-tensor-model-parallel-size an encoder-decoder model
        encoder-pipeline-model-parallel-size an encoder-decoder model
        fp4-format 4-bit training
        yaml-cfg arguments in a file of their own (give that file itself)
        mhc-recompute-layer-num hyper-connections
        vision-backbone-type a vision model
        retro-project-dir a retrieval model
        retro-workdir a retrieval model
        """,
    ),
    **_table(
        "flag",
        """
        is-hybrid-model a hybrid of Mamba and attention layers
        enable-mhc-connections hyper-connections
        mtp-use-repeated-layer one multi-token-prediction module used repeatedly
        attention-output-gate gated attention outputs
        perform-rl-step reinforcement learning
        vision-pretraining a vision model
        bert-no-binary-head BERT
        retro-add-retriever a retrieval model
        create-moe-param-group DeepSpeed's own mixture of experts
        ds-sequence-parallel-fpdt attention over chunks of the sequence that wait on the host (FPDT)
        """,
    ),
}
"""What each asks for: the sentence reads `--name asks for ..., which is not modelled`."""

REFUSED_UNLESS = {
    "tensor-parallel-num-weight-shards": ("1", "weights sharded beyond tensor parallelism"),
    "expert-tensor-parallel-num-weight-shards": ("1", "expert weights sharded beyond tensor parallelism"),
    "mlp-chunks-for-training": ("1", "the MLP computed in chunks"),
    "img-h": ("224", "a vision model"),
    "img-w": ("224", "a vision model"),
    "patch-dim": ("16", "a vision model"),
    "model-provider": ("gpt", "another model than GPT"),
}
"""Refused with any other value than the default, which a list of all arguments may hold."""
REFUSED.update({name: Argument("str", what) for name, (_, what) in REFUSED_UNLESS.items()})
