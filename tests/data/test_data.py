"""The default NER data in data/ner: format, tags, counts, splits, and the rule against repeated wording.

Nothing of the package is imported: the parser below is the test's own. A check is a function from
parsed splits to a list of faults (empty when all is well), so that the second half of this file can
break the data on purpose and see each check complain.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "data"
SPLITS = ("train", "dev", "test")
TYPES = ("PER", "ORG", "LOC", "MISC")
TAGS = {"O"} | {f"{prefix}-{kind}" for prefix in "BI" for kind in TYPES}


# ---- reading -----------------------------------------------------------------------------------------------


def parse(text, name="text"):
    """Text of one file -> documents; a document is a list of sentences, a sentence a list of (word, tag)."""

    def fault(number, what):
        raise ValueError(f"{name}:{number}: {what}")

    if "\r" in text or "\t" in text:
        fault(0, "carriage return or tab in the file")
    if not text.endswith("\n\n"):
        fault(0, "the file must end with a blank line after the last sentence")
    documents, sentence, expect_blank = [], [], False
    lines = text[:-1].split("\n")
    for number, line in enumerate(lines, 1):
        if line == "-DOCSTART- O":
            if sentence:
                fault(number, "no blank line before -DOCSTART-")
            if documents and not documents[-1]:
                fault(number, "a document without sentences")
            documents.append([])
            expect_blank = True
        elif expect_blank:
            if line:
                fault(number, "no blank line after -DOCSTART-")
            expect_blank = False
        elif line == "":
            if not sentence:
                fault(number, "two blank lines in a row")
            documents[-1].append(sentence)
            sentence = []
        else:
            columns = line.split(" ")
            if len(columns) != 2 or not all(columns):
                fault(number, f"expected a word, one space and a tag, found {line!r}")
            if not documents:
                fault(number, "text before the first -DOCSTART-")
            sentence.append((columns[0], columns[1]))
    if documents and not documents[-1]:
        fault(len(lines), "a document without sentences")
    return documents


@cache
def real():
    read = {split: (DATA / "ner" / f"{split}.conll").read_bytes().decode("utf-8") for split in SPLITS}
    return {split: parse(text, f"{split}.conll") for split, text in read.items()}


def sentences(documents):
    return [sentence for document in documents for sentence in document]


def everywhere(splits):
    """(place, sentence) for every sentence; the place is split:document:sentence, counted from 1."""
    for split, documents in splits.items():
        for d, document in enumerate(documents, 1):
            for s, sentence in enumerate(document, 1):
                yield f"{split}:{d}:{s}", sentence


def entities(sentence):
    found = []
    for word, tag in sentence:
        if tag.startswith("B-"):
            found.append((tag[2:], [word]))
        elif tag.startswith("I-") and found:
            found[-1][1].append(word)
    return [(kind, " ".join(words)) for kind, words in found]


def lowered(sentence):
    return tuple(word.lower() for word, _ in sentence)


def is_headline(sentence):
    text = " ".join(word for word, _ in sentence)
    return len(sentence) > 2 and text == text.upper() and sum(letter.isalpha() for letter in text) > 9


def count(documents):
    kinds = Counter(kind for sentence in sentences(documents) for kind, _ in entities(sentence))
    return {
        "documents": len(documents),
        "sentences": len(sentences(documents)),
        "words": sum(len(sentence) for sentence in sentences(documents)),
        **{kind: kinds[kind] for kind in TYPES},
        "all entities": sum(kinds.values()),
        "sentences without an entity": sum(not entities(sentence) for sentence in sentences(documents)),
        "headlines in capitals": sum(map(is_headline, sentences(documents))),
        "sentences of one word": sum(len(sentence) == 1 for sentence in sentences(documents)),
    }


# ---- the checks --------------------------------------------------------------------------------------------


def check_tags(splits):
    return [f"{place}: unknown tag {tag!r} at {word!r}"
            for place, sentence in everywhere(splits) for word, tag in sentence if tag not in TAGS]


def check_iob2(splits):
    faults = []
    for place, sentence in everywhere(splits):
        before = "O"
        for word, tag in sentence:
            if tag.startswith("I-") and before not in (f"B-{tag[2:]}", tag):
                faults.append(f"{place}: {tag} at {word!r} follows {before}")
            before = tag
    return faults


def check_overlap(splits):
    """No sentence of more than three words stands in two splits (letter case does not count)."""
    homes = defaultdict(set)
    for split, documents in splits.items():
        for sentence in sentences(documents):
            if len(sentence) > 3:
                homes[lowered(sentence)].add(split)
    return [f"in {' and '.join(sorted(where))}: {' '.join(words)}"
            for words, where in homes.items() if len(where) > 1]


def check_six_words(splits):
    """No two sentences anywhere share six words in a row; punctuation counts as words, case does not."""
    first, faults = {}, []
    for place, sentence in everywhere(splits):
        words = lowered(sentence)
        for six in {words[k:k + 6] for k in range(len(words) - 5)}:
            if first.setdefault(six, place) != place:
                faults.append(f"{place} shares six words with {first[six]}: {' '.join(six)}")
    return faults


def check_characters(splits):
    faults = []
    for place, sentence in everywhere(splits):
        for word, _ in sentence:
            if word.isascii() and word.isprintable() and " " not in word:
                continue
            if any(c == "\ufffd" or unicodedata.category(c)[0] in "CZ" for c in word):
                faults.append(f"{place}: replacement, control or space character in {word!r}")
            elif unicodedata.normalize("NFC", word) != word:
                faults.append(f"{place}: {word!r} is not in normal form C")
    return faults


def check_words_split(splits):
    """Punctuation, possessives and n't are words of their own, as in CoNLL-2003."""
    stuck = re.compile(r"""["(\[].+|.+[,;:!?")\]]|.*\w\w'(s|S|ve|re|ll|d|m)|.+n't""")
    faults = []
    for place, sentence in everywhere(splits):
        faults += [f"{place}: {word!r} is more than one word" for word, _ in sentence
                   if stuck.fullmatch(word) and word != "n't"]
        last = sentence[-1][0]
        if len(sentence) > 1 and re.search(r"[a-z]\.$", last):
            faults.append(f"{place}: {last!r} keeps the full stop")
    return faults


