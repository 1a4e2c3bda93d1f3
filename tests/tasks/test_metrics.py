"""metrics.py against worked examples, a second version written from the definitions, and round trips."""

import doctest
import random
from types import ModuleType

import pytest

from minibert import metrics
from minibert.errors import MinibertError

TYPES = ("LOC", "ORG", "co-author")
EVERY_TAG = ["O"] + [f"{prefix}-{kind}" for prefix in "BIES" for kind in TYPES]


def some_tags(draw: random.Random, tags: list[str] = EVERY_TAG, longest: int = 13) -> list[str]:
    return draw.choices(tags, k=draw.randint(0, longest))


def noisy(draw: random.Random, tags: list[str], rate: float = 0.3) -> list[str]:
    return [draw.choice(EVERY_TAG) if draw.random() < rate else tag for tag in tags]


def some_entities(draw: random.Random) -> tuple[int, list[tuple[str, int, int]]]:
    """A sentence's length and entities in it, many of them touching."""
    place, found = 0, []
    for _ in range(draw.randint(0, 5)):
        first = place + draw.choice((0, 0, 1, 3))
        place = first + draw.randint(1, 4)
        found.append((draw.choice(TYPES), first, place))
    return place + draw.choice((0, 2)), found


# How the schemes write entities, from their definitions; to_iob2 must undo each.


def write_iob2(length, found):
    tags = ["O"] * length
    for kind, first, end in found:
        for place in range(first, end):
            tags[place] = ("B-" if place == first else "I-") + kind
    return tags


def write_iob1(length, found):
    tags = ["O"] * length
    for kind, first, end in found:
        touches = any(other == kind and end_of_other == first for other, _, end_of_other in found)
        for place in range(first, end):
            tags[place] = ("B-" if place == first and touches else "I-") + kind
    return tags


def write_bioes(length, found, letters="BIES"):
    begin, inside, last, single = letters
    tags = ["O"] * length
    for kind, first, end in found:
        tags[first:end] = [f"{inside}-{kind}"] * (end - first)
        tags[first], tags[end - 1] = f"{begin}-{kind}", f"{last}-{kind}"
        if end == first + 1:
            tags[first] = f"{single}-{kind}"
    return tags


# conlleval's chunks: two questions asked of every gap between words; then every span is tried.


def ends_in_gap(left: str, right: str) -> bool:
    if left == "O":
        return False
    if left[0] in ("E", "S"):
        return True
    if right[0] in ("B", "S", "O"):
        return True
    return left[2:] != right[2:]


def begins_in_gap(left: str, right: str) -> bool:
    if right == "O":
        return False
    if right[0] in ("B", "S"):
        return True
    if left[0] in ("E", "S", "O"):
        return True
    return left[2:] != right[2:]


def slow_entities(tags: list[str]) -> list[tuple[str, int, int]]:
    padded = ["O", *tags, "O"]  # gap g lies before word g, between padded[g] and padded[g + 1]
    begins = [begins_in_gap(padded[gap], padded[gap + 1]) for gap in range(len(tags) + 1)]
    ends = [ends_in_gap(padded[gap], padded[gap + 1]) for gap in range(len(tags) + 1)]
    return [
        (tags[first][2:], first, end)
        for first in range(len(tags))
        for end in range(first + 1, len(tags) + 1)
        if begins[first] and ends[end] and not any(begins[first + 1 : end]) and not any(ends[first + 1 : end])
    ]


def slow_numbers(gold: list, predicted: list, of=lambda thing: True) -> tuple[float, float, float, int]:
    """Precision, recall, F1 as harmonic mean, support, by looking each thing up in the other list."""
    gold, predicted = [x for x in gold if of(x)], [x for x in predicted if of(x)]
    precision = sum(x in gold for x in predicted) / len(predicted) if predicted else 0.0
    recall = sum(x in predicted for x in gold) / len(gold) if gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f1, len(gold)


