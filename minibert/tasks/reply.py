"""A question -> the best of a list of answers: customer service as retrieval.

The encoder reads each text by itself; the mean of its pieces' states, of length 1, is the text's vector, and a question
is near its answer. Such vectors are made once for many questions, so many answers cost little. The best of them are
then read again with the question, by the same encoder and the head of a pair, which sees how the two fit word by word.
Both are learnt at once: a question's answer against those of the other questions of the batch, and one pair that fits
against one that does not.
"""
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import Head, TowerHead
from minibert.core.layout import moved
from minibert.data.compact import Compact
from minibert.data.tables import BAR, TABLES, read_short_lines, read_table
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.numbers import ranking_scores
from minibert.scores.tables import Scores
from minibert.tasks.base import Result, RowDraw, Scorer, Task, TaskOptions, coloured, only_one
from minibert.tasks.probabilities import sigmoid
from minibert.tasks.reply_rows import (
    ANSWER,
    PAIR,
    QUESTION,
    Role,
    TwoTexts,
    answer_row,
    distinct,
    nearest_others,
    pair_features,
    pair_row,
    question_row,
    right_too,
    text_number,
)
from minibert.tasks.tabular import TableOptions, table_rows, text_of


@dataclass(frozen=True)
class Example:
    """A question, its answer (None: not known), and the answers to choose from (none: those of all examples)."""
    question: str
    answer: str | None
    candidates: tuple[str, ...]
    where: str                                     # file:line


@dataclass(frozen=True)
class Options(TableOptions):
    """The reply task's own options."""
    columns: str = option("question,answer", "names of the columns that hold a question and its answer", later=True)
    temperature: float = option(0.05, "cosines are divided by it before the softmax over the batch's answers", above=0)
    rerank: int = option(10, "so many of the nearest answers are read again together with the question (0: none; in "
                             "training: and nothing of it is learnt)", least=0, most=10 ** 6, later=True)

    def check_changes(self, changes: Mapping[str, object]) -> None:
        """Raises MinibertError where a model trained with these options is to read pairs that it never learnt."""
        if changes.get("rerank") and not self.rerank:
            raise MinibertError(f"--rerank {changes['rerank']}: the model was trained with --rerank 0 and knows no "
                                "pairs; leave it out")


@dataclass(frozen=True)
class Ranking:
    """All candidates of a question, the best first."""
    answers: Sequence[str]                         # those there were, shared by many questions
    order: np.ndarray                              # int64: numbers of answers
    near: np.ndarray                               # float64: the cosine of each answer, by its number
    fits: dict[int, float] = field(default_factory=dict)       # probability, of those that were read again


