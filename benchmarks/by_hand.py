"""An update by hand beside an update by autograd: time in one run, peak memory in a process each.

    python benchmarks/by_hand.py [--rounds 20] [--precision fp32]

minilm-l6 with its NER head, data/ner, batches of 32, dropout on: the updates of train.py, optimizer included. Both
engines take the same batches in turn, so that whatever else the machine does falls on both; the ratio of each pair
is what counts. Memory is the largest resident size (VmHWM) of a fresh process that takes the same updates with one
engine, less what it was before the first.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from loop import Loop  # noqa: E402 (imports this checkout's train.py)

import train  # noqa: E402 (train.py is a script beside the package)

ENGINES = ("autograd", "by-hand")


def prepare(engine: str, precision: str) -> tuple[Loop, list[np.ndarray]]:
    """A loop that is about to begin, and the rows of its first updates."""
    loop = Loop(train.set_up(["--gradients", engine, "--precision", precision, "--device", "cpu"]))
    return loop, loop.order(1)


def update(loop: Loop, numbers: np.ndarray) -> float:
    """Seconds of one update, its batch made before."""
    batches = loop.batches(numbers)
    begin = time.perf_counter()
    loop.update(batches)
    return time.perf_counter() - begin


def status(key: str) -> float:
    """A line of this process's status, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise SystemExit(f"/proc/self/status has no {key}; memory is measured on Linux only")


def memory(engine: str, precision: str, rounds: int) -> None:
    """In a process of its own: MB at the peak above what it was before the first update."""
    loop, order = prepare(engine, precision)
    lengths = loop.t.features["train"].lengths
    longest_first = sorted(order, key=lambda numbers: -lengths[numbers].max())
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")              # the peak so far is forgotten
    for i in range(rounds):
        update(loop, longest_first[i % 5])
    print(json.dumps({"peak": status("VmHWM") - before}))


def main() -> None:
    """Both measurements, printed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--memory-of", choices=ENGINES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return memory(args.memory_of, args.precision, args.rounds)

    prepared = {engine: prepare(engine, args.precision) for engine in ENGINES}
    seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for i in range(1, args.rounds + 3):
        for engine in ENGINES if i % 2 else ENGINES[::-1]:
            loop, order = prepared[engine]
            took = update(loop, order[i % len(order)])
            if i > 2:                              # the first two warm up
                seconds[engine].append(took)

    ratios = [b / a for a, b in zip(*(seconds[e] for e in ENGINES), strict=True)]
    for engine in ENGINES:
        command = [sys.executable, __file__, "--memory-of", engine, "--precision", args.precision,
                   "--rounds", str(args.rounds)]
        peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(f"{engine:9} {statistics.median(seconds[engine]) * 1000:7.1f} ms an update (median of {args.rounds}), "
              f"{peak['peak']:,.0f} MB above rest")
    print(f"by-hand / autograd: {statistics.median(ratios):.3f} (median; quarter to three quarters "
          f"{', '.join(f'{q:.3f}' for q in statistics.quantiles(ratios, n=4)[::2])})")


if __name__ == "__main__":
    main()
