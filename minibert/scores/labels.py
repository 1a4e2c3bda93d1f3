"""Scores of texts with labels: classes, relations, confusion."""
from collections import Counter
from collections.abc import Mapping, Sequence

from minibert.errors import spelt_out
from minibert.scores.tables import COLUMNS, Scores, averaged, averages, ratio, row_of, side_by_side, table

SHOWN = 20                                         # labels that a notice names


def label_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]) -> Scores:
    """Scores of texts that have one label each, or any number of them.

    `accuracy` is the share of texts whose labels are exactly right. `per_class` has a row for each label on either
    side, in the order of `labels`, others last. Averages as in `tag_scores`; with one label a text micro F1 is the
    accuracy. Raises MinibertError where the two differ in length.

    Below 2 of 3 labels are found, and 2 of 3 that were given are right; F1 is 2/3 of a, 1 of b, 0 of c.

    >>> scores = label_scores([["a"], ["a", "b"]], [["a"], ["b", "c"]], ["a", "b"])
    >>> [scores["accuracy"], round(scores["micro_f1"], 3), round(scores["macro_f1"], 3)]
    [0.5, 0.667, 0.556]
    >>> scores["per_class"]["a"]["recall"], list(scores["per_class"])
    (0.5, ['a', 'b', 'c'])
    """
    pairs = [(set(right), set(guess)) for right, guess in side_by_side(gold, predicted, "texts")]
    there, found = (Counter(label for pair in pairs for label in pair[side]) for side in (0, 1))
    correct = Counter(label for right, guess in pairs for label in right & guess)
    either = (there | found).keys()
    order = [*(label for label in labels if label in either), *sorted(either - set(labels))]
    per_class = {label: row_of(correct[label], found[label], there[label]) for label in order}
    micro = row_of(correct.total(), found.total(), there.total())
    return {"accuracy": ratio(sum(right == guess for right, guess in pairs), len(pairs)), "support": there.total(),
            **averaged(per_class, micro), "per_class": per_class}


def relation_scores(gold: Sequence[str], predicted: Sequence[str], none: str) -> Scores:
    """The official score of SemEval-2010 Task 8: relations with their direction, `none` left out.

    A label is a relation and a direction in brackets, Cause-Effect(e2,e1), or a relation alone. A row of `relations`
    counts both directions together, but an answer is right only with the right one. `macro_f1` is the plain mean over
    the relations on either side, `micro_f1` adds counts first. Raises MinibertError where the two differ in length.

    Below of two A's one is found, the other in the wrong direction; B is given where there was none: F1 1/2 and 0.

    >>> scores = relation_scores(["A(e1,e2)", "A(e1,e2)", "Other"], ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)"], "Other")
    >>> scores["macro_f1"], scores["micro_f1"], scores["relations"]["A"]["recall"]
    (0.25, 0.4, 0.5)
    """
    pairs = side_by_side(gold, predicted, "relations")
    correct = Counter(g.split("(")[0] for g, p in pairs if g == p != none)
    there, found = (Counter(label.split("(")[0] for label in side if label != none) for side in (gold, predicted))
    rows = {name: row_of(correct[name], found[name], there[name]) for name in sorted(there | found)}
    whole = row_of(correct.total(), found.total(), there.total())
    return {**{f"macro_{c}": ratio(sum(row[c] for row in rows.values()), len(rows)) for c in COLUMNS},
            **{f"micro_{c}": whole[c] for c in COLUMNS}, "support": there.total(), "relations": rows}


def unseen(split: str, there: Mapping[str, int], labels: Sequence[str], names: str, holders: str) -> list[str]:
    """A notice where a split has labels that train never saw; `there`: how many `holders` each of its labels has.

    >>> unseen("dev", {"a": 3, "b": 2}, ["a"], "labels", "texts")
    ['dev has labels that train never saw, which count as missed: b (2 texts)']
    """
    known = set(labels)
    found = [f"{label} ({n} {holders})" for label, n in there.items() if label not in known]
    more = f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    return [f"{split} has {names} that train never saw, which count as missed: {', '.join(found[:SHOWN])}{more}"
            ] if found else []


def label_report(scores: Scores) -> str:
    """The table of `label_scores`: one line a class, then the averages."""
    return table(scores["per_class"], averages(scores))


def relation_report(scores: Scores) -> str:
    """The table of `relation_scores`: one line a relation, then the averages."""
    return table(scores["relations"], averages(scores, ("micro", "macro")))


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """[K][K]: how many texts of each label (rows) were given each (columns); pairs with any other label are left out.

    >>> confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    [[1, 1], [0, 1]]
    """
    counts = Counter(zip(gold, predicted, strict=True))
    return [[counts[right, guess] for guess in labels] for right in labels]


def confusion_report(table: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """`confusion` as text, a row a label; columns have numbers where names are long or many."""
    labels = [spelt_out(label) for label in labels]
    width = max(map(len, labels))
    plain = width <= 9 and len(labels) <= 9
    heads = list(labels) if plain else [str(i) for i in range(1, len(labels) + 1)]
    cell = max(len(str(n)) for n in [*heads, *(n for row in table for n in row)])
    names = [f"{label:{width}}" if plain else f"{i:>3} {label:{width}}" for i, label in enumerate(labels, 1)]
    lines = ["rows: gold, columns: predicted", " " * len(names[0]) + "".join(f"  {h:>{cell}}" for h in heads)]
    lines += [name + "".join(f"  {n or '.':>{cell}}" for n in row) for name, row in zip(names, table, strict=True)]
    return "\n".join(lines)
