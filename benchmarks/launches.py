"""Launches a second through `plan check` in one process: `python benchmarks/launches.py [count]`. Goal: 200 in 20 s."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from planner.commands.run import run

ARGUMENTS = (
    "--num-layers 40 --hidden-size 5120 --ffn-hidden-size 13824 --num-attention-heads 40 --vocab-size 32000 --swiglu "
    "--seq-length 4096 --max-position-embeddings 4096 --micro-batch-size 1 --global-batch-size {batch} --bf16 "
    "--untie-embeddings-and-output-weights --tensor-model-parallel-size 4 --pipeline-model-parallel-size 2 "
    "--sequence-parallel --use-distributed-optimizer --normalization RMSNorm --disable-bias-linear"
)


def main() -> None:
    """Write so many launches and check them all, as JSON."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{i}.args") for i in range(count)]
        for i, file in enumerate(files):
            file.write_text(ARGUMENTS.format(batch=128 * (i + 1)), encoding="utf-8")
        start = time.perf_counter()
        with redirect_stdout(StringIO()):
            code = run(["check", *map(str, files), "--gpus", "16xH100-80G", "--json"])
        seconds = time.perf_counter() - start
    print(f"{count} launches in {seconds:.2f} s, {count / seconds:.0f} a second, exit code {code}")  # noqa: T201


if __name__ == "__main__":
    main()
