"""The least arguments that determine a launch, and one that adds to them."""

from planner.interop.megatron.launch import MegatronLaunch, launch_from_words

LEAST = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --vocab-size 100 --micro-batch-size 2"


def launch(arguments: str, world: int | None = None) -> MegatronLaunch:
    return launch_from_words(f"{LEAST} {arguments}".split(), "here", world)
