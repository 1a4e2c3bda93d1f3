"""Scores for tagged text: which entities were found, which tags were right, and how tags are written.

A tag is `O` (outside every entity) or `PREFIX-TYPE`, one a word. Four prefixes are known: B begins an
entity, I is inside, E ends one, S is one by itself. Other letters for the same things are read as well:
L (last) for E, U (unit) and W (whole) for S, M (middle) for I. `spelled` reads what other files write for it.

Three counts give every score, for entities and for single tags alike: `correct`, `predicted` and `gold`.
Precision is correct / predicted, recall is correct / gold, and F1, their harmonic mean, works out to
2 · correct / (predicted + gold). What would be 0/0 is 0.
"""
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import cast

from minibert.errors import MinibertError
from minibert.scores.tables import COLUMNS, Row, Scores, averaged, averages, ratio, row_of, side_by_side, table

Tags = Sequence[str]
TagLists = Sequence[Tags] | Tags                  # sentences of tags, or tags alone

OUTSIDE = ("O", "")
PREFIX = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "W": "S", "M": "I"}
UNTYPED = "ENTITY"                                 # the type of tags that name none
PREFIXES_OF = {"IOB1": "BIO", "IOB2": "BIO", "BIOES": "BIOES"}

# The whole boundary rule: an entity whose last word so far has the prefix on the left goes on when the next
# word has the same type and one of the prefixes on the right. Any other word that is not O begins an entity.
GOES_ON = {"B": "IE", "I": "IE", "E": "", "S": "", "O": ""}


# ---- tags and entities


def is_tag(tag: str) -> bool:
    """Whether `tag` is O or a known prefix, a hyphen and a type.

    >>> [is_tag(tag) for tag in ("O", "B-PER", "U-co-author", "PER", "B-", "X-PER")]
    [True, True, True, False, False, False]
    """
    prefix, _, kind = tag.partition("-")
    return tag == "O" or (prefix in PREFIX and kind != "")


def iob2_tags(tags: Iterable[str]) -> list[str]:
    """O, and B-X and I-X of every type X of `tags`, in the order of the types.

    >>> iob2_tags(["S-PER", "O", "B-LOC"])
    ['O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER']
    """
    types = sorted({_split(tag)[1] for tag in tags} - {""})
    return ["O", *(prefix + kind for kind in types for prefix in ("B-", "I-"))]


