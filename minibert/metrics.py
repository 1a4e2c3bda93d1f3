"""Scores for tagged text: which entities were found, which tags were right, and how tags are written.

A tag is `O` (outside every entity) or `PREFIX-TYPE`, one a word. Four prefixes are known: B begins an
entity, I is inside, E ends one, S is one by itself. Other letters for the same things are read as well:
L (last) for E, U (unit) and W (whole) for S, M (middle) for I.

Three counts give every score, for entities and for single tags alike: `correct`, `predicted` and `gold`.
Precision is correct / predicted, recall is correct / gold, and F1, their harmonic mean, works out to
2 · correct / (predicted + gold). What would be 0/0 is 0.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from minibert.errors import MinibertError

Tags = Sequence[str]
Row = dict[str, Any]

OUTSIDE = ("O", "")
PREFIX = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "W": "S", "M": "I"}
AT_HOME = {"IOB1": "BIO", "IOB2": "BIO", "BIOES": "BIOES"}
COLUMNS = ("precision", "recall", "f1")

# The whole boundary rule: an entity whose last word so far has the prefix on the left goes on when the next
# word has the same type and one of the prefixes on the right. Any other word that is not O begins an entity.
GOES_ON = {
    "B": "IE",
    "I": "IE",
    "E": "",
    "S": "",
    "O": "",
}


# ---- tags and entities


def is_tag(tag: str) -> bool:
    """Whether `tag` is O or a known prefix, a hyphen and a type.

    >>> [is_tag(tag) for tag in ("O", "B-PER", "U-co-author", "PER", "B-", "X-PER")]
    [True, True, True, False, False, False]
    """
    prefix, _, kind = tag.partition("-")
    return tag == "O" or (prefix in PREFIX and kind != "")


def _split(tag: str) -> tuple[str, str]:
    """(one of B I E S O, type); conlleval's old habit of writing "." for O is understood."""
    if tag in ("O", "."):
        return OUTSIDE
    if not is_tag(tag):
        raise MinibertError(f"{tag!r} is not a tag: expected O or PREFIX-TYPE, prefixes {' '.join(PREFIX)}")
    prefix, _, kind = tag.partition("-")
    return PREFIX[prefix], kind


def _joined(before: tuple[str, str], word: tuple[str, str]) -> bool:
    """Whether two neighbouring (prefix, type) belong to one entity."""
    return before[1] == word[1] and word[0] in GOES_ON[before[0]]             # [SCORE-10]


def entities(tags: Tags, strict: bool = False) -> list[tuple[str, int, int]]:
    """The entities of one sentence as (type, first word, last word + 1), from left to right.

    The meaning is conlleval's, which reads any mixture of IOB1, IOB2, BIOES and IOE: an I that cannot go on
    with the word before it begins an entity of its own. With `strict` (for IOB2) an entity must begin with B,
    and what begins otherwise is none. The smallest sentence on which the two differ is a lone I:

    >>> entities(["I-LOC"]), entities(["I-LOC"], strict=True)
    ([('LOC', 0, 1)], [])
    >>> entities(["B-PER", "I-PER", "O", "B-ORG", "I-LOC", "I-LOC"])
    [('PER', 0, 2), ('ORG', 3, 4), ('LOC', 4, 6)]
    """
    words = [OUTSIDE, *map(_split, tags)]
    found: list[tuple[str, int, int]] = []
    for place, (before, (prefix, kind)) in enumerate(pairwise(words)):
        if _joined(before, (prefix, kind)):
            found[-1] = (kind, found[-1][1], place + 1)
        elif prefix != "O":
            found.append((kind, place, place + 1))
    return [entity for entity in found if not strict or tags[entity[1]].startswith("B-")]  # [SCORE-11]


# ---- schemes


def detect_scheme(tag_sequences: Iterable[Tags]) -> str:
    """The scheme that sentences of tags are written in: "IOB1", "IOB2" or "BIOES".

    A prefix that ends an entity or stands alone (E, S or their synonyms) makes it BIOES. IOB1 keeps B for the
    second of two touching entities of one type: some entity begins with I, and every B has its own type just
    before it. Everything else is IOB2: also text without entities, which fits both, and text with stray I's,
    which fits neither (`invalid_starts` counts them).

    >>> [detect_scheme([tags]) for tags in (["I-PER", "B-PER"], ["B-PER", "B-PER"], ["S-PER", "O"])]
    ['IOB1', 'IOB2', 'BIOES']
    """
    return scheme_of(pair for tags in tag_sequences for pair in pairwise(["O", *tags]))


