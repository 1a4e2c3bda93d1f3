"""Named entities: one tag a word, read on the word's first piece.

Which label does ##son get? None. A word is scored once, on its first piece; the other pieces carry no loss.
"""
import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minibert.core import ops
from minibert.core.batch import Batch, Feature
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
from minibert.tasks.class_weights import balanced, recalled, total_weight, weighted_targets
from minibert.tasks.columns import Reading
from minibert.tasks.conll import SUFFIXES, Example, begins_wrongly, gathered, has_documents, read_examples
from minibert.tasks.labelled import refuses
from minibert.tasks.spans import JSON_SUFFIXES, MEMBERS, read_texts

COLOURS = {"PER": 36, "ORG": 33, "LOC": 32, "MISC": 35}                      # ANSI; other types take 34


@dataclass(frozen=True)
class Options(TaskOptions):
    """NER's own options."""
    context: str = option("sentence", "what a row shows: one sentence, or as much of its document as fits",
                          ("sentence", "document"))
    decoding: str = option("valid", "valid: the best tag sequence in which every entity begins with B-; "
                                    "argmax: the best tag of each word alone", ("valid", "argmax"), later=True)
    columns: str = option("auto", "where words and tags stand, as word=2,tag=3, from the end -1; in JSON "
                                  "text=NAME,entities=NAME or word=NAME,tag=NAME; auto: as the file shows", later=True)
    class_weights: str = option("none", "balanced: a word with a tag that n of N words have counts N / (K n), K tags "
                                        "occur", ("none", "balanced"))

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [part.partition("=")[0].strip() for part in self.columns.split(",")]
        if self.columns != "auto" and not (set(self.named) <= set(MEMBERS) and all(self.named.values())
                                           and len(set(names)) == len(names)):
            raise MinibertError(f"--columns is {self.columns!r}; it must be auto or some of {', '.join(MEMBERS)}, "
                                "each once, such as word=2,tag=3")

    @property
    def named(self) -> dict[str, str]:
        """{"word", "tag", "text" or "entities": the column that holds it}, those that --columns names."""
        parts = self.columns.split(",") if self.columns != "auto" else []
        return {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in parts)}


class NER(Task[Example, list[str]]):
    """The task; see base.Task for what each member is. A prediction is one tag a word."""
    name = "ner"
    best = ("entity.f1", "max")
    also_best = dict.fromkeys(["entity.precision", "entity.recall", "tags.micro_f1", "tags.macro_f1",
                               "tags.weighted_f1"], "max")
    unit = "words"
    suffixes = (*SUFFIXES, *JSON_SUFFIXES)
    Options, Examples, About = Options, conll.Examples, WordNumbers

    def __init__(self, options: TaskOptions, labels: Sequence[str] = ()):
        super().__init__(options, labels)
        self.weights = torch.ones(len(self.labels), dtype=torch.float64)       # [K] of the tags, from training words

    def read(self, path: Path) -> dict[str, conll.Examples]:
        """CoNLL columns, a blank line after a sentence, -DOCSTART- before a document; or JSON, each text a document."""
        files, reading = self.files(path), Reading(self.options.named)
        documents = self.options.context == "document"
        whole = documents and all(in_json(file) or has_documents(file) for file in files.values())
        splits = {split: gathered(file, read_texts(file, reading), whole) if in_json(file) else
                  read_examples(file, whole, reading) for split, file in files.items()}
        self.notices += reading.notes.values()

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
        """O, and B-X and I-X of every type X in train; and the weights of the tags."""
        counts = splits["train"].count_tags()
        self.labels = iob2_tags(counts)
        if self.labels == ["O"]:
            raise MinibertError(f"{splits['train'][0].where}: every tag of the training examples is O; nothing to "
                                "learn (is --limit too small, or the tag in another column? see --columns)")
        types, tagged = (len(self.labels) - 1) // 2, sum(n for tag, n in counts.items() if tag != "O")
        if refuses(types, tagged):
            raise MinibertError(f"{splits['train'][0].where}: {types:,} types of entity in {tagged:,} tagged words, "
                                f"first {self.labels[1][2:62]!r}; is the last column one of tags?")
        balance = self.options.class_weights == "balanced"
        self.weights = balanced(counts, self.labels) if balance else torch.ones(len(self.labels), dtype=torch.float64)
        self.note_unseen(splits)

    def note_unseen(self, splits: Mapping[str, conll.Examples]) -> None:
        for split, examples in splits.items():
            self.notices += unseen(split, examples.count_tags(), iob2_tags(self.labels), "tags", "words")

    def subset(self, examples: conll.Examples, numbers: np.ndarray) -> conll.Examples:
        return examples.take(numbers)

    @property
    def learnt(self) -> dict[str, list[float]]:
        """The weights of the tags."""
        return {"class_weights": self.weights.tolist()} if self.options.class_weights == "balanced" else {}

    def recall(self, learnt: Mapping[str, object]) -> None:
        if self.options.class_weights == "balanced":
            self.weights = recalled(learnt, len(self.labels))

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

    def counts(self, batch: Batch) -> dict[str, float]:
        """Words with a known tag, by its weight."""
        if self.options.class_weights == "none":
            return super().counts(batch)
        return {"words": total_weight(batch.labels, self.weights)}

    def loss(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.options.class_weights == "none":
            return super().loss(scores, batch)
        z = ops.at_least_fp32(scores)
        return {"words": ops.soft_cross_entropy_forward(z, weighted_targets(batch.labels, self.weights, z))[0]}

    def loss_backward(self, scores: Tensor, batch: Batch) -> dict[str, Tensor]:
        if self.options.class_weights == "none":
            return super().loss_backward(scores, batch)
        z = ops.at_least_fp32(scores)
        return {"words": ops.soft_cross_entropy_backward(1.0, (z, weighted_targets(batch.labels, self.weights, z)))}

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
        if not example.text:
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


def in_json(file: Path) -> bool:
    """Whether a file holds JSON, by its suffix."""
    return file.suffix.lower() in JSON_SUFFIXES


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
