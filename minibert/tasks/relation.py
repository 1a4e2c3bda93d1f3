"""A sentence with two marked spans -> the relation between them and its direction, one of K labels or none.

Four new pieces stand around the spans, [E1] ... [/E1] and [E2] ... [/E2], and the states of the two opening ones, side
by side, give the scores (Baldini Soares et al. 2019, section 3.2). Their word vectors are learnt with the rest.
"""
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import Head, PairHead
from minibert.data.compact import Compact
from minibert.data.tables import read_short_lines
from minibert.data.text import leading_marks
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError, spelt_out
from minibert.options import option
from minibert.scores.labels import relation_report, relation_scores
from minibert.scores.tables import Scores, compared
from minibert.tasks.base import Result, coloured
from minibert.tasks.labelled import Answer, LabelTask
from minibert.tasks.tabular import TableOptions, table_rows, text_of

MARKS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
TAGS = re.compile(r"(</?e[12]>)")


@dataclass(frozen=True)
class Example:
    """A text, the character spans of its two marked parts, and the relation; None: not known."""
    text: str
    spans: tuple[tuple[int, int], tuple[int, int]]
    label: str | None
    where: str                                     # file:line


@dataclass(frozen=True)
class Options(TableOptions):
    """Relation extraction's own options."""
    none: str = option("Other", "the label of pairs without a relation: it is learnt, but left out of the score",
                      later=True)


class Relation(LabelTask[Example]):
    """The task; see base.Task for what each member is."""
    name = "relation"
    defaults = {"epochs": 12}
    best, also_best = ("relation.macro_f1", "max"), {"relation.micro_f1": "max", "accuracy": "max"}
    architecture, problem_type = "BertForRelationExtraction", None
    trial = "<e1>Nordwind</e1> bought the shipping line <e2>Seaford</e2> in May."
    new_pieces = MARKS
    unit = "sentences"
    Options = Options

    def read_file(self, file: Path) -> Compact[Example]:
        """Tables of marked texts and labels, or .txt as SemEval-2010 Task 8 has it; errors have file:line."""
        if file.suffix.lower() == ".txt":
            return Compact.of(Example, file, read_semeval(file))
        return Compact.of(Example, file, (marked(text_of(text, where), self.read_label(label, where), where)
                                          for where, (text, label) in table_rows(self, file)))

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """The labels of train, sorted; whether the one for no relation is among them."""
        super().learn_labels(splits)
        if self.options.none not in self.labels:
            self.notices.append(f"no training sentence has the label {self.options.none!r}, so every label counts as a "
                                "relation; --none names the one that is none")

    def example(self, text: str) -> Example:
        return marked(text, None, "text")

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """[CLS] ... [E1] span [/E1] ... [E2] span [/E2] ... [SEP], read at [E1] and [E2].

        Of a text that does not fit, the pieces nearest to a mark are kept, on both sides of each.
        """
        ids, shapes, marks = with_marks(example, tokenizer)
        kept = nearest(len(ids), list(marks.values()), max_pieces - 2)
        places = np.searchsorted(kept, [marks["[E1]"], marks["[E2]"]]) + 1
        return [Feature(number, np.concatenate([[tokenizer.start], ids[kept], [tokenizer.end]]),
                        np.concatenate([[0], tokenizer.types * shapes[kept], [0]]), places,
                        np.array([self.number(example.label)] * 2))]

    def head(self, config: BertConfig) -> Head:
        return PairHead(config, len(self.labels))

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """int64 [B]: both picks of a row have its label."""
        return {"sentences": batch.labels[::2]}

    def score(self, predictions: Sequence[Answer], examples: Sequence[Example]) -> Scores:
        gold, guess = [e.label or "" for e in examples], [p.label for p in predictions]
        return {"relation": relation_scores(gold, guess, self.options.none),
                "accuracy": sum(g == p for g, p in zip(gold, guess, strict=True)) / max(1, len(gold)),
                "support": len(gold)}

    def report(self, scores: Scores) -> str:
        return f"{relation_report(scores['relation'])}\n\naccuracy of all labels  {scores['accuracy']:.3f}"

    def summary(self, scores: Scores, before: Scores | None = None) -> str:
        """A line a relation."""
        return compared(lambda s: s["relation"]["relations"], scores, before)

    def shown(self, example: Example) -> Result:
        spans = {name: {"text": example.text[a:b], "start": a, "end": b}
                 for name, (a, b) in zip(("e1", "e2"), example.spans, strict=True)}
        return {"text": example.text, **spans}

    def empty(self, text: str) -> Result:
        return {"text": text, "e1": None, "e2": None, "label": None, "probabilities": {}}

    def render(self, result: Result, colour: bool) -> str:
        """The label with the spans in the places of e1 and e2, then the text."""
        relation, bracket, direction = spelt_out(result["label"]).rpartition("(")
        said = direction if not bracket else (
            relation + bracket + re.sub("e[12]", lambda name: result[name[0]]["text"], direction))
        return f"{coloured(said, colour)}  {result['probabilities'][result['label']]:.3f}\n  {result['text']}"


