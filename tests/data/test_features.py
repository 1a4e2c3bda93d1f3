"""features.py: what goes in comes out, number for number; many texts at once are word_features one by one."""
import json
import random
import string
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from minibert.core.batch import Feature, collate
from minibert.data import features as module
from minibert.data.features import (
    Features,
    check_ends,
    concatenate,
    narrow,
    pack,
    ragged,
    record_from_json,
    record_to_json,
    running,
    texts_of_words,
)
from minibert.data.order import epoch_batches
from minibert.data.rows import WordNumbers, word_features
from minibert.data.tokenizer import Tokenizer
from minibert.data.wordlist import Numbering
from minibert.tasks.conll import Example, Examples
from minibert.tasks.ner import NER
from minibert.use.prepare import encode_all

NAMES = ["ids", "types", "picks", "labels"]
NOTHING = ["\u200b", "\x01", "", "\u00ad", " "]                                # words without a piece


@dataclass(frozen=True)
class Sample:
    """A record with every kind of field."""
    number: int
    share: float
    first: np.ndarray
    second: np.ndarray


@pytest.fixture
def tokenizer(tiny_folder) -> Tokenizer:
    return Tokenizer.read(tiny_folder)


def random_features(count: int, seed: int) -> list[Feature]:
    """Rows of 0 to 19 pieces, picks in no order, some without picks, labels of every size, fields of every kind."""
    draw, result = np.random.default_rng(seed), []
    for i in range(count):
        T = int(draw.integers(0, 20))
        picks = draw.permutation(T)[:int(draw.integers(0, T + 1))]
        n = int(draw.integers(0, 5))
        about = Sample(int(draw.integers(-9, 2 ** 40)), float(draw.normal()), *draw.integers(-5, 900, (2, n)))
        result.append(Feature(3 * i, draw.integers(0, 31000, T), draw.integers(0, 8, T), picks,
                              draw.integers(-1, 10 ** int(draw.integers(1, 11)), len(picks)), about))
    return result


def same(one: Feature, two: Feature) -> None:
    assert one.example == two.example and type(one.example) is int
    pairs = [(getattr(one, name), getattr(two, name)) for name in NAMES]
    assert type(one.about) is type(two.about)
    for name, value in (vars(one.about) if one.about else {}).items():
        other = getattr(two.about, name)
        if isinstance(value, np.ndarray):
            pairs.append((value, other))
        else:
            assert type(value) is type(other) and value == other, name
    for a, b in pairs:
        assert a.dtype == b.dtype == np.int64 and a.tolist() == b.tolist()


def all_same(found, wanted) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        same(a, b)


# ------------------------------------------------------------------------------------------------------- the store


def test_features_come_back_one_by_one_and_in_slices():
    rows = random_features(83, seed=1)
    store = pack(rows)
    assert isinstance(store, Features) and store.checked() is store
    all_same(store, rows)
    same(store[np.int64(17)], rows[17])
    same(store[-5], rows[-5])
    for part in (slice(7), slice(11, 29), slice(None, None, -3), slice(60, 5, -7), slice(90, 99), slice(-9, None)):
        assert isinstance(store[part], Features)
        all_same(store[part], rows[part])
    numbers = np.array([5, 5, 82, 0, 31, 7])
    all_same(store.take(numbers), [rows[i] for i in numbers])
    assert store.lengths.tolist() == [len(f.ids) for f in rows]
    for i in (83, -84):
        with pytest.raises(IndexError):
            store[i]


def test_a_feature_is_a_copy():
    store = pack(random_features(9, seed=2))
    row = next(f for f in store if len(f.ids) > 3)
    row.ids[:] = -7
    assert not (store.ids == -7).any()


def test_parts_of_different_widths_are_joined():
    parts = [random_features(n, seed=n) for n in (7, 1, 0, 31)]
    store = concatenate(pack(p) for p in parts)
    all_same(store, [f for p in parts for f in p])
    assert store.checked() is store
    assert len(concatenate([])) == 0 and list(concatenate([])) == []