class Reply(Task[Example, Ranking]):
    """The task; see base.Task for what each member is."""
    name = "reply"
    defaults = {"epochs": 8}
    best, also_best = ("mrr", "max"), dict.fromkeys(["recall_1", "recall_5", "vectors.mrr"], "max")
    architecture, problem_type = "BertForSequenceClassification", "multi_label_classification"
    trial = f"My card is gone, what now? {BAR} Block it in the app at once. {BAR} A transfer takes one working day."
    coupled = True                                 # every question is set against the answers of all others
    Options, About, RowAbout = Options, TwoTexts, Role

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels or ["fits"])                          # what the score of a pair says
        self.candidates: tuple[str, ...] = ()      # to choose from where a raw question names none
        self.index: list[Feature] = []             # of the candidates, in their order, from the first question on
        self.vectors = np.zeros((0, 0))            # float64 [N,H], theirs, once a model has read them
        self.right: dict[int, set[int]] = {}       # of train: a question's number -> those of all its answers

    def read_file(self, file: Path) -> Compact[Example]:
        wanted = "a question and its answer"
        return Compact.of(Example, file, (
            Example(text_of(question, where, wanted), text_of(answer, where, wanted), (), where)
            for where, (question, answer) in table_rows(self, file)))

    def read_candidates(self, file: Path) -> None:
        """Take the answers to choose from out of a file, one a line; a table's are those of its column of answers.

        In .txt what follows ||| is left out, as in the data. A model reads the answers with the first question and
        remembers; call this again if its weights or its precision change.
        """
        if file.suffix.lower() in set(TABLES) - {".txt"}:
            found = [text_of(text, where).strip() for where, (text,) in
                     read_table(file, self.options.names[1:], self.notices)]
        else:
            found = [line.split(BAR)[0].strip() for line in read_short_lines(file)]
        self.candidates, self.index, self.vectors = distinct(filter(None, found)), [], np.zeros((0, 0))
        if not self.candidates:
            raise MinibertError(f"{file}: no answers in it; expected one a line")

    def learn_labels(self, splits: Mapping[str, Sequence[Example]]) -> None:
        """There are none; two answers at least must differ, and all right answers of a question are remembered."""
        if len({text_number(e.answer or "") for e in splits["train"]}) < 2:
            raise MinibertError(f"{splits['train'][0].where}: all training questions have the same answer; expected at "
                                "least two (is --limit too small?)")
        self.right = {}
        for example in splits["train"]:
            self.right.setdefault(text_number(example.question), set()).add(text_number(example.answer or ""))

    def example(self, text: str) -> Example:
        """Raw text, "question ||| answer ||| answer ...", or a question alone where read_candidates() gave answers."""
        question, *answers = (part.strip() for part in text.split(BAR))
        candidates = distinct(filter(None, answers)) or self.candidates
        if not question or not candidates:
            raise MinibertError(f"{text[:60]!r}: expected a question {BAR} answer {BAR} answer ..., or a question and "
                                "--answers FILE")
        return Example(question, None, candidates, "text")

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """Question and answer in one feature; a raw question stands alone, then each of its candidates.

        Those of read_candidates() are no question's own: the first one makes their index.
        """
        asked, room = (example.question, example.answer), (tokenizer, max_pieces)
        if not self.from_index(example):
            return pair_features(number, [asked, *((None, text) for text in example.candidates)], *room)
        self.index = self.index or pair_features(-1, [(None, text) for text in self.candidates], *room)
        return pair_features(number, [asked], *room)

    def rows(self, features: Sequence[Feature], draw: RowDraw) -> list[Feature]:
        """What an update reads: all questions, all answers, the pairs that fit, the pairs that do not.

        A pair that does not fit has the other answer of the update that shares most pieces with the question's own.
        """
        questions = [question_row(f, sorted(self.right.get(f.about.question, ()))) for f in features]
        answers = [answer_row(f) for f in features]
        if not self.options.rerank:
            return questions + answers

        others = nearest_others(features, self.right)
        return [*questions, *answers, *(pair_row(f, f, 1) for f in features),
                *(pair_row(f, features[j], 0) for f, j in zip(features, others, strict=True) if j >= 0)]

    def head(self, config: BertConfig) -> Head:
        """Vectors by the encoder alone; the pair's score is published as `classifier`, on the pooler."""
        return TowerHead(config, 1)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Questions with an answer, and pairs."""
        kinds = [f.about.kind for f in batch.features]
        counts = {"answers": float(kinds.count(QUESTION))}
        return {**counts, "pairs": float(kinds.count(PAIR))} if self.options.rerank else counts

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """[B,H+1] -> the sum over questions of half of −log softmax both ways, and the pairs' cross-entropies."""
        near, y, *_ = self.nearness(scores, batch)
        both = ops.cross_entropy_forward(near, y)[0] + ops.cross_entropy_forward(near.T, y)[0]
        sums = {"answers": both / 2}                                          # [NEG-2]
        if self.options.rerank:
            sums["pairs"] = ops.bce_forward(*self.pairs(scores, batch)[:2])[0]
        return sums

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """[B,H+1] -> the gradients of the sums by them."""
        near, y, q, a = self.nearness(scores, batch)
        dnear = ops.cross_entropy_backward(0.5, (near, y)) + ops.cross_entropy_backward(0.5, (near.T, y)).T  # [NEG-3]
        danswers = torch.zeros_like(scores)
        with in_full(scores):
            danswers[q, :-1] = dnear @ scores[a, :-1] / self.options.temperature  # [NEG-4]
            danswers[a, :-1] = dnear.T @ scores[q, :-1] / self.options.temperature  # [NEG-5]
        if not self.options.rerank:
            return {"answers": danswers}

        z, y, there = self.pairs(scores, batch)
        dpairs = torch.zeros_like(scores)
        dpairs[there, -1] = ops.bce_backward(1.0, (z, y))
        return {"answers": danswers, "pairs": dpairs}

    def nearness(self, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(near [n,n] of question i and answer j, int64 labels [n], rows [n] of questions, of answers)."""
        q, a = (rows_of_kind(batch, kind, scores.device) for kind in (QUESTION, ANSWER))
        asked = [f.about for f in batch.features if f.about.kind == QUESTION]
        as_right = right_too([(r.question, r.answer) for r in asked], {r.question: r.right.tolist() for r in asked})
        with in_full(scores):
            near = scores[q, :-1] @ scores[a, :-1].T / self.options.temperature  # [NEG-1]
        near = near.masked_fill(moved(torch.from_numpy(as_right), scores.device), -torch.inf)
        return near, torch.arange(len(asked), device=scores.device), q, a

    def pairs(self, scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(scores [n], targets [n], rows [n]) of the pairs."""
        there = rows_of_kind(batch, PAIR, scores.device)
        fits = torch.tensor([float(f.labels[0]) for f in batch.features if f.about.kind == PAIR])
        return scores[there, -1], fits.to(scores), there

    def infer(self, score: Scorer, examples: Sequence[Example], features: Sequence[Feature]) -> list[Ranking]:
        """Vectors first, then the nearest answers together with their question; `score` gives [1,H+1] a row."""
        asked = {f.example: f for f in features if f.about.length}
        known: dict[tuple[str, ...], dict[int, Feature]] = defaultdict(dict)   # of candidates, each as it came first
        for f in features:
            if f.about.answer >= 0:
                known[examples[f.example].candidates].setdefault(f.about.answer, f)
        if not len(self.vectors) and any(map(self.from_index, examples)):
            self.vectors = np.concatenate(score(list(map(answer_row, self.index))))[:, :-1].astype(np.float64)

        rows = [*map(question_row, asked.values()), *(answer_row(f) for own in known.values() for f in own.values())]
        rankings = self.decode(examples, rows, score(rows))

        # by candidates: those of a file, then those of examples, where () is everyone's
        lists = {self.candidates: self.index} | {texts: list(own.values()) for texts, own in known.items()}
        answers = [lists[e.candidates] for e in examples]
        best = [ranking.order[:self.options.rerank].tolist() for ranking in rankings]
        pairs = [pair_row(asked[i], answers[i][n], -1) for i, nearest in enumerate(best) for n in nearest]
        fits = iter(score(pairs))
        return [self.reordered(ranking, {n: float(next(fits)[0, -1]) for n in nearest})
                for ranking, nearest in zip(rankings, best, strict=True)]

    def from_index(self, example: Example) -> bool:
        """Whether a raw question chooses from the answers of read_candidates()."""
        return bool(self.candidates) and example.candidates is self.candidates

    def reordered(self, ranking: Ranking, scores: dict[int, float]) -> Ranking:
        """The nearest by nearness and fit together, log-odds added; the others stay behind them."""
        front = sorted(scores, key=lambda n: -(scores[n] + float(ranking.near[n]) / self.options.temperature))
        order = np.array([*front, *ranking.order[len(front):]], np.int64)
        fits = sigmoid(np.array([scores[n] for n in front]))
        return Ranking(ranking.answers, order, ranking.near, dict(zip(front, fits.tolist(), strict=True)))

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Ranking]:
        """Rows of questions and of distinct answers with their vectors -> all candidates of each question by cosine."""
        asked: dict[int, np.ndarray] = {}
        known: dict[tuple[str, ...], list[np.ndarray]] = defaultdict(list)     # of candidates, in their order
        for f, z in zip(features, scores, strict=True):
            vector = z[0, :-1].astype(np.float64)
            if f.about.kind == QUESTION:
                asked[f.example] = vector
            else:
                known[examples[f.example].candidates].append(vector)
        tables = {self.candidates: self.vectors} | {texts: np.stack(vectors) for texts, vectors in known.items()}
        everyone = distinct(e.answer for e in examples if e.answer)

        cosines = [tables[e.candidates] @ asked[i] for i, e in enumerate(examples)]
        return [Ranking(e.candidates or everyone, np.argsort(-near, kind="stable"), near)
                for e, near in zip(examples, cosines, strict=True)]

    def score(self, predictions: Sequence[Ranking], examples: Sequence[Example]) -> Scores:
        """ranking_scores, and of the vectors alone; every answer of an equal question is right."""
        right: dict[int, set[int]] = defaultdict(set)
        for example in examples:
            right[text_number(example.question)].add(text_number(example.answer or ""))

        def places_of(order: Callable[[Ranking], np.ndarray]) -> list[int]:
            return [1 + next(i for i, n in enumerate(order(p))
                             if text_number(p.answers[n]) in right[text_number(e.question)])
                    for p, e in zip(predictions, examples, strict=True)]

        return {**ranking_scores(places_of(lambda p: p.order)),
                "vectors": ranking_scores(places_of(lambda p: np.argsort(-p.near, kind="stable")))}

    def collapsed(self, predictions: Sequence[Ranking], examples: Sequence[Example]) -> str | None:
        return only_one({p.answers[p.order[0]] for p in predictions}, {e.answer or "" for e in examples})

    def report(self, scores: Scores) -> str:
        rows = {"vectors alone": scores["vectors"], **({"read together": scores} if self.options.rerank else {})}
        lines = [f"{name:13}  {s['recall_1']:9.3f}  {s['recall_5']:9.3f}  {s['mrr']:9.3f}  {s['support']:9,}"
                 for name, s in rows.items()]
        return "\n".join([f"{'':13}  {'recall@1':>9}  {'recall@5':>9}  {'MRR':>9}  {'questions':>9}", *lines])

    def result(self, example: Example, prediction: Ranking) -> Result:
        """{"question", "answers": [{"text", "similarity"} and, of those read again, "probability"]}, five at most."""
        best = [{"text": prediction.answers[n], "similarity": float(prediction.near[n]),
                 **({"probability": prediction.fits[n]} if n in prediction.fits else {})}
                for n in prediction.order[:5].tolist()]
        return {"question": example.question, "answers": best}

    def empty(self, text: str) -> Result:
        return {"question": text, "answers": []}

    def render(self, result: Result, colour: bool) -> str:
        lines = [coloured(result["question"], colour)]
        for answer in result["answers"][:3]:
            fits = f", fits {answer['probability']:.3f}" if "probability" in answer else ""
            lines.append(f"  {answer['similarity']:.3f}{fits}  {answer['text']}")
        return "\n".join(lines)


def in_full(x: Tensor) -> torch.autocast:
    """Products in the format of x, whatever the run's: divided by the temperature, a cosine has 16 bits too few."""
    return torch.autocast(x.device.type, enabled=False)


def rows_of_kind(batch: Batch, kind: int, device: torch.device) -> Tensor:
    """int64: the rows of this kind."""
    return moved(torch.tensor([i for i, f in enumerate(batch.features) if f.about.kind == kind], dtype=torch.int64),
                 device)
