"""A question and a text -> the answer, a slice of the text by character offset, or that the text has none.

Question and text stand in one row, [CLS] question [SEP] text [SEP]. One linear map gives every piece of the text two
scores, that the answer starts there and that it ends there; both at [CLS] say that the row has no answer (Devlin et al.
2019, section 4.3). A long text has several rows.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import Head, SpanHead
from minibert.core.layout import moved
from minibert.data.rows import PairRow, pair_rows
from minibert.data.tables import BAR
from minibert.data.text import split_words
from minibert.data.tokenizer import Pieces, Tokenizer
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.tables import Scores
from minibert.scores.texts import answer_report, answer_scores
from minibert.tasks.base import Result, Task, TaskOptions, coloured
from minibert.tasks.probabilities import softmax
from minibert.tasks.squad import Example, read_squad

STARTS, ENDS = 1, 2                                # bits of a piece's label: the answer starts here, ends here
NOWHERE = -1                                       # character of a piece at whose edge no answer can begin or end


@dataclass(frozen=True)
class Edges:
    """Where in the text an answer may start and end at each pick of a row, in characters; NOWHERE: it cannot."""
    starts: np.ndarray                             # int64 [M]
    ends: np.ndarray                               # int64 [M]


@dataclass(frozen=True)
class Span:
    """An answer, characters [start, end) of the text, or None and None for no answer; and how probable it is."""
    start: int | None
    end: int | None
    probability: float


@dataclass(frozen=True)
class Options(TaskOptions):
    """Question answering's own options."""
    answers: str = option("some", "some: a question may be without an answer, as in SQuAD 2.0; all: every one has one",
                          ("some", "all"))
    longest: int = option(30, "most pieces of an answer", least=1, most=10 ** 6, later=True)


class QA(Task[Example, Span]):
    """The task; see base.Task for what each member is."""
    name = "qa"
    defaults = {"epochs": 7, "max_pieces": 384, "batch_size": 16}
    best, also_best = ("f1", "max"), {"exact": "max"}
    architecture, head_parts = "BertForQuestionAnswering", ("qa_outputs.",)
    trial = f"Who built the tower? {BAR} The tower, finished in 1911, was built by Anna Lindqvist."
    suffixes = (".json", ".jsonl")
    Options, About = Options, Edges

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels or ["start", "end"])

    def read_file(self, file: Path) -> list[Example]:
        return read_squad(file, self.notices)

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """There are none to learn; --answers must suit the questions."""
        self.note_unseen(splits)
        without = sum(not e.answers for e in splits["train"])
        if not without and self.options.answers == "some":
            self.notices.append("no question of train is without an answer; --answers all would answer every one")

    def note_unseen(self, splits: Mapping[str, Sequence[Example]]) -> None:
        for split, examples in splits.items():
            if (without := sum(e.answers == () for e in examples)) and self.options.answers == "all":
                self.notices.append(f"{split} has {without} questions without an answer, which --answers all must miss")

    def example(self, text: str) -> Example:
        question, bar, context = text.partition(BAR)
        if not bar or not question.strip() or not context.strip():
            raise MinibertError(f"{text[:60]!r}: expected a question and a text with {BAR} between")
        return Example(question.strip(), context.strip(), None, "text")

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """[CLS] question [SEP] window of the text [SEP], read at [CLS] and the text's pieces."""
        asked, pieces = tokenizer.pieces([tokenizer.words(example.question), tokenizer.words(example.context)])
        starts, ends = edges(example.context, pieces, tokenizer)
        answer = first_answer(example, starts, ends)
        rows = pair_rows(asked, pieces, tokenizer, max_pieces, overlap, example.where)
        return [window(number, row, starts, ends, answer) for row in rows]

    def head(self, config: BertConfig) -> Head:
        return SpanHead(config)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Rows whose answer is known; that it is not in the row is an answer too."""
        return {"rows": float(sum(f.labels[0] >= 0 for f in batch.features))}

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,2] -> the sum over rows of the mean of −log softmax at start and at end."""
        table, y, _ = by_row(ops.at_least_fp32(scores), batch)
        return {"rows": ops.cross_entropy_forward(table, y)[0] / 2}           # [SPAN-2]

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,2] -> the gradient of the sum by them."""
        table, y, cells = by_row(ops.at_least_fp32(scores), batch)
        dtable = ops.cross_entropy_backward(0.5, (table, y))                  # [SPAN-3]
        return {"rows": dtable.reshape(2, -1)[:, cells].T}

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Span]:
        """Of all spans of all windows that may be an answer, the one farthest before its window's "no answer"."""
        nothing = Span(None, None, 1.0)                                        # no window has a whole word
        best: list[tuple[float, Span]] = [(-np.inf, nothing)] * len(examples)
        for feature, z in zip(features, scores, strict=True):
            found = best_span(feature, z.astype(np.float64), self.options.longest, self.options.answers == "all")
            best[feature.example] = max(best[feature.example], found, key=lambda pair: pair[0])
        return [prediction for _, prediction in best]

    def score(self, predictions: Sequence[Span], examples: Sequence[Example]) -> Scores:
        said = ["" if p.start is None else e.context[p.start:p.end] for p, e in zip(predictions, examples, strict=True)]
        return answer_scores([[text for text, _ in e.answers or ()] for e in examples], said)

    def report(self, scores: Scores) -> str:
        return answer_report(scores)

    def collapsed(self, predictions: Sequence[Span], examples: Sequence[Example]) -> str | None:
        silent = any(e.answers for e in examples) and all(p.start is None for p in predictions)
        return "no answer" if silent else None

    def result(self, example: Example, prediction: Span) -> Result:
        """{"question", "text", "answer": {"text", "start", "end"} or None, "probability"}."""
        a, b = prediction.start, prediction.end
        answer = None if a is None else {"text": example.context[a:b], "start": a, "end": b}
        return {"question": example.question, "text": example.context, "answer": answer,
                "probability": prediction.probability}

    def empty(self, text: str) -> Result:
        return {"question": text, "text": "", "answer": None, "probability": None}

    def render(self, result: Result, colour: bool) -> str:
        answer, p = result["answer"], f"{result['probability']:.3f}"
        said = "no answer" if answer is None else answer["text"]
        place = "" if answer is None else f"  characters {answer['start']} to {answer['end']}"
        return f"{coloured(said, colour)}  {p}{place}\n  {result['question']}"