def rows_of(readme, columns):
    """{first cell: the other cells} of every table of the page with so many columns, heads and rules included."""
    rows = ([cell.strip() for cell in line.strip().strip("|").split("|")]
            for line in readme.split("\n## ")[1].splitlines() if line.startswith("|"))
    return {first: rest for first, *rest in rows if len(rest) == columns - 1}


def check_table(splits, readme):
    """The table in data/README.md gives exactly the counted numbers."""
    told = {name: [int(cell.replace(",", "")) for cell in cells] for name, cells in rows_of(readme, 5).items()
            if all(re.fullmatch(r"[\d,]+", cell) for cell in cells)}
    faults = []
    counted = [count(splits[split]) for split in SPLITS]
    for row in counted[0]:
        numbers = [column[row] for column in counted]
        numbers.append(sum(numbers))
        if told.pop(row, None) != numbers:
            faults.append(f"README table, row {row!r}: the files give {numbers}")
    return faults + [f"README table: row {row!r} is not known" for row in told]


def check_meanings(splits, readme):
    """The table in data/README.md of words that are names of several types, or plain words too ("-")."""
    kinds = defaultdict(set)
    for _, sentence in everywhere(splits):
        for kind, name in entities(sentence):
            kinds[name.lower()].add(kind)
        for word, tag in sentence:
            if tag == "O":
                kinds[word.lower()].add("-")
    told = {word: set(cells[0].split()) for word, cells in rows_of(readme, 2).items()
            if set(cells[0].split()) <= {*TYPES, "-"}}
    return [f"{word}: the files give {' '.join(sorted(kinds[word.lower()]))}" for word, meanings in told.items()
            if kinds[word.lower()] != meanings] + ([] if len(told) > 10 else ["no table of meanings"])


