"""Masked words: the training that everything else starts from, on plain text of any size.

Some pieces of a row are hidden, and the model says what stood there from what is left on both sides (Devlin et al.
2019, section 3.1). No labels are needed, so a file of text is enough; it is read as a stream, and its pieces lie on the
disk, packed into rows without padding.
"""
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibert.core.batch import Batch, Feature
from minibert.core.config import BertConfig
from minibert.core.heads import Head, NextSentenceHead, WordHead, firsts
from minibert.data.features import Features, compact, ragged, running
from minibert.data.order import row_generator
from minibert.data.rows import WordNumbers, word_features
from minibert.data.tables import read_lines
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError, spelt_out
from minibert.options import option
from minibert.scores.tables import Scores
from minibert.tasks.base import Result, RowDraw, Scorer, TaskOptions, coloured
from minibert.tasks.next_sentence import halves
from minibert.tasks.vocabulary import NONE, VocabularyTask, without

HIDDEN = "[MASK]"
LONG = 2 ** 22                                     # characters of a line that are cut into words at a time
BLOCK = 2 ** 20                                    # words whose pieces are looked up at a time
ROWS = 64                                          # rows that are scored at a time: [picks,V] numbers are many
TOP = 5                                            # pieces that a prediction names
Filling = dict[int, list[tuple[str, float]]]       # raw text: the word that is [MASK] -> the best pieces, probabilities


@dataclass(frozen=True)
class Hits:
    """What a model found in one row of a file."""
    loss: float                                    # sum of −log p over the hidden pieces
    right: int                                     # pieces found
    hidden: int                                    # pieces that were hidden
    guesses: frozenset[int]                        # all pieces that were predicted
    answer: bool | None                            # right about the row's halves; None: no question


@dataclass(frozen=True)
class Options(TaskOptions):
    """Masked words' own options."""
    hide: float = option(0.15, "share of the pieces that the model has to find", above=0, below=1)
    whole_words: bool = option(False, "hide all pieces of a word or none")
    next_sentence: bool = option(False, "also learn whether the second half of a row follows the first")


