"""Cold search times at the scale of real clusters: `python benchmarks/search.py [NAME...]`.

The last cases are hard for another reason than size: layers of two kinds in turn or five to one, and no layout that
fits, which is explained. Each case runs in a process of its own and prints its candidates, what the bounds left, the
solves and the seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

CASES = {
    "13b": ("13b", "8xA100-80G", 4096, 1024),
    "175b": ("gpt3-175b", "1024xA100-80G", 2048, 1536),
    "405b": ("llama-3.1-405b", "16384xH100-80G", 8192, 2048),
    "deepseek": ("deepseek-v3", "2048xH800-80G", 4096, 15360),
    "1t": ("megatron-1t", "3072xA100-80G", 2048, 3072),
    "100k": ("llama-3.1-405b", "100000xH100-80G", 8192, 12500),
    "in turn": ("gpt-oss-20b", "8xH100-80G", 4096, 1024),
    "5 to 1": ("gemma-3-4b", "16xH100-80G", 32768, 128),
    "too large": ("gpt3-175b", "8xA100-80G", 2048, 2048),
}
COLUMNS = ("groups", "refined", "pruned_by_memory", "left_by_bound", "solved", "runners_up_proved")


def main(names: list[str]) -> None:
    """Run the named cases, all by default, and print one line for each."""
    write = sys.stdout.write
    write(f"{'case':10}{'status':>12}{'seconds':>9}{'step':>10}  " + "".join(f"{c:>18}" for c in COLUMNS) + "\n")
    for name in names or CASES:
        model, gpus, sequence, batch = CASES[name]
        command = [sys.executable, "-c", "from planner.commands import main; main()", "search", "--json"]
        command += ["--model", model, "--gpus", gpus, "--seq-length", str(sequence), "--global-batch", str(batch)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
        if not done.stdout:
            write(f"{name:10}{'failed':>12}{seconds:9.2f}  {done.stderr.strip()[-200:]}\n")
            continue
        answer = json.loads(done.stdout)
        value = answer["objective"]["value"]
        write(f"{name:10}{answer['status']:>12}{seconds:9.2f}{value or float('nan'):10.3f}  ")
        write("".join(f"{answer['meta'].get(c, '-'):>18}" for c in COLUMNS) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
