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
from minibert.errors import MinibertError
from minibert.options import option
from minibert.scores.labels import unseen
from minibert.scores.tables import Scores, compared
from minibert.scores.tags import entities, entity_scores, entity_table, scheme_of, tag_scores, tag_table
from minibert.tasks import conll
from minibert.tasks.base import Result, Task, TaskOptions, only_one
from minibert.tasks.conll import SUFFIXES, Example, begins_wrongly, has_documents, read_examples
from minibert.tasks.labelled import refuses

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
        types = sorted({t[2:] for t in splits["train"].count_tags() if t != "O"})
        if not types:
            raise MinibertError(f"{splits['train'][0].where}: every tag of the training examples is O; nothing to "
                                "learn (is --limit too small?)")
        tagged = sum(n for tag, n in splits["train"].count_tags().items() if tag != "O")
        if refuses(len(types), tagged):
            raise MinibertError(f"{splits['train'][0].where}: {len(types):,} types of entity in {tagged:,} tagged "
                                f"words, first {types[0][:60]!r}; is the last column one of tags?")
        self.labels = ["O", *(prefix + t for t in types for prefix in ("B-", "I-"))]
        self.note_unseen(splits)

    def note_unseen(self, splits: Mapping[str, conll.Examples]) -> None:
        for split, examples in splits.items():
            self.notices += unseen(split, examples.count_tags(), self.labels, "tags", "words")

    def example(self, text: str) -> Example:
        spans = split_words(text)
        return Example([text[a:b] for a, b in spans], [], [0] if spans else [], "text", text, spans)

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
        table = [np.zeros((len(e.words), len(self.labels)), np.float32) for e in examples]
        for feature, rows in zip(features, scores, strict=True):
            table[feature.example][feature.about.words] = rows

        path = best_valid_path if self.options.decoding == "valid" else best_tags
        return [[self.labels[k] for sentence in e.cut(list(t)) for k in path(np.array(sentence), self.labels)]
                for e, t in zip(examples, table, strict=True)]

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
        """{"text", "entities": [{"text", "type", "start", "end"}]}, offsets in characters."""
        found = []
        for kind, first, stop in entities(prediction):
            start, end = example.spans[first][0], example.spans[stop - 1][1]
            found.append({"text": example.text[start:end], "type": kind, "start": start, "end": end})
        return {"text": example.text, "entities": found}

    def render(self, result: Result, colour: bool) -> str:
        """Angela Merkel [PER] met Tim Cook [PER] …, a colour a type; spans below."""
        line, spans, at = "", [], 0
        for e in result["entities"]:
            word = f"{e['text']} [{e['type']}]"
            shown = f"\033[{COLOURS.get(e['type'], 34)}m{word}\033[0m" if colour else word
            line += result["text"][at:e["start"]] + shown
            spans.append(f"{e['type']} {e['start']}-{e['end']} {e['text']}")
            at = e["end"]
        return line + result["text"][at:] + "".join(f"\n  {s}" for s in spans)


def best_tags(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """[words, K] -> the best label of each word alone."""
    return scores.argmax(-1).tolist()


@functools.lru_cache(maxsize=4)
def transitions(labels: tuple[str, ...]) -> np.ndarray:
    """[K,K] what label b costs after label a: 0, or −∞ for an I-X after what is no X. The same for every sentence."""
    return np.array([[0.0 if b[:2] != "I-" or a[2:] == b[2:] else -np.inf for b in labels] for a in labels])


def best_valid_path(scores: np.ndarray, labels: Sequence[str]) -> list[int]:
    """[words, K] -> the labels of highest joint log-probability in which I-X stands only after B-X or I-X (Viterbi).

    Words are taken as independent given the text, so the sum of their log-softmax is the joint log-probability.
    """
    after = transitions(tuple(labels))
    top = scores.max(-1, keepdims=True)
    logs = scores - top - np.log(np.exp(scores - top).sum(-1, keepdims=True))

    best, back = logs[0] + after[labels.index("O")], []                       # a sentence begins as if O stood before
    for row in logs[1:]:
        through = best[:, None] + after                                      # [K before, K now]
        back.append(through.argmax(0))
        best = through.max(0) + row                                           # [VIT-2]

    path = [int(best.argmax())]
    for choice in reversed(back):
        path.append(int(choice[path[-1]]))
    return path[::-1]
