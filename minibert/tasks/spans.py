"""Texts with spans, or lists of words and tags, as JSON: what annotation programs write, as words with tags.

A row is an object: a text with [start, end, type] or {"start", "end", "type"} for each entity, or words with a tag for
each. A file is JSON lines, or one array. Offsets count characters.
"""
import bisect
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibert.data.records import LONGEST, read_values_of_json
from minibert.data.tables import read_json_parts
from minibert.data.text import split_words
from minibert.errors import MinibertError
from minibert.files import Json
from minibert.tasks.columns import Reading, TagForm
from minibert.tasks.conll import MOST_WORDS, Sentence

JSON_SUFFIXES = (".jsonl", ".json")
MEMBERS = {"text": ("text", "data"), "entities": ("entities", "spans", "label", "labels"),
           "word": ("tokens", "words"), "tag": ("ner_tags", "tags", "labels")}  # what programs call each
PAIRS = (("text", "entities"), ("word", "tag"))
ITEMS = {"entities": (list, dict), "word": (str,), "tag": (str, int)}         # what their lists hold
ENDS = ("start", "start_offset", "end", "end_offset", "type", "label")       # of a span, one of each two
EXPECTED = '{"text": "...", "entities": [[start, end, type], ...]} or {"tokens": [...], "ner_tags": [...]}'


@dataclass(frozen=True)
class Entity:
    """An entity of a text: characters [start, end), no blank at either of them."""
    start: int
    end: int
    kind: str


class Told:
    """How many spans and rows of a file need a word, of which kind, and where the first of each stands."""

    def __init__(self, file: Path):
        self.file, self.counts, self.first = file, Counter[str](), dict[str, str]()

    def count(self, kind: str, first: str = "") -> None:
        """One more of a kind; `first`: what it is and where, should it be the first."""
        self.counts[kind] += 1
        self.first.setdefault(kind, first)

    def note(self, reading: Reading) -> None:
        """Tell of each kind."""
        for kind, means in (("widened", "of the spans that begin or end inside a word, each is widened to whole words; "
                                        "if most do, the offsets may not count characters from 0 to one past the end"),
                            ("rejected", "rows that an annotator has not accepted are passed over"),
                            ("left out", "of spans that share a word the longest is kept, the others are left out")):
            if self.counts[kind]:
                of = "" if kind == "rejected" else f" of {self.counts['spans']}"
                reading.notes[f"{self.file} {kind}"] = f"{self.first[kind]}: {means}; {self.counts[kind]}{of} {kind}"


def read_texts(file: Path, reading: Reading) -> Iterator[Iterator[Sentence]]:
    """Every text of a file as a document of one sentence; one without words is passed over.

    Raises MinibertError with file:line for what does not parse.
    """
    form, told = TagForm(reading), Told(file)
    for line, value in read_values_of_json(file, read_json_parts(file)):
        row, where = as_object(value, f"{file}:{line}"), f"{file}:{line}"
        if row.get("answer") in ("reject", "ignore"):      # as Prodigy keeps what an annotator did not accept
            told.count("rejected", f"{where}: \"answer\": {row['answer']!r}")
            continue
        names = chosen(row, reading, where)
        if "text" in names:
            text = row[names["text"]]
            words = split_words(text[:LONGEST + 1])
            if len(text) > LONGEST or len(words) > MOST_WORDS:
                raise MinibertError(f"{where}: a text of more than {MOST_WORDS:,} words; cut it up")
            tags = tags_of(text, words, [span_of(x, text, where) for x in row[names["entities"]]], where, told)
            sentence = Sentence([text[a:b] for a, b in words], tags, line)
        else:
            sentence = Sentence(row[names["word"]], read_tags(row, names, form, where), line)
        if sentence.words:
            yield iter([sentence])
    told.note(reading)


# ------------------------------------------------------------------------------------------------------------- rows


