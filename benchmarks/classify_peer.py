"""transformers on texts with one label each, the recipe of train.py: what docs/tasks/classify.md compares with.

    python benchmarks/classify_peer.py --data DIR --weights FOLDER [--columns text,label] [--epochs 3]
                                       [--learning-rate 1e-4] [--seed 0]

DIR is whatever `train.py --task classify` reads. bf16, batches of 32 of similar length, fused AdamW, linear warm-up
over a tenth, clipping at 1; where there is a dev split, the epoch with the best accuracy on it counts, else the last.
One JSON line at the end.
"""
import json
import sys
from pathlib import Path
from typing import Any

from pairs_peer import BATCH, epochs, logits, options
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minibert.tasks.classify import Classify  # noqa: E402 (this checkout's, whatever else is installed)

UNSEEN = -100                                      # of a label that train never had: no loss there, and no guess is it


def evaluate(model: Any, rows: list[dict[str, Any]], collate: Any) -> dict[str, float]:
    """Accuracy and macro F1."""
    gold, guess = [row["labels"] for row in rows], logits(model, rows, collate).argmax(-1).tolist()
    return {"accuracy": accuracy_score(gold, guess), "macro_f1": f1_score(gold, guess, average="macro",
                                                                          zero_division=0)}


def main() -> int:
    """Train, score dev after every epoch, test at the best of them, print."""
    o = options(__doc__.splitlines()[0], 3, 1e-4, columns="text,label")
    set_seed(o.seed)
    splits = Classify(Classify.Options(columns=o.columns)).read(o.data)
    labels = {name: i for i, name in enumerate(sorted({e.labels[0] for e in splits["train"]}))}
    tokenizer = AutoTokenizer.from_pretrained(o.weights)
    rows = {split: [dict(tokenizer(e.text, truncation=True, max_length=256), labels=labels.get(e.labels[0], UNSEEN))
                    for e in examples] for split, examples in splits.items()}
    model = AutoModelForSequenceClassification.from_pretrained(o.weights, num_labels=len(labels))
    collate, dev, test = DataCollatorWithPadding(tokenizer), {"accuracy": -1.0}, {}
    for epoch in epochs(model, rows["train"], collate, BATCH, o):
        if "dev" in rows:
            scores = evaluate(model, rows["dev"], collate)
            print(f"epoch {epoch}: dev {scores}", flush=True)
            if scores["accuracy"] < dev["accuracy"]:
                continue
            dev = scores
        elif epoch < o.epochs:
            continue
        test = evaluate(model, rows["test"], collate)
    print(json.dumps({"seed": o.seed, "test": test}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
