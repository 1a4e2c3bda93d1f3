"""tasks/ner.py: examples in arrays are the examples of a slow reader; tags are counted and converted so too."""
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from refusing import refused

from minibert import metrics
from minibert.tasks import conll as module
from minibert.tasks.conll import Example, Examples, begins_wrongly, read_conll, read_examples
from minibert.tasks.ner import NER

ROOT = Path(__file__).resolve().parents[2]
TAGS = {"IOB1": ["O", "I-PER", "I-LOC", "B-PER", "I-ORG"], "IOB2": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-co-op"],
        "BIOES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "S-LOC", "B-LOC", "L-LOC", "U-LOC", "M-PER"]}
WORDS = ["Ada", "left", "São", "\u200b", "北京", "a\u00a0b", "x" * 40, "😀", ".", "U.S."]


def random_file(file: Path, sentences: int, seed: int, tags=TAGS["IOB2"]) -> list[tuple]:
    """A file, and what it holds: (words, tags, line, whether a document begins here), written down on the way."""
    draw, text, line, found = random.Random(seed), "", 1, []
    for _ in range(sentences):
        begins = draw.random() < 0.2
        if begins:
            text, line = text + "-DOCSTART- -X- O O\n\n", line + 2
        count = draw.choice([1, 2, 7, 15])
        words, chosen = draw.choices(WORDS, k=count), draw.choices(tags, k=count)
        found.append((words, chosen, line, begins))
        text += "".join(f"{w}\tNN\t{t}\n" for w, t in zip(words, chosen, strict=True)) + "\n" * draw.choice([1, 2])
        line = text.count("\n") + 1
    file.write_text(text, encoding="utf-8")
    return found


def slow_examples(file: Path, found, scheme: str, whole: bool) -> list[Example]:
    """What the rows say, as objects; tags converted sentence by sentence."""
    groups: list[list] = []
    for row in found:
        if whole and groups and not row[3]:
            groups[-1].append(row)
        else:
            groups.append([row])
    result = []
    for group in groups:
        begins = [sum(len(r[0]) for r in group[:i]) for i in range(len(group))]
        tags = [t for r in group for t in metrics.to_iob2(r[1], scheme)]
        result.append(Example([w for r in group for w in r[0]], tags, begins, f"{file}:{group[0][2]}"))
    return result


@pytest.mark.parametrize("context", ["sentence", "document"])
@pytest.mark.parametrize("scheme", TAGS)
def test_examples_are_those_of_a_slow_reader(tmp_path, context, scheme):
    for seed in range(6):
        found = random_file(tmp_path / "train.txt", 40, seed, TAGS[scheme])
        detected = metrics.detect_scheme([tags for _, tags, _, _ in found])
        task = NER(NER.Options(context=context))
        examples = task.read(tmp_path)["train"]
        wanted = slow_examples(tmp_path / "train.txt", found, detected, context == "document")
        assert isinstance(examples, Examples) and list(examples) == wanted and len(examples) == len(wanted)
        broken = sum(metrics.invalid_starts(tags) for _, tags, _, _ in found)
        told = [n for n in task.notices if "begin with I-" in n]
        assert told == ([f"{broken} entities begin with I-; read as B-, as conlleval does"]
                        if broken and detected == "IOB2" else [])
        assert [n for n in task.notices if "converted" in n] == (
            [] if detected == "IOB2" else [f"tags are {detected}; converted to IOB2"])


def test_slices_are_what_a_list_gives(tmp_path):
    random_file(tmp_path / "train.txt", 60, seed=9)
    examples = NER(NER.Options(context="document")).read(tmp_path)["train"]
    objects = list(examples)
    assert len(objects) > 7
    for part in (slice(5), slice(2, 6), slice(-3, None), slice(99), slice(5, 2), slice(9999, None), slice(0, 0)):
        assert isinstance(examples[part], Examples) and list(examples[part]) == objects[part]
        assert examples[part].count_tags() == dict(Counter(t for e in objects[part] for t in e.tags))
        assert len(examples[part].word_ends) == len(objects[part]) + 1
    assert list(examples[2:7][1:4]) == objects[3:6]
    assert examples[::-2] == objects[::-2] and examples[-1] == objects[-1] and examples[np.int64(3)] == objects[3]
    for i in (len(objects), -len(objects) - 1):
        with pytest.raises(IndexError):
            examples[i]


def test_tags_are_counted_in_the_order_of_their_first_words(tmp_path):
    random_file(tmp_path / "train.txt", 30, seed=10)
    examples = read_examples(tmp_path / "train.txt", whole=False)
    for part in (examples, examples[7:], examples[11:23]):
        assert list(part.count_tags().items()) == list(Counter(t for e in part for t in e.tags).items())


def test_neighbours_are_those_of_a_loop(tmp_path):
    found = random_file(tmp_path / "train.txt", 50, seed=11)
    wanted = Counter(pair for _, tags, _, _ in found for pair in zip(["O", *tags], tags, strict=False))
    for whole in (False, True):                                              # a sentence begins anew in a document too
        assert read_examples(tmp_path / "train.txt", whole).count_neighbours() == wanted
    for (before, tag), wrong in {("O", "I-PER"): 1, ("B-PER", "I-PER"): 0, ("I-LOC", "I-PER"): 1, ("O", "B-PER"): 0,
                                 ("I-PER", "I-PER"): 0, ("B-LOC", "O"): 0}.items():
        assert begins_wrongly(before, tag) == wrong


@pytest.mark.parametrize("scheme", TAGS)
def test_the_scheme_of_pairs_is_the_scheme_of_sentences(scheme):
    """Of single sentences, where each scheme and each exception comes up."""
    draw, seen = random.Random(12), set()
    for _ in range(400):
        tags = draw.choices(TAGS[scheme], k=draw.choice([1, 2, 3, 6]))
        pairs = list(zip(["O", *tags], tags, strict=False))
        seen.add(metrics.detect_scheme([tags]))
        assert metrics.scheme_of(pairs * 2) == metrics.detect_scheme([tags])
    assert scheme in seen and len(seen) > 1


def test_the_projects_own_data_word_for_word():
    """Against a reader of four lines."""
    for split, examples in NER(NER.Options()).read(ROOT / "data" / "ner").items():
        blocks = (ROOT / "data" / "ner" / f"{split}.conll").read_text("utf-8").split("\n\n")
        rows = [[tuple(line.split(" ")) for line in b.strip().split("\n")] for b in blocks
                if b.strip() and "-DOCSTART-" not in b]
        assert [list(zip(e.words, e.tags, strict=True)) for e in examples] == rows
        assert examples.numbers.dtype == np.int32 and examples.tags.dtype == np.int8


def test_sentences_are_read_while_they_are_taken(tmp_path):
    """An error in line 50 does not come before the sentences above it."""
    file = tmp_path / "train.txt"
    file.write_text("a O\n\n-DOCSTART-\n\nb B-PER\nc I-PER\n\n" + "w O\n\n" * 20 + "alone\n")
    taken = []
    with refused(f"{file}:48: ", "'alone'"):
        for document in read_conll(file):
            for sentence in document:
                taken.append((sentence.words, sentence.tags, sentence.line))
    assert taken[:2] == [(["a"], ["O"], 1), (["b", "c"], ["B-PER", "I-PER"], 5)] and len(taken) == 22


def test_lines_are_forgotten_before_they_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 5)
    monkeypatch.setattr("minibert.data.wordlist.REMEMBERED", 5)
    found = random_file(tmp_path / "train.txt", 60, seed=13)
    examples = read_examples(tmp_path / "train.txt", whole=False)
    assert [(e.words, e.tags) for e in examples] == [(words, tags) for words, tags, _, _ in found]
    assert len(examples.words) > len(set(WORDS))                             # some words have two numbers
    assert len(examples.names) > len(TAGS["IOB2"])                           # and some tags
    assert [e.tags for e in examples.in_iob2("IOB2")] == [metrics.to_iob2(tags, "IOB2") for _, tags, _, _ in found]


