"""Named entities: one tag a word, read on the word's first piece.

Which label does ##son get? None. A word is scored once, on its first piece; the other pieces carry no loss.
"""
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minibert.core.batch import Feature
from minibert.data.features import Features, narrow, texts_of_words
from minibert.data.rows import WordNumbers, word_features
from minibert.data.text import split_words
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError, spelt_out
from minibert.options import option
from minibert.scores.labels import unseen
from minibert.scores.tables import Scores, compared
from minibert.scores.tags import (
    entities,
    entity_scores,
    entity_table,
    iob2_tags,
    scheme_of,
    tag_scores,
    tag_table,
    to_iob2,
)
from minibert.tasks import conll
from minibert.tasks.base import Result, Task, TaskOptions, only_one
from minibert.tasks.conll import SUFFIXES, Example, begins_wrongly, has_documents, read_examples

COLOURS = {"PER": 36, "ORG": 33, "LOC": 32, "MISC": 35}                      # ANSI; other types take 34


@dataclass(frozen=True)
class Options(TaskOptions):
    """NER's own options."""
    context: str = option("sentence", "what a row shows: one sentence, or as much of its document as fits",
                          ("sentence", "document"))
    decoding: str = option("valid", "valid: the best tag sequence in which every entity begins with B-; "
                                    "argmax: the best tag of each word alone", ("valid", "argmax"), later=True)


class NER(Task[Example, list[str]]):
    """The task; see base.Task for what each member is. A prediction is one tag a word."""
    name = "ner"
    best = ("entity.f1", "max")
    also_best = dict.fromkeys(["entity.precision", "entity.recall", "tags.micro_f1", "tags.macro_f1",
                               "tags.weighted_f1"], "max")
    unit = "words"
    suffixes = SUFFIXES
    Options, Examples, About = Options, conll.Examples, WordNumbers

    def read(self, path: Path) -> dict[str, conll.Examples]:
        """CoNLL columns: first the word, last the tag; a blank line ends a sentence, -DOCSTART- begins a document."""
        files = self.files(path)
        documents = self.options.context == "document"
        whole = documents and all(has_documents(file) for file in files.values())
        splits = {split: read_examples(file, whole) for split, file in files.items()}

        neighbours = sum((examples.count_neighbours() for examples in splits.values()), Counter())
        scheme = scheme_of(neighbours)
        if scheme != "IOB2":
            self.notices.append(f"tags are {scheme}; converted to IOB2")
        elif broken := sum(n * begins_wrongly(*pair) for pair, n in neighbours.items()):
            self.notices.append(f"{broken} entities begin with I-; read as B-, as conlleval does")
        if documents and not whole:
            self.notices.append("no -DOCSTART- lines: every sentence stands alone")
        return {split: examples.in_iob2(scheme) for split, examples in splits.items()}

    def learn_labels(self, splits: Mapping[str, conll.Examples]) -> None:
        """O, and B-X and I-X of every type X in train."""
        self.labels = iob2_tags(splits["train"].count_tags())
        if self.labels == ["O"]:
            raise MinibertError(f"{splits['train'][0].where}: every tag of the training examples is O; nothing to "
                                "learn (is --limit too small?)")
        self.note_unseen(splits)

    def note_unseen(self, splits: Mapping[str, conll.Examples]) -> None:
        for split, examples in splits.items():
            self.notices += unseen(split, examples.count_tags(), iob2_tags(self.labels), "tags", "words")

    def subset(self, examples: conll.Examples, numbers: np.ndarray) -> conll.Examples:
        return examples.take(numbers)

    def example(self, text: str) -> Example:
        spans = split_words(text)
        return Example([text[a:b] for a, b in spans], [], [0] if spans else [], "text", text, spans)

    def example_of_words(self, words: Sequence[str]) -> Example:
        return Example(list(words), [], [0] if words else [], "text")

    def encode(self, number: int, example: Example, tokenizer: Tokenizer, max_pieces: int,
               overlap: int) -> list[Feature]:
        """A label on the first piece of each word, in the window where the word has most context."""
        if not example.words:
            return []
        index = {label: i for i, label in enumerate(self.labels)}
        labels = [index.get(t, -1) for t in example.tags] or [-1] * len(example.words)
        return word_features(number, tokenizer.pieces([example.words])[0], tokenizer, max_pieces, overlap, labels)

    def encode_many(self, examples: conll.Examples, tokenizer: Tokenizer, max_pieces: int,
                    overlap: int) -> Iterator[Features]:
        """encode() of them all, in parts."""
        index = {label: i for i, label in enumerate(self.labels)}
        known = narrow(np.array([index.get(t, -1) for t in examples.names], np.int64))
        return texts_of_words(examples.words, examples.numbers, examples.word_ends, known[examples.tags], tokenizer,
                              max_pieces, overlap)

    def decode(self, examples: Sequence[Example], features: Sequence[Feature],
               scores: Sequence[np.ndarray]) -> list[list[str]]:
        """IOB2, whatever the scheme of the labels: a published model may have another."""
        table = [np.zeros((len(e.words), len(self.labels)), np.float32) for e in examples]
        for feature, rows in zip(features, scores, strict=True):
            table[feature.example][feature.about.words] = rows

        path = best_valid_path if self.options.decoding == "valid" else best_tags
        whole = set(self.labels) == set(iob2_tags(self.labels))
        found: list[list[str]] = [[] for _ in examples]
        for tags, e, t in zip(found, examples, table, strict=True):
            for sentence in e.cut(list(t)):
                best = [self.labels[k] for k in path(np.array(sentence), self.labels)]
                tags += best if whole else to_iob2(best, "BIOES")              # which has all prefixes there are
        return found

    def score(self, predictions: Sequence[list[str]], examples: Sequence[Example]) -> Scores:
        gold = [s for e in examples for s in e.cut(e.tags)]                    # entities never cross sentences
        guess = [s for e, p in zip(examples, predictions, strict=True) for s in e.cut(p)]
        tags = tag_scores(gold, guess)
        return {"entity": entity_scores(gold, guess),
                "tags": {k: tags[k] for k in ("micro_f1", "macro_f1", "weighted_f1", "per_tag")},
                "words": sum(len(g) for g in gold)}

    def report(self, scores: Scores) -> str:
        return f"{tag_table(scores['tags']['per_tag'], scores['tags']['micro_f1'])}\n\n{entity_table(scores['entity'])}"

    def summary(self, scores: Scores, before: Scores | None = None) -> str:
        """Entities, a line a type."""
        return compared(lambda s: {**s["entity"]["types"], "all": s["entity"]}, scores, before)

    def collapsed(self, predictions: Sequence[list[str]], examples: Sequence[Example]) -> str | None:
        return only_one({tag for tags in predictions for tag in tags}, {tag for e in examples for tag in e.tags})

    def result(self, example: Example, prediction: list[str]) -> Result:
        """{"text", "entities": [{"text", "type", "start", "end"}]}, offsets in characters.

        Of words that were cut already {"words", "tags": one a word, "entities": [{"text", "type", "first", "stop"}]}:
        the words of an entity are words[first:stop], its text has a blank between them.
        """
        if not example.spans:
            entries = [{"text": " ".join(example.words[first:stop]), "type": kind, "first": first, "stop": stop}
                       for kind, first, stop in entities(prediction)]
            return {"words": example.words, "tags": prediction, "entities": entries}

        found = []
        for kind, first, stop in entities(prediction):
            start, end = example.spans[first][0], example.spans[stop - 1][1]
            found.append({"text": example.text[start:end], "type": kind, "start": start, "end": end})
        return {"text": example.text, "entities": found}

    def empty(self, text: str) -> Result:
        return {"text": text, "entities": []}

    def render(self, result: Result, colour: bool) -> str:
        """Angela Merkel [PER] met Tim Cook [PER] …, a colour a type; spans below. Of words each and its tag."""
        if "words" in result:
            tags = [in_colour(spelt_out(tag), tag[2:], colour and tag != "O") for tag in result["tags"]]
            return "".join(f"{word}\t{tag}\n" for word, tag in zip(result["words"], tags, strict=True))
        line, spans, at = "", [], 0
        for e in result["entities"]:
            kind = spelt_out(e["type"])
            word = f"{e['text']} [{kind}]"
            line += result["text"][at:e["start"]] + in_colour(word, e["type"], colour)
            spans.append(f"{kind} {e['start']}-{e['end']} {e['text']}")
            at = e["end"]
        return line + result["text"][at:] + "".join(f"\n  {s}" for s in spans)