def scheme_of(pairs: Iterable[tuple[str, str]]) -> str:
    """detect_scheme from the pairs of neighbouring tags alone; "O" stands before the first tag of a sentence.

    >>> scheme_of([("O", "I-PER"), ("I-PER", "B-PER")])
    'IOB1'
    """
    neighbours = [(_split(before), _split(tag)) for before, tag in set(pairs)]
    if any(prefix in "ES" for _, (prefix, _) in neighbours):
        return "BIOES"
    some_i_begins = any(word[0] == "I" and not _joined(before, word) for before, word in neighbours)
    every_b_divides = all(before[1] == word[1] for before, word in neighbours if word[0] == "B")
    return "IOB1" if some_i_begins and every_b_divides else "IOB2"


def to_iob2(tags: Tags, scheme: str) -> list[str]:
    """The same entities in IOB2: B on the first word of each, I on the others. The outcome is always valid.

    One reading of entities serves all schemes; `scheme` says which prefixes may occur, and one that is not at
    home there raises MinibertError. Stray I's of broken IOB2 become B.

    >>> to_iob2(["I-PER", "I-PER", "B-PER", "O", "I-LOC"], "IOB1")
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC']
    >>> to_iob2(["B-PER", "L-PER", "U-LOC"], "BIOES")
    ['B-PER', 'I-PER', 'B-LOC']
    """
    for tag in tags:
        if _split(tag)[0] not in AT_HOME[scheme]:
            raise MinibertError(f"{tag!r} does not occur in {scheme}: expected {' '.join(AT_HOME[scheme])}")
    converted = ["O"] * len(tags)
    for kind, first, end in entities(tags):
        converted[first:end] = [f"B-{kind}"] + [f"I-{kind}"] * (end - first - 1)
    return converted


def invalid_starts(tags: Tags) -> int:
    """How many entities begin otherwise than IOB2 and BIOES allow: what `to_iob2` had to repair.

    >>> invalid_starts(["I-PER", "I-PER", "O", "B-ORG", "I-LOC"])
    2
    """
    return sum(_split(tags[first])[0] not in "BS" for _, first, _ in entities(tags))


# ---- scores


def _sentences(gold: Sequence[Any], predicted: Sequence[Any]) -> list[tuple[Tags, Tags]]:
    """Pairs of sentences of equal length; a flat list of tags counts as one sentence."""
    if len(gold) and isinstance(gold[0], str):
        gold = [gold]
    if len(predicted) and isinstance(predicted[0], str):
        predicted = [predicted]
    if len(gold) != len(predicted):
        raise MinibertError(f"{len(gold)} gold sentences but {len(predicted)} predicted ones")
    pairs = list(zip(gold, predicted, strict=True))
    for number, (right, guess) in enumerate(pairs, 1):
        if len(right) != len(guess):
            raise MinibertError(f"sentence {number} has {len(right)} gold but {len(guess)} predicted tags")
    return pairs


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _row(correct: int, predicted: int, gold: int) -> Row:
    precision = _ratio(correct, predicted)                                    # [SCORE-1]
    recall = _ratio(correct, gold)                                            # [SCORE-2]
    f1 = _ratio(2 * correct, predicted + gold)                                # [SCORE-3]
    return {"precision": precision, "recall": recall, "f1": f1, "support": gold}


