"""The public sets of docs/classify.md in the form that train.py reads, split as their own pages propose.

    python benchmarks/sets.py sst5|phrasebank|banking77 SOURCE OUTPUT

SOURCE is the folder of the set as published (the files named below), OUTPUT a new folder for train.csv, dev.csv and
test.csv. Nothing of the sets is part of this project.
"""
import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

Rows = list[tuple[str, str]]                       # text, label


def sst5(source: Path) -> dict[str, Rows]:
    """train.txt, dev.txt, test.txt: lines of "grade ||| sentence"."""
    def read(name: str) -> Rows:
        lines = [line.split(" ||| ", 1) for line in (source / name).read_text("utf-8").splitlines() if "|||" in line]
        return [(text.strip(), label.strip()) for label, text in lines]

    return {split: read(f"{split}.txt") for split in ("train", "dev", "test")}


def phrasebank(source: Path) -> dict[str, Rows]:
    """Sentences_50Agree.txt: lines of "sentence@label" in Latin-1. Of every ten the ninth is dev, the tenth test."""
    lines = (source / "Sentences_50Agree.txt").read_text("latin-1").splitlines()
    rows = [tuple(line.rsplit("@", 1)) for line in lines if "@" in line]
    return {"train": [r for i, r in enumerate(rows) if i % 10 < 8], "dev": rows[8::10], "test": rows[9::10]}


def banking77(source: Path) -> dict[str, Rows]:
    """train.csv and test.csv with the columns text and category; there is no dev."""
    def read(name: str) -> Rows:
        with open(source / name, encoding="utf-8", newline="") as f:
            return [(row["text"], row["category"]) for row in csv.DictReader(f)]

    return {split: read(f"{split}.csv") for split in ("train", "test")}


SETS: dict[str, Callable[[Path], dict[str, Rows]]] = {"sst5": sst5, "phrasebank": phrasebank, "banking77": banking77}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SETS)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    options.output.mkdir(parents=True)
    for split, rows in SETS[options.name](options.source).items():
        with open(options.output / f"{split}.csv", "w", encoding="utf-8", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows([("text", "label"), *rows])
        print(f"{split}: {len(rows):,} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
