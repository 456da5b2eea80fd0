#!/bin/bash
# A GPT-3 175B launch in the manner of Megatron-LM's examples/gpt3/train_gpt3_175b_distributed.sh, in our own words.
export CUDA_DEVICE_MAX_CONNECTIONS=1

GPUS_PER_NODE=8
NUM_NODES=${NUM_NODES:-16}
NODE_RANK=0
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))

CHECKPOINT_PATH=$1 #<a path>
DATA_PATH="$2"     # <another>
TP=8
PP=16

if [ -z "$MBS" ]; then
    MBS=1
else
    MBS=4
fi

case "${SIZE:-175b}" in
    22b) LAYERS=48; HIDDEN=6144 ;;
    175b)
        LAYERS=96
        HIDDEN=12288
        ;;
    *) exit 1 ;;
esac

DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
    --master_addr localhost
    --master_port 6000
)

GPT_MODEL_ARGS=(
    --num-layers ${LAYERS}
    --hidden-size "$HIDDEN"
    --num-attention-heads 96 # heads
    --seq-length 2048
    --max-position-embeddings 2048
    --attention-backend auto
)

TRAINING_ARGS="--micro-batch-size $MBS \
    --global-batch-size $((WORLD_SIZE / (TP * PP) * 1536)) \
    --weight-decay 0.1 --adam-beta1 0.9 --clip-grad 1.0 \
    --fp16 --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6"

MODEL_PARALLEL_ARGS=(--tensor-model-parallel-size "${TP}" --pipeline-model-parallel-size=$PP)
MODEL_PARALLEL_ARGS+=(--sequence-parallel)
[[ $PP -gt 1 ]] && MODEL_PARALLEL_ARGS+=(--num-layers-per-virtual-pipeline-stage 2)

DATA_ARGS="
    --data-path $DATA_PATH
    --vocab-file $VOCAB_FILE
    --merge-file $MERGE_FILE
    --split 949,50,1
"

cat << EOF > /dev/null
--num-layers 1 this is a here-document
EOF

torchrun "${DISTRIBUTED_ARGS[@]}" pretrain_gpt.py \
    "${GPT_MODEL_ARGS[@]}" \
    ${TRAINING_ARGS} \
    ${MODEL_PARALLEL_ARGS[@]} \
    $DATA_ARGS \
    --save $CHECKPOINT_PATH --log-interval 100 --tensorboard-dir $(date +%s) 2>&1 | tee log.txt
