"""transformers on questions, the recipe of train.py: what docs/tasks/qa.md compares with.

    python benchmarks/qa_peer.py --data DIR --weights FOLDER [--epochs 8] [--learning-rate 2e-4] [--seed 0]

DIR holds train.json, dev.json and test.json in the layout of SQuAD 1.1 (benchmarks/sets.py xquad). bf16, rows of 384
pieces with a stride of 96, batches of 16 of similar length, fused AdamW, linear warm-up over a tenth, clipping at 1;
the answer is the stretch of at most 30 pieces with the largest sum of scores over all windows; the epoch with the best
F1 on dev counts. One JSON line at the end.
"""
import json
import sys
from pathlib import Path
from typing import Any

import torch
from pairs_peer import epochs, options
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    set_seed,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minibert.scores.texts import answer_scores  # noqa: E402 (this checkout's, whatever else is installed)

BATCH, LONGEST = 16, 30
SCORED = ("input_ids", "token_type_ids", "attention_mask")


def read(file: Path) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(question, context, answers) of every question."""
    whole = json.loads(file.read_text("utf-8"))["data"]
    return [(q["question"], p["context"], q["answers"]) for a in whole for p in a["paragraphs"] for q in p["qas"]]


def rows_of(questions: list[tuple], tokenizer: Any) -> list[dict[str, Any]]:
    """Windows, with the offsets of the context's pieces (None elsewhere) and the first answer's place, 0 for none."""
    rows = []
    for number, (question, context, answers) in enumerate(questions):
        cut = tokenizer(question.strip(), context, truncation="only_second", max_length=384, stride=96,
                        return_overflowing_tokens=True, return_offsets_mapping=True)
        for i in range(len(cut["input_ids"])):
            pairs = zip(cut["offset_mapping"][i], cut.sequence_ids(i), strict=True)
            offsets = [place if text == 1 else None for place, text in pairs]
            a = answers[0]["answer_start"]
            b = a + len(answers[0]["text"])
            first = next((k for k, o in enumerate(offsets) if o and o[0] <= a < o[1]), 0)
            last = next((k for k, o in enumerate(offsets) if o and o[0] < b <= o[1]), 0)
            first, last = (first, last) if first and last else (0, 0)
            rows.append({**{name: cut[name][i] for name in SCORED}, "start_positions": first, "end_positions": last,
                         "question": number, "offsets": offsets})
    return rows


@torch.no_grad()
def evaluate(model: Any, questions: list[tuple], rows: list[dict[str, Any]], collate: Any) -> dict[str, Any]:
    """The best stretch of every question over its windows, scored."""
    model.eval()
    best = [(-1e30, "")] * len(questions)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
    for i in range(0, len(order), 32):
        part = [rows[j] for j in order[i:i + 32]]
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**collate([{name: row[name] for name in SCORED} for row in part]))
        for row, start, end in zip(part, found.start_logits.float(), found.end_logits.float(), strict=True):
            live = torch.tensor([o is not None for o in row["offsets"]])
            n = len(live)
            sums = start[:n, None] + end[None, :n]
            legal = torch.ones(n, n, dtype=torch.bool).triu().tril(LONGEST - 1) & live[:, None] & live
            k = int(sums.masked_fill(~legal, -1e30).argmax())
            a, b = row["offsets"][k // n][0], row["offsets"][k % n][1]
            number = row["question"]
            best[number] = max(best[number], (float(sums[k // n, k % n]), questions[number][1][a:b]))
    model.train()
    return answer_scores([[a["text"] for a in answers] for _, _, answers in questions], [text for _, text in best])


def main() -> int:
    """Train, score dev after every epoch and test with the best one's, print."""
    o = options(__doc__.splitlines()[0], 8, 2e-4)
    set_seed(o.seed)
    tokenizer = AutoTokenizer.from_pretrained(o.weights)
    questions = {split: read(o.data / f"{split}.json") for split in ("train", "dev", "test")}
    rows = {split: rows_of(asked, tokenizer) for split, asked in questions.items()}
    model = AutoModelForQuestionAnswering.from_pretrained(o.weights)
    collate, best = DataCollatorWithPadding(tokenizer), (-1.0, {})
    learnt = [{k: v for k, v in row.items() if k not in ("question", "offsets")} for row in rows["train"]]
    for epoch in epochs(model, learnt, collate, BATCH, o):
        scores = {split: evaluate(model, questions[split], rows[split], collate) for split in ("dev", "test")}
        print(f"epoch {epoch}: dev {scores['dev']['f1']:.4f}, test {scores['test']['f1']:.4f}", flush=True)
        best = max(best, (scores["dev"]["f1"], {"epoch": epoch, **scores}), key=lambda pair: pair[0])
    print(json.dumps({"seed": o.seed, **best[1]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
