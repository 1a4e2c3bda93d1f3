"""TF-IDF on the data of --task reply: what docs/tasks/reply.md compares with.

    python benchmarks/reply_peer.py DIR [--split test]

DIR holds train.csv and the split with the columns question,answer. The weights of words come from questions and answers
of train and from the split's answers, which are there before a question is; words alone, or pairs of neighbours too.
Every question of the split is set against all distinct answers of the split, and every answer of an equal question is
right; texts that differ in blanks and letter case alone are one, as in the task. One JSON line for each kind.
"""
import argparse
import csv
import json
import sys
from collections import defaultdict
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minibert.scores.numbers import ranking_scores  # noqa: E402 (this checkout's, whatever else is installed)
from minibert.tasks.reply_rows import (
    distinct,  # noqa: E402
    text_number,  # noqa: E402
)


def read(file: Path) -> list[tuple[str, str]]:
    """(question, answer) of every row."""
    with open(file, encoding="utf-8", newline="") as f:
        return [(row["question"], row["answer"]) for row in csv.DictReader(f)]


def main() -> int:
    """Rank and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    train, rows = read(options.data / "train.csv"), read(options.data / f"{options.split}.csv")
    answers = distinct(a for _, a in rows)
    numbers = [text_number(a) for a in answers]
    right = defaultdict(set)
    for question, answer in rows:
        right[text_number(question)].add(text_number(answer))
    for longest in (1, 2):
        vectors = TfidfVectorizer(ngram_range=(1, longest), sublinear_tf=True)
        vectors.fit([text for row in train for text in row] + list(answers))
        near = (vectors.transform([q for q, _ in rows]) @ vectors.transform(answers).T).toarray()
        places = [1 + next(i for i, n in enumerate((-row).argsort(kind="stable"))
                           if numbers[n] in right[text_number(q)]) for row, (q, _) in zip(near, rows, strict=True)]
        print(json.dumps({"words": longest, **ranking_scores(places)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
