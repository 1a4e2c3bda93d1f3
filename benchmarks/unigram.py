"""The trivial baseline of --task mlm and of the writing tasks: each piece as often as it stands in train.

    python benchmarks/unigram.py RUN --data DIR

RUN is a run folder of train.py, whose tokenizer and settings count, DIR its data. Each piece of the vocabulary has the
probability (its count in train + 1) / (all pieces of train + V); scored are the very pieces that the run is scored on:
those hidden in dev and test, or those of the targets. One JSON line a split.
"""
import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import minibert  # noqa: E402 (this checkout's, whatever else is installed)
from minibert.data.order import row_generator  # noqa: E402


def labels(task: Any, features: Sequence[Any]) -> Iterator[np.ndarray]:
    """The pieces of each row that a score is asked for; the pick of a [CLS] asks for none."""
    for f in task.rows(features, lambda i: row_generator(0, 0, i)):
        yield f.labels[f.picks > 0]


def main() -> int:
    """Count, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    model = minibert.load(options.run)
    splits = {split: model.encode_examples(examples) for split, examples in model.task.read(options.data).items()}
    counts = np.ones(model.tokenizer.size)
    for f in splits["train"]:
        written = f.labels[f.picks > 0]            # none where the text itself is to be found again
        counts += np.bincount(written if len(written) else f.ids[1:-1], minlength=len(counts))
    logs = np.log(counts / counts.sum())
    for split in (s for s in splits if s != "train"):
        pieces = np.concatenate([*labels(model.task, splits[split])])
        loss = -float(logs[pieces].mean())
        print(json.dumps({"split": split, "loss_a_piece": loss, "perplexity": math.exp(loss), "support": len(pieces),
                          "accuracy": float((pieces == logs.argmax()).mean())}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