def entity_scores(gold: Sequence[Tags], predicted: Sequence[Tags]) -> dict[str, Any]:
    """Precision, recall and F1 of whole entities: right only if type, first and last word all are.

    `gold` and `predicted` are lists of sentences, each a list of tags. The overall numbers are micro
    averages: counts are added over types first. `support` counts gold entities; `types` holds the same for
    each type that occurs on either side. Raises MinibertError where two sentences differ in length.

    Below 1 entity of 3 predicted and 2 gold ones is right: P = 1/3, R = 1/2, F1 = 2 · 1 / (3 + 2).

    >>> scores = entity_scores([["B-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "O", "B-LOC", "B-LOC"]])
    >>> round(scores["precision"], 3), scores["recall"], scores["f1"], scores["support"]
    (0.333, 0.5, 0.4, 2)
    >>> scores["types"]["PER"]
    {'precision': 0.0, 'recall': 0.0, 'f1': 0.0, 'support': 1}
    """
    correct: Counter[str] = Counter()
    found: Counter[str] = Counter()
    there: Counter[str] = Counter()
    for right, guess in _sentences(gold, predicted):
        of_gold, of_guess = entities(right), entities(guess)
        there.update(kind for kind, _, _ in of_gold)
        found.update(kind for kind, _, _ in of_guess)
        whole = set(of_gold) & set(of_guess)                                  # [SCORE-9]
        correct.update(kind for kind, _, _ in whole)
    types = {kind: _row(correct[kind], found[kind], there[kind]) for kind in sorted(there | found)}
    return {**_row(correct.total(), found.total(), there.total()), "types": types}


def _place_in_table(tag: str) -> tuple[bool, str, bool, bool, str]:
    prefix, _, kind = tag.partition("-")
    return tag == "O", kind, prefix != "B", prefix != "I", prefix


def _averaged(rows: Mapping[str, Row], micro: Mapping[str, float]) -> dict[str, float]:
    """{"micro_…", "macro_…", "weighted_…": a number} for each of COLUMNS."""
    scores, every, support = {}, rows.values(), sum(row["support"] for row in rows.values())
    for column in COLUMNS:
        scores[f"micro_{column}"] = micro[column]
        scores[f"macro_{column}"] = _ratio(sum(r[column] for r in every), len(rows))  # [SCORE-7]
        scores[f"weighted_{column}"] = _ratio(sum(r[column] * r["support"] for r in every), support)  # [SCORE-8]
    return scores


def tag_scores(gold: Sequence[Any], predicted: Sequence[Any]) -> dict[str, Any]:
    """Scores of single tags, O included, over flat lists of tags or lists of sentences.

    `per_tag` has a row for each tag on either side, in the order of the table. `micro_…` adds counts over
    tags (with one tag a word precision, recall, F1 and accuracy are then one number), `macro_…` is the plain
    mean over tags, `weighted_…` the mean weighted by support.

    Below O is right 2 times of 2 (of 3 predicted), B-LOC 1 time of 2 (of 1 predicted): F1 4/5 and 2/3.

    >>> scores = tag_scores(["O", "B-LOC", "O", "B-LOC"], ["O", "B-LOC", "O", "O"])
    >>> [round(scores[name], 3) for name in ("micro_f1", "macro_f1", "weighted_f1", "macro_precision")]
    [0.75, 0.733, 0.733, 0.833]
    """
    sentences = _sentences(gold, predicted)
    words = [pair for right, guess in sentences for pair in zip(right, guess, strict=True)]
    there, found = Counter(right for right, _ in words), Counter(guess for _, guess in words)
    correct = Counter(right for right, guess in words if right == guess)
    order = sorted(there | found, key=_place_in_table)
    per_tag = {tag: _row(correct[tag], found[tag], there[tag]) for tag in order}

    accuracy = _ratio(correct.total(), len(words))                            # [SCORE-5]
    scores = {"accuracy": accuracy, "support": len(words), **_averaged(per_tag, dict.fromkeys(COLUMNS, accuracy))}
    return {**scores, "per_tag": per_tag}


def label_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]],
                 labels: Sequence[str]) -> dict[str, Any]:
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
    if len(gold) != len(predicted):
        raise MinibertError(f"{len(gold)} gold texts but {len(predicted)} predicted ones")
    there, found = (Counter(label for text in side for label in set(text)) for side in (gold, predicted))
    pairs = [(set(right), set(guess)) for right, guess in zip(gold, predicted, strict=True)]
    correct = Counter(label for right, guess in pairs for label in right & guess)
    order = [*(label for label in labels if label in there | found), *sorted((there | found).keys() - set(labels))]
    per_class = {label: _row(correct[label], found[label], there[label]) for label in order}
    micro = _row(correct.total(), found.total(), there.total())
    scores = {"accuracy": _ratio(sum(right == guess for right, guess in pairs), len(pairs)),
              "support": there.total(), **_averaged(per_class, micro)}
    return {**scores, "per_class": per_class}