def as_object(value: object, where: str) -> Json:
    """A row as an object; spaCy writes [text, {"entities": [...]}]. Raises MinibertError for what is none."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict):
        return {**value[1], "text": value[0]}
    if not isinstance(value, dict):
        raise MinibertError(f"{where}: {type(value).__name__}, not an object; expected {EXPECTED}")
    return value


def chosen(row: Json, reading: Reading, where: str) -> dict[str, str]:
    """{"text", "entities"} or {"word", "tag"}: the member of a row that is each. Raises MinibertError."""
    said = reading.members
    found = {what: [name for name in ([said[what]] if what in said else names) if holds(row.get(name), what)]
             for what, names in MEMBERS.items()}
    asked = [pair for pair in PAIRS if any(what in said for what in pair)]
    pairs = [pair for pair in asked or PAIRS if all(found[what] for what in pair)]
    if len(pairs) != 1 or any(len(found[what]) > 1 for what in pairs[0]):
        raise MinibertError(f"{where}: the members {', '.join(map(repr, row)) or 'none'}; expected one pair of "
                            f"{EXPECTED}; --columns text=NAME,entities=NAME or word=NAME,tag=NAME says which are meant")
    return {what: found[what][0] for what in pairs[0]}


def holds(value: object, what: str) -> bool:
    """Whether a value is of the kind that `what` has."""
    if what == "text":
        return isinstance(value, str)
    return isinstance(value, list) and all(isinstance(x, ITEMS[what]) for x in value)


# ------------------------------------------------------------------------------------------------ words with tags


def read_tags(row: Json, names: dict[str, str], form: TagForm, where: str) -> list[str]:
    """The tags of a row in the usual form, one a word. Raises MinibertError."""
    words, tags = row[names["word"]], row[names["tag"]]
    if len(words) != len(tags):
        raise MinibertError(f"{where}: {len(words)} {names['word']} but {len(tags)} {names['tag']}")
    found = [form.read(tag, where) if isinstance(tag, str) else None for tag in tags]
    if None in found:
        wrong = tags[found.index(None)]
        what = "is a number without a name" if isinstance(wrong, int) else "is no tag"
        raise MinibertError(f"{where}: {wrong!r} in {names['tag']} {what}; expected O, B-TYPE, I-TYPE, E-TYPE or "
                            "S-TYPE")
    return [tag for tag in found if tag is not None]


# ----------------------------------------------------------------------------------------------- texts with spans


def span_of(item: object, text: str, where: str) -> Entity:
    """[start, end, type], or an object of them, as a span of a text. Raises MinibertError for one that is outside."""
    named = item if isinstance(item, list) else []
    if isinstance(item, dict):
        named = [item[name] for name in ENDS if name in item]
    if len(named) != 3 or not all(type(x) is int for x in named[:2]) or not (
            isinstance(named[2], str) and named[2].strip()):
        raise MinibertError(f"{where}: {json.dumps(item, ensure_ascii=False)[:60]} is no span; expected [start, end, "
                            'type] or {"start", "end", "type"}')

    start, end, kind = named
    if not 0 <= start < end <= len(text):
        raise MinibertError(f"{where}: the span {start} to {end} is not inside of a text of {len(text)} characters; "
                            "offsets count characters from 0, the end is one past the last")
    if not text[start:end].strip():
        raise MinibertError(f"{where}: the span {start} to {end} holds blanks alone; mend its offsets")
    said = item.get("text") if isinstance(item, dict) else None
    if isinstance(said, str) and said.strip() != text[start:end].strip():
        raise MinibertError(f"{where}: the span {start} to {end} is {text[start:end][:40]!r}, but says of itself "
                            f"{said[:40]!r}; offsets count characters, not bytes")
    inside = text[start:end]
    return Entity(end - len(inside.lstrip()), start + len(inside.rstrip()), kind.strip())


def tags_of(text: str, words: Sequence[tuple[int, int]], spans: Sequence[Entity], where: str, told: Told) -> list[str]:
    """IOB2 tags of the words [start, end) of a text. Of spans that share a word the longest is kept, then the first."""
    begins, ends = [a for a, _ in words], [b for _, b in words]
    tags = ["O"] * len(words)
    for span in sorted(dict.fromkeys(spans), key=lambda s: (s.start - s.end, s.start)):
        first, stop = bisect.bisect_right(ends, span.start), bisect.bisect_left(begins, span.end)
        shown, whole = text[span.start:span.end][:40], text[begins[first]:ends[stop - 1]][:40]
        told.count("spans")
        if any(tag != "O" for tag in tags[first:stop]):
            told.count("left out", f"{where}: {shown!r} ({span.kind})")
            continue
        if (begins[first], ends[stop - 1]) != (span.start, span.end):
            told.count("widened", f"{where}: {shown!r} in {whole!r}")
        tags[first:stop] = [f"B-{span.kind}"] + [f"I-{span.kind}"] * (stop - first - 1)
    return tags