def in_colour(text: str, kind: str, colour: bool) -> str:
    """What belongs to an entity in the colour of its type."""
    return f"\033[{COLOURS.get(kind, 34)}m{text}\033[0m" if colour else text


def best_tags(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """[words, K] -> the best label of each word alone."""
    return scores.argmax(-1).tolist()


@functools.lru_cache(maxsize=4)
def continuations(labels: tuple[str, ...]) -> np.ndarray:
    """int64 [3,n]: the labels I-X, and the two that each may follow, B-X and I-X, the one of lower number first.

    The same for every sentence. Where there is no B-X both are I-X.
    """
    number = {label: k for k, label in enumerate(labels)}
    rows = [(k, *sorted((k, number.get(f"B-{label[2:]}", k)))) for label, k in number.items() if label[:2] == "I-"]
    return np.array(rows, np.int64).reshape(-1, 3).T


def best_valid_path(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """[words, K] -> the labels of highest joint log-probability in which I-X stands only after B-X or I-X (Viterbi).

    Words are taken as independent given the text, so the sum of their log-softmax is the joint log-probability.
    """
    inside, first, second = continuations(tuple(labels))
    top = scores.max(-1, keepdims=True)
    logs = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))

    best, back = logs[0].astype(np.float64), []    # [K], a sum over many words
    best[inside] = -np.inf                         # nothing stands before the first word
    for row in logs[1:]:
        through = np.full(len(row), best.argmax())                            # most labels may follow any
        through[inside] = np.where(best[first] >= best[second], first, second)
        back.append(through)
        best = best[through] + row                                            # [VIT-2]

    path = [int(best.argmax())]
    for choice in reversed(back):
        path.append(int(choice[path[-1]]))
    return path[::-1]