@pytest.mark.parametrize("values, kind", [
    ([-1, 127], "int8"), ([128], "int16"), ([-128], "int8"), ([-129], "int16"), ([32767], "int16"), ([32768], "int32"),
    ([2 ** 31 - 1, -2 ** 31], "int32"), ([2 ** 31], "int64"), ([], "int8")])
def test_the_smallest_integers_that_hold_all(values, kind):
    found = narrow(np.array(values, np.int64))
    assert found.dtype == kind and found.tolist() == values


def test_only_whole_numbers_are_kept():
    with pytest.raises(TypeError, match="float64"):
        narrow(np.array([1.5, 2.0]))
    with pytest.raises(TypeError):
        pack([Feature(0, np.array([2 ** 31]), *[np.zeros(1, np.int64)] * 3)])    # an id that is no int32


def test_a_million_sentences_fit():
    """What a sentence of 15 words and 22 pieces costs: 4 + 1 bytes a piece, 3 a word (columns, labels, words)."""
    rows = [Feature(i, np.full(22, 30000), np.full(22, 6), np.arange(1, 16), np.full(15, 8),
                    WordNumbers(np.arange(15)))
            for i in range(200)]
    size = sum(x.nbytes for x in pack(rows).arrays().values())
    assert size <= 200 * (22 * 5 + 15 * 3 + 3 * 8 + 2) + 3 * 8


@pytest.mark.parametrize("break_it", [
    lambda a: a | {"ids": a["ids"][:-1]}, lambda a: a | {"about.first": np.append(a["about.first"], 0)},
    lambda a: a | {"piece_ends": a["piece_ends"][:-1]}, lambda a: a | {"pick_ends": a["pick_ends"] + 1},
    lambda a: a | {"piece_ends": a["piece_ends"][[0, 2, 1, *range(3, 10)]]},
    lambda a: a | {"example": a["example"][1:]},
    lambda a: a | {"labels": a["labels"][1:]}, lambda a: a | {"about_ends": a["about_ends"][1:]},
    lambda a: a | {"about.number": a["about.number"][1:]}, lambda a: a | {"about.share": a["about.share"][:4]}])
def test_arrays_that_do_not_fit_are_seen(break_it):
    rows = [Feature(i, *(np.arange(3 + i) for _ in range(4)), Sample(i, i / 7, np.arange(i), np.arange(i)))
            for i in range(9)]
    arrays = pack(rows).arrays()
    all_same(Features.from_arrays(arrays, Sample), rows)
    with pytest.raises(ValueError, match="ends do not divide"):
        Features.from_arrays(break_it(arrays), Sample).checked()


def test_rows_without_records_have_no_columns_for_them():
    rows = [Feature(i, *(np.arange(3 + i) for _ in range(4))) for i in range(5)]
    arrays = pack(rows).arrays()
    assert not [name for name in arrays if "about." in name] and arrays["about_ends"].tolist() == [0] * 6
    all_same(Features.from_arrays(arrays, Sample), rows)
    all_same(concatenate([pack([]), pack(rows[:2]), pack(rows[2:])]), rows)


def test_a_record_as_json_is_the_same_record():
    for f in random_features(20, seed=4):
        values = json.loads(json.dumps(record_to_json(f.about)))
        same(Feature(0, f.ids, f.types, f.picks, f.labels, record_from_json(Sample, values)),
             Feature(0, f.ids, f.types, f.picks, f.labels, f.about))
    assert record_to_json(None) is None and record_from_json(Sample, None) is None
    for kind, wrong in ((None, {}), (Sample, {"number": 1}), (Sample, {**values, "share": "x"})):
        with pytest.raises((KeyError, ValueError)):
            record_from_json(kind, wrong)


