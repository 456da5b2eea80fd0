"""Megatron-LM's arguments that change neither the memory nor the time of a training step, by group.

Recognised and ignored: learning rates, seeds, logging, data, checkpoints, tokenizers, inference. A name alone is a
flag, `name=` takes one word and `name*` any number.

Source: megatron/training/arguments.py (functions _add_..._args) and the configuration classes that it reads.
"""

from __future__ import annotations

GROUPS: dict[str, str] = {
    "transformer engine": """
        fp4-param-gather
    """,
    "inference": """
        bert-embedder-type= decode-only-cuda-graphs enable-chunked-prefill inference-batch-times-seqlen-threshold=
        inference-coordinator-port= inference-cuda-graph-all-prefills inference-cuda-graph-max-tokens=
        inference-disable-ep-consensus inference-dynamic-batching inference-dynamic-batching-async-sched-mode=
        inference-dynamic-batching-block-size= inference-dynamic-batching-buffer-size-gb=
        inference-dynamic-batching-cuda-graph-mixed-prefill-count=
        inference-dynamic-batching-cuda-graph-sizing-distribution= inference-dynamic-batching-logprobs-mode=
        inference-dynamic-batching-mamba-memory-ratio= inference-dynamic-batching-max-requests=
        inference-dynamic-batching-max-tokens= inference-dynamic-batching-num-cuda-graphs=
        inference-dynamic-batching-paused-buffer-size-gb= inference-dynamic-batching-prefix-caching
        inference-dynamic-batching-prefix-caching-coordinator-policy=
        inference-dynamic-batching-prefix-caching-eviction-policy=
        inference-dynamic-batching-prefix-caching-mamba-gb= inference-dynamic-batching-prefix-caching-routing-alpha=
        inference-dynamic-batching-sampling-backend= inference-dynamic-batching-track-generated-token-events
        inference-dynamic-batching-track-paused-request-events inference-dynamic-batching-unified-memory-level=
        inference-logging-step-interval= inference-max-requests= inference-max-seq-length= inference-shards=
        inference-text-gen-server-logging inference-use-synchronous-zmq-collectives inference-wandb-logging
        mamba-inference-conv-states-dtype= mamba-inference-ssm-states-dtype= max-tokens-to-oom=
        no-inference-disable-ep-consensus no-inference-dynamic-batching-prefix-caching
        no-inference-text-gen-server-logging no-inference-use-synchronous-zmq-collectives no-inference-wandb-logging
        num-speculative-tokens= output-bert-embeddings use-legacy-static-engine
        use-same-sampling-seed-across-dp-ranks
    """,
    "TransformerConfig": """
        apply-layernorm-1p apply-query-key-layer-scaling batch-invariant-backend=
        batch-invariant-mode config-logger-dir= cpu-offloading-retain-pinned-cpu-buffers
        cuda-graph-warmup-steps= delay-offload-until-cuda-graph
        disable-bf16-reduced-precision-matmul
        disable-clone-scatter-output-in-embedding disable-dsa-indexer-rotate-activation
        disable-dsa-indexer-scoring-relu disable-mamba-mem-eff-path disable-tp-comm-bulk-dgrad
        disable-tp-comm-bulk-wgrad disable-tp-comm-overlap-ag disable-tp-comm-overlap-rs disable-tp-comm-split-ag
        disable-tp-comm-split-rs dsa-indexer-head-dim= dsa-indexer-k-norm-epsilon= dsa-indexer-k-norm-fp32
        dsa-indexer-loss-coeff= dsa-indexer-n-heads= dsa-indexer-rope-interleaved dsa-indexer-skip-topk-offset=
        dsa-indexer-topk-freq= dsa-indexer-topk= dsa-indexer-use-sparse-loss dsa-kernel-backend=
        embedding-init-method-std= fine-grained-offloading-max-inflight-offloads=
        flash-decode fp4-quantizer-factory= fp4-recipe= fp8-amax-compute-algo= fp8-amax-history-len= fp8-interval=
        fp8-margin= fp8-quantizer-factory= gdp-cutedsl-kernel gdp-num-chunk-states-to-recompute=
        gdp-num-householder= gtp-remat-opt-in-modules* high-priority-a2a-comm-stream
        inference-cuda-graph-scope= inference-disable-triton-nvls-kernels inference-fuse-tp-communication
        inference-grouped-gemm-backend= inference-moe-disable-fused-quant-kernels
        inference-moe-token-dispatcher-type= init-method-std= init-model-with-meta-device kitchen-attention-backend=
        linear-conv-kernel-dim= linear-key-head-dim= linear-num-key-heads= linear-num-value-heads=
        linear-value-head-dim= mamba-head-dim= mamba-num-groups= mamba-num-heads= mamba-state-dim=
        mhc-init-gating-factor= mhc-num-residual-streams= mhc-sinkhorn-iterations=
        mlp-chunks-for-prefill= moe-deepep-num-sms= moe-enable-routing-replay moe-flex-dispatcher-num-sms=
        moe-hybridep-num-blocks-permute= moe-hybridep-num-blocks-unpermute= moe-hybridep-num-sms-preprocessing=
        moe-hybridep-num-sms= moe-hybridep-pad-uneven-dispatch-inputs moe-input-jitter-eps=
        moe-mlp-glu-interleave-size= moe-ncclep-zero-copy moe-pad-experts-for-cuda-graph-inference
        moe-paged-stash-buffer-size-factor-cpu= moe-paged-stash-buffer-size-factor-cuda= moe-paged-stash-page-size=
        moe-per-layer-logging moe-router-bias-update-rate= moe-router-enable-expert-bias moe-router-force-biased=
        moe-router-force-load-balancing moe-router-group-topk= moe-router-num-groups= moe-router-pre-softmax
        moe-router-quantile-balancing-ema= moe-router-topk-scaling-factor=
        moe-shared-expert-glu-interleave-size= moe-single-grouped-bias moe-use-grouped-tensor moe-z-loss-coeff=
        mrope-section* mtp-loss-scaling-factor= mtp-standalone mup-attn-scale-power= mup-base-head-dim=
        mup-base-hidden-size= mup-embedding-mult= mup-output-mult= mup-width-mult= nccl-all-reduce-for-prefill
        no-clone-scatter-output-in-embedding no-dsa-indexer-rotate-activation no-dsa-indexer-scoring-relu
        no-initialization no-tp-comm-bulk-dgrad no-tp-comm-bulk-wgrad no-tp-comm-overlap-ag no-tp-comm-overlap-rs
        no-tp-comm-split-ag no-tp-comm-split-rs norm-epsilon= pipeline-model-parallel-comm-backend= qk-clip
        reuse-grad-buf-for-mxfp8-param-ag
        qk-clip-alpha= qk-clip-threshold= rotary-interleaved symmetric-ar-type= tp-comm-bootstrap-backend=
        tp-comm-overlap-rs-dgrad use-kitchen-attention use-mup
    """,
    "network size": """
        no-yarn-correction-range-round-to-int onnx-safe= relative-attention-max-distance=
        relative-attention-num-buckets= rope-scaling-factor= rotary-base= rotary-seq-len-interpolation-factor=
        squared-relu use-rope-scaling yarn-beta-fast= yarn-beta-slow= yarn-correction-range-round-to-int
        yarn-original-max-position-embeddings=
    """,
    "StragglerDetectionConfig": """
        disable-straggler-on-startup log-straggler straggler-ctrlr-port= straggler-minmax-count=
    """,
    "workload inspector server": """
        run-workload-inspector-server
    """,
    "inprocess restart": """
        inprocess-active-world-size= inprocess-barrier-timeout= inprocess-completion-timeout=
        inprocess-empty-cuda-cache inprocess-granularity= inprocess-hard-timeout= inprocess-heartbeat-interval=
        inprocess-heartbeat-timeout= inprocess-last-call-wait= inprocess-max-iterations=
        inprocess-monitor-process-interval= inprocess-monitor-thread-interval= inprocess-progress-watchdog-interval=
        inprocess-restart inprocess-soft-timeout= inprocess-termination-grace-time=
    """,
    "one logger": """
        app-tag-run-name= app-tag-run-version= no-one-logger one-logger-async one-logger-project=
        one-logger-run-name=
    """,
    "ft package": """
        calc-ft-timeouts enable-ft-package ft-num-warmup-iters=
    """,
    "LoggerConfig": """
        disable-log-loss-scale-to-tensorboard log-device-memory-used log-energy log-interval=
        log-max-attention-logit log-memory-interval= log-memory-to-tensorboard log-num-zeros-in-grad log-params-norm
        log-progress log-throughput log-timers-to-tensorboard log-validation-ppl-to-tensorboard
        log-world-size-to-tensorboard logging-level= moe-routing-trace-capture-hidden-states
        moe-routing-trace-capture-logits moe-routing-trace-dump-weights moe-routing-trace-max-training-iters=
        moe-routing-trace-path= no-barrier-with-level-1-timing no-log-loss-scale-to-tensorboard tensorboard-dir=
        tensorboard-log-interval= tensorboard-queue-size= timing-log-level= timing-log-option= wandb-entity=
        wandb-exp-name= wandb-project= wandb-save-dir=
    """,
    "logging": """
        otel-enabled otel-service-name= otel-span-groups=
    """,
    "regularization": """
        adam-beta1= adam-beta2= adam-eps= apply-wd-to-qk-layernorm clip-grad= lion-beta1= lion-beta2=
        muon-coefficient-type= muon-extra-scale-factor= muon-fp32-matmul-prec= muon-momentum= muon-nesterov
        muon-no-split-qkv muon-num-ns-steps= muon-scale-mode= muon-tp-mode= muon-use-syrk
        no-weight-decay-cond-type= weight-decay=
    """,
    "rl": """
        grpo-clamp-eps-lower= grpo-clamp-eps-upper= grpo-entropy-term-weight= grpo-filter-groups-with-same-reward
        grpo-group-size= grpo-iterations= grpo-kl-beta= grpo-prompts-per-step= langrl-env-config=
        no-rl-inference-logprobs-is-correction no-rl-offload-inference-model-weights-when-idle
        no-rl-partial-rollouts no-rl-persist-cuda-graphs no-rl-skip-bos-token no-rl-training-cuda-graphs
        no-rl-use-sequence-packing no-rl-verify-model-weights-swap refit-method= rl-consumption-granularity=
        rl-default-temperature= rl-default-top-k= rl-default-top-p= rl-durable-rollout-bank rl-generation-lag=
        rl-importance-sampling-truncation-coef= rl-inference-expert-model-parallel-size=
        rl-inference-expert-tensor-model-parallel-size= rl-inference-logprobs-is-correction
        rl-inference-model-unified-memory-level= rl-inference-parsers* rl-inference-pipeline-model-parallel-size=
        rl-inference-tensor-model-parallel-size= rl-kv-cache-management-mode= rl-max-inflight-requests=
        rl-offload-inference-model-weights-when-idle rl-offload-optimizer-during-inference rl-partial-rollouts
        rl-persist-cuda-graphs rl-profile rl-profile-dir= rl-prompts-per-eval= rl-rollout-bank-dir=
        rl-rollout-bank-max-bytes= rl-sequence-packing-algo= rl-sequence-packing-max-sequences-per-bin=
        rl-skip-bos-token rl-submission-granularity= rl-training-cuda-graphs rl-use-sequence-packing
        rl-verify-model-weights-swap
    """,
    "ProfilingConfig": """
        memory-snapshot-path= nvtx-ranges profile profile-ranks* profile-step-end= profile-step-start=
        pytorch-profiler-collect-callstack pytorch-profiler-collect-chakra pytorch-profiler-collect-shapes
        record-memory-history record-shapes use-pytorch-profiler
    """,
    "TrainingConfig": """
        check-weight-hash-across-dp-replicas-interval= disable-manual-gc-eval exit-duration-in-mins= exit-interval=
        exit-signal-handler exit-signal-handler-for-dataloader exit-signal-handler-for-training exit-signal=
        gpu-sniff-test-interval= iterations-to-skip* manual-gc manual-gc-interval= no-manual-gc-eval
        rampup-batch-size* train-iters= train-samples= train-sync-interval=
    """,
    "training": """
        check-for-large-grads dataloader-type= dump-param-to-param-group-map= no-check-for-nan-in-loss-and-grad
        no-persist-layer-norm no-pin-cpu-grads no-pin-cpu-params overlap-cpu-optimizer-d2h-h2d
        result-rejected-tracker-filename= rope-type= tp-comm-overlap-cfg= use-mcore-models
        use-torch-optimizer-for-cpu-offload
    """,
    "RerunStateMachineConfig": """
        check-for-spiky-loss error-injection-rate= error-injection-type= rerun-mode=
    """,
    "RNGConfig": """
        data-parallel-random-init inference-rng-tracker seed= te-rng-tracker
    """,
    "initialization": """
        init-method-xavier-uniform
    """,
    "SchedulerConfig": """
        end-weight-decay= lr-decay-iters= lr-decay-samples= lr-decay-style= lr-warmup-fraction= lr-warmup-init=
        lr-warmup-iters= lr-warmup-samples= lr-wsd-decay-iters= lr-wsd-decay-samples= lr-wsd-decay-style=
        override-opt-param-scheduler start-weight-decay= use-checkpoint-opt-param-scheduler weight-decay-incr-style=
    """,
    "learning rate": """
        decoupled-lr= decoupled-min-lr= lr= min-lr=
    """,
    "CheckpointConfig": """
        async-ckpt-cpu-priority= async-ckpt-io-priority= async-ckpt-use-cpu-shm async-save async-strategy=
        auto-detect-ckpt-format ckpt-assume-constant-structure ckpt-convert-format= ckpt-convert-save=
        ckpt-convert-update-legacy-dist-opt-format ckpt-format= ckpt-fully-parallel-load
        ckpt-fully-parallel-load-exchange-algo= ckpt-fully-parallel-load-per-rank-objects
        ckpt-fully-parallel-load-process-group= ckpt-fully-parallel-save-process-group= ckpt-pg-tensors-cache-create
        ckpt-pg-tensors-cache-path= ckpt-step= disable-ckpt-load-validate-sharding-integrity
        disable-save-tokenizer-assets disable-strict-fsdp-dtensor-load
        disable-use-tokenizer-model-from-checkpoint-args dist-ckpt-optim-fully-reshardable
        dist-ckpt-save-pre-mcore-014 dist-ckpt-strictness= distrib-optim-fully-reshardable-mem-efficient
        exit-on-missing-checkpoint finetune load-main-params-from-ckpt load= no-ckpt-fully-parallel-save
        no-ckpt-load-validate-sharding-integrity no-save-tokenizer-assets no-strict-fsdp-dtensor-load
        no-use-tokenizer-model-from-checkpoint-args non-persistent-ckpt-type= non-persistent-global-ckpt-dir=
        non-persistent-local-ckpt-algo= non-persistent-local-ckpt-dir= non-persistent-save-interval=
        persistent-save-interval= pretrained-checkpoint= replication replication-factor= replication-jump=
        save-activations-interval= save-dgrads-interval= save-interval= save-params-interval= save-retain-interval=
        save-tokens-per-expert-interval= save-wgrads-interval= save= use-checkpoint-args
        use-mp-args-from-checkpoint-args use-persistent-ckpt-worker verify-integrity
    """,
    "checkpointing": """
        ckpt-drop-redundant-extra-state ckpt-fully-parallel-save dist-ckpt-format= dist-ckpt-workers= no-load-optim
        no-load-rng no-save-optim no-save-rng override-ckpt-iteration= use-dist-ckpt
    """,
    "mixed precision": """
        hysteresis= initial-loss-scale= loss-scale-window= loss-scale= mamba-training-ssm-states-dtype=
        min-loss-scale=
    """,
    "DistributedInitConfig": """
        disable-align-grad-reduce disable-flight-recorder-dump-on-timeout disable-flight-recorder-extra-dump-on-exec
        disable-flight-recorder-include-only-active disable-gloo-process-groups distributed-backend=
        distributed-timeout-minutes= distributed-timeout-seconds-after-init= flight-recorder-dump-path=
        flight-recorder-include-stack-trace flight-recorder-trace-buffer-size= high-priority-stream-groups*
        lazy-mpu-init local-rank= nccl-communicator-config-path= no-align-grad-reduce
        no-flight-recorder-dump-on-timeout no-flight-recorder-extra-dump-on-exec
        no-flight-recorder-include-only-active sharp-enabled-group= use-sharp
    """,
    "distributed": """
        disable-symmetric-registration fake-process-group fsdp-manual-registration
        gtp-expert-remat-nccl-ub gtp-remat-nccl-ub gtp-remat-reduce-scatter-with-fp32-accumulation
        no-gradient-reduce-div-fusion
    """,
    "ValidationConfig": """
        eval-global-batch-size= eval-interval= eval-iters= eval-micro-batch-size= full-validation
        multiple-validation-sets skip-train start-eval-at-iter= test-mode validation-set-names*
    """,
    "TokenizerConfig": """
        chat-template= disable-tokenizer-sentencepiece-ignore-extra-whitespaces
        no-tokenizer-sentencepiece-ignore-extra-whitespaces null-tokenizer-eod-id= null-tokenizer-pad-id=
        tiktoken-num-special-tokens= tiktoken-pattern= tokenizer-hf-no-include-special-tokens
        tokenizer-hf-no-use-fast tokenizer-metadata= tokenizer-sentencepiece-legacy tokenizer-special-tokens*
        trust-remote-code use-gigatoken vocab-extra-ids=
    """,
    "data": """
        allow-ambiguous-pad-tokens data-args-path= data-cache-path= data-path* dataloader-defer-npy-index-mmap
        dataloader-fast-cache-load dataloader-inter-document-masking eod-mask-loss fim-data fim-eod-token=
        fim-fragment-rate= fim-middle-token= fim-no-prefix= fim-pad-token= fim-prefix-token= fim-rate=
        fim-split-sample= fim-spm-rate= fim-suffix-token= mask-prob= mid-level-dataset-surplus= mock-data
        no-mmap-bin-files num-dataset-builder-threads= num-workers=
        object-storage-cache-path= per-dataset-sequences-path= per-split-data-args-path=
        phase-transition-iterations= reset-attention-mask reset-position-ids sample-rate= short-seq-prob= split=
        test-data-path* train-data-path* valid-data-path*
    """,
    "autoresume": """
        adlr-autoresume adlr-autoresume-interval=
    """,
    "biencoder": """
        bert-load= biencoder-projection-dim= biencoder-shared-query-context-model block-data-path= embedding-path=
        evidence-data-path= ict-head-size= ict-load= indexer-batch-size= indexer-log-interval= query-in-block-prob=
        retriever-report-topk-accuracies* retriever-score-scaling titles-data-path= use-one-sent-docs
    """,
    "vision": """
        classes-fraction= data-per-class-fraction= dino-bottleneck-size= dino-freeze-last-layer=
        dino-head-hidden-size= dino-local-crops-number= dino-local-img-size= dino-norm-last-layer dino-teacher-temp=
        dino-warmup-teacher-temp-epochs= dino-warmup-teacher-temp= head-lr-mult= iter-per-epoch=
        mask-factor= mask-type= no-data-sharding num-channels= num-classes= swin-backbone-type=
        vision-pretraining-type=
    """,
    "moe": """
        moe-aux-loss-coeff* moe-router-load-balancing-type* moe-upcycling-granularity=
    """,
    "mla": """
        cache-mla-latents mscale-all-dim= mscale= rotary-scaling-factor=
    """,
    "experimental": """
        enable-experimental fsdp-db-use-persist-buf-on-alloc-fail
    """,
    "msc": """
        disable-msc enable-msc
    """,
    "kitchen quantization argu": """
        kitchen-config-file= kitchen-recipe-number=
    """,
    "sft": """
        sft-tokenizer-prompt-format=
    """,
    "logits distillation": """
        logits-load-decode-threads= logits-load-dir= logits-load-ignore-errors logits-load-kd-loss-alpha=
        logits-load-msc-prefetch-depth= logits-load-prefetch-factor= logits-save-dir= logits-save-dtype=
        logits-save-top-k= logits-save-top-p-min-k= logits-save-top-p=
    """,
    "older releases and Megatron-DeepSpeed": """
        DDP-impl= abort-on-unmet-fused-kernel-constraints aml-data-download-path= codecarbon-dir= cpu_torch_adam
        curriculum-learning-legacy
        data-efficiency-curriculum-learning data-impl= deepscale deepscale-config= deepspeed-activation-checkpointing
        disable-mem-efficient-ln ds-sequence-parallel-fpdt-chunk-size= ds-sequence-parallel-fpdt-offloading
        ds_fused_adam enable-expert-tensor-parallelism expert-interval= force-ds-sequence-parallel
        hidden-size-teacher= kd-alpha-ce= kd-beta-ce= kd-temp= kill-switch-file= mlp-type= moe-eval-capacity-factor=
        moe-train-capacity-factor= use-tutel
        layernorm-epsilon= load-tag= load-teacher= mmap-warmup no-scatter-gather-tensors-in-pipeline
        num-attention-heads-teacher= profile-backward repeated-dataloader return-data-index
        rotary-position-embeddings-theta= train-data-exact-num-epochs= train-desc-path= train-doc-idx-path=
        train-idx-path= train-sample-idx-path= train-shuffle-idx-path= warmup= zero-contigious-gradients
        zero-reduce-scatter
        disable-moe-token-dropping disable-moe-top2-2nd-expert-sampling empty-unused-memory fp32-allreduce inference
        kill-switch-path= lazy-mpu-init= local-ddp log-batch-size-to-tensorboard log-learning-rate-to-tensorboard
        log-optimizer-states-to-tensorboard log-params-norm-to-tensorboard loss-on-targets-only lr-decay-tokens=
        lr-warmup-tokens= moe-loss-coeff= moe-min-capacity= no-async-tensor-model-parallel-allreduce
        no-contiguous-buffers-in-local-ddp no-load-lr-state no-log-learnig-rate-to-tensorboard
        no-scaled-masked-softmax-fusion no-shuffle nsys-profile override-lr-scheduler
        reset-iteration reset-progress skip-train-iteration-range* sync-tp-duplicated-parameters
        tensorboard-debug-dir= test-weighted-split-paths* test-weighted-split-paths-path= tokenizer-name-or-path=
        train-tokens= train-weighted-split-paths* train-weighted-split-paths-path= universal-checkpoint
        use-checkpoint-lr-scheduler use-dataset-only= use-pin-memory valid-num-workers= valid-weighted-split-paths*
        valid-weighted-split-paths-path=
    """,
}

_KINDS = {"=": "str", "*": "list"}


def ignored() -> dict[str, str]:
    """Every ignored argument with its kind: flag, str or list."""
    words = [word for text in GROUPS.values() for word in text.split()]
    return {word.rstrip("=*"): _KINDS.get(word[-1], "flag") for word in words}