def relation_scores(gold: Sequence[str], predicted: Sequence[str], none: str) -> dict[str, Any]:
    """The official score of SemEval-2010 Task 8: relations with their direction, `none` left out.

    A label is a relation and a direction in brackets, Cause-Effect(e2,e1), or a relation alone. A row of `relations`
    counts both directions together, but an answer is right only with the right one. `macro_f1` is the plain mean over
    the relations on either side, `micro_f1` adds counts first. Raises MinibertError where the two differ in length.

    Below of two A's one is found, the other in the wrong direction; B is given where there was none: F1 1/2 and 0.

    >>> scores = relation_scores(["A(e1,e2)", "A(e1,e2)", "Other"], ["A(e1,e2)", "A(e2,e1)", "B(e1,e2)"], "Other")
    >>> scores["macro_f1"], scores["micro_f1"], scores["relations"]["A"]["recall"]
    (0.25, 0.4, 0.5)
    """
    if len(gold) != len(predicted):
        raise MinibertError(f"{len(gold)} gold relations but {len(predicted)} predicted ones")
    there, found = (Counter(label.split("(")[0] for label in side if label != none) for side in (gold, predicted))
    correct = Counter(g.split("(")[0] for g, p in zip(gold, predicted, strict=True) if g == p != none)
    rows = {name: _row(correct[name], found[name], there[name]) for name in sorted(there | found)}
    whole = _row(correct.total(), found.total(), there.total())
    return {**{f"macro_{c}": _ratio(sum(row[c] for row in rows.values()), len(rows)) for c in COLUMNS},
            **{f"micro_{c}": whole[c] for c in COLUMNS}, "support": there.total(), "relations": rows}


def ranking_scores(places: Sequence[int]) -> dict[str, Any]:
    """Of the place, from 1, that the first right answer of each question has: recall at 1 and at 5, and MRR.

    MRR is the mean of one over the place.

    >>> ranking_scores([1, 2, 4, 10])
    {'recall_1': 0.25, 'recall_5': 0.75, 'mrr': 0.4625, 'support': 4}
    """
    within = {f"recall_{k}": _ratio(sum(place <= k for place in places), len(places)) for k in (1, 5)}
    return {**within, "mrr": _ratio(sum(1 / place for place in places), len(places)), "support": len(places)}