def test_a_bad_byte_behind_a_byte_order_mark_is_named_by_its_line(tmp_path):
    file = tmp_path / "train.txt"
    for raw, line, byte in ((b"\xef\xbb\xbfa O\n\nb\xe9 O\n", 3, "0xe9"), (b"\xef\xbb\xbf\xffa O\n", 1, "0xff"),
                            (b"\xef\xbb\xbf" + b"a O\n" * 5000 + b"b \xfc\n", 5001, "0xfc")):
        file.write_bytes(raw)
        with refused(f"{file}:{line}: ", byte, "UTF-8"):
            NER(NER.Options()).read(tmp_path)


def test_a_word_costs_bytes_and_not_objects(tmp_path):
    """The parts of a list of strings would take 150 bytes a word: two pointers, and strings of 50 bytes and more."""
    file = tmp_path / "train.txt"
    draw = random.Random(14)
    vocabulary = [f"word{i}" for i in range(997)]
    file.write_text("".join("".join(f"{draw.choice(vocabulary)} O\n" for _ in range(13)) + "\n" for _ in range(4000)))
    tracemalloc.start()
    try:
        splits = NER(NER.Options()).read(file)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    words = 13 * 4000
    assert len(splits["test"].numbers) == words
    assert kept < 10 * words and peak < 30 * words
