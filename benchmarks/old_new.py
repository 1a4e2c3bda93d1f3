"""This tree beside another commit of it: training, scoring, start-up and peak memory, in turn; ratios new / old.

    python benchmarks/old_new.py --old COMMIT [--data DIR] [--rounds 5] [--updates 40] [--warm-up 12]

COMMIT is unpacked into a temporary folder; --old takes the folder of a checkout as well. A round of training is a run
of train.py on each side, timed by its own metrics.jsonl: what both do for an update is in it, and update i has the same
rows on both. Scores are given by a process that answers orders (contender.py of its checkout). The sides work in turn,
every other round in reverse order, and a ratio is taken within its round: median (least to most). What disturbs a
machine only adds seconds, so the least that each update took in any round is compared too. Rates are better above 1,
seconds and MB below. minilm-l6, on the CPU.
"""
import argparse
import collections
import io
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))                      # this checkout's minibert, whatever else is installed

from compare import tell, turns  # noqa: E402
from summary import ratios  # noqa: E402
from workers import ENVIRONMENT, Worker  # noqa: E402

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

    def scoring(self, precision: str) -> None:
        """Pieces of the test set scored a second, all in one process a side."""
        with self.start(0, precision) as new, self.start(1, precision) as old:
            if new.ask("facts")["read"] != old.ask("facts")["read"]:
                tell("note: the two do not read the same pieces")
            for w in (new, old):
                w.ask("score", every=8)
            for number in range(self.options.rounds):
                for side in turns(2, number):
                    answer = (new, old)[side].ask("score", every=1)
                    self.values[f"scoring {precision}, pieces/s"][side].append(answer["pieces"] / answer["seconds"])
                tell(f"{precision}, scoring: round {number + 1}")

    def training(self, precision: str) -> None:
        """Runs of train.py: its updates after the warm-up, what else it does, its peak; one of each is left out."""
        warm_up, seconds = self.options.warm_up, ([], [])
        for number in range(-1, self.options.rounds):
            for side in turns(2, number):
                run = self.run(side, precision)
                if number < 0:
                    continue
                seconds[side].append(run.seconds[warm_up:])
                for what, value in (("training {}, pieces/s", sum(run.pieces[warm_up:]) / sum(run.seconds[warm_up:])),
                                    ("besides the updates {}, s", run.wall - sum(run.seconds)),
                                    ("peak memory {}, MB", run.peak_mb)):
                    self.values[what.format(precision)][side].append(value)
            tell(f"{precision}, training: round {number + 1}")
        least = [sum(map(min, zip(*rounds, strict=True))) for rounds in seconds]
        self.values[f"updates {precision} at their best, s"] = [least[0]], [least[1]]

    def run(self, side: int, precision: str) -> "TrainingRun":
        """train.py of one of them, whole. Raises MinibertError with its last line where it fails."""
        self.made += 1
        root, output, log = self.roots[side], self.folder / f"run-{self.made}", self.folder / f"log-{self.made}"
        command = [sys.executable, str(root / "train.py"), "--task", "ner", "--data", str(self.options.data.resolve()),
                   "--weights", self.weights, "--output", str(output), "--precision", precision, "--device", "cpu",
                   "--max-steps", str(self.options.warm_up + self.options.updates), "--no-before", "--evaluate", "none",
                   *shlex.split(self.options.minibert)]
        begin = time.perf_counter()
        with open(log, "w", encoding="utf-8") as printed:
            child = subprocess.Popen(command, cwd=root, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(root)},
                                     stdout=printed, stderr=printed)
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        if status:
            said = log.read_text("utf-8", errors="replace").strip() or "it printed nothing"
            raise MinibertError(f"{root / 'train.py'}: {said.splitlines()[-1]}")

        lines = map(json.loads, (output / "metrics.jsonl").read_text("utf-8").splitlines())
        updates = [line for line in lines if "learning_rate" in line]
        shutil.rmtree(output)
        return TrainingRun([u["seconds"] for u in updates], [u["pieces"] for u in updates], wall,
                           usage.ru_maxrss / 1024)


class TrainingRun(NamedTuple):
    """Seconds and pieces of each update, seconds of the whole process, its largest resident size in MB."""
    seconds: list[float]
    pieces: list[int]
    wall: float
    peak_mb: float


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
                bench.training(precision)
                bench.scoring(precision)
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
