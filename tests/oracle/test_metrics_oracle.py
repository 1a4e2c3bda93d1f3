"""metrics.py against the scorers everyone cites: seqeval for entities, scikit-learn for single tags."""

import random
import warnings

import pytest
from seqeval.metrics import classification_report as entity_table
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support as entity_numbers
from seqeval.metrics.v1 import precision_recall_fscore_support as strict_entity_numbers
from seqeval.scheme import IOB2
from sklearn.metrics import classification_report as tag_table
from sklearn.metrics import f1_score

from minibert import metrics
from minibert.scores.tags import UNTYPED, entities, spelled

TYPES = ("LOC", "MISC", "ORG", "co-author")
COLUMNS = ("precision", "recall", "f1-score", "support")


def tags_of(prefixes: str) -> list[str]:
    return ["O"] + [f"{prefix}-{kind}" for prefix in prefixes for kind in TYPES]


def pair(draw: random.Random, tags: list[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Gold and predicted sentences; now and then a tag occurs on one side only, or a side has no entity."""
    ours, theirs = (draw.sample(tags, draw.randint(1, len(tags))) for _ in range(2))
    gold = [draw.choices(ours, k=draw.randint(1, 14)) for _ in range(draw.randint(1, 5))]
    noise = draw.choice((0.0, 0.2, 0.6))
    predicted = [[draw.choice(theirs) if draw.random() < noise else tag for tag in sent] for sent in gold]
    return gold, predicted


def four(row: dict) -> list[float]:
    return [row["precision"], row["recall"], row["f1"], row["support"]]


def close(numbers):
    return pytest.approx(list(numbers), abs=1e-12)


def cells(report: str) -> dict[str, list[str]]:
    """Row name -> its four numbers as printed."""
    rows = [line.rsplit(maxsplit=4) for line in report.splitlines()[1:] if line.strip()]
    return {name.strip(): numbers for name, *numbers in rows}


def agree_as_printed(ours: dict[str, list[str]], exact: dict[str, dict]) -> None:
    """Each printed number is the exact one rounded to three decimals (at a tie, either way)."""
    assert set(ours) == set(exact)
    for name, printed in ours.items():
        assert all(len(text.partition(".")[2]) == 3 for text in printed[:3])
        assert [float(text) for text in printed] == pytest.approx(
            [exact[name][column] for column in COLUMNS], abs=0.0005 + 1e-9
        )


@pytest.fixture(autouse=True)
def quiet():
    """Both libraries warn about 0/0, which is meant to occur here, and seqeval about tags such as '.'."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("prefixes", ["B", "I", "BI", "IE", "BIES"])
def test_entities_equal_seqeval(prefixes):
    draw = random.Random(21)
    for _ in range(2000):
        tags = draw.choices([*tags_of(prefixes), "."], k=draw.randint(0, 17))
        expected = [(kind, first, last + 1) for kind, first, last in get_entities(tags)]
        assert metrics.entities(tags) == expected, tags


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_entity_scores_equal_seqeval(prefixes):
    draw = random.Random(22)
    one_sided = 0
    for _ in range(1200):
        gold, predicted = pair(draw, tags_of(prefixes))
        scores = metrics.entity_scores(gold, predicted)
        *micro, _ = entity_numbers(gold, predicted, average="micro")
        support = sum(len(get_entities(tags)) for tags in gold)
        assert four(scores) == close([*micro, support])
        kinds = list(scores["types"])
        assert kinds == sorted({kind for tags in gold + predicted for kind, _, _ in get_entities(tags)})
        if kinds:
            columns = entity_numbers(gold, predicted, average=None)
            for kind, *row in zip(kinds, *columns, strict=True):
                assert four(scores["types"][kind]) == close(row)
        one_sided += any(row["support"] == 0 for row in scores["types"].values())
    assert one_sided > 100


def test_strict_entities_equal_seqeval_in_strict_mode():
    draw = random.Random(23)
    for _ in range(800):
        gold, predicted = pair(draw, tags_of("BI"))
        there = {(n, *e) for n, tags in enumerate(gold) for e in metrics.entities(tags, strict=True)}
        found = {(n, *e) for n, tags in enumerate(predicted) for e in metrics.entities(tags, strict=True)}
        if not there | found:
            continue  # seqeval's strict mode cannot score a text without any entity
        precision, recall, *_ = strict_entity_numbers(gold, predicted, average="micro", scheme=IOB2)
        right = len(there & found)
        assert [right / max(1, len(found)), right / max(1, len(there))] == close([precision, recall])


def test_entity_report_equals_seqeval():
    draw = random.Random(24)
    for _ in range(300):
        gold, predicted = pair(draw, tags_of("BIES"))
        if not metrics.entity_scores(gold, predicted)["types"]:
            continue  # seqeval's report cannot be asked about a text without any entity
        exact = entity_table(gold, predicted, output_dict=True)
        del exact["macro avg"], exact["weighted avg"]
        agree_as_printed(cells(metrics.entity_report(gold, predicted)), exact)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_tag_scores_and_report_equal_scikit_learn(prefixes):
    draw = random.Random(25)
    only_gold = only_predicted = 0
    for _ in range(500):
        gold, predicted = pair(draw, tags_of(prefixes))
        scores = metrics.tag_scores(gold, predicted)
        gold, predicted = sum(gold, []), sum(predicted, [])
        assert metrics.tag_scores(gold, predicted) == scores

        exact = tag_table(gold, predicted, output_dict=True)
        accuracy = exact.pop("accuracy")
        exact["micro avg"] = dict.fromkeys(COLUMNS[:3], accuracy) | {"support": len(gold)}
        averages = {
            f"{kind} avg": {column: scores[f"{kind}_{column}"] for column in ("precision", "recall", "f1")}
            | {"support": scores["support"]}
            for kind in ("micro", "macro", "weighted")
        }
        ours = scores["per_tag"] | averages
        assert set(ours) == set(exact)
        for name, row in ours.items():
            assert four(row) == close(exact[name][column] for column in COLUMNS)
        assert scores["accuracy"] == scores["micro_f1"]
        agree_as_printed(cells(metrics.tag_report(gold, predicted)), exact)
        only_gold += bool(set(gold) - set(predicted))
        only_predicted += bool(set(predicted) - set(gold))
    assert only_gold > 50 and only_predicted > 50


def test_tag_report_prints_what_scikit_learn_prints():
    """The text itself, number by number, where scikit-learn is asked for our rows in our order."""
    draw = random.Random(26)
    tags = ["B-LOC", "I-LOC", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER", "O"]
    gold = draw.choices(tags, weights=[7, 2, 4, 1, 6, 3, 7, 5, 80], k=4321)
    predicted = [draw.choice(tags) if draw.random() < 0.05 else tag for tag in gold]
    theirs = cells(tag_table(gold, predicted, labels=tags, digits=3))
    ours = cells(metrics.tag_report(gold, predicted))
    averages = ["micro avg", "macro avg", "weighted avg"]
    assert list(ours) == tags + averages
    assert [ours[name] for name in tags + averages[1:]] == [theirs[name] for name in tags + averages[1:]]
    micro = f"{f1_score(gold, predicted, average='micro'):.3f}"
    assert ours["micro avg"] == [micro, micro, micro, "4321"]


@pytest.mark.parametrize("form", ["B", "TYPE-B"])
def test_tags_of_other_forms_hold_the_entities_of_seqeval(form):
    """seqeval calls the type of a tag without one "_", and has an option for prefixes that stand last."""
    draw = random.Random(31)
    for _ in range(300):
        written = draw.choices(["O", "B", "I", "E", "S"] if form == "B" else ["O", "X-B", "X-I", "Y-B", "Y-I"],
                               k=draw.randint(1, 12))
        theirs = [(kind, first, last + 1) for kind, first, last in get_entities(written, suffix=form != "B")]
        ours = entities([found[1] for found in map(spelled, written) if found is not None])
        assert [("_" if kind == UNTYPED else kind, a, b) for kind, a, b in ours] == theirs