def marked(text: str, label: str | None, where: str) -> Example:
    """A text with <e1>...</e1> and <e2>...</e2> in it. Raises MinibertError where they do not stand so once each."""
    parts = TAGS.split(text)
    texts, tags = parts[::2], parts[1::2]
    for i in range(len(texts) - 1, 0, -1):         # an accent right behind a tag belongs to the letter before it
        signs = leading_marks(texts[i])
        texts[i - 1], texts[i] = texts[i - 1] + texts[i][:signs], texts[i][signs:]
    if tags not in (["<e1>", "</e1>", "<e2>", "</e2>"], ["<e2>", "</e2>", "<e1>", "</e1>"]) or "" in texts[1::2]:
        raise MinibertError(f"{where}: {text[:60]!r}: expected <e1>one span</e1> and <e2>another</e2> in it")
    place = dict(zip(tags, accumulate(map(len, texts)), strict=False))        # the last text ends at no tag
    spans = (place["<e1>"], place["</e1>"]), (place["<e2>"], place["</e2>"])
    return Example("".join(texts), spans, label, where)


def read_semeval(file: Path) -> Iterator[Example]:
    """The examples of a file in the published layout, or MinibertError with file:line.

    NUMBER, a tab, the text in quotes; in the next line the label; then a comment or nothing.
    """
    lines = enumerate(read_short_lines(file), 1)
    found = False
    for number, line in lines:
        if not line.strip():
            continue

        where, parts = f"{file}:{number}", line.rstrip("\n").split("\t")
        if len(parts) != 2 or not parts[0].strip().isdecimal():
            raise MinibertError(f'{where}: {line[:60]!r}: expected a number, a tab and a text in quotes')
        label = next(lines, (0, ""))[1].strip()
        if not label or label.startswith("Comment:"):
            raise MinibertError(f"{where}: no label in the line after it; expected one such as Cause-Effect(e1,e2)")
        if not (comment := next(lines, (0, "Comment:"))[1].strip()).startswith("Comment:") and comment:
            raise MinibertError(f"{where}: the second line after it is {comment[:60]!r}; expected Comment: or nothing")
        found = True
        yield marked(parts[1].strip().removeprefix('"').removesuffix('"'), label, where)
    if not found:
        raise MinibertError(f"{file}: no sentences in it; expected a number, a tab and a text in quotes, then a label")


def with_marks(example: Example, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """(ids [n], case shapes [n], {mark: its place}) of the text with the four marks in it."""
    spans = sorted(zip(example.spans, (MARKS[:2], MARKS[2:]), strict=True))   # from left to right
    cuts = [(at, mark) for span, pair in spans for at, mark in zip(span, pair, strict=True)]
    edges = [0, *(at for at, _ in cuts), len(example.text)]
    pieces = tokenizer.pieces([tokenizer.words(example.text[i:j], wholes=False) for i, j in pairwise(edges)])

    ids, shapes, marks = list(pieces[0].ids), list(pieces[0].shapes), {}
    for (_, mark), part in zip(cuts, pieces[1:], strict=True):
        marks[mark] = len(ids)
        ids += [tokenizer.number(mark), *part.ids]
        shapes += [0, *part.shapes]
    return np.array(ids, np.int64), np.array(shapes, np.int64), marks


def nearest(count: int, marks: Sequence[int], room: int) -> np.ndarray:
    """int64, ascending: the places 0 .. count - 1, or where they are more than `room`, those nearest to a mark."""
    far = np.abs(np.arange(count)[:, None] - np.array(marks)).min(1)
    return np.sort(np.argsort(far, kind="stable")[:room])
