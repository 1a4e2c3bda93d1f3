"""Rows of questions, answers and pairs, and which answers are right for which question.

A feature holds a question and its answer as two rows end to end; what an update or a prediction reads is cut from it.
"""
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from minibert.core.batch import Feature
from minibert.data.tokenizer import Tokenizer

QUESTION, ANSWER, PAIR = 0, 1, 2                   # what a row of a batch is


@dataclass(frozen=True)
class TwoTexts:
    """What a feature holds; a text that is not there has no pieces and the number -1."""
    length: int                                    # pieces of the question's row
    question: int                                  # text_number()s
    answer: int
    longest: int                                   # most pieces of a row
    second_type: int                               # what a second text in a row adds to its types


@dataclass(frozen=True)
class Role:
    """What a row of an update is."""
    kind: int                                      # QUESTION, ANSWER or PAIR
    question: int                                  # text_number()s
    answer: int
    right: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))   # all answers that train knows as right


def text_number(text: str) -> int:
    """A whole number that stands for a text: the same for texts that differ in blanks and letter case alone.

    For others it is another one (2^-62 by chance).
    """
    plain = " ".join(text.split()).lower()
    return int.from_bytes(hashlib.sha256(plain.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """The first text of each number, in order."""
    first: dict[int, str] = {}
    for text in texts:
        first.setdefault(text_number(text), text)
    return tuple(first.values())


def pair_features(number: int, pairs: Sequence[tuple[str | None, str | None]], tokenizer: Tokenizer,
                  max_pieces: int) -> list[Feature]:
    """A feature a pair: [CLS] question [SEP] and [CLS] answer [SEP], either of which may be missing.

    A text longer than a row keeps its first pieces.
    """
    pieces = iter(tokenizer.pieces([tokenizer.words(text) for pair in pairs for text in pair if text is not None]))
    features = []
    for pair in pairs:
        ids, shapes, ends = [], [], []
        for text in pair:
            if text is not None:
                p = next(pieces)
                ids += [tokenizer.start, *p.ids[:max_pieces - 2], tokenizer.end]
                shapes += [0, *p.shapes[:max_pieces - 2], 0]
            ends.append(len(ids))

        question, answer = (-1 if text is None else text_number(text) for text in pair)
        about = TwoTexts(ends[0], question, answer, max_pieces, tokenizer.second_type)
        features.append(Feature(number, np.array(ids, np.int64), tokenizer.types * np.array(shapes, np.int64),
                                np.zeros(1, np.int64), np.array([-1 if None in pair else 0]), about))
    return features


def question_row(f: Feature, right: Iterable[int] = ()) -> Feature:
    """The question of a feature, every piece of it read; `right`: the numbers of all right answers."""
    n = f.about.length
    return Feature(f.example, f.ids[:n], f.types[:n], np.arange(n), np.full(n, -1),
                   Role(QUESTION, f.about.question, f.about.answer, np.array([*right], np.int64)))


def answer_row(f: Feature) -> Feature:
    """The answer of a feature, every piece of it read."""
    n = f.about.length
    T = len(f.ids) - n
    return Feature(f.example, f.ids[n:], f.types[n:], np.arange(T), np.full(T, -1),
                   Role(ANSWER, f.about.question, f.about.answer))


def pair_row(question: Feature, answer: Feature, label: int) -> Feature:
    """[CLS] question [SEP] answer [SEP], read at [CLS]; where both do not fit, each keeps its first pieces."""
    n, second = question.about.length, question.about.second_type
    begin = answer.about.length + 1                # past its [CLS]
    room, of_answer = question.about.longest - 3, len(answer.ids) - begin - 1
    of_question = min(n - 2, max(room - of_answer, room // 2))
    of_answer = min(of_answer, room - of_question)

    first, then = [*range(1 + of_question), n - 1], [*range(begin, begin + of_answer), -1]       # and their [SEP]
    return Feature(question.example, np.append(question.ids[first], answer.ids[then]),
                   np.append(question.types[first], answer.types[then] + second), np.zeros(1, np.int64),
                   np.array([label]), Role(PAIR, question.about.question, answer.about.answer))


def right_too(pairs: Sequence[tuple[int, int]], known: Mapping[int, Iterable[int]]) -> np.ndarray:
    """(question, answer) of n rows -> bool [n,n]: answer j is right for question i, and not its own.

    Right are the answers that stand with the question here, and those that `known` has for it.
    """
    right: dict[int, set[int]] = defaultdict(set)
    for question, answer in pairs:
        right[question] |= {answer, *known.get(question, ())}
    table = np.array([[answer in right[question] for _, answer in pairs] for question, _ in pairs], bool)
    return table.reshape(len(pairs), len(pairs)) & ~np.eye(len(pairs), dtype=bool)


def nearest_others(features: Sequence[Feature], known: Mapping[int, Iterable[int]]) -> list[int]:
    """For each feature the one whose answer shares most pieces with its own (Jaccard), and is not right too; -1: none.

    Pieces that many answers of the update have count less: each has the weight one over their number.
    """
    answers = [f.ids[f.about.length + 1:-1] for f in features]
    pieces, column = np.unique(np.concatenate(answers), return_inverse=True)
    table = np.zeros((len(answers), len(pieces)))
    table[np.repeat(np.arange(len(answers)), [len(ids) for ids in answers]), column] = 1.0

    shared = (table / np.maximum(table.sum(0), 1)) @ table.T
    size = np.diag(shared)
    likeness = shared / np.maximum(size[:, None] + size - shared, 1e-9)
    likeness[right_too([(f.about.question, f.about.answer) for f in features], known)] = -1.0
    np.fill_diagonal(likeness, -1.0)
    best = likeness.argmax(1)
    return [int(j) if likeness[i, j] >= 0 else -1 for i, j in enumerate(best)]