class TextLines(Sequence[str]):
    """The first `total` lines of a file that are not empty, read when asked for."""

    def __init__(self, file: Path, total: int):
        self.file, self.total = file, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, i: int | slice) -> "str | TextLines":
        if isinstance(i, slice):
            if i.start or (i.step or 1) != 1:
                raise IndexError("only the first lines can be taken")
            return TextLines(self.file, len(range(self.total)[i]))
        return next(itertools.islice((line for line in self.lines() if line), range(self.total)[i], None))

    def lines(self) -> Iterator[str]:
        """The lines without blanks at their ends; of several empty ones one, which parts two documents."""
        left, before = self.total, ""
        for line in read_lines(self.file):
            line = line.strip()
            if line or before:
                yield line
            before, left = line, left - bool(line)
            if not left:
                return

    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache keeps."""
        return {"count": np.array([self.total])}

    @classmethod
    def from_arrays(cls, file: Path, arrays: dict[str, np.ndarray]) -> "TextLines":
        """What arrays() gave, and the file they came from."""
        return cls(file, int(arrays["count"][0]))


class MLM(VocabularyTask[str, Hits | Filling]):
    """The task; see base.Task for what each member is. Its examples are lines of a file, which it reads as one text."""
    name = "mlm"
    defaults = {"epochs": 20, "max_pieces": 128}
    best, also_best = ("perplexity", "min"), {"loss_a_piece": "min", "accuracy": "max"}
    trial = f"Paris is the capital of {HIDDEN}."
    suffixes = (".txt",)
    on_disk = True
    Options, Examples, About = Options, TextLines, WordNumbers

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels)
        if self.options.next_sentence:
            self.architecture = "BertForPreTraining"

    def read_file(self, file: Path) -> TextLines:
        count = sum(bool(line.strip()) for line in read_lines(file))
        if not count:
            raise MinibertError(f"{file}: no text in it")
        return TextLines(file, count)

    def subset(self, examples: Sequence[str], numbers: np.ndarray) -> Sequence[str]:
        raise MinibertError("--split: --task mlm reads a file as one text; cut it into train.txt, dev.txt and test.txt")

    def example(self, text: str) -> str:
        if HIDDEN not in text:
            raise MinibertError(f"{text[:60]!r}: expected {HIDDEN} in it")
        return text

    def encode(self, number: int, example: str, tokenizer: Tokenizer, max_pieces: int, overlap: int) -> list[Feature]:
        """Raw text, in windows where it is long, read at each [MASK] in the window where it sees most."""
        self.take(tokenizer)
        words = [example[a:b] for a, b in words_and_masks(example, tokenizer)]
        pieces, = tokenizer.pieces([words])
        wanted = [i for i, word in enumerate(words) if word == HIDDEN]

        features = []
        for f in word_features(number, pieces, tokenizer, max_pieces, overlap, [-1] * len(words)):
            here = np.isin(f.about.words, wanted)
            types = f.types.copy()
            types[f.picks[here]] = 0               # the letter case of "[MASK]" says nothing
            features.append(Feature(number, f.ids, types, f.picks[here], f.labels[here],
                                    WordNumbers(f.about.words[here])))
        return features

    def take(self, tokenizer: Tokenizer) -> None:
        """Keep the tokenizer, by which predictions are spelt. Raises MinibertError where it has no [MASK]."""
        self.tokenizer = tokenizer
        if tokenizer.mask is None:
            raise MinibertError(f"vocabulary without {HIDDEN}; is this the tokenizer of a BERT checkpoint?")

    def encode_many(self, examples: TextLines, tokenizer: Tokenizer, max_pieces: int,
                    overlap: int) -> Iterator[Features]:
        """The whole text as rows, packed() or with --next-sentence halves(); nothing is hidden yet."""
        self.take(tokenizer)
        if not self.options.next_sentence:
            yield from packed(stream(examples, tokenizer), tokenizer, max_pieces)
            return

        rows = asked = 0
        for part in halves(stream(examples, tokenizer, closed=True), tokenizer, max_pieces):
            rows, asked = rows + len(part), asked + len(part.picks)
            yield part
        if not rows:
            raise MinibertError(f"{examples.file}: no document of two pieces or more (an empty line parts documents); "
                                "--next-sentence asks about two halves")
        if not asked:
            self.notices.append(f"{examples.file}: no two stretches have the same number of pieces, so none is asked "
                                "whether its second half follows; give more text or fewer --max-pieces")

    def rows(self, features: Sequence[Feature], draw: RowDraw) -> list[Feature]:
        """The features with pieces hidden, in every epoch others."""
        return [self.hidden(f, draw(i)) for i, f in enumerate(features)]

    def hidden(self, f: Feature, draw: np.random.Generator) -> Feature:
        """A row with some of its pieces hidden, as hide_pieces() does: picks behind its own."""
        tokenizer = self.tokenizer
        free = ~np.isin(f.ids, [tokenizer.start, tokenizer.end, tokenizer.pad, tokenizer.mask])
        words = np.cumsum(~tokenizer.continuing[f.ids]) if self.options.whole_words else np.arange(len(f.ids))
        ids, picks = hide_pieces(f.ids, words, free, self.options.hide, tokenizer.mask, tokenizer.numbers, draw)
        types = f.types.copy()
        types[picks[ids[picks] != f.ids[picks]]] %= tokenizer.types            # letter case would tell of the word
        return Feature(f.example, ids, types, np.append(f.picks, picks), np.append(f.labels, f.ids[picks]))

    def head(self, config: BertConfig) -> Head:
        """Published as `cls.predictions`, with --next-sentence `cls.seq_relationship` beside it."""
        return (NextSentenceHead if self.options.next_sentence else WordHead)(config)

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Labels [M] of the hidden pieces; with --next-sentence also those of the rows' halves."""
        if not self.options.next_sentence:
            return super().targets(batch)
        y, first = batch.labels, firsts(batch)
        return {"pieces": y.index_fill(0, first, -1), "next": torch.full_like(y, -1).index_copy(0, first, y[first])}

    def infer(self, score: Scorer, examples: Sequence[str], features: Sequence[Feature]) -> Sequence[Hits | Filling]:
        """Of raw text decode(); of a file's rows hits(), the same pieces hidden every time."""
        if not isinstance(examples, TextLines):
            return self.decode(examples, features, score(features))

        predictions: list[Hits | Filling] = []
        for start in range(0, len(features), ROWS):
            rows = [self.hidden(f, row_generator(0, 0, i)) for i, f in enumerate(features[start:start + ROWS], start)]
            predictions += [hits(f, z, self.tokenizer.absent(z.shape[1]))
                            for f, z in zip(rows, score(rows), strict=True)]
        return predictions

    def decode(self, examples: Sequence[str], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[Filling]:
        """Of raw text, for each [MASK], the most probable pieces."""
        found: list[Filling] = [{} for _ in examples]
        for f, z in zip(features, scores, strict=True):
            known = without(torch.from_numpy(z), self.tokenizer.absent(z.shape[1]))
            best = known.softmax(-1).topk(min(TOP, len(self.tokenizer.numbers)))
            rows = zip(f.about.words.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
            found[f.example] |= {word: [(str(self.tokenizer.backend.id_to_token(n)), p)
                                        for n, p in zip(numbers, ps, strict=True)] for word, numbers, ps in rows}
        return found

    def score(self, predictions: Sequence[Hits], examples: Sequence[str]) -> Scores:
        """Perplexity, e to the mean of −log p; the share of pieces found; how many were hidden; the rows' answers."""
        hidden = sum(p.hidden for p in predictions)
        mean = sum(p.loss for p in predictions) / max(1, hidden)
        answers = [p.answer for p in predictions if p.answer is not None]
        return {"perplexity": math.exp(min(mean, 700)), "loss_a_piece": mean,
                "accuracy": sum(p.right for p in predictions) / max(1, hidden), "support": hidden,
                **({"next_sentence": sum(answers) / len(answers)} if answers else {})}

    def collapsed(self, predictions: Sequence[Hits], examples: Sequence[str]) -> str | None:
        given = set().union(*(p.guesses for p in predictions))
        return self.tokenizer.backend.id_to_token(given.pop()) if len(given) == 1 else None

    def result(self, example: str, prediction: Filling) -> Result:
        """{"text", "masks": [{"start", "end", "pieces": [{"piece", "probability"}]}]}."""
        spans = words_and_masks(example, self.tokenizer)
        masks = [{"start": spans[word][0], "end": spans[word][1],
                  "pieces": [{"piece": s, "probability": p} for s, p in best]}
                 for word, best in sorted(prediction.items())]
        return {"text": example, "masks": masks}

    def empty(self, text: str) -> Result:
        return {"text": text, "masks": []}

    def render(self, result: Result, colour: bool) -> str:
        best = ["  ".join(f"{spelt_out(p['piece'])} {p['probability']:.3f}" for p in mask["pieces"])
                for mask in result["masks"]]
        return "\n".join([result["text"], *(f"  {coloured(line, colour)}" for line in best)])


def hide_pieces(ids: np.ndarray, words: np.ndarray, free: np.ndarray, share: float, mask: int,
                pieces: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """int64 [T] pieces -> (pieces with some hidden, int64 [M] which), a pure function of its arguments.

    Of the n pieces that are `free` [T] about share · n are chosen, one at least, words (`words` [T]: its number for
    each piece) in random order and whole. Of those 80 % become `mask`, 10 % any of `pieces` [V], and 10 % stay: at a
    piece that is read, the model cannot know whether it is the right one, so it has to think about all.
    """
    wanted = max(1, round(share * int(free.sum())))
    numbers, sizes = np.unique(words[free], return_counts=True)
    order = np.argsort(draw.random(len(numbers)), kind="stable")
    fitting = np.cumsum(sizes[order]) <= wanted    # the words that come first, as long as they fit
    fitting[:1] = True
    picks = np.flatnonzero(free & np.isin(words, numbers[order[fitting]]))

    fate, others = draw.random(len(picks)), pieces[draw.integers(0, len(pieces), len(picks))]
    changed = ids.copy()
    changed[picks] = np.where(fate < 0.8, mask, np.where(fate < 0.9, others, ids[picks]))  # [HIDE-1]
    return changed, picks


def hits(f: Feature, z: np.ndarray, absent: np.ndarray = NONE) -> Hits:
    """A row with hidden pieces and its scores [M,V] -> what score() adds up; nobody guesses what is `absent`."""
    labels, logs = torch.from_numpy(f.labels), torch.from_numpy(z).log_softmax(-1)
    guess, answer = without(logs, absent).argmax(-1), None
    if 0 in f.picks:                               # [CLS], the first of them: what the row's halves are to each other
        answer = bool(guess[0] == labels[0])
        labels, logs, guess = labels[1:], logs[1:], guess[1:]
    loss = -float(logs.gather(1, labels[:, None]).double().sum())
    return Hits(loss, int((guess == labels).sum()), len(labels), frozenset(guess.tolist()), answer)


# ----------------------------------------------------------------------------------------------------- text -> rows


def words_and_masks(text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Character spans of the words of raw text, each [MASK] being one."""
    spans, at = [], 0
    for part in text.split(HIDDEN):
        spans += [(at + a, at + b) for a, b in tokenizer.cut(part)] + [(at + len(part), at + len(part) + len(HIDDEN))]
        at += len(part) + len(HIDDEN)
    return spans[:-1]                              # behind the last part there is none


def packed(blocks: Iterable[np.ndarray], tokenizer: Tokenizer, max_pieces: int) -> Iterator[Features]:
    """int64 [2,n] blocks of pieces and case shapes -> full rows [CLS] pieces [SEP], the last perhaps short."""
    room, number = max_pieces - 2, 0
    left = np.zeros((2, 0), np.int64)              # what does not fill a row yet
    for block in blocks:
        left = np.concatenate([left, block], 1)
        n = left.shape[1] // room
        yield as_rows(left[:, :n * room].reshape(2, n, room), tokenizer, number)
        left, number = left[:, n * room:], number + n
    if left.shape[1]:
        yield as_rows(left[:, None], tokenizer, number)


def stream(examples: TextLines, tokenizer: Tokenizer, closed: bool = False) -> Iterator[np.ndarray]:
    """int64 [2,n] blocks of pieces and case shapes: the text, [SEP] between documents and, if `closed`, at its end."""
    chunks: list[str] = []
    for line in examples.lines():
        for part in portions(line):
            chunks += part.split() or [""]
            if len(chunks) >= BLOCK:
                yield spelt(chunks, tokenizer)
                chunks = []
    yield spelt(chunks + [""] * closed, tokenizer)  # in the last block: rows of its own would find no partners


def portions(line: str) -> Iterator[str]:
    """A line in parts of about LONG characters, cut at spaces: some files are one line."""
    begin = 0
    while len(line) - begin > LONG and (cut := line.find(" ", begin + LONG)) >= 0:
        yield line[begin:cut]
        begin = cut + 1
    yield line[begin:]


def spelt(chunks: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """int64 [2,n]: pieces and case shapes of stretches without blanks, each distinct one spelt once; "" is [SEP]."""
    known: dict[str, int] = {}
    numbers = np.array([known.setdefault(chunk, len(known)) for chunk in chunks], np.int64)
    words = [tokenizer.words(chunk) for chunk in known]

    spelling = tokenizer.spell([word for chunk in words for word in chunk])
    ends = spelling.ends[running(np.array([len(chunk) for chunk in words], np.int64))]   # of the chunks' pieces
    begins, counts = ends[numbers], np.diff(ends)[numbers]
    place = ragged(begins, counts)
    shapes = np.repeat(spelling.shapes, np.diff(spelling.ends))
    pieces = np.stack([spelling.ids[place], shapes[place]])

    gaps = np.flatnonzero(numbers == known.get("", -1))                        # a chunk without pieces
    return np.insert(pieces, np.cumsum(counts)[gaps], np.array([[tokenizer.end], [0]]), axis=1)


def as_rows(pieces: np.ndarray, tokenizer: Tokenizer, number: int) -> Features:
    """int64 [2,n,C] pieces and case shapes -> n features [CLS] pieces [SEP], numbered from `number`."""
    _, n, C = pieces.shape
    ids, shapes = np.pad(pieces, ((0, 0), (0, 0), (1, 1)))
    ids[:, 0], ids[:, -1] = tokenizer.start, tokenizer.end
    nothing = np.zeros(0, np.int64)
    return compact(np.arange(number, number + n), (C + 2) * np.arange(n + 1), *[np.zeros(n + 1, np.int64)] * 2,
                   ids=ids.ravel(), types=tokenizer.types * shapes.ravel(), picks=nothing, labels=nothing)
