"""Activations of each piece of a model on one rank, as tapes of operations (planner/memory/tape.py).

Modelled on Megatron-Core's modules in both implementations: `local` (megatron/core/tensor_parallel, fused kernels of
megatron/core/fusions) and `transformer_engine` (TELayerNormColumnParallelLinear, TERowParallelLinear, fused RoPE).
"""
