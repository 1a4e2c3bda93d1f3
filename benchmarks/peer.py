"""transformers as a contender: fine-tuning a token classifier as its example does, and at its best.

Both: AdamW of torch, decay 0.01 without biases and LayerNorm, norm clipped at 1, warm-up and linear fall, dropout as
the checkpoint says, sentences cut at 256 pieces, bf16 by autocast.

Recipe: batches of rows drawn at random, padded to their longest by the library's collator; AdamW as torch has it by
default, one tensor after the other.
Best: the very batches that minibert takes, rows of similar length; padded by numpy, without the collator's detours;
AdamW fused; attention as the benchmark is told, else as the library chooses. For scores: rows sorted by length, 64 at
a time, weights cast to bf16 once for all of them.
"""
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from contender import BATCH, SCHEDULE, Contender

from minibert.data.order import epoch_batches
from minibert.data.tables import find_files
from minibert.tasks.conll import SUFFIXES

NO_LABEL = -100                                    # what the loss of torch leaves out
LONGEST = 256
SCORED = 64                                        # rows a batch of scores
hf.logging.set_verbosity_error()
hf.logging.disable_progress_bar()


class Recipe(Contender):
    """What the library's own example for named entities does."""
    fused: bool | None = None                      # torch's default

    def __init__(self, spec: dict[str, Any]):
        super().__init__()
        torch.manual_seed(0)
        self.precision = spec["precision"]
        text = {split: read(file) for split, file in find_files(Path(spec["data"]), SUFFIXES).items()}
        self.labels = sorted({tag for _, tags in text["train"] for tag in tags})
        self.tokenizer = hf.AutoTokenizer.from_pretrained(spec["weights"])
        self.encoded = {split: self.encode(sentences) for split, sentences in text.items()}
        self.model = hf.AutoModelForTokenClassification.from_pretrained(
            spec["weights"], num_labels=len(self.labels), dtype=torch.float32, attn_implementation=spec["attention"])
        self.collate = hf.DataCollatorForTokenClassification(self.tokenizer)
        self.optimizer = torch.optim.AdamW(decay_groups(self.model), lr=2e-4, fused=self.fused)
        self.schedule = hf.get_linear_schedule_with_warmup(self.optimizer, SCHEDULE // 10, SCHEDULE)

    def encode(self, sentences: list[tuple[list[str], list[str]]]) -> list[dict[str, list[int]]]:
        """A row a sentence; the first piece of each word carries its label."""
        known = {label: i for i, label in enumerate(self.labels)}
        encoded = self.tokenizer([words for words, _ in sentences], is_split_into_words=True, truncation=True,
                                 max_length=LONGEST)
        result = []
        for i, (_, tags) in enumerate(sentences):
            owners = encoded.word_ids(i)
            first = [w is not None and (j == 0 or owners[j - 1] != w) for j, w in enumerate(owners)]
            labels = [known.get(tags[w], NO_LABEL) if f else NO_LABEL for w, f in zip(owners, first, strict=True)]
            result.append({key: encoded[key][i] for key in encoded} | {"labels": labels})
        return result

    def batches(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        """int64 [B,T] each, rows at random."""
        generator = torch.Generator().manual_seed(epoch)
        return iter(torch.utils.data.DataLoader(self.encoded["train"], BATCH, shuffle=True, generator=generator,
                                                collate_fn=self.collate))

    def update(self, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
        """Forward, backward, clip, step."""
        self.model.train()
        with self.autocast():
            loss = self.model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return int(batch["attention_mask"].sum()), batch["attention_mask"].numel()

    @torch.inference_mode()
    def score_rows(self, every: int) -> tuple[int, int]:
        """Longest rows first; each row's scores as a numpy array."""
        self.model.eval()
        rows = self.encoded["test"][::every]
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        scores, cells = [np.zeros(0)] * len(rows), 0
        with self.autocast():                      # one context around all batches: each weight is cast once
            for start in range(0, len(order), SCORED):
                numbers = order[start:start + SCORED]
                batch = pad([rows[i] for i in numbers], self.tokenizer.pad_token_id)
                del batch["labels"]                # nobody asks for a loss
                logits = self.model(**batch).logits.float().numpy()            # [B,T,K]
                cells += batch["attention_mask"].numel()
                for i, row in zip(numbers, logits, strict=True):
                    scores[i] = row[:len(rows[i]["input_ids"])]
        return sum(map(len, scores)), cells

    def autocast(self) -> torch.autocast:
        """bf16 matrix products, or nothing."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bf16")

    def rows(self) -> dict[str, list[Sequence[int]]]:
        """The pieces of every row."""
        return {split: [e["input_ids"] for e in rows] for split, rows in self.encoded.items()}


class Best(Recipe):
    """The fastest configuration of it that we know."""
    fused = True

    def batches(self, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        """int64 [B,T] each, the rows of minibert's batches in minibert's order."""
        rows = self.encoded["train"]
        for numbers in epoch_batches([len(r["input_ids"]) for r in rows], BATCH, 0, epoch):
            yield pad([rows[i] for i in numbers], self.tokenizer.pad_token_id)


def read(file: Path) -> list[tuple[list[str], list[str]]]:
    """(words, tags) of every sentence of a file in CoNLL columns."""
    sentences: list[tuple[list[str], list[str]]] = [([], [])]
    for line in file.read_text("utf-8-sig").splitlines():
        columns = line.split()
        if columns and columns[0] != "-DOCSTART-":
            sentences[-1][0].append(columns[0])
            sentences[-1][1].append(columns[-1])
        else:
            sentences.append(([], []))
    return [s for s in sentences if s[0]]


def decay_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Matrices decayed by 0.01, biases and LayerNorm not."""
    plain = ("bias", "LayerNorm.weight")
    named = list(model.named_parameters())
    return [{"params": [p for name, p in named if not name.endswith(plain)], "weight_decay": 0.01},
            {"params": [p for name, p in named if name.endswith(plain)], "weight_decay": 0.0}]


def pad(rows: Sequence[dict[str, list[int]]], pad_id: int) -> dict[str, torch.Tensor]:
    """Rows -> int64 [B,T] each, filled up to the longest."""
    empty = {"input_ids": pad_id, "labels": NO_LABEL}
    T = max(len(r["input_ids"]) for r in rows)
    return {key: torch.from_numpy(np.array([r[key] + [empty.get(key, 0)] * (T - len(r[key])) for r in rows]))
            for key in rows[0]}