def test_the_fingerprint_has_every_number_of_a_row_in_its_place():
    """Two rows by hand: number, the bits of the float, both arrays."""
    rows = [Feature(0, *[np.arange(3)] * 4, Sample(7, 1.0, np.array([1, 2]), np.array([3, 4]))),
            Feature(1, *[np.arange(3)] * 4, Sample(-1, -2.5, np.zeros(0, np.int64), np.zeros(0, np.int64)))]
    found = pack(rows).fingerprint()
    one, other = (int(np.array([x]).view(np.int64)[0]) for x in (1.0, -2.5))
    assert found["targets"].tolist() == [7, one, 1, 2, 3, 4, -1, other] and found["target_ends"].tolist() == [0, 6, 8]
    plain = pack([Feature(0, *[np.arange(3)] * 4)]).fingerprint()
    assert plain["target_ends"].tolist() == [0, 0] and len(plain["targets"]) == 0
    assert set(found) == {"example", "piece_ends", "pick_ends", "ids", "types", "picks", "labels", "targets",
                          "target_ends"}


def test_running_ragged_and_ends_by_hand():
    assert running(np.array([3, 0, 2])).tolist() == [0, 3, 3, 5] and running(np.array([], int)).tolist() == [0]
    assert ragged(np.array([7, 5, 2]), np.array([3, 0, 2])).tolist() == [7, 8, 9, 2, 3]
    check_ends(np.array([0, 3, 3, 5]), 3, 5)


def test_batches_do_not_see_the_difference():
    rows = [f for f in random_features(90, seed=5) if len(f.picks)]
    store = pack(rows)
    order, numbers = (epoch_batches(x, 7, 3, 1)[2] for x in ([len(f.ids) for f in rows], store.lengths))
    assert order.tolist() == numbers.tolist()
    one, two = collate([rows[i] for i in order]), collate([store[i] for i in order])
    for name in ("ids", "types", "picks", "labels"):
        assert torch.equal(getattr(one, name), getattr(two, name))


# ---------------------------------------------------------------------------------------------- many texts at once


def word(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.12:
        return draw.choice([*NOTHING, "😀", "北京", "a\u00a0b", "[SEP]", "x[CLS]y", "\ud83d", "##ing", "İ", "can't"])
    if kind < 0.16:
        return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(20, 120)))     # longer than most windows
    letters = string.ascii_lowercase + "A-" if draw.random() < 0.8 else string.ascii_uppercase
    return "".join(draw.choices(letters, k=draw.randint(1, 6)))


