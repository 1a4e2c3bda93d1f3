"""This tree beside another commit of it: training, scoring, start-up and peak memory, in turn; ratios new / old.

    python benchmarks/old_new.py --old COMMIT [--data DIR] [--rounds 5] [--updates 40] [--warm-up 12]

COMMIT is unpacked into a temporary folder; --old takes the folder of a checkout as well. Each side is a process that
answers orders (contender.py of its checkout); they work in turn, every other round in reverse order, and a ratio is
taken within its round: median (least to most). Rates are better above 1, seconds and MB below. minilm-l6, on the CPU.
"""
import argparse
import collections
import io
import json
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                      # this checkout's minibert, whatever else is installed

from compare import tell, turns  # noqa: E402
from summary import ratios  # noqa: E402
from workers import Worker  # noqa: E402

import minibert  # noqa: E402
from minibert.errors import MinibertError  # noqa: E402


def unpacked(old: str, folder: Path) -> Path:
    """A checkout of that commit in an empty folder. Raises MinibertError where git knows no such commit."""
    git = subprocess.run(["git", "archive", old, "--"], cwd=ROOT, capture_output=True)
    if git.returncode:
        raise MinibertError(f"--old is {old!r}: {git.stderr.decode().strip().splitlines()[-1]}")
    with tarfile.open(fileobj=io.BytesIO(git.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


class OldNew:
    """Two checkouts, and a folder for what their processes write."""

    def __init__(self, options: argparse.Namespace, old: Path, folder: Path):
        self.options, self.roots, self.folder, self.made = options, (ROOT, old), folder, 0
        self.weights = str(minibert.fetch("minilm-l6", ROOT / "weights").resolve())
        self.values = collections.defaultdict[str, tuple[list[float], list[float]]](lambda: ([], []))

    def start(self, side: int, precision: str) -> Worker:
        """A process of one of them."""
        self.made += 1
        spec = {"side": "minibert", "precision": precision, "data": str(self.options.data.resolve()),
                "weights": self.weights, "output": str(self.folder / f"run-{self.made}"),
                "arguments": shlex.split(self.options.minibert)}
        command = [sys.executable, str(self.roots[side] / "benchmarks" / "contender.py"), json.dumps(spec)]
        return Worker(f"{('new', 'old')[side]} {precision}", command, self.folder / f"log-{self.made}")

    def rates(self, precision: str) -> None:
        """Pieces a second of training and of scoring."""
        jobs = {"training": {"job": "updates", "count": self.options.updates}, "scoring": {"job": "score", "every": 1}}
        with self.start(0, precision) as new, self.start(1, precision) as old:
            if new.ask("facts")["read"] != old.ask("facts")["read"]:
                tell("note: the two do not read the same pieces")
            for w in (new, old):
                w.ask("warm_up", count=self.options.warm_up)
                w.ask("score", every=8)
            for number in range(self.options.rounds):
                for side in turns(2, number):
                    for what, job in jobs.items():
                        answer = (new, old)[side].ask(**job)
                        self.values[f"{what} {precision}, pieces/s"][side].append(answer["pieces"] / answer["seconds"])
                tell(f"{precision}: round {number + 1}")

    def fresh(self, precision: str) -> None:
        """Start to the end of the first update, and the peak a round later; the first of each is cold and left out."""
        for number in range(-1, self.options.rounds):
            for side in turns(2, number):
                begin = time.perf_counter()
                with self.start(side, precision) as worker:
                    worker.ask("updates", count=1)
                    took = time.perf_counter() - begin
                    peak = worker.ask("updates", count=self.options.updates)["peak_mb"]
                if number >= 0:
                    self.values[f"start to first update {precision}, s"][side].append(took)
                    self.values[f"peak memory {precision}, MB"][side].append(peak)
            tell(f"{precision}, fresh processes: round {number + 1}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, 2 for something the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--old", required=True, help="commit, or folder of a checkout")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "ner", help="CoNLL columns")
    parser.add_argument("--minibert", default="", metavar="ARGUMENTS", help="for train.py of both, one string")
    for name, default in (("--rounds", 5), ("--updates", 40), ("--warm-up", 12)):
        parser.add_argument(name, type=int, default=default, help=f"(default: {default})")
    options = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            old = Path(options.old) if Path(options.old).is_dir() else unpacked(options.old, Path(scratch) / "old")
            bench = OldNew(options, old.resolve(), Path(scratch))
            for precision in ("bf16", "fp32"):
                bench.rates(precision)
                bench.fresh(precision)
    except (MinibertError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    for what, sides in bench.values.items():
        (new, old), found = map(statistics.median, sides), ratios(*sides)
        print(f"{what:36} new {new:9,.2f}  old {old:9,.2f}  new / old {statistics.median(found):.3f} "
              f"({min(found):.3f} to {max(found):.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