def spelled(tag: str) -> tuple[str, str] | None:
    """(the form that a tag is written in, the same as O or PREFIX-TYPE); O fits every form, ""; None for no tag.

    Beside PREFIX-TYPE these are a prefix alone, a type before its prefix, and "_" or ":" in place of the hyphen.

    >>> [spelled(tag) for tag in ("B-PER", "B", "PER-B", "I_PER", "O")]
    [('B-TYPE', 'B-PER'), ('B', 'B-ENTITY'), ('TYPE-B', 'B-PER'), ('B_TYPE', 'I-PER'), ('', 'O')]
    """
    if is_tag(tag):
        return "" if tag == "O" else "B-TYPE", tag
    if tag in PREFIX:
        return "B", f"{tag}-{UNTYPED}"
    for sign in "-_:":
        (before, _, after), (kind, _, last) = tag.partition(sign), tag.rpartition(sign)
        if before in PREFIX and after:
            return f"B{sign}TYPE", f"{before}-{after}"
        if last in PREFIX and kind:
            return f"TYPE{sign}B", f"{last}-{kind}"
    return None


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

    One reading of entities serves all schemes; `scheme` says which prefixes may occur, and one that
    it does not have raises MinibertError. Stray I's of broken IOB2 become B.

    >>> to_iob2(["I-PER", "I-PER", "B-PER", "O", "I-LOC"], "IOB1")
    ['B-PER', 'I-PER', 'B-PER', 'O', 'B-LOC']
    >>> to_iob2(["B-PER", "L-PER", "U-LOC"], "BIOES")
    ['B-PER', 'I-PER', 'B-LOC']
    """
    for tag in tags:
        if _split(tag)[0] not in PREFIXES_OF[scheme]:
            raise MinibertError(f"{tag!r} does not occur in {scheme}: expected {' '.join(PREFIXES_OF[scheme])}")
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


def _sentences(gold: TagLists, predicted: TagLists) -> list[tuple[Tags, Tags]]:
    """Pairs of sentences of equal length; a flat list of tags counts as one sentence."""
    gold, predicted = ([cast(Tags, side)] if len(side) and isinstance(side[0], str) else side
                       for side in (gold, predicted))
    pairs = side_by_side(gold, predicted, "sentences")
    for number, (right, guess) in enumerate(pairs, 1):
        if len(right) != len(guess):
            raise MinibertError(f"sentence {number} has {len(right)} gold but {len(guess)} predicted tags")
    return pairs


def entity_scores(gold: Sequence[Tags], predicted: Sequence[Tags]) -> Scores:
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
    correct, found, there = Counter[str](), Counter[str](), Counter[str]()
    for right, guess in _sentences(gold, predicted):
        of_gold, of_guess = entities(right), entities(guess)
        there.update(kind for kind, _, _ in of_gold)
        found.update(kind for kind, _, _ in of_guess)
        whole = set(of_gold) & set(of_guess)                                  # [SCORE-9]
        correct.update(kind for kind, _, _ in whole)
    types = {kind: row_of(correct[kind], found[kind], there[kind]) for kind in sorted(there | found)}
    return {**row_of(correct.total(), found.total(), there.total()), "types": types}


def _place_in_table(tag: str) -> tuple[bool, str, bool, bool, str]:
    prefix, _, kind = tag.partition("-")
    return tag == "O", kind, prefix != "B", prefix != "I", prefix


def tag_scores(gold: TagLists, predicted: TagLists) -> Scores:
    """Scores of single tags, O included, over flat lists of tags or lists of sentences.

    `per_tag` has a row for each tag on either side, in the order of the table. `micro_…` adds counts over
    tags (with one tag a word precision, recall, F1 and accuracy are then one number), `macro_…` is the plain
    mean over tags, `weighted_…` the mean weighted by support.

    Below O is right 2 times of 2 (of 3 predicted), B-LOC 1 time of 2 (of 1 predicted): F1 4/5 and 2/3.

    >>> scores = tag_scores(["O", "B-LOC", "O", "B-LOC"], ["O", "B-LOC", "O", "O"])
    >>> [round(scores[name], 3) for name in ("micro_f1", "macro_f1", "weighted_f1", "macro_precision")]
    [0.75, 0.733, 0.733, 0.833]
    """
    words = [pair for right, guess in _sentences(gold, predicted) for pair in zip(right, guess, strict=True)]
    there, found = Counter(right for right, _ in words), Counter(guess for _, guess in words)
    correct = Counter(right for right, guess in words if right == guess)
    order = sorted(there | found, key=_place_in_table)
    per_tag = {tag: row_of(correct[tag], found[tag], there[tag]) for tag in order}

    accuracy = ratio(correct.total(), len(words))                            # [SCORE-5]
    return {"accuracy": accuracy, "support": len(words), **averaged(per_tag, dict.fromkeys(COLUMNS, accuracy)),
            "per_tag": per_tag}


def tag_report(gold: TagLists, predicted: TagLists) -> str:
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
    return tag_table(scores["per_tag"], scores["accuracy"])


def tag_table(per_tag: Mapping[str, Row], accuracy: float) -> str:
    """tag_report() from what tag_scores() gave."""
    words = sum(row["support"] for row in per_tag.values())
    return table(per_tag, averages({"support": words, **averaged(per_tag, dict.fromkeys(COLUMNS, accuracy))}))


def entity_report(gold: Sequence[Tags], predicted: Sequence[Tags]) -> str:
    """The table of `entity_scores`: one line a type, then the micro average.

    >>> print(entity_report([["B-PER", "O", "B-LOC"]], [["B-PER", "O", "O"]]).replace("\\n\\n", "\\n"))
               precision     recall   f1-score    support
    LOC            0.000      0.000      0.000          1
    PER            1.000      1.000      1.000          1
    micro avg      1.000      0.500      0.667          2
    """
    return entity_table(entity_scores(gold, predicted))


def entity_table(scores: Scores) -> str:
    """entity_report() from what entity_scores() gave."""
    return table(scores["types"], {"micro avg": scores})