# ------------------------------------------------------------------------------------------------ pieces and rows


def edges(context: str, pieces: Pieces, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] each: the character where each piece begins and where it ends; NOWHERE inside a word.

    A piece that continues another (##s) begins no answer, and what it continues ends none, unless a word of
    split_words() begins there, as the number in €100.
    """
    begins = np.array([a for a, _ in tokenizer.cut(context)], np.int64)[pieces.words]
    spans = begins[:, None] + np.array(pieces.spans, np.int64).reshape(-1, 2)
    words = np.array(split_words(context), np.int64).reshape(-1, 2)
    inside = tokenizer.continuing[pieces.ids] & ~np.isin(spans[:, 0], words[:, 0])
    inside = np.append(inside, False)
    return np.where(inside[:-1], NOWHERE, spans[:, 0]), np.where(inside[1:], NOWHERE, spans[:, 1])


def first_answer(example: Example, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int] | None:
    """First and last piece of the first right answer, widened to whole words; (-1, -1): none; None: not known."""
    if not example.answers:
        return None if example.answers is None else (-1, -1)
    text, a = example.answers[0]
    begins, stops = np.flatnonzero(starts != NOWHERE), np.flatnonzero(ends != NOWHERE)
    first = int(np.searchsorted(starts[begins], a, side="right")) - 1         # the last that begins at a or before
    last = int(np.searchsorted(ends[stops], a + len(text)))                   # the first that ends there or behind
    return int(begins[max(first, 0)]), int(stops[min(last, len(stops) - 1)])


def window(number: int, row: PairRow, starts: np.ndarray, ends: np.ndarray, answer: tuple[int, int] | None) -> Feature:
    """One row as a feature: the answer is learnt where all of it is there, elsewhere that there is none."""
    begin, stop = row.second
    places = np.arange(begin, stop) + len(row.ids) - 1 - stop                 # [CLS] question [SEP] stand before
    labels = np.full(1 + stop - begin, -1 if answer is None else 0)
    if answer is not None:
        there = begin <= answer[0] and answer[1] < stop
        first, last = (answer[0] - begin + 1, answer[1] - begin + 1) if there else (0, 0)
        labels[first] += STARTS
        labels[last] += ENDS

    about = Edges(np.append(NOWHERE, starts[begin:stop]), np.append(NOWHERE, ends[begin:stop]))    # [CLS] first
    return Feature(number, row.ids, row.types, np.concatenate([[0], places]), labels, about)


def by_row(z: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [M,2] -> (table [2B,W], int64 [2B] labels, int64 [M] cells).

    A row of the table has the start scores of all picks of one row of the batch, in the second half the end scores; it
    is filled up with −∞, whose probability is 0. A label is a column, -1 where it is not known. Pick m stands in cell
    cells[m] of either half.
    """
    counts = np.array([len(f.picks) for f in batch.features])
    B, W = len(counts), int(counts.max())
    live = np.arange(W) < counts[:, None]

    cells = moved(torch.from_numpy(np.flatnonzero(live)), z.device)
    table = z.new_full((B * W, 2), -torch.inf).index_copy(0, cells, z)        # [SPAN-1]
    bits = batch.labels.new_zeros(B * W).index_copy(0, cells, batch.labels).view(B, W)
    y = torch.stack([(bits & bit).argmax(1) for bit in (STARTS, ENDS)])
    y = torch.where(bits[:, 0] >= 0, y, -1)
    return table.T.reshape(2 * B, W), y.flatten(), cells


def best_span(feature: Feature, z: np.ndarray, longest: int, always: bool) -> tuple[float, Span]:
    """Scores [M,2] of a window -> (its lead before "no answer", the prediction).

    The lead is log (p(start) p(end)) − log (p([CLS]) p([CLS])), in which the window's normaliser cancels: so leads of
    several windows may be compared. Unless `always`, a lead below 0 is no answer.
    """
    starts, ends = feature.about.starts, feature.about.ends
    n = len(starts)
    start, end = np.where(starts == NOWHERE, -np.inf, z[:, 0]), np.where(ends == NOWHERE, -np.inf, z[:, 1])
    none = z[0].sum()

    # only the `longest` pieces from each start are looked at: [n, longest], past the text -inf
    reach = min(longest, n)
    ahead = np.lib.stride_tricks.sliding_window_view(np.append(end, np.full(reach - 1, -np.inf)), reach)
    sums = start[:, None] + ahead
    first, more = divmod(int(sums.argmax()), reach)
    lead = float(sums[first, more] - none)                                    # [SPAN-4] -inf in a window without a word

    p = softmax(z.T)
    if lead == -np.inf or (lead < 0 and not always):
        return lead, Span(None, None, float(p[0, 0] * p[1, 0]))
    return lead, Span(int(starts[first]), int(ends[first + more]), float(p[0, first] * p[1, first + more]))
