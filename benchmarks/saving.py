"""What a checkpoint costs: seconds to write one and to resume from it, beside the time between two of them.

    python benchmarks/saving.py --data DIR [--saves 7] [arguments of train.py ...]
"""
import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                      # this checkout's minibert, whatever else is installed

import torch  # noqa: E402

import train  # noqa: E402
from minibert.data.order import epoch_batches  # noqa: E402
from minibert.run.checkpoint import Interval  # noqa: E402
from minibert.settings import TrainConfig  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--saves", type=int, default=7)
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="minibert-saving-") as folder, torch.no_grad():
        arguments = ["--data", options.data, "--output", f"{folder}/run", "--no-before", *more]
        run = train.Run(arguments)
        rows = epoch_batches(run.lengths, run.settings.batch_size, run.settings.seed, 1)
        seconds = []
        for numbers in rows[:options.saves]:
            train.next_update(run, numbers, time.perf_counter())
            begin = time.perf_counter()
            run.checkpoint()
            seconds.append(time.perf_counter() - begin)
        size = sum(f.stat().st_size for f in run.checkpoints.newest().iterdir()) / 1e6
        run.lock.close()
        begin = time.perf_counter()
        train.Run([*arguments, "--resume"])
        resumed = time.perf_counter() - begin
        begin = time.perf_counter()
        train.Run([*arguments[:3], f"{folder}/other", "--no-before", *more])
        started = time.perf_counter() - begin
    middle, minutes = statistics.median(seconds), Interval(TrainConfig.save_every).count
    print(f"a checkpoint of {size:,.0f} MB: {middle:.2f} s (median of {len(seconds)}, {min(seconds):.2f} to "
          f"{max(seconds):.2f}); at the default, every {minutes} minutes: {middle / 60 / minutes:.2%} of the time\n"
          f"from the command to a model, data read: {resumed:.1f} s resumed, {started:.1f} s new")


if __name__ == "__main__":
    main()