def four(row: dict) -> tuple[float, float, float, int]:
    return row["precision"], row["recall"], row["f1"], row["support"]


def close(numbers):
    return pytest.approx(numbers, abs=1e-12)


# ---- entities


def test_doctests():
    modules = [m for m in vars(metrics).values() if isinstance(m, ModuleType)]
    tried = [doctest.testmod(module) for module in modules]
    assert sum(t.attempted for t in tried) >= 10 and not any(t.failed for t in tried)


@pytest.mark.parametrize(
    "tags, expected",
    [
        ("", []),
        ("O O O", []),
        ("I-X", [("X", 0, 1)]),
        ("O E-X", [("X", 1, 2)]),
        ("B-X I-Y", [("X", 0, 1), ("Y", 1, 2)]),
        ("I-X I-Y I-X", [("X", 0, 1), ("Y", 1, 2), ("X", 2, 3)]),
        ("B-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("I-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("B-X O I-X", [("X", 0, 1), ("X", 2, 3)]),
        ("I-X E-X I-X E-X", [("X", 0, 2), ("X", 2, 4)]),
        ("S-X I-X", [("X", 0, 1), ("X", 1, 2)]),
        ("B-X S-X E-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("B-X M-X L-X U-X W-X", [("X", 0, 3), ("X", 3, 4), ("X", 4, 5)]),
        ("B-X L-X I-X", [("X", 0, 2), ("X", 2, 3)]),
        ("I-X W-X I-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("I-X U-X I-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("B-X . I-X", [("X", 0, 1), ("X", 2, 3)]),
        ("B-co-author I-co-editor", [("co-author", 0, 1), ("co-editor", 1, 2)]),
    ],
)
def test_entities_of_small_sentences(tags, expected):
    assert metrics.entities(tags.split()) == expected


def test_entities_equal_the_slow_version():
    draw = random.Random(11)
    sizes = set()
    for _ in range(4000):
        tags = some_tags(draw)
        expected = slow_entities(tags)
        assert metrics.entities(tags) == expected, tags
        sizes.add(len(expected))
    assert len(sizes) > 9


def test_strict_keeps_only_what_begins_with_b():
    """B-X I-X | I-Y (no B before it) | O | I-X I-X (none): strict leaves the first of three."""
    tags = ["B-X", "I-X", "I-Y", "O", "I-X", "I-X"]
    assert metrics.entities(tags) == [("X", 0, 2), ("Y", 2, 3), ("X", 4, 6)]
    assert metrics.entities(tags, strict=True) == [("X", 0, 2)]


def test_strict_and_default_agree_exactly_on_valid_iob2():
    draw = random.Random(12)
    tags_of_iob2 = [tag for tag in EVERY_TAG if tag[0] in "BIO"]
    agreed = 0
    for _ in range(2000):
        tags = some_tags(draw, tags_of_iob2, longest=5)
        valid = metrics.invalid_starts(tags) == 0
        assert (metrics.entities(tags) == metrics.entities(tags, strict=True)) == valid
        agreed += valid
    assert 200 < agreed < 1800


@pytest.mark.parametrize("tag", ["PER", "B", "B-", "-PER", "b-PER", "X-PER", "BI-PER", "", "O-PER", "B_PER"])
def test_what_is_not_a_tag_is_refused(tag):
    assert not metrics.is_tag(tag)
    with pytest.raises(MinibertError, match="is not a tag") as error:
        metrics.entities(["O", tag])
    assert repr(tag) in str(error.value) and "\n" not in str(error.value)


# ---- entity scores


def test_entity_scores_worked_example():
    """Gold: PER 0-2, LOC 3-4, ORG 5-7 | PER 0-1.   Predicted: PER 0-2, LOC 3-4, ORG 5-6, LOC 6-7 | nothing.

    Correct are PER 0-2 and LOC 3-4: 2 of 4 predicted, 2 of 4 gold. P = R = F1 = 1/2.
    PER: 1 of 1 predicted, 1 of 2 gold, F1 = 2·1/(1+2) = 2/3.  LOC: 1 of 2, 1 of 1, 2/3.  ORG: 0 of 1, 0 of 1.
    """
    gold = ["B-PER I-PER O B-LOC O B-ORG I-ORG".split(), ["B-PER"]]
    predicted = ["B-PER I-PER O I-LOC O B-ORG B-LOC".split(), ["O"]]
    scores = metrics.entity_scores(gold, predicted)
    assert list(scores) == ["precision", "recall", "f1", "support", "types"]
    assert four(scores) == close((1 / 2, 1 / 2, 1 / 2, 4))
    assert list(scores["types"]) == ["LOC", "ORG", "PER"]
    assert four(scores["types"]["LOC"]) == close((1 / 2, 1, 2 / 3, 1))
    assert four(scores["types"]["ORG"]) == (0, 0, 0, 1)
    assert four(scores["types"]["PER"]) == close((1, 1 / 2, 2 / 3, 2))


def test_entity_scores_equal_the_slow_version():
    draw = random.Random(13)
    for _ in range(600):
        gold = [some_tags(draw) for _ in range(draw.randint(0, 6))]
        predicted = [noisy(draw, tags) for tags in gold]
        there = [(n, *entity) for n, tags in enumerate(gold) for entity in slow_entities(tags)]
        found = [(n, *entity) for n, tags in enumerate(predicted) for entity in slow_entities(tags)]
        scores = metrics.entity_scores(gold, predicted)
        assert four(scores) == close(slow_numbers(there, found))
        assert set(scores["types"]) == {entity[1] for entity in there + found}
        for kind, row in scores["types"].items():
            assert four(row) == close(slow_numbers(there, found, lambda x, kind=kind: x[1] == kind))


def test_same_place_in_another_sentence_is_another_entity():
    scores = metrics.entity_scores([["B-X", "O"], ["O", "O"]], [["O", "O"], ["B-X", "O"]])
    assert four(scores) == (0, 0, 0, 1)


@pytest.mark.parametrize("gold, predicted", [([], []), ([[], []], [[], []]), ([["O", "O"]], [["O", "O"]])])
def test_nothing_to_find_scores_zero(gold, predicted):
    scores = metrics.entity_scores(gold, predicted)
    assert four(scores) == (0, 0, 0, 0) and scores["types"] == {}


@pytest.mark.parametrize("score", [metrics.entity_scores, metrics.tag_scores, metrics.tag_report])
def test_different_lengths_are_refused(score):
    gold = [["O"], [], ["B-X", "I-X", "O", "O"]]
    with pytest.raises(MinibertError, match="^sentence 3 has 4 gold but 2 predicted tags$"):
        score(gold, [["O"], [], ["B-X", "I-X"]])
    with pytest.raises(MinibertError, match="^3 gold sentences but 2 predicted ones$"):
        score(gold, gold[:2])


# ---- tag scores


def test_tag_scores_worked_example():
    """Gold O O O B-X I-X, predicted O O B-X B-X O.

    O: 2 correct of 3 predicted and 3 gold: 2/3, 2/3, 4/6; B-X: 1 of 2 and 1: 1/2, 1, 2/3. I-X: 0 of 0 and 1.
    accuracy = micro = 3/5.  macro F1 = (2/3 + 2/3 + 0)/3 = 4/9.  weighted F1 = (3·2/3 + 1·2/3)/5 = 8/15.
    """
    gold, predicted = "O O O B-X I-X".split(), "O O B-X B-X O".split()
    scores = metrics.tag_scores(gold, predicted)
    assert list(scores["per_tag"]) == ["B-X", "I-X", "O"]
    assert four(scores["per_tag"]["O"]) == close((2 / 3, 2 / 3, 2 / 3, 3))
    assert four(scores["per_tag"]["B-X"]) == close((1 / 2, 1, 2 / 3, 1))
    assert four(scores["per_tag"]["I-X"]) == (0, 0, 0, 1)
    assert scores["accuracy"] == scores["micro_f1"] == 3 / 5
    assert scores["macro_f1"] == close(4 / 9)
    assert scores["weighted_f1"] == close(8 / 15)
    assert scores["macro_precision"] == close((2 / 3 + 1 / 2) / 3)
    assert scores["weighted_recall"] == close((3 * 2 / 3 + 1) / 5)
    assert metrics.tag_scores([gold[:2], [], gold[2:]], [predicted[:2], [], predicted[2:]]) == scores


def test_tag_scores_equal_the_slow_version():
    draw = random.Random(14)
    for _ in range(400):
        gold = some_tags(draw, draw.sample(EVERY_TAG, 5), longest=29)
        predicted = noisy(draw, gold)
        there, found = list(enumerate(gold)), list(enumerate(predicted))
        present = {*gold, *predicted}
        rows = {tag: slow_numbers(there, found, lambda x, tag=tag: x[1] == tag) for tag in present}
        scores = metrics.tag_scores(gold, predicted)
        assert set(scores["per_tag"]) == set(rows)
        assert all(four(scores["per_tag"][tag]) == close(row) for tag, row in rows.items())
        for column, name in enumerate(("precision", "recall", "f1")):
            micro = slow_numbers(there, found)[column]
            macro = sum(row[column] for row in rows.values()) / max(1, len(rows))
            weighted = sum(row[column] * row[3] for row in rows.values()) / max(1, len(gold))
            got = [scores[f"{average}_{name}"] for average in ("micro", "macro", "weighted")]
            assert got == close([micro, macro, weighted])
        assert scores["support"] == len(gold)


def test_tag_scores_of_nothing():
    scores = metrics.tag_scores([[], []], [[], []])
    assert scores["per_tag"] == {} and scores["support"] == 0
    assert scores["accuracy"] == scores["macro_f1"] == scores["weighted_f1"] == 0


# ---- tables


def test_tag_report_rows_columns_and_numbers():
    gold = "O I-PER B-PER B-ORG I-LOC S-LOC B-LOC E-LOC I-ORG B-MISC I-MISC O".split()
    predicted = "O I-PER B-PER B-LOC I-LOC S-LOC B-LOC E-LOC I-ORG O I-MISC B-PER".split()
    lines = metrics.tag_report(gold, predicted).splitlines()
    assert lines[0].split() == ["precision", "recall", "f1-score", "support"]
    rows = [line.rsplit(maxsplit=4) for line in lines[1:] if line]
    assert [row[0] for row in rows] == (
        "B-LOC I-LOC E-LOC S-LOC B-MISC I-MISC B-ORG I-ORG B-PER I-PER O".split()
        + ["micro avg", "macro avg", "weighted avg"]
    )
    assert rows[0][1:] == ["0.500", "1.000", "0.667", "1"]  # predicted twice, once right
    assert rows[10][1:] == ["0.500", "0.500", "0.500", "2"]
    # F1: 6 tags at 1, B-PER and B-LOC 2/3, B-ORG and B-MISC 0 and O 1/2; the macro mean is over these 11
    assert rows[11][1:] == ["0.750", "0.750", "0.750", "12"]
    assert rows[12][3] == f"{(6 + 2 / 3 + 2 / 3 + 1 / 2) / 11:.3f}"
    assert {len(line) for line in lines if line} == {len(lines[0])}


def test_o_is_the_last_tag_also_without_others_and_types_may_sort_after_it():
    order = list(metrics.tag_scores(["O", "B-ZOO", "I-zoo", "B-zoo"], ["O", "O", "O", "I-ZOO"])["per_tag"])
    assert order == ["B-ZOO", "I-ZOO", "B-zoo", "I-zoo", "O"]


def test_entity_report_shows_the_scores():
    gold = [["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "B-extraordinarily-long"]]
    predicted = [["B-PER", "O", "O", "B-LOC", "I-LOC", "B-extraordinarily-long"]]
    scores = metrics.entity_scores(gold, predicted)
    lines = metrics.entity_report(gold, predicted).splitlines()
    rows = [line.rsplit(maxsplit=4) for line in lines[1:] if line]
    expected = [*scores["types"].items(), ("micro avg", scores)]
    for printed, (name, row) in zip(rows, expected, strict=True):
        assert printed == [name, *(f"{number:.3f}" for number in four(row)[:3]), str(row["support"])]
    assert {len(line) for line in lines if line} == {len(lines[0])}


def test_reports_of_nothing_keep_their_averages():
    assert metrics.tag_report([], []).splitlines()[2].split() == "micro avg 0.000 0.000 0.000 0".split()
    assert metrics.entity_report([["O"]], [["O"]]).splitlines()[2].startswith("micro avg")


# ---- schemes


@pytest.mark.parametrize(
    "sentences, scheme",
    [
        ([], "IOB2"),
        (["", "O O"], "IOB2"),
        (["B-X I-X O", "O B-Y"], "IOB2"),
        (["I-X I-X O", "O I-Y B-Y"], "IOB1"),
        (["I-X O I-X"], "IOB1"),
        (["I-X I-Y B-Y B-Y"], "IOB1"),
        (["I-X O", "O B-X"], "IOB2"),  # a mixture: I begins the first entity, B one after O
        (["I-X B-Y"], "IOB2"),  # in IOB1 a B follows its own type
        (["I-X", "B-X"], "IOB2"),  # ... in the same sentence
        (["B-X I-X", "O S-Y"], "BIOES"),
        (["B-X E-X"], "BIOES"),
        (["B-X I-X L-X", "U-Y"], "BIOES"),
        (["B-X M-X E-X", "W-Y"], "BIOES"),
    ],
)
def test_detect_scheme(sentences, scheme):
    assert metrics.detect_scheme(tags.split() for tags in sentences) == scheme


def test_every_scheme_is_detected_and_converted_back():
    draw = random.Random(15)
    corpus = [some_entities(draw) for _ in range(900)]
    iob2 = [write_iob2(*sentence) for sentence in corpus]
    assert any("B-LOC B-LOC" in " ".join(tags) for tags in iob2)
    written = {
        "IOB2": [iob2],
        "IOB1": [[write_iob1(*sentence) for sentence in corpus]],
        "BIOES": [[write_bioes(*sentence, form) for sentence in corpus] for form in ("BIES", "BILU", "BMEW")],
    }
    for scheme, versions in written.items():
        for version in versions:
            assert metrics.detect_scheme(version) == scheme
            assert [metrics.to_iob2(tags, scheme) for tags in version] == iob2
            assert [metrics.entities(tags) for tags in version] == [found for _, found in corpus]
    for scheme in ("IOB2", "BIOES"):
        assert not any(metrics.invalid_starts(tags) for tags in written[scheme][0])


def test_to_iob2_repairs_what_is_invalid_and_keeps_the_entities():
    draw = random.Random(16)
    repairs = 0
    for _ in range(2000):
        tags = some_tags(draw, [tag for tag in EVERY_TAG if tag[0] in "BIO"])
        converted = metrics.to_iob2(tags, "IOB2")
        assert metrics.entities(converted) == metrics.entities(converted, strict=True) == slow_entities(tags)
        changed = [(old, new) for old, new in zip(tags, converted, strict=True) if old != new]
        assert len(changed) == metrics.invalid_starts(tags)
        assert all(old[0] == "I" and new == "B" + old[1:] for old, new in changed)
        repairs += len(changed)
    assert repairs > 2000


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2"])
def test_to_iob2_refuses_prefixes_of_another_scheme(scheme):
    with pytest.raises(MinibertError, match=f"^'S-X' does not occur in {scheme}: expected B I O$"):
        metrics.to_iob2(["O", "S-X"], scheme)