def random_texts(count: int, seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [[word(draw) for _ in range(draw.choice([0, 1, 2, 5, 9, 14, 14, 33]))] for _ in range(count)]


@pytest.mark.parametrize("case_shapes", [False, True])
def test_a_word_has_the_same_pieces_in_any_text(tokenizer, case_shapes):
    """The library on whole sentences, beside each distinct word by itself."""
    tokenizer.case_shapes = case_shapes
    texts = random_texts(900, seed=7)
    words = sorted({w for t in texts for w in t})
    spelling = tokenizer.spell(words)
    pieces = {w: spelling.ids[spelling.ends[i]:spelling.ends[i + 1]].tolist() for i, w in enumerate(words)}
    shapes = dict(zip(words, spelling.shapes.tolist(), strict=True))
    encoded = tokenizer.backend.encode_batch([[w.encode("utf-8", "replace").decode() for w in t] for t in texts],
                                             is_pretokenized=True, add_special_tokens=False)
    empty = 0
    for text, e in zip(texts, encoded, strict=True):
        found: list[list[int]] = [[] for _ in text]
        for piece, owner in zip(e.ids, e.word_ids, strict=True):
            found[owner].append(piece)
        assert [pieces[w] for w in text] == [f or [tokenizer.unknown] for f in found]
        empty += sum(not f for f in found)
    assert empty > 50 and len(words) > 2000
    whole = tokenizer.pieces(texts)
    for text, p in zip(texts, whole, strict=True):
        assert p.ids == [i for w in text for i in pieces[w]]
        assert p.shapes == [shapes[text[owner]] for owner in p.words]
    assert (max(spelling.shapes) > 0) == case_shapes


def test_spelling_nothing(tokenizer):
    spelling = tokenizer.spell([])
    assert (len(spelling.ids), spelling.ends.tolist(), len(spelling.shapes)) == (0, [0], 0)


def test_blocks_of_words_are_put_together(tokenizer, monkeypatch):
    words = sorted({w for t in random_texts(60, seed=8) for w in t})
    whole = tokenizer.spell(words)
    monkeypatch.setattr("minibert.data.tokenizer.TEXT", 5)
    monkeypatch.setattr("minibert.data.tokenizer.BLOCK", 35)
    assert len(words) > 3 * 35
    again = tokenizer.spell(words)
    assert again.ids.tolist() == whole.ids.tolist() and again.ends.tolist() == whole.ends.tolist()


def compact(texts: list[list[str]]):
    """words, numbers, ends of texts, and a label a word."""
    numbering = Numbering()
    numbers = np.array([numbering[w] for t in texts for w in t], np.int32)
    labels = np.random.default_rng(9).integers(-1, 9, len(numbers)).astype(np.int8)
    return numbering.words(), numbers, running(np.array([len(t) for t in texts])), labels


@pytest.mark.parametrize("case_shapes, types", [(False, 2), (True, 2), (True, 3)])
@pytest.mark.parametrize("max_pieces, overlap, chunk", [(64, 16, 2 ** 20), (24, 6, 500), (9, 2, 37), (8, 0, 1)])
def test_many_texts_at_once_are_word_features_one_by_one(tokenizer, monkeypatch, case_shapes, types, max_pieces,
                                                         overlap, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    tokenizer = Tokenizer(tokenizer.backend, case_shapes, types)
    texts = random_texts({64: 900, 24: 300}.get(max_pieces, 100), seed=max_pieces)
    words, numbers, ends, labels = compact(texts)
    parts = list(texts_of_words(words, numbers, ends, labels, tokenizer, max_pieces, overlap))
    wanted = [f for i, t in enumerate(texts) if t for f in word_features(
        i, tokenizer.pieces([t])[0], tokenizer, max_pieces, overlap, labels[ends[i]:ends[i + 1]])]
    found = concatenate(parts)
    all_same(found, wanted)
    assert found.checked() is found
    windows = len(wanted) - sum(map(bool, texts))
    assert windows > 40 and (len(parts) > 1) == (chunk < 2 ** 20)            # there were windows, and chunks


def test_texts_of_one_length_at_the_limit(tokenizer):
    """6, 7 and 8 pieces in rows of 9: the last two need 7 and a window."""
    texts = [list("abcdef"), list("abcdefg"), list("abcdefgh")]
    found = concatenate(texts_of_words(*compact(texts), tokenizer, 9, 2))
    assert [(f.example, len(f.ids)) for f in found] == [(0, 8), (1, 9), (2, 9), (2, 5)]


def test_words_are_tokenised_once_a_chunk_and_never_more_than_a_chunk_at_a_time(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 200)
    texts = [[f"w{i}", "the", "the", "rain"] for i in range(500)]             # a new word in each
    asked, spell = [], tokenizer.spell
    tokenizer.spell = lambda words: (asked.append(list(words)), spell(words))[1]
    list(texts_of_words(*compact(texts), tokenizer, 32, 8))
    assert [len(words) for words in asked] == [50 + 2] * 10
    assert all(len(set(words)) == len(words) for words in asked)


def test_a_task_of_lists_and_a_task_of_arrays_give_the_same(tokenizer, tiny_data, monkeypatch):
    monkeypatch.setattr("minibert.use.prepare.EXAMPLES", 7)
    task = NER(NER.Options())
    splits = task.read(tiny_data)
    task.learn_labels(splits)
    examples = splits["train"]
    assert isinstance(examples, Examples)
    called = []
    task.encode = lambda number, *rest: (called.append(number), NER.encode(task, number, *rest))[1]
    fast = encode_all(task, examples, tokenizer, 12, 3)
    assert called == []
    slow = encode_all(task, list(examples), tokenizer, 12, 3)
    assert called == list(range(60)) and all(isinstance(e, Example) for e in examples)
    all_same(fast, slow)
    assert len(fast) > 60                                                    # some had windows
    limited = encode_all(task, examples[:23], tokenizer, 12, 3)
    all_same(limited, [f for f in slow if f.example < 23])
    later = encode_all(task, examples[31:47], tokenizer, 12, 3)              # a slice counts from 0
    assert [f.ids.tolist() for f in later] == [f.ids.tolist() for f in slow if 31 <= f.example < 47]
    assert later[0].example == 0
