"""compact.py: records as bytes and back; jsontext.py: JSON in parts is what json makes of the whole."""
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from refusing import refused

from minibert.data import jsontext
from minibert.data.compact import BLOCK, Compact
from minibert.data.jsontext import JsonText

TEXTS = ["", "a", "São", "北京市", "สวัสดี", "नमस्ते", "😀x", "\x00", "\ud83d", "e\u0301", "long " * 99]
VALUES = [None, 0, -1, 2 ** 80, 0.1, 1e-320, -0.0, "x", (), ("a",), ("a", ("b", 5)), ((0, 3), (7, 9))]
FILE = Path("folder:1/x.csv")


@dataclass(frozen=True)
class Line:
    text: str
    value: object
    where: str


def lines(count: int) -> list[Line]:
    return [Line(TEXTS[i % 11] + str(i % 7), VALUES[i % 12], f"{FILE}:{3 * i + 2}") for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_every_record_comes_back(count):
    wanted, found = lines(count), Compact.of(Line, FILE, iter(lines(count)))
    assert len(found) == count and list(found) == wanted
    assert [found[i] for i in range(count)] == wanted == [found[i - count] for i in range(count)]
    assert all(type(a.value) is type(b.value) and repr(a) == repr(b) for a, b in zip(found, wanted, strict=True))
    for i in (count, -count - 1):
        with pytest.raises(IndexError):
            found[i]


@pytest.mark.parametrize("part", [slice(0), slice(5), slice(70), slice(BLOCK), slice(-3), slice(900), slice(66, 140),
                                  slice(None, None, 3), slice(None, None, -1), slice(9, 3)])
def test_a_slice_is_the_slice_of_a_list_and_compact(part):
    few = Compact.of(Line, FILE, lines(150))[part]
    assert isinstance(few, Compact) and list(few) == lines(150)[part] and len(few) == len(lines(150)[part])
    assert [few[i] for i in range(len(few))] == list(few)
    assert list(few[:2]) == lines(150)[part][:2]


def test_some_of_them_and_changed_ones():
    found = Compact.of(Line, FILE, lines(200))
    numbers = random.Random(3).sample(range(200), 90)
    assert list(found.take(numbers)) == [lines(200)[i] for i in numbers]
    assert found[130].text == lines(200)[130].text         # its block is remembered, and then forgotten
    found.change(lambda e: Line(e.text * 2, e.value, e.where))
    assert [found[130], *found] == [Line(e.text * 2, e.value, e.where) for e in (lines(200)[130], *lines(200))]


def drawn(draw: random.Random, depth: int = 3) -> object:
    kind = draw.randrange(9 if depth else 7)
    if kind < 7:
        return [None, True, draw.randrange(-99, 10 ** 6), draw.random() * 1e-9, "", draw.choice(TEXTS[:8]) + '\\"[{',
                draw.uniform(-1e9, 1e9)][kind]
    few = [drawn(draw, depth - 1) for _ in range(draw.randrange(5))]
    return few if kind == 7 else {f"{x!r:.5}{i}": x for i, x in enumerate(few)}


@pytest.mark.parametrize("portion", [1, 2, 3, 7, 50, 10 ** 6])
def test_json_in_parts_is_the_json_of_the_whole(monkeypatch, portion):
    """Values of all kinds, one after the other; a value may be cut at any place, and numbers end at a blank alone."""
    monkeypatch.setattr(jsontext, "PORTION", portion)
    draw = random.Random(portion)
    values = [drawn(draw) for _ in range(60)]
    whole = " \n".join(json.dumps(v, indent=draw.choice([None, 1]), ensure_ascii=draw.random() < 0.5) for v in values)
    text = JsonText(Path("f"), iter([whole[i:i + portion] for i in range(0, len(whole), portion)]), "x")
    at = 0
    for value in values:
        start = whole.index(whole[at:].lstrip()[:1], at)
        assert text.line_next() == 1 + whole.count("\n", 0, start)
        found, written = text.value()
        assert found == value and json.loads(written) == value and whole[start:start + len(written)] == written
        at = start + len(written)
    assert text.next() == "" and not text.take("]")


@pytest.mark.parametrize("portion", [1, 5, 1000])
@pytest.mark.parametrize("text, line, said", [
    ("\n[1, 2", 2, "not JSON"), ('\n\n{"a": tru', 3, "not JSON"), ('{"a": "b\\u12', 1, "not JSON"),
    ("\n-", 2, "not JSON"), ('{"a"\n:\n1,}', 1, "line 3"), ("nul", 1, "not JSON"), ("[" * 10 ** 5, 1, "too deeply"),
    ('"never\\', 1, "Unterminated"), ('"' + "a" * 90 + '"', 1, "more than 80"), ('"' + "a" * 90, 1, "more than 80"),
    ('\n"\\ud800"', 2, "half of a pair")])
def test_what_is_wrong_is_said_with_its_line(monkeypatch, portion, text, line, said):
    monkeypatch.setattr(jsontext, "PORTION", portion)
    monkeypatch.setattr(jsontext, "LARGEST", 80 if "aaa" in text else 10 ** 6)
    parts = iter([text[i:i + portion] for i in range(0, len(text), portion)])
    with refused(f"f:{line}: ", said):
        JsonText(Path("f"), parts, "something else").value()


@pytest.mark.parametrize("portion", [1, 4, 1000])
def test_the_values_of_a_list_of_lists_in_objects(monkeypatch, portion):
    monkeypatch.setattr(jsontext, "PORTION", portion)
    whole = '{"v": {"data": [7]}, "data": [{"t": 1, "p": [3, {"p": [4]}], "z": []}, {"p": []}], "w": 2.5}  '
    text = JsonText(Path("f"), iter([whole[i:i + portion] for i in range(0, len(whole), portion)]), "x")
    assert [text.value()[0] for _ in text.each("data") for _ in text.each("p")] == [3, {"p": [4]}]
    assert text.next() == ""
