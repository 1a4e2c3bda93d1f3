"""Character TF-IDF and logistic regression: what a network on Chinese (or any) text has to beat.

    python benchmarks/characters.py classify|ner --data DIR

DIR is what `train.py --task classify` or `--task ner` reads. A text is the TF-IDF of its stretches of one to three
characters; for ner each word is the TF-IDF of the words around it, each with its place, two to either side, and of
their neighbours in pairs. The strength of the penalty is chosen on dev. One JSON line, the scores of dev and test as
minibert counts them.
"""
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minibert import metrics  # noqa: E402 (this checkout's, whatever else is installed)
from minibert.tasks import TASKS  # noqa: E402

STRENGTHS = (1.0, 10.0, 100.0)
REACH = 2


def around(words: Sequence[str]) -> list[list[str]]:
    """For each word of a sentence what stands around it."""
    padded = ["<"] * REACH + list(words) + [">"] * REACH
    windows = [padded[i:i + 2 * REACH + 1] for i in range(len(words))]
    return [[f"{i} {w}" for i, w in enumerate(window)] +
            [f"{i} {a} {b}" for i, (a, b) in enumerate(zip(window, window[1:], strict=False))] for window in windows]


def classify(splits: dict, strength: float) -> dict:
    """Scores of dev and test."""
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(vectors.fit_transform([e.text for e in splits["train"]]), [e.labels[0] for e in splits["train"]])
    scores = {}
    for name in ("dev", "test"):
        guess = model.predict(vectors.transform([e.text for e in splits[name]]))
        found = metrics.label_scores([e.labels for e in splits[name]], [[str(y)] for y in guess], model.classes_)
        scores[name] = {key: found[key] for key in ("accuracy", "macro_f1")}
    return scores


def ner(splits: dict, strength: float) -> dict:
    """Scores of dev and test."""
    vectors = TfidfVectorizer(analyzer=list, sublinear_tf=True)
    model = LogisticRegression(C=strength, max_iter=300)
    model.fit(vectors.fit_transform([x for e in splits["train"] for x in around(e.words)]),
              [tag for e in splits["train"] for tag in e.tags])
    scores = {}
    for name in ("dev", "test"):
        guess = [model.predict(vectors.transform(around(e.words))).tolist() for e in splits[name]]
        found = metrics.entity_scores([e.tags for e in splits[name]], guess)
        scores[name] = {key: found[key] for key in ("precision", "recall", "f1")}
    return scores


def main() -> int:
    """Fit for each strength, print the one that is best on dev."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("classify", "ner"))
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    splits = TASKS[options.task](TASKS[options.task].Options()).read(options.data)
    fit, best = (classify, "accuracy") if options.task == "classify" else (ner, "f1")
    tried = [{"strength": strength, **fit(splits, strength)} for strength in STRENGTHS]
    print(json.dumps(max(tried, key=lambda scores: scores["dev"][best])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
