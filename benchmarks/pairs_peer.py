"""transformers on pairs of texts, the recipe of train.py: what docs/tasks/match.md compares with.

    python benchmarks/pairs_peer.py --data DIR --weights FOLDER [--epochs 4] [--learning-rate 1e-4] [--seed 0]

DIR holds train.csv and dev.csv (benchmarks/sets.py sts), columns first,second,label, the label a number. bf16, batches
of 32 of similar length, fused AdamW, linear warm-up over a tenth, clipping at 1; the epoch with the best Pearson on dev
counts. One JSON line at the end.
"""
import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minibert.scores.numbers import correlations  # noqa: E402 (this checkout's, whatever else is installed)

BATCH = 32


def read(file: Path, tokenizer: Any) -> list[dict[str, Any]]:
    """Rows as the model takes them."""
    with open(file, encoding="utf-8", newline="") as f:
        return [dict(tokenizer(r["first"], r["second"], truncation=True, max_length=256), labels=float(r["label"]))
                for r in csv.DictReader(f)]


@torch.no_grad()
def logits(model: Any, rows: list[dict[str, Any]], collate: Any) -> torch.Tensor:
    """Scores [N,K] of all rows, fp32, without dropout; the longest rows go first, together."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    with torch.autocast("cpu", torch.bfloat16):
        found = [model(**collate([rows[j] for j in order[i:i + 64]])).logits.float() for i in range(0, len(order), 64)]
    model.train()
    return torch.cat(found)[torch.tensor(order).argsort()]


def evaluate(model: Any, rows: list[dict[str, Any]], collate: Any) -> dict[str, float]:
    """Correlations of the labels with the scores."""
    return correlations([row["labels"] for row in rows], logits(model, rows, collate)[:, 0].tolist())


def decay_groups(model: Any) -> list[dict[str, Any]]:
    """Biases and LayerNorm weights are not decayed."""
    plain = ("bias", "LayerNorm.weight")
    return [{"params": [p for n, p in model.named_parameters() if n.endswith(plain) == skipped], "weight_decay": decay}
            for skipped, decay in ((False, 0.01), (True, 0.0))]


def options(what: str, epochs: int, learning_rate: float, **more: str) -> argparse.Namespace:
    """The command line of a peer, whose recipe has these defaults; `more`: options of its own with their defaults."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--seed", type=int, default=0)
    for name, default in more.items():
        parser.add_argument(f"--{name}", default=default)
    return parser.parse_args()


def epochs(model: Any, rows: list[dict[str, Any]], collate: Any, batch: int, o: argparse.Namespace) -> Iterator[int]:
    """Train, and hand back after each epoch, 1, 2, ...: batches of similar length, fused AdamW, warm-up, clipping."""
    sampler = LengthGroupedSampler(batch, lengths=[len(row["input_ids"]) for row in rows],
                                   generator=torch.Generator().manual_seed(o.seed))
    batches = DataLoader(rows, batch_size=batch, sampler=sampler, collate_fn=collate)
    optimizer = torch.optim.AdamW(decay_groups(model), lr=o.learning_rate, fused=True)
    total = len(batches) * o.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, total // 10, total)
    model.train()
    for epoch in range(1, o.epochs + 1):
        for part in batches:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**part).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield epoch


def main() -> int:
    """Train, score dev after every epoch, print."""
    o = options(__doc__.splitlines()[0], 4, 1e-4)
    set_seed(o.seed)
    tokenizer = AutoTokenizer.from_pretrained(o.weights)
    train, dev = (read(o.data / f"{split}.csv", tokenizer) for split in ("train", "dev"))
    model = AutoModelForSequenceClassification.from_pretrained(o.weights, num_labels=1, problem_type="regression")
    collate, best = DataCollatorWithPadding(tokenizer), {"pearson": -1.0}
    for epoch in epochs(model, train, collate, BATCH, o):
        scores = evaluate(model, dev, collate)
        print(f"epoch {epoch}: dev {scores}", flush=True)
        best = max(best, scores, key=lambda s: s["pearson"])
    print(json.dumps({"seed": o.seed, "dev": best}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
