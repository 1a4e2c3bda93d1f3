"""A text -> another text, written by the encoder itself: translations, summaries, replies in a dialogue.

Source and target stand in one row, [CLS] source [SEP] target [SEP]. The source's pieces see each other both ways, a
piece of the target sees the source and what stands before it (Dong et al. 2019, section 2.3), and the head of masked
words says at each piece which one follows. So one encoder, with another mask, learns to write; generate.py writes
with it.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibert.core.batch import Feature
from minibert.data.compact import Compact
from minibert.data.features import Features
from minibert.data.text import words_of
from minibert.data.tokenizer import Tokenizer
from minibert.options import option
from minibert.scores.tables import Scores
from minibert.scores.texts import bleu, rouge
from minibert.scores.words import word_rules
from minibert.tasks.base import Result, Scorer, coloured, only_one
from minibert.tasks.generate import write
from minibert.tasks.tabular import TableOptions, table_rows, text_of
from minibert.tasks.vocabulary import VocabularyTask

ROWS = 64                                          # texts written, rows scored at a time


@dataclass(frozen=True)
class Example:
    """A source and its target; None: not known."""
    source: str
    target: str | None
    where: str                                     # file:line


@dataclass(frozen=True)
class Row:
    """How a row is divided between source and target."""
    source: int                                    # pieces of the source's part, [CLS] and [SEP] included
    limit: int                                     # most pieces that can be written
    source_lost: int                               # pieces left out of either text
    target_lost: int


@dataclass(frozen=True)
class Options(TableOptions):
    """Writing's own options."""
    columns: str = option("source,target", "names of the columns that hold a text and what is to be written for it",
                         later=True)
    longest: int = option(64, "most pieces that are written for one text", least=1, most=10 ** 6, later=True)
    beams: int = option(1, "beginnings that are followed side by side (1: the most probable piece each time)",
                        least=1, most=1000, later=True)
    length_penalty: float = option(1.0, "power of a text's length by which its log-probability is divided",
                                   least=-100, most=100, later=True)


@dataclass(frozen=True)
class Written:
    """What was written for a source, and how probable its target was: (sum of −log p, pieces), (0, 0) without one."""
    text: str
    loss: float
    pieces: int