def correlations(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """How well numbers were guessed: Pearson's and Spearman's correlation (0 where a side is constant), mean square.

    Spearman's is Pearson's of the ranks; equal numbers share the mean of theirs. Raises MinibertError where the two
    differ in length.

    Below the guesses rise as the truth does, but not in a straight line: 10/√105 and 1.

    >>> scores = correlations([1, 2, 3], [1, 2, 6])
    >>> round(scores["pearson"], 3), round(scores["spearman"], 3), scores["mse"]
    (0.945, 1.0, 3.0)
    """
    if len(gold) != len(predicted):
        raise MinibertError(f"{len(gold)} gold numbers but {len(predicted)} predicted ones")
    mse = _ratio(sum((g - p) ** 2 for g, p in zip(gold, predicted, strict=True)), len(gold))
    return {"pearson": _pearson(gold, predicted), "spearman": _pearson(_ranks(gold), _ranks(predicted)), "mse": mse,
            "support": len(gold)}


def _pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    n = len(xs)
    dx, dy = ([v - sum(values) / n for v in values] for values in (xs, ys))
    size = math.sqrt(sum(a * a for a in dx)) * math.sqrt(sum(b * b for b in dy))
    return _ratio(sum(a * b for a, b in zip(dx, dy, strict=True)), size)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 for the smallest; equal numbers share the mean of their places."""
    order = sorted(values)
    return [(bisect_left(order, v) + bisect_right(order, v) + 1) / 2 for v in values]


def unseen(split: str, there: Mapping[str, int], labels: Sequence[str], names: str, holders: str) -> list[str]:
    """A notice where a split has labels that train never saw; `there`: how many `holders` each of its labels has.

    >>> unseen("dev", {"a": 3, "b": 2}, ["a"], "labels", "texts")
    ['dev has labels that train never saw, which count as missed: b (2 texts)']
    """
    known = set(labels)
    found = ", ".join(f"{label} ({n} {holders})" for label, n in there.items() if label not in known)
    return [f"{split} has {names} that train never saw, which count as missed: {found}"] if found else []


# ---- tables


def _table(*groups: Mapping[str, Row]) -> str:
    """Text with a heading and one line a row; an empty line before each group."""
    width = max(len(name) for group in groups for name in group)
    lines = [f"{'':{width}}  {'precision':>9}  {'recall':>9}  {'f1-score':>9}  {'support':>9}"]
    for group in filter(None, groups):
        lines.append("")
        for name, row in group.items():
            numbers = "  ".join(f"{row[column]:9.3f}" for column in COLUMNS)
            lines.append(f"{name:{width}}  {numbers}  {row['support']:9d}")
    return "\n".join(lines)


def tag_report(gold: Sequence[Any], predicted: Sequence[Any]) -> str:
    """The table of `tag_scores`: sorted by type, B before I before other prefixes, O last, then the averages.

    >>> print(tag_report(["O", "B-LOC", "O", "B-LOC"], ["O", "B-LOC", "O", "O"]).replace("\\n\\n", "\\n"))
                  precision     recall   f1-score    support
    B-LOC             1.000      0.500      0.667          2
    O                 0.667      1.000      0.800          2
    micro avg         0.750      0.750      0.750          4
    macro avg         0.833      0.750      0.733          4
    weighted avg      0.833      0.750      0.733          4
    """
    scores = tag_scores(gold, predicted)
    return _table(scores["per_tag"], _averages(scores))


def _averages(scores: Mapping[str, Any]) -> dict[str, Row]:
    return {f"{kind} avg": {**{column: scores[f"{kind}_{column}"] for column in COLUMNS}, "support": scores["support"]}
            for kind in ("micro", "macro", "weighted")}


def label_report(scores: Mapping[str, Any]) -> str:
    """The table of `label_scores`: one line a class, then the averages."""
    return _table(scores["per_class"], _averages(scores))


def relation_report(scores: Mapping[str, Any]) -> str:
    """The table of `relation_scores`: one line a relation, then the averages."""
    averages = {f"{kind} avg": {**{c: scores[f"{kind}_{c}"] for c in COLUMNS}, "support": scores["support"]}
                for kind in ("micro", "macro")}
    return _table(scores["relations"], averages)


def confusion(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """[K][K]: how many texts of each label (rows) were given each (columns); pairs with any other label are left out.

    >>> confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    [[1, 1], [0, 1]]
    """
    counts = Counter(zip(gold, predicted, strict=True))
    return [[counts[right, guess] for guess in labels] for right in labels]


def confusion_report(table: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """`confusion` as text, a row a label; columns have numbers where names are long or many."""
    width = max(map(len, labels))
    plain = width <= 9 and len(labels) <= 9
    heads = list(labels) if plain else [str(i) for i in range(1, len(labels) + 1)]
    cell = max(len(str(n)) for n in [*heads, *(n for row in table for n in row)])
    names = [f"{label:{width}}" if plain else f"{i:>3} {label:{width}}" for i, label in enumerate(labels, 1)]
    lines = ["rows: gold, columns: predicted", " " * len(names[0]) + "".join(f"  {h:>{cell}}" for h in heads)]
    lines += [name + "".join(f"  {n or '.':>{cell}}" for n in row) for name, row in zip(names, table, strict=True)]
    return "\n".join(lines)


def entity_report(gold: Sequence[Tags], predicted: Sequence[Tags]) -> str:
    """The table of `entity_scores`: one line a type, then the micro average.

    >>> print(entity_report([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]]).replace("\\n\\n", "\\n"))
               precision     recall   f1-score    support
    LOC            0.000      0.000      0.000          1
    PER            1.000      1.000      1.000          1
    micro avg      1.000      0.500      0.667          2
    """
    scores = entity_scores(gold, predicted)
    return _table(scores["types"], {"micro avg": scores})
