"""What the environment variables of a launch say, of those that change bytes, seconds or what is legal.

CUDA's: CUDA_LAUNCH_BLOCKING (CUDA C++ programming guide, "CUDA environment variables") and CUDA_DEVICE_MAX_CONNECTIONS
(megatron/training/arguments.py: validate_args). Transformer Engine's: NVTE_FLASH_ATTN, NVTE_FUSED_ATTN and
NVTE_UNFUSED_ATTN forbid a kernel where they are 0 (pytorch/attention/dot_product_attention/utils.py:
get_attention_backend).
"""

from __future__ import annotations

from collections.abc import Mapping

from planner.errors import InputError
from planner.implementation import AttentionKernel
from planner.interop.megatron.expand import Variables

READ = (
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NVTE_FLASH_ATTN",
    "NVTE_FUSED_ATTN",
    "NVTE_UNFUSED_ATTN",
)
Environment = Mapping[str, str]


def environment_of(variables: Variables) -> dict[str, str]:
    """Those of a file's variables that are read here and have a whole number as their value."""
    found = {name: variables.get(name) for name in READ}
    return {k: v for k, v in found.items() if isinstance(v, str) and v.isascii() and v.isdigit() and len(v) < 10}


def launch_blocking(environment: Environment) -> bool:
    return int(environment.get("CUDA_LAUNCH_BLOCKING", "0")) != 0


def device_max_connections(environment: Environment) -> int | None:
    """None where the file does not say."""
    given = environment.get("CUDA_DEVICE_MAX_CONNECTIONS")
    return None if given is None else int(given)


def allowed_attention(environment: Environment, source: str) -> AttentionKernel:
    """The kernel that is left when Transformer Engine may choose; `auto` where the card decides. Raises InputError
    where none is left."""
    kernels: tuple[AttentionKernel, ...] = ("flash", "fused", "unfused")
    left = [kernel for kernel in kernels if environment.get(f"NVTE_{kernel.upper()}_ATTN") != "0"]
    if not left:
        raise InputError(f"{source}: one of NVTE_FLASH_ATTN, NVTE_FUSED_ATTN, NVTE_UNFUSED_ATTN must not be 0.")
    return left[0] if len(left) == 1 or "fused" not in left else "fused" if "flash" not in left else "auto"