class Seq2Seq(VocabularyTask[Example, Written]):
    """What the three tasks share; see base.Task for what each member is."""
    defaults = {"epochs": 20, "max_pieces": 128}
    best = ("loss_a_piece", "min")
    also_best = {"loss_a_piece": "min", "perplexity": "min", "bleu": "max", "exact": "max",
                 **{f"rouge.{kind}.f1": "max" for kind in ("1", "2", "L")}}
    newest = False                                 # of a source that does not fit: read its end, not its beginning
    Options, About = Options, Row

    def read_file(self, file: Path) -> Compact[Example]:
        wanted = "a source and its target"
        return Compact.of(Example, file, (
            Example(text_of(source, where, wanted), text_of(target, where, wanted), where)
            for where, (source, target) in table_rows(self, file)))

    def example(self, text: str) -> Example:
        return Example(text, None, "text")

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """[CLS] source [SEP] target [SEP], read from the source's [SEP] on: each piece says the one that follows.

        Half of a row at most, and --longest at most, is for the target; where a text does not fit, its first pieces are
        kept, of a target without its [SEP], of what was said in a dialogue the last.
        Only the source has case shapes: of what is not written yet nobody knows them.
        """
        self.tokenizer = tokenizer
        limit = min(self.options.longest, (max_pieces - 3) // 2)
        source, target = tokenizer.pieces([tokenizer.words(example.source), tokenizer.words(example.target or "")])

        room = max_pieces - 3 - limit
        lost = max(0, len(source.ids) - room)
        part = slice(lost, None) if self.newest else slice(room)
        first = [tokenizer.start, *source.ids[part], tokenizer.end]
        then = [] if example.target is None else [*target.ids, tokenizer.end][:limit + 1]
        types = [0, *(tokenizer.types * s for s in source.shapes[part]), 0, *[tokenizer.second_type] * len(then)]
        labels = then or [-1]
        return [Feature(number, np.array(first + then, np.int64), np.array(types, np.int64),
                        len(first) - 1 + np.arange(len(labels)), np.array(labels, np.int64),
                        Row(len(first), limit, lost, max(0, len(target.ids) - limit)))]

    def note_rows(self, split: str, features: Features) -> None:
        for what in ("source", "target"):
            lost = features.about[f"{what}_lost"]
            if cut := int((lost > 0).sum()):
                self.notices.append(f"{split}: of {cut:,} of {len(lost):,} {what}s not all was read, "
                                    f"{int(lost.max()):,} pieces missing at most; --max-pieces and --longest set the "
                                    "room")

    def layout(self, features: Sequence[Feature]) -> Tensor:
        """int64 [B]: so many columns of each row are source, seen by all; the rest sees what stands before it."""
        return torch.tensor([f.about.source for f in features])

    def infer(self, score: Scorer, examples: Sequence[Example], features: Sequence[Feature]) -> list[Written]:
        """Targets scored as they are, then texts written from the sources alone; sources of like length together."""
        order = sorted(range(len(features)), key=lambda i: -features[i].about.source)
        found: list[Written] = [Written("", 0.0, 0)] * len(examples)
        for start in range(0, len(order), ROWS):
            part = [features[i] for i in order[start:start + ROWS]]
            known = all(f.labels[0] >= 0 for f in part)
            scored = self.decode(examples, part, score(part)) if known else [Written("", 0.0, 0)] * len(part)

            texts = write(score.model, [source_row(f) for f in part], [f.about.limit for f in part],
                          self.tokenizer.end, self.tokenizer.second_type, self.options.beams,
                          self.options.length_penalty, score.precision,
                          self.tokenizer.absent(score.model.bert.config.vocab_size))
            for f, ids, said in zip(part, texts, scored, strict=True):
                found[f.example] = replace(said, text=self.tokenizer.spell_out(ids))
        return found

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Written]:
        """Targets scored as they are, nothing written: writing needs the model."""
        found = []
        for f, z in zip(features, scores, strict=True):
            logs = torch.from_numpy(z).log_softmax(-1).gather(1, torch.from_numpy(f.labels)[:, None])
            found.append(Written("", -float(logs.double().sum()), len(f.labels)))
        return found

    def score(self, predictions: Sequence[Written], examples: Sequence[Example]) -> Scores:
        """Loss a piece, texts that are right word for word, and BLEU and ROUGE, all without letter case.

        `words_by` says by which rules these two cut so many texts into words, such as bleu_13a.
        """
        gold, said = [(e.target or "").lower() for e in examples], [p.text.lower() for p in predictions]
        loss = sum(p.loss for p in predictions) / max(1, sum(p.pieces for p in predictions))
        exact = sum(words_of(g) == words_of(p) for g, p in zip(gold, said, strict=True)) / max(1, len(gold))
        rules = word_rules(gold)
        return {"loss_a_piece": loss, "perplexity": math.exp(min(loss, 700)), "exact": exact,
                "bleu": bleu(gold, said, rules["bleu"]), "rouge": rouge(gold, said, rules["rouge"]),
                "words_by": {f"{kind}_{rule}": len(gold) for kind, rule in rules.items()}, "support": len(gold)}

    def collapsed(self, predictions: Sequence[Written], examples: Sequence[Example]) -> str | None:
        given = only_one({p.text for p in predictions}, {e.target or "" for e in examples})
        return given and given[:60]

    def report(self, scores: Scores) -> str:
        rows = {"loss a piece": scores["loss_a_piece"], "perplexity": scores["perplexity"], "exact": scores["exact"],
                "BLEU": scores["bleu"], **{f"ROUGE-{k}": v["f1"] for k, v in scores["rouge"].items()}}
        lines = [f"{name:13}{value:12,.3f}" for name, value in rows.items()]
        rules = ", ".join(name.replace("_", " ") for name in scores.get("words_by", {}))  # older runs have none
        return "\n".join([*lines, f"{'words by':13}{rules}", f"{'texts':13}{scores['support']:8,}"])

    def result(self, example: Example, prediction: Written) -> Result:
        """{"source", "text"}."""
        return {"source": example.source, "text": prediction.text}

    def empty(self, text: str) -> Result:
        return {"source": text, "text": ""}

    def render(self, result: Result, colour: bool) -> str:
        return coloured(result["text"], colour)


class Translate(Seq2Seq):
    """From one language into another."""
    name = "translate"
    best = ("bleu", "max")
    trial = "Der Zug nach Hamburg hat heute Verspätung."


class Summarize(Seq2Seq):
    """A text, and the gist of it."""
    name = "summarize"
    defaults = {**Seq2Seq.defaults, "max_pieces": 192}
    trial = ("The bakery in the old mill closed on Friday after forty years. The owner said that flour and rent had "
             "become too dear, and that none of her three children wanted the shop.")


class Dialogue(Seq2Seq):
    """What was said so far, with | between turns, and what is said next."""
    name = "dialogue"
    newest = True
    trial = "Did you feed the cat this morning?"


def source_row(f: Feature) -> Feature:
    """The source's part of a row."""
    n = f.about.source
    return Feature(f.example, f.ids[:n], f.types[:n], f.picks[:0], f.labels[:0])
