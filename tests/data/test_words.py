"""words.py: strings as bytes and back, numbers that mean their word whatever was forgotten."""
import random

import numpy as np
import pytest

from minibert.data import wordlist as words
from minibert.data.wordlist import Numbering, Words

NASTY = ["", "a", "São", "\u200b", "北京市", "😀x", "\x00", "\ud83d", "e\u0301", " ", "\ufeff", "longer than others"]


def test_every_string_comes_back():
    kept = Words.of(NASTY)
    assert len(kept) == len(NASTY) and list(kept) == NASTY
    assert [kept[i] for i in (-1, -12, 5, 0)] == [NASTY[i] for i in (-1, -12, 5, 0)]
    assert list(kept.take([4, 4, 11, 0, 7])) == [NASTY[i] for i in (4, 4, 11, 0, 7)]
    assert kept.letters.dtype == "uint8" and kept.ends.dtype == "int64"
    assert bytes(kept.letters) == "".join(NASTY).encode("utf-8", "surrogatepass")
    for i in (12, -13):
        with pytest.raises(IndexError):
            kept[i]


def test_no_words_at_all():
    assert len(Words.of([])) == 0 and list(Words.of([])) == []


def test_a_word_keeps_its_number():
    numbering = Numbering()
    assert [numbering[w] for w in ("b", "a", "b", "c", "a", "b", "")] == [0, 1, 0, 2, 1, 0, 3]
    assert list(numbering.words()) == ["b", "a", "c", ""]


def test_a_stream_of_new_words_is_forgotten_and_every_number_still_means_its_word(monkeypatch):
    monkeypatch.setattr(words, "REMEMBERED", 7)
    draw, numbering, stream, numbers = random.Random(1), Numbering(), [], []
    for i in range(300):
        stream.append(f"new{i}" if draw.random() < 0.6 else f"new{draw.randrange(i + 1)}")
        numbers.append(numbering[stream[-1]])
        assert len(numbering) <= 7
    kept = numbering.words()
    assert list(kept.take(numbers)) == stream
    assert len(set(stream)) < len(kept) < len(stream)                        # some have two numbers, but not every one


def test_numbers_of_any_width_do_not_overflow():
    kept = Words.of(f"w{i}" for i in range(129))
    assert list(kept.take(np.array([127, 0, 126], np.int8))) == ["w127", "w0", "w126"]
