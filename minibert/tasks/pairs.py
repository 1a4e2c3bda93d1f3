"""Two texts and their label: what every task of a pair shares, whatever the two are to each other.

Both stand in one row, [CLS] first [SEP] second [SEP], told apart by their token types, and are read from the pooled
state of [CLS].
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minibert.core.batch import Feature
from minibert.data.compact import Compact
from minibert.data.rows import pair_rows
from minibert.data.tables import BAR
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.options import option
from minibert.tasks.base import Result, coloured
from minibert.tasks.labelled import LabelTask, three_best
from minibert.tasks.tabular import TableOptions, table_rows, text_of


@dataclass(frozen=True)
class Pair:
    """Two texts and what they are to each other; None: not known."""
    first: str
    second: str
    label: Any                                     # a text, or what the task's read_label() makes of one
    where: str                                     # file:line


@dataclass(frozen=True)
class PairOptions(TableOptions):
    """Options of a task that reads pairs."""
    columns: str = option("first,second,label", "names of the columns that hold the two texts and their label",
                          later=True)


class PairTask(LabelTask[Pair]):
    """A task of one label a pair, from tables of three columns or raw texts with ||| between."""
    unit = "pairs"
    texts = ("first", "second")                    # what the two are called in a result
    Options = PairOptions

    def read_file(self, file: Path) -> Compact[Pair]:
        return Compact.of(Pair, file, (
            Pair(text_of(first, where), text_of(second, where), self.read_label(label, where), where)
            for where, (first, second, label) in table_rows(self, file)))

    def example(self, text: str) -> Pair:
        first, bar, second = text.partition(BAR)
        if not bar or BAR in second:
            raise MinibertError(f"{text[:60]!r}: expected two texts with {BAR} between")
        return Pair(first.strip(), second.strip(), None, "text")

    def encode(self, number: int, example: Pair, tokenizer: Tokenizer, max_pieces: int, overlap: int) -> list[Feature]:
        """[CLS] first [SEP] second [SEP], read at [CLS]; of texts too long for a row, each window with each."""
        first, second = tokenizer.pieces([tokenizer.words(example.first), tokenizer.words(example.second)])
        return self.read_at_cls(number, pair_rows(first, second, tokenizer, max_pieces, overlap,
                                                     example.where), example)

    def shown(self, example: Pair) -> Result:
        return dict(zip(self.texts, (example.first, example.second), strict=True))

    def empty(self, text: str) -> Result:
        return {**dict.fromkeys(self.texts, ""), self.texts[0]: text, "label": None, "probabilities": {}}

    def render(self, result: Result, colour: bool) -> str:
        """What is said of the two, then the two."""
        return "\n  ".join([coloured(self.said(result), colour), *(result[text] for text in self.texts)])

    def said(self, result: Result) -> str:
        """The answer in a result as text."""
        return three_best(result["probabilities"])
