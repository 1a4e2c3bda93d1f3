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

from loop import Loop  # noqa: E402

import train  # noqa: E402
from minibert.run.checkpoint import Interval  # noqa: E402
from minibert.run.run import Run  # noqa: E402
from minibert.run.training import Training  # noqa: E402
from minibert.settings import TrainConfig  # noqa: E402


def begun(t: Training) -> Run:
    """A run that scores nothing."""
    return Run(t, lambda split: None)


def main() -> None:
    """Write some, resume from the last, start anew beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--saves", type=int, default=7)
    options, more = parser.parse_known_args()

    with tempfile.TemporaryDirectory(prefix="minibert-saving-") as folder:
        words = ["--data", options.data, "--no-before", *more]
        t, seconds = train.set_up([*words, "--output", f"{folder}/run"]), []
        loop = Loop(t)
        with begun(t) as run:
            for numbers in loop.order(1)[:options.saves]:
                batches = loop.batches(numbers)
                run.after_update(*loop.update(batches), batches)
                begin = time.perf_counter()
                run.store.checkpoint()
                seconds.append(time.perf_counter() - begin)
            size = sum(f.stat().st_size for f in run.store.checkpoints.newest().iterdir()) / 1e6

        def started(*words: str) -> float:
            """Seconds until a first update could be made."""
            begin = time.perf_counter()
            with begun(train.set_up([*words])):
                return time.perf_counter() - begin

        resumed = started(*words, "--output", f"{folder}/run", "--resume")
        new = started(*words, "--output", f"{folder}/other")

    middle, minutes = statistics.median(seconds), Interval(TrainConfig.save_every).count
    print(f"a checkpoint of {size:,.0f} MB: {middle:.2f} s (median of {len(seconds)}, {min(seconds):.2f} to "
          f"{max(seconds):.2f}); at the default, every {minutes} minutes: {middle / 60 / minutes:.2%} of the time\n"
          f"from the command to a model, data read: {resumed:.1f} s resumed, {new:.1f} s new")


if __name__ == "__main__":
    main()
