"""Named entities: one tag a word, read on the word's first piece.

Which label does ##son get? None. A word is scored once, on its first piece; the other pieces carry no loss.
"""
import dataclasses
import itertools
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from minibert import metrics, ops
from minibert.batching import Batch, Feature, word_features
from minibert.config import BertConfig, option
from minibert.datafiles import read_lines, split_files
from minibert.errors import MinibertError
from minibert.features import Features, check_ends, narrow, texts_of_words
from minibert.model import draw, dropout
from minibert.tokenizer import Tokenizer, split_words
from minibert.words import REMEMBERED, Numbering, Words

SUFFIXES = (".conll", ".txt", ".tsv", ".iob", ".bio", ".iob2")
COLOURS = {"PER": 36, "ORG": 33, "LOC": 32, "MISC": 35}                      # ANSI; other types take 34


@dataclass(frozen=True)
class Example:
    """A sentence, or a document of several."""
    words: list[str]
    tags: list[str]                                # one a word; empty for raw text
    sentences: list[int]                           # word where each sentence begins
    where: str                                     # file:line of the first word
    text: str = ""                                 # raw text, where the words were cut from one
    spans: Sequence[tuple[int, int]] = ()          # characters of each word in `text`

    def cut(self, values: Sequence[Any]) -> list[list[Any]]:
        """One value a word -> one list a sentence."""
        ends = [*self.sentences[1:], len(self.words)][:len(self.sentences)]
        return [list(values[a:b]) for a, b in zip(self.sentences, ends, strict=True)]


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """N examples of one file in arrays; an Example is made when asked for. A slice without a step is Examples again."""
    file: Path
    words: Words                                   # the distinct words
    names: Words                                   # the distinct tags
    numbers: np.ndarray                            # int32 [W] every word of the file, into `words`
    tags: np.ndarray                               # [W] its tag, into `names`
    sentence_ends: np.ndarray                      # int64 [S+1]: sentence s begins at word sentence_ends[s]
    example_ends: np.ndarray                       # int64 [N+1]: the same for an example's sentences
    lines: np.ndarray                              # int64 [N] line of its first word

    @property
    def word_ends(self) -> np.ndarray:
        """int64 [N+1]: example i has words word_ends[i]:word_ends[i + 1]."""
        return self.sentence_ends[self.example_ends]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int | slice) -> "Example | Sequence[Example]":
        if isinstance(i, slice):
            chosen = range(len(self))[i]
            if chosen.step != 1:
                return [self[j] for j in chosen]
            return dataclasses.replace(self, lines=self.lines[i],
                                       example_ends=self.example_ends[chosen.start:chosen.start + len(chosen) + 1])
        i = range(len(self))[i]
        bounds = self.sentence_ends[self.example_ends[i]:self.example_ends[i + 1] + 1]
        inside = slice(bounds[0], bounds[-1])
        return Example(list(self.words.take(self.numbers[inside])), list(self.names.take(self.tags[inside])),
                       (bounds[:-1] - bounds[0]).tolist(), f"{self.file}:{self.lines[i]}")

    def count_tags(self) -> dict[str, int]:
        """{tag: words that have it}, in the order of their first words."""
        ends = self.word_ends
        tags = self.tags[ends[0]:ends[-1]]
        counts = np.bincount(tags, minlength=len(self.names))
        there = sorted(np.flatnonzero(counts), key=lambda k: int((tags == k).argmax()))
        return {self.names[k]: int(counts[k]) for k in there}

    def before(self) -> np.ndarray:
        """[W] the tag before each, len(names) where a sentence begins."""
        before = np.roll(self.tags.astype(np.int32), 1)
        before[self.sentence_ends[:-1]] = len(self.names)
        return before

    def count_neighbours(self) -> Counter[tuple[str, str]]:
        """{(tag before, tag): words}; "O" stands before the first word of a sentence. Examples of whole files only."""
        names = [*self.names, "O"]
        counts = np.bincount(self.before() * len(names) + self.tags)
        result: Counter[tuple[str, str]] = Counter()
        for cell in np.flatnonzero(counts).tolist():
            result[names[cell // len(names)], names[cell % len(names)]] += int(counts[cell])
        return result

    def in_iob2(self, scheme: str) -> "Examples":
        """The same with tags in IOB2: what a tag becomes depends on nothing but the one before it."""
        old, new = [*self.names, "O"], Numbering()
        table = np.zeros((len(old), len(old)), np.int64)
        for before, tag in self.count_neighbours():
            converted = new[metrics.to_iob2([before, tag], scheme)[1]]
            table[[i for i, name in enumerate(old) if name == before], old.index(tag)] = converted
        return dataclasses.replace(self, names=new.words(), tags=narrow(table)[self.before(), self.tags])

    def arrays(self) -> dict[str, np.ndarray]:
        """What the cache keeps: everything but the name of the file."""
        return {"words.letters": self.words.letters, "words.ends": self.words.ends, "names.letters": self.names.letters,
                "names.ends": self.names.ends, **{name: getattr(self, name) for name in ARRAYS}}

    @classmethod
    def from_arrays(cls, file: Path, arrays: dict[str, np.ndarray]) -> "Examples":
        """The examples that arrays() was taken from, or of a file of the same contents.

        Raises ValueError or KeyError for arrays that do not fit each other.
        """
        words, names = (Words(arrays[f"{x}.letters"], arrays[f"{x}.ends"]) for x in ("words", "names"))
        found = cls(file, words, names, **{name: arrays[name] for name in ARRAYS})
        for ends, count, total in ((words.ends, len(words), len(words.letters)),
                                   (names.ends, len(names), len(names.letters)),
                                   (found.sentence_ends, len(found.sentence_ends) - 1, len(found.numbers)),
                                   (found.sentence_ends, len(found.sentence_ends) - 1, len(found.tags)),
                                   (found.example_ends, len(found), len(found.sentence_ends) - 1)):
            check_ends(ends, count, total)
        for values, count in ((found.numbers, len(words)), (found.tags, len(names))):
            if len(values) and not 0 <= values.min() <= values.max() < count:
                raise ValueError(f"numbers outside of 0 to {count - 1}")
        return found


ARRAYS = ("numbers", "tags", "sentence_ends", "example_ends", "lines")


@dataclass(frozen=True)
class Options:
    """NER's own options."""
    context: str = option("sentence", "what a row shows: one sentence, or as much of its document as fits",
                          ("sentence", "document"))
    decoding: str = option("valid", "valid: the best tag sequence in which every entity begins with B-; "
                                    "argmax: the best tag of each word alone", ("valid", "argmax"), later=True)


class TokenHead(nn.Module):
    """Dropout and one linear map on the pieces that carry a label."""

    def __init__(self, config: BertConfig, K: int):
        super().__init__()
        self.classifier = nn.Linear(config.hidden_size, K)
        self.p, self.site = config.hidden_dropout_prob, 1 + 3 * config.num_hidden_layers

    def forward(self, hidden: Tensor, batch: Batch, masks=None) -> Tensor:
        """[P,H] -> scores [M,K] of the batch's picks."""
        return self.classifier(dropout(hidden.index_select(0, batch.picks), self.p, masks, self.site))

    def forward_by_hand(self, hidden: Tensor, batch: Batch, masks=None) -> tuple[Tensor, Any]:
        """forward() with what backward_by_hand needs: [P,H] -> scores [M,K], cache."""
        picked, lookup = ops.embedding_forward(batch.picks, hidden)          # a lookup, as word vectors are
        x, mask = ops.dropout_forward(picked, draw(masks, self.site, picked.shape, self.p, picked))
        scores, linear = ops.linear_forward(x, self.classifier.weight, self.classifier.bias)
        return scores, (lookup, mask, linear)

    def backward_by_hand(self, dscores: Tensor, cache: Any) -> tuple[Tensor, list[tuple[nn.Parameter, Tensor]]]:
        """[M,K] -> dhidden [P,H], 0 where no label is, and (parameter, gradient) pairs."""
        lookup, mask, linear = cache
        dx, dw, db = ops.linear_backward(dscores, linear)
        dhidden = ops.embedding_backward(ops.dropout_backward(dx, mask), lookup)
        return dhidden, [(self.classifier.weight, dw), (self.classifier.bias, db)]


class NER:
    """The task; see tasks.Task for what each member is."""
    name = "ner"
    defaults: dict[str, Any] = {}
    best = ("entity.f1", "max")
    also_best = dict.fromkeys(["entity.precision", "entity.recall", "tags.micro_f1", "tags.macro_f1",
                               "tags.weighted_f1"], "max")
    architecture, problem_type = "BertForTokenClassification", None
    new_pieces: tuple[str, ...] = ()
    trial = "Angela Merkel met Tim Cook in Paris."
    Options, Examples = Options, Examples

    def __init__(self, options: Options, labels: Sequence[str] = ()):
        self.options, self.labels, self.notices = options, list(labels), []

    @property
    def outputs(self) -> list[str]:
        """A score a label."""
        return self.labels

    # --------------------------------------------------------------------------------------------- text -> examples

    def files(self, path: Path) -> dict[str, Path]:
        """One file is the test split; a folder has those of datafiles.SPLITS."""
        return split_files(path, SUFFIXES)

    def read(self, path: Path) -> dict[str, Examples]:
        """CoNLL columns: first the word, last the tag; a blank line ends a sentence, -DOCSTART- begins a document."""
        files = self.files(Path(path))
        documents = self.options.context == "document"
        whole = documents and all(has_documents(file) for file in files.values())
        splits = {split: read_examples(file, whole) for split, file in files.items()}
        neighbours = sum((examples.count_neighbours() for examples in splits.values()), Counter())
        scheme = metrics.scheme_of(neighbours)
        if scheme != "IOB2":
            self.notices.append(f"tags are {scheme}; converted to IOB2")
        elif broken := sum(n * begins_wrongly(*pair) for pair, n in neighbours.items()):
            self.notices.append(f"{broken} entities begin with I-; read as B-, as conlleval does")
        if documents and not whole:
            self.notices.append("no -DOCSTART- lines: every sentence stands alone")
        return {split: examples.in_iob2(scheme) for split, examples in splits.items()}

    def learn_labels(self, splits: dict[str, Examples]) -> None:
        """O, and B-X and I-X of every type X in train."""
        types = sorted({t[2:] for t in splits["train"].count_tags() if t != "O"})
        if not types:
            raise MinibertError(f"{splits['train'][0].where}: every tag of the training examples is O; nothing to "
                                "learn (is --limit too small?)")
        self.labels = ["O", *(prefix + t for t in types for prefix in ("B-", "I-"))]
        self.note_unseen(splits)

    def note_unseen(self, splits: dict[str, Examples]) -> None:
        """Count tags that training never saw."""
        for split, examples in splits.items():
            self.notices += metrics.unseen(split, examples.count_tags(), self.labels, "tags", "words")

    def example(self, text: str) -> Example:
        """Raw text, cut into words as newspaper corpora are."""
        spans = split_words(text)
        return Example([text[a:b] for a, b in spans], [], [0] if spans else [], "text", text, spans)

    # ----------------------------------------------------------------------------------- examples -> scores and loss

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """A label on the first piece of each word, in the window where the word has most context."""
        if not example.words:
            return []
        index = {label: i for i, label in enumerate(self.labels)}
        labels = [index.get(t, -1) for t in example.tags] or [-1] * len(example.words)
        return word_features(number, tokenizer.pieces([example.words])[0], tokenizer, max_pieces, overlap, labels)

    def encode_many(self, examples: Examples, tokenizer: Tokenizer, max_pieces: int,
                    overlap: int) -> Iterator[Features]:
        """encode() of them all, in parts."""
        index = {label: i for i, label in enumerate(self.labels)}
        known = narrow(np.array([index.get(t, -1) for t in examples.names], np.int64))
        return texts_of_words(examples.words, examples.numbers, examples.word_ends, known[examples.tags], tokenizer,
                              max_pieces, overlap)

    def head(self, config: BertConfig) -> nn.Module:
        """Published as `classifier`."""
        return TokenHead(config, len(self.labels))

    def layout(self, features: Sequence[Feature]) -> None:
        """All within a row attend to all."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """Labelled words."""
        return {"words": float((batch.labels >= 0).sum())}                    # [PIECE-5]

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> the sum over labelled words of −log softmax at the label."""
        total, _ = ops.cross_entropy_forward(ops.at_least_fp32(scores), batch.labels)      # many terms: not in bf16
        return {"words": total}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Scores [M,K] -> the gradient of each sum by them, [M,K]: probabilities minus the one-hot label."""
        return {"words": ops.cross_entropy_backward(1.0, (ops.at_least_fp32(scores), batch.labels))}

    # ---------------------------------------------------------------------------------------- scores -> text and score

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[list[str]]:
        """One tag a word."""
        table = [np.zeros((len(e.words), len(self.labels)), np.float32) for e in examples]
        for feature, rows in zip(features, scores, strict=True):
            table[feature.example][feature.targets] = rows
        path = best_valid_path if self.options.decoding == "valid" else best_tags
        return [[self.labels[k] for sentence in e.cut(t) for k in path(np.array(sentence), self.labels)]
                for e, t in zip(examples, table, strict=True)]

    def score(self, predictions: Sequence[list[str]], examples: Sequence[Example]) -> dict[str, Any]:
        """Entities with conlleval's meaning, and single tags."""
        gold, guess = sentences(predictions, examples)
        tags = metrics.tag_scores(gold, guess)
        return {"entity": metrics.entity_scores(gold, guess),
                "tags": {k: tags[k] for k in ("micro_f1", "macro_f1", "weighted_f1", "per_tag")},
                "words": sum(len(g) for g in gold)}

    def collapsed(self, predictions: Sequence[list[str]], examples: Sequence[Example]) -> str | None:
        """The one tag that all words were given, if there are words with others."""
        given = {tag for tags in predictions for tag in tags}
        several = any(tag not in given for e in examples for tag in e.tags)
        return given.pop() if len(given) == 1 and several else None

    def report(self, predictions: Sequence[list[str]], examples: Sequence[Example]) -> str:
        """The table a tag and the table an entity type."""
        gold, guess = sentences(predictions, examples)
        return f"{metrics.tag_report(gold, guess)}\n\n{metrics.entity_report(gold, guess)}"

    def result(self, example: Example, prediction: list[str]) -> dict[str, Any]:
        """{"text", "entities": [{"text", "type", "start", "end"}]}, offsets in characters."""
        found = []
        for kind, first, stop in metrics.entities(prediction):
            start, end = example.spans[first][0], example.spans[stop - 1][1]
            found.append({"text": example.text[start:end], "type": kind, "start": start, "end": end})
        return {"text": example.text, "entities": found}

    def render(self, result: dict[str, Any], colour: bool) -> str:
        """Angela Merkel [PER] met Tim Cook [PER] …, coloured on a terminal; spans below."""
        line, spans, at = "", [], 0
        for e in result["entities"]:
            word = f"{e['text']} [{e['type']}]"
            shown = f"\033[{COLOURS.get(e['type'], 34)}m{word}\033[0m" if colour else word
            line += result["text"][at:e["start"]] + shown
            spans.append(f"{e['type']} {e['start']}-{e['end']} {e['text']}")
            at = e["end"]
        return line + result["text"][at:] + "".join(f"\n  {s}" for s in spans)


def sentences(predictions: Sequence[list[str]], examples: Sequence[Example]) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted tags, a list a sentence: entities never cross sentences."""
    gold = [s for e in examples for s in e.cut(e.tags)]
    guess = [s for e, p in zip(examples, predictions, strict=True) for s in e.cut(p)]
    return gold, guess


def best_tags(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """[words, K] -> the best label of each word alone."""
    return scores.argmax(-1).tolist()


def best_valid_path(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """[words, K] -> the labels of highest joint log-probability in which I-X stands only after B-X or I-X (Viterbi).

    Words are taken as independent given the text, so the sum of their log-softmax is the joint log-probability.
    """
    after = np.array([[0.0 if b[:2] != "I-" or a[2:] == b[2:] else -np.inf for b in labels] for a in labels])  # [K,K]
    first = np.array([-np.inf if b.startswith("I-") else 0.0 for b in labels])
    top = scores.max(-1, keepdims=True)
    logs = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))
    best, back = logs[0] + first, []
    for row in logs[1:]:
        through = best[:, None] + after                                      # [K before, K now]
        back.append(through.argmax(0))
        best = through.max(0) + row                                           # [VIT-2]
    path = [int(best.argmax())]
    for choice in reversed(back):
        path.append(int(choice[path[-1]]))
    return path[::-1]


# ------------------------------------------------------------------------------------------------------- CoNLL files


@dataclass
class Sentence:
    """As it stands in the file."""
    words: list[str]
    tags: list[str]
    line: int                                      # of its first word


def has_documents(file: Path) -> bool:
    """Whether some line of a file begins with -DOCSTART-."""
    with open(file, "rb") as f:
        return any(line.startswith(b"-DOCSTART-") for line in f)


def read_examples(file: Path, whole: bool) -> Examples:
    """A file as one example a document (`whole`) or a sentence, tags as they stand; raises what read_conll raises."""
    words, names = Numbering(), Numbering()
    numbers, tags, ends, lines, documents = array("i"), array("i"), array("q", [0]), array("q"), array("q")
    for document in read_conll(file):
        documents.append(len(lines))
        for sentence in document:
            numbers.extend(map(words.__getitem__, sentence.words))
            tags.extend(map(names.__getitem__, sentence.tags))
            ends.append(len(numbers))
            lines.append(sentence.line)
    first = np.array(documents) if whole else np.arange(len(lines))          # sentence where each example begins
    return Examples(file, words.words(), names.words(), np.array(numbers, np.int32), narrow(np.array(tags)),
                    np.array(ends), np.append(first, len(lines)), np.array(lines)[first])


def read_conll(file: Path) -> Iterator[Iterator[Sentence]]:
    """The documents of a file, each as its sentences, read while they are taken: take all of one before the next.

    Raises MinibertError with file:line for what does not parse.
    """
    found = False
    for _, group in itertools.groupby(read_sentences(file), key=lambda pair: pair[0]):
        found = True
        yield (sentence for _, sentence in group)
    if not found:
        raise MinibertError(f"{file}: no sentence in it; expected lines of a word and a tag")


def read_sentences(file: Path) -> Iterator[tuple[int, Sentence]]:
    """(number of its document, sentence) of every sentence of a file."""
    document, current = 0, None
    parsed: dict[str, tuple[str, str]] = {}                                   # lines come again and again
    for number, line in enumerate(read_lines(file), 1):
        if line not in parsed:
            text = line.strip(" \t\n")
            if not text or text.startswith("-DOCSTART-"):
                if current is not None:
                    yield document, current
                current, document = None, document + bool(text)
                continue
            if len(parsed) >= REMEMBERED:
                parsed.clear()
            parsed[line] = columns(text, f"{file}:{number}")
        if current is None:
            current = Sentence([], [], number)
        word, tag = parsed[line]
        current.words.append(word)
        current.tags.append(tag)
    if current is not None:
        yield document, current


def columns(line: str, where: str) -> tuple[str, str]:
    """First and last column: a word and its tag. Raises MinibertError where there is no second or it is no tag."""
    parts = [p.strip(" ") for p in line.split("\t")] if "\t" in line else re.split(" +", line)
    shown = line if len(line) < 60 else line[:57] + "..."
    if len(parts) < 2 or not parts[0]:
        raise MinibertError(f"{where}: {shown!r} has one column; expected a word and a tag, as in 'Paris B-LOC'")
    if not metrics.is_tag(parts[-1]):
        raise MinibertError(f"{where}: {parts[-1]!r} is no tag; expected O, B-TYPE, I-TYPE, E-TYPE or S-TYPE as the "
                            f"last column of {shown!r}")
    return parts[0], parts[-1]


def begins_wrongly(before: str, tag: str) -> int:
    """1 where an entity begins at `tag` otherwise than IOB2 allows, with `before` in front of it; else 0."""
    return metrics.invalid_starts([before, tag]) - metrics.invalid_starts([before])