CHECKS = [check_tags, check_iob2, check_overlap, check_six_words, check_characters, check_words_split]


@cache
def whole(check):
    return check(real())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_data(check):
    assert whole(check) == []


@pytest.mark.parametrize("check", [check_table, check_meanings])
def test_readme(check):
    assert check(real(), (DATA / "README.md").read_text(encoding="utf-8")) == []


def test_files_are_what_the_parser_read():
    for split, documents in real().items():
        written = ""
        for document in documents:
            written += "-DOCSTART- O\n\n"
            for sentence in document:
                written += "".join(f"{word} {tag}\n" for word, tag in sentence) + "\n"
        assert written.encode("utf-8") == (DATA / "ner" / f"{split}.conll").read_bytes()


# ---- the checks can fail -----------------------------------------------------------------------------------


def made(text):
    """'Ann/B-PER runs' -> a sentence; no slash means O."""
    return [tuple(item.rsplit("/", 1)) if "/" in item else (item, "O") for item in text.split()]


def added(*items, documents=20):
    """The first real documents with sentences appended as new ones: ('dev', 'Ann/B-PER runs'), ..."""
    splits = {split: real()[split][:documents] for split in SPLITS}
    for split, text in items:
        splits[split] = [*splits[split], [made(text)]]
    return splits


def filtered(keep, only=SPLITS):
    """The real splits without the sentences of some splits that `keep` refuses."""
    return {split: [[s for s in document if split not in only or keep(s)] for document in documents]
            for split, documents in real().items()}


def renamed(name, old, new):
    """The real splits with one-word entities `name` of type `old` retagged as `new` (a type, or O)."""
    def retag(word, tag):
        hit = word.lower() == name and tag == (f"B-{old}" if old != "O" else "O")
        return (word, "O" if new == "O" else f"B-{new}") if hit else (word, tag)

    return {split: [[[retag(*pair) for pair in s] for s in document] for document in documents]
            for split, documents in real().items()}


def test_parser_counts_documents_and_sentences():
    text = "-DOCSTART- O\n\nAnn B-PER\nruns O\n\nWhy O\n\n-DOCSTART- O\n\nRain O\n\n"
    assert parse(text) == [[[("Ann", "B-PER"), ("runs", "O")], [("Why", "O")]], [[("Rain", "O")]]]


@pytest.mark.parametrize("text, what", [
    ("-DOCSTART- O\n\nAnn B-PER\nruns\n\n", "4: expected a word"),
    ("-DOCSTART- O\n\nAnn NNP B-PER\n\n", "3: expected a word"),
    ("-DOCSTART- O\n\nAnn  B-PER\n\n", "3: expected a word"),
    ("-DOCSTART- O\n\nAnn\tB-PER\n\n", "tab"),
    ("-DOCSTART- O\r\n\r\nAnn B-PER\r\n\r\n", "carriage return"),
    ("-DOCSTART- O\nAnn B-PER\n\n", "2: no blank line after"),
    ("-DOCSTART- O\n\nAnn B-PER\n-DOCSTART- O\n\nBob B-PER\n\n", "4: no blank line before"),
    ("-DOCSTART- O\n\nAnn B-PER\n\n\nBob B-PER\n\n", "5: two blank lines"),
    ("-DOCSTART- O\n\n-DOCSTART- O\n\nBob B-PER\n\n", "3: a document without sentences"),
    ("-DOCSTART- O\n\nAnn B-PER\n\n-DOCSTART- O\n\n", "a document without sentences"),
    ("Ann B-PER\n\n", "1: text before the first"),
    ("-DOCSTART- O\n\nAnn B-PER\n", "must end with a blank line"),
])
def test_parser_refuses(text, what):
    with pytest.raises(ValueError, match=re.escape(what)):
        parse(text)


LONG = "seven green kettles sang beside an empty harbour"
BREAKS = [
    (check_tags, lambda: added(("dev", "Ann/B-PERSON runs")), "unknown tag 'B-PERSON'"),
    (check_tags, lambda: added(("test", "Ann/E-PER runs")), "unknown tag 'E-PER'"),
    (check_iob2, lambda: added(("dev", "Ann/I-PER runs")), "I-PER at 'Ann' follows O"),
    (check_iob2, lambda: added(("train", "Ann/B-PER Bay/I-LOC")), "I-LOC at 'Bay' follows B-PER"),
    (check_iob2, lambda: added(("train", "Ann/B-PER ran to/I-PER")), "I-PER at 'to' follows O"),
    (check_overlap, lambda: added(("train", "Rain fell all night"), ("dev", "rain FELL all night")),
     "in dev and train: rain fell all night"),
    (check_six_words, lambda: added(("train", f"Once {LONG} ."), ("train", f"Today {LONG.title()} !")),
     "seven green kettles sang beside an"),
    (check_six_words, lambda: added(("dev", f"Once {LONG} ."), ("test", f"Yet {LONG.upper()}")),
     "green kettles sang beside an empty"),
    (check_characters, lambda: added(("dev", "caf\ufffd")), "replacement, control"),
    (check_characters, lambda: added(("dev", "ca\u200bfe")), "replacement, control"),
    (check_characters, lambda: real() | {"dev": [[[("ca\x07fe", "O")]]]}, "replacement, control"),
    (check_characters, lambda: real() | {"dev": [[[("15\u00a0000", "O")]]]}, "replacement, control"),
    (check_characters, lambda: added(("dev", "cafe\u0301")), "normal form C"),
    *[(check_words_split, lambda word=word: added(("dev", f"so {word} then")), f"{word!r} is more")
      for word in ("Ann,", '"Well', "(no", "Ann's", "didn't", "over)")],
    (check_words_split, lambda: added(("dev", "Ann ran home.")), "keeps the full stop"),
]


@pytest.mark.parametrize("check, broken, what", BREAKS, ids=lambda item: getattr(item, "__name__", ""))
def test_check_sees_broken_data(check, broken, what):
    assert whole(check) == []
    faults = check(broken())
    assert faults and what in " ".join(faults), faults[:3]


def test_every_check_is_seen_to_fail():
    assert {check for check, _, _ in BREAKS} == set(CHECKS)


def test_checks_leave_short_and_near_repeats_alone():
    assert check_overlap(added(("train", "Rain fell ."), ("dev", "Rain fell ."))) == []
    five = "seven green kettles sang beside"
    assert check_six_words(added(("train", f"Once {five} !"), ("dev", f"Twice {five} ?"))) == []
    assert check_six_words(added(("train", f"{LONG} and later {LONG}"))) == []


def test_table_check_sees_wrong_numbers():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    faults = check_table(added(("dev", "Ann/B-PER runs"), documents=None), readme)
    rows = [fault.split("'")[1] for fault in faults]
    assert rows == ["documents", "sentences", "words", "PER", "all entities"]
    shouted = check_table(added(("dev", "RAIN STOPS PLAY AGAIN"), ("dev", "Rain"), documents=None), readme)
    assert {"headlines in capitals", "sentences of one word"} <= {fault.split("'")[1] for fault in shouted}
    row = next(line for line in readme.splitlines() if line.startswith("| MISC |"))
    other = re.sub(r"\d(?= \|)", lambda digit: str((int(digit[0]) + 1) % 10), row, count=1)
    assert other != row
    assert len(check_table(real(), readme.replace(row, other))) == 1
    assert len(check_table(real(), readme.replace(row + "\n", ""))) == 1
    assert check_table(real(), readme.replace(row, row + "\n| pages | 1 | 2 | 3 | 6 |")) != []


@pytest.mark.parametrize("word, old, new", [
    ("washington", "ORG", "LOC"), ("jordan", "PER", "O"), ("tesla", "MISC", "ORG"), ("target", "ORG", "O"),
    ("turkey", "O", "LOC")])
def test_meanings_check_sees_a_word_with_others(word, old, new):
    faults = check_meanings(renamed(word, old, new), (DATA / "README.md").read_text(encoding="utf-8"))
    assert [fault.split(":")[0].lower() for fault in faults] == [word]
