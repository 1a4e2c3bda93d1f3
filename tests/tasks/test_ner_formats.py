"""tasks/columns.py, tasks/spans.py: the forms in which people have entities; what is read, what is said, what refused.

Every form of one small text must give the same words and tags, which stand below as a person would write them down.
"""
import json
import random
from pathlib import Path

import numpy as np
import pytest
from refusing import refused

from minibert.data.text import split_words
from minibert.errors import MinibertError
from minibert.scores.tags import spelled
from minibert.tasks.columns import AHEAD
from minibert.tasks.ner import NER
from minibert.use import prepare
from minibert.use.prepare import read_splits

GOOD = '{"text": "Bo", "label": [[0, 2, "PER"]]}\n'
WANTED = [[("ลลิตา", "B-PER"), ("met", "O"), ("José", "B-PER"), ("Ruiz", "I-PER")], [("In", "O"), ("दिल्ली", "B-LOC")]]


def read(folder: Path, text: str, name: str = "train.conll", **options: str) -> tuple[list, list[str]]:
    """Sentences of (word, tag), and the notices without the name of the folder."""
    (folder / name).write_text(text, encoding="utf-8")
    task = NER(NER.Options(**options))
    examples = task.read(folder)["train"]
    return ([list(zip(e.words, e.tags, strict=True)) for e in examples],
            [n.replace(f"{folder}/", "") for n in task.notices])


def columns(row: str, wanted=WANTED) -> str:
    """A file with a line of the form `row` for each word, {n} its number in its sentence."""
    return "\n".join("".join(row.format(n=n, word=word, tag=tag) + "\n" for n, (word, tag) in enumerate(sentence, 1))
                     for sentence in wanted)


# ------------------------------------------------------------------------------------------- columns, as they come


FORMS = {                                          # a row, the options, and what each notice must begin with and hold
    "a tag behind a tab": ("{word} NN\t{tag}", {}, [("train.conll:1: blanks and tabs", "3", "ลลิตา")]),
    "a word before a tab": ("{word}\tNN {tag}", {}, [("train.conll:1: blanks and tabs", "3")]),
    "a counted column": ("{n} {word} {tag}", {}, [("train.conll:1: the first column counts", "column 2")]),
    "counted, with tabs": ("{n}\t{word}\tNN\t{tag}", {}, [("train.conll:1: the first column counts", "column 2")]),
    "the word named": ("{n}\t{word}\tNN\t{tag}", {"columns": "word=2"}, []),
    "the tag named": ("{word} {tag} _ _", {"columns": "tag=2"}, []),
    "the tag from the end": ("{word} {tag} _", {"columns": "tag=-2"}, []),
    "both named": ("x {tag} {word} y", {"columns": " word = 3, tag=2"}, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_text_in_every_form_of_columns(tmp_path, form):
    row, options, notices = FORMS[form]
    found, told = read(tmp_path, columns(row), **options)
    assert found == WANTED and len(told) == len(notices)
    for notice, (begin, *parts) in zip(told, notices, strict=True):
        assert notice.startswith(begin) and all(part in notice for part in parts)


def test_a_word_with_blanks_between_tabs_stays_one_word_and_is_told(tmp_path):
    text = "At\tO\nha noi\tB-LOC\nand\tO\nNew York\tB-LOC\n"
    assert read(tmp_path, text) == ([[("At", "O"), ("ha noi", "B-LOC"), ("and", "O"), ("New York", "B-LOC")]], [
        "train.conll:2: words hold blanks where tabs stand between columns, the first is 'ha noi'"])
    for text in ("New York\tB-LOC\n", "New York\tB-LOC\nTel Aviv\tB-LOC\n"):  # no line shows what a common word is like
        found, told = read(tmp_path, text)
        assert found[0][0] == ("New York", "B-LOC") and "train.conll:1: words hold blanks" in told[0]
    assert read(tmp_path, "a lot\tO\n")[0] == [[("a lot", "O")]]


@pytest.mark.parametrize("before", [3, AHEAD + 5])
def test_mixed_columns_must_be_as_many_in_every_line(tmp_path, before):
    text = "Bo NN\tO\n" * before + "New York NN\tB-LOC\n"
    with refused(f"train.conll:{before + 1}: ", "New York", "4 columns", "tabs alone"):
        read(tmp_path, text)


def test_tags_behind_a_tab_for_names_alone(tmp_path):
    assert read(tmp_path, "Bo NN\tB-PER\nleft VB O\n")[0] == [[("Bo", "B-PER"), ("left", "O")]]


def test_conll_u(tmp_path):
    """Comments, a range, an empty node; the number is no word. A comment may end in what looks like a tag."""
    text = ("# newdoc id = a\n# text = B\n#x\n1\tLui\tPRON\tO\n2\tvit\tVERB\tO\n3-4\tdu\t_\t_\n"
            "3\tde\tADP\tO\n4\tle\tDET\tO\n4.1\tx\t_\tO\n5\triz\tNOUN\tB-FOOD\n\n# text = Lima\n"
            "1\tLima\tPROPN\tB-LOC\n")
    found, told = read(tmp_path, text)
    assert found == [[("Lui", "O"), ("vit", "O"), ("de", "O"), ("le", "O"), ("riz", "B-FOOD")], [("Lima", "B-LOC")]]
    assert [n.split(": ")[0] for n in told] == ["train.conll:4", "train.conll:1", "train.conll:6"]
    assert "column 2" in told[0] and "#" in told[1] and "3-4" in told[2] and "5.1" in told[2]
    assert NER(NER.Options()).read(tmp_path)["train"][1].where == f"{tmp_path / 'train.conll'}:13"


def test_a_second_column_of_tags_is_told_where_the_first_column_counts(tmp_path):
    """As in GermEval 2014: outer entities, then inner ones."""
    text = "#\thttps://example.org/a b\n1\tHaus\tB-ORG\tO\n2\tGent\tI-ORG\tB-LOC\n3\tmag\tO\tO\n"
    found, told = read(tmp_path, text)
    assert found == [[("Haus", "O"), ("Gent", "B-LOC"), ("mag", "O")]]
    assert "column 3 has tags too: --columns tag=3" in told[0] and len(told) == 2
    found, told = read(tmp_path, text, columns="tag=3")
    assert found == [[("Haus", "B-ORG"), ("Gent", "I-ORG"), ("mag", "O")]] and "tag=" not in told[0]
    _, told = read(tmp_path, "1 a X B-X\n2 b B O\n")                          # a B alone makes no column of tags
    assert len(told) == 1 and "tag=" not in told[0]


def test_only_under_a_column_that_counts_is_3_4_no_word(tmp_path):
    text = "1 a O\n1-2 b O\n2 c O\n"
    for columns, words in (("auto", "a c"), ("word=2", "a c"), ("word=1", "1 1-2 2")):
        assert [w for w, _ in read(tmp_path, text, columns=columns)[0][0]] == words.split()
    for columns, words in (("auto", "3-4 x"), ("word=2", "a b")):
        assert [w for w, _ in read(tmp_path, "3-4 a O\nx b O\n", columns=columns)[0][0]] == words.split()


@pytest.mark.parametrize("starts", [(1, 1), (0, 0), (0, 2), (7, 9)])
def test_a_column_counts_from_anywhere(tmp_path, starts):
    """From 0 or 1 in each sentence, or on through the file."""
    text = "\n".join("".join(f"{start + i} w{i} O\n" for i in range(2)) for start in starts)
    assert read(tmp_path, text)[0] == [[("w0", "O"), ("w1", "O")]] * 2


@pytest.mark.parametrize("text", [
    "1 CD B-X\n3 CD O\n", "1 O\n2 O\n", "1 CD O\nAda NN O\n", "20 CD O\n\n30 CD O\n",
    "1 CD O\n2 CD O\n\na b O\nc d O\n"])
def test_numbers_that_do_not_count_are_words(tmp_path, text):
    found, told = read(tmp_path, text)
    assert [w for s in found for w, _ in s] == [line.split(" ")[0] for line in text.split("\n") if line] and not told


def test_what_may_count_or_not_is_asked(tmp_path):
    lone, broken = "1 Ada O\n\n1 Bo B-PER\n", "1 a O\n2 b O\n\nx y O\n\n1 c B-X\n2 d O\n"
    for text, line in ((lone, 1), (broken, 4)):
        with refused(f"train.conll:{line}: ", "--columns word=1 or word=2"):
            read(tmp_path, text)
        for k in (1, 2):
            words = [w for s in read(tmp_path, text, columns=f"word={k}")[0] for w, _ in s]
            assert words == [row.split(" ")[k - 1] for row in text.split("\n") if row]
    with refused(f"train.conll:{3 * AHEAD + 1}: ", "no number", "--columns word=1"):
        read(tmp_path, "1 a O\n2 b O\n\n" * AHEAD + "x y O\n")


def test_comments_where_no_column_counts(tmp_path):
    """A # with the columns and the tag of a word is one."""
    text = "# id 5a-f domain=en\nBo _ _ B-PER\nis _ _ O\n# _ _ O\n1 _ _ O\n\n# id 7\n# _ _ O\n# _ _ B-X\n"
    found, told = read(tmp_path, text)
    assert found == [[("Bo", "B-PER"), ("is", "O"), ("#", "O"), ("1", "O")], [("#", "O"), ("#", "B-X")]]
    assert [n.split(" with")[0] for n in told] == ["train.conll:1: lines"]
    assert read(tmp_path, "# plan B-X\nBo O\n")[0] == [[("Bo", "O")]]         # not as many columns as words have
    with refused("train.conll:2: ", "'x'"):                                  # inside of a sentence it is none
        read(tmp_path, "Bo O\n# x\n")
    with refused("train.conll:3: ", "'#Bo'"):
        read(tmp_path, "Bo O\n\n#Bo\n")


@pytest.mark.parametrize("text, columns, parts", [
    ("Bo O\nIn\n", "tag=2", ["train.conll:2: ", "one column"]),
    ("Bo O\n", "tag=3", ["train.conll:1: ", "2 columns", "column 3"]),
    ("Bo x O\nIn O\n", "word=2", ["train.conll:2: ", "2 columns"]),            # word and tag would be one
    ("Bo B-PER\n", "tag=label", ["tag=label", "numbers", "train.conll"]), ("Bo O\n", "word=0", ["word=0"]),
    ("Bo B-PER _\nIn O _\n", "auto", ["train.conll:1: ", "'_' is no tag", "--columns tag=2 takes"]),
    ("Bo NN PER\n", "auto", ["train.conll:1: ", "'PER'", "does not say where a name begins", "--columns tag=N"])])
def test_columns_that_are_not_there(tmp_path, text, columns, parts):
    with refused(*parts):
        read(tmp_path, text, columns=columns)


@pytest.mark.parametrize("columns", ["word", "word=1,word=2", "foo=2", "word=", "tag=1,", "1,2"])
def test_an_option_that_names_no_columns(columns):
    with refused(f"--columns is {columns!r}", "word=2,tag=3"):
        NER.Options(columns=columns)


# ----------------------------------------------------------------------------------------------------- forms of tags


TAGS = ["B-PER", "I-PER", "O", "B-co-op", "O"]
SPELLINGS = {"B": lambda p, t: p, "TYPE-B": lambda p, t: f"{t}-{p}", "B_TYPE": lambda p, t: f"{p}_{t}",
             "TYPE_B": lambda p, t: f"{t}_{p}", "B:TYPE": lambda p, t: f"{p}:{t}", "TYPE:B": lambda p, t: f"{t}:{p}"}


@pytest.mark.parametrize("form", SPELLINGS)
def test_tags_of_another_form_are_read_and_told(tmp_path, form):
    written = [tag if tag == "O" else SPELLINGS[form](tag[0], tag[2:]) for tag in TAGS]
    found, told = read(tmp_path, "is O\n" + "".join(f"w {tag}\n" for tag in written))
    wanted = [tag if tag == "O" or form != "B" else f"{tag[0]}-ENTITY" for tag in TAGS]
    assert [tag for _, tag in found[0]] == ["O", *wanted]
    assert len(told) == 1 and told[0].startswith("train.conll:2: tags") and (form in told[0] or "ENTITY" in told[0])


@pytest.mark.parametrize("tags, wanted", [
    ("B M E S O S", "B I I B O B"), ("B L O U", "B I O B"), ("I I O I", "B I O B")])
def test_schemes_of_tags_without_a_type(tmp_path, tags, wanted):
    found, _ = read(tmp_path, "".join(f"北 {tag}\n" for tag in tags.split()))
    assert [tag for _, tag in found[0]] == [t if t == "O" else f"{t}-ENTITY" for t in wanted.split()]


@pytest.mark.parametrize("one, two", [("B", "B-PER"), ("B-PER", "I"), ("PER-B", "B-PER"), ("B_PER", "PER_I"),
                                      ("B_PER", "B-PER"), ("PER-B", "I")])
def test_two_forms_in_a_file_are_refused_where_the_second_begins(tmp_path, one, two):
    with refused("train.conll:4: ", repr(two), repr(one), "train.conll:2"):
        read(tmp_path, f"a O\nb {one}\n\nc {two}\n")


def test_what_fits_the_usual_form_is_of_it():
    """B-I is an I that begins, not a B that is inside; what has no known prefix is no tag."""
    assert [spelled(tag) for tag in ("B-I", "I_B", "O")] == [("B-TYPE", "B-I"), ("B_TYPE", "I-B"), ("", "O")]
    assert [spelled(tag) for tag in ("PER", "B-", "-B", "_", "o", "b-PER", "B/PER", "", "X_Y", "NN")] == [None] * 10


def test_each_file_may_have_its_own_form(tmp_path):
    (tmp_path / "dev.conll").write_text("a PER-B\n")
    task = NER(NER.Options())
    (tmp_path / "train.conll").write_text("a B-PER\n")
    assert [e.tags for examples in task.read(tmp_path).values() for e in examples] == [["B-PER"], ["B-PER"]]


# -------------------------------------------------------------------------------------------------------------- JSON


TEXTS = ["ลลิตา met José Ruiz", "In दिल्ली"]                                   # as WANTED has them
SPANS = [[(0, 5, "PER"), (10, 19, "PER")], [(3, 9, "LOC")]]
BOTH = [*zip(TEXTS, SPANS, strict=True)]
ROWS = {
    "lists": [{"text": x, "entities": [list(s) for s in spans]} for x, spans in BOTH],
    "objects": [{"id": 3, "text": x, "entities": [{"start": a, "end": b, "type": t, "text": x[a:b]}
                                                  for a, b, t in spans]} for x, spans in BOTH],
    "spans": [{"text": x, "tokens": [{"text": "x"}], "spans": [{"start": a, "end": b, "label": t}
                                                               for a, b, t in spans]} for x, spans in BOTH],
    "offsets": [{"text": x, "entities": [{"id": 1, "start_offset": a, "end_offset": b, "label": t}
                                         for a, b, t in spans], "relations": []} for x, spans in BOTH],
    "label": [{"data": x, "label": [list(s) for s in spans]} for x, spans in BOTH],
    "labels": [{"text": x, "labels": [list(s) for s in spans]} for x, spans in BOTH],
    "pairs": [[x, {"entities": [list(s) for s in spans]}] for x, spans in BOTH],
    "tokens": [{"tokens": [w for w, _ in s], "ner_tags": [t for _, t in s]} for s in WANTED],
    "words": [{"words": [w for w, _ in s], "labels": [t for _, t in s], "text": "x"} for s in WANTED],
}


LAYOUTS = ("lines", "array", "one line", "values", "escaped")


@pytest.mark.parametrize("form, layout", [(form, layout) for form in ROWS for layout in LAYOUTS
                                          if (form, layout) != ("pairs", "values")])   # it would begin as an array does
def test_one_text_in_every_form_of_json(tmp_path, form, layout):
    lines = [json.dumps(row, ensure_ascii=layout == "escaped") for row in ROWS[form]]
    text = {"array": "[\n" + " ,\n".join(lines) + "\n]\n", "one line": json.dumps(ROWS[form]),
            "values": json.dumps(ROWS[form][0], indent=1) + "\n" + lines[1]}.get(layout, "\n\n".join(lines) + "\n")
    name = "train.jsonl" if layout in ("lines", "escaped") else "train.json"
    assert read(tmp_path, text, name) == (WANTED, [])


def test_names_of_members(tmp_path):
    row = json.dumps({"sentence": TEXTS[0], "text": "x", "marks": SPANS[0], "w": ["a"], "t": ["O"], "entities": [],
                      "tokens": ["b"], "tags": ["B-X"]})
    with refused("train.jsonl:1: ", "'sentence', 'text'", "--columns"):       # two pairs, and nothing says which
        read(tmp_path, row, "train.jsonl")
    assert read(tmp_path, row, "train.jsonl", columns="text=sentence,entities=marks") == (WANTED[:1], [])
    assert read(tmp_path, row, "train.jsonl", columns="word=w,tag=t") == ([[("a", "O")]], [])
    assert read(tmp_path, row, "train.jsonl", columns="word=tokens") == ([[("b", "B-X")]], [])
    with refused("train.jsonl:1: ", "--columns"):
        read(tmp_path, row, "train.jsonl", columns="text=absent,entities=marks")


def test_numbers_are_of_columns_and_names_of_json(tmp_path):
    (tmp_path / "dev.conll").write_text("Bo B-PER x\n")
    assert read(tmp_path, GOOD, "train.jsonl", columns="tag=2,text=text") == ([[("Bo", "B-PER")]], [])


def test_tags_in_json_have_forms_too(tmp_path):
    rows = '{"tokens": ["a"], "ner_tags": ["O"]}\n{"tokens": ["b"], "ner_tags": ["I"]}\n'
    found, told = read(tmp_path, rows, "train.jsonl")
    assert found == [[("a", "O")], [("b", "B-ENTITY")]]
    assert told[0].startswith("train.jsonl:2: tags such as 'I'") and "IOB1" in told[1]
    with refused("train.jsonl:2: ", "'B-X'", "'I'"):
        read(tmp_path, '{"tokens": ["a"], "tags": ["I"]}\n{"tokens": ["b"], "tags": ["B-X"]}\n', "train.jsonl")


def slow_tags(text: str, spans: list[tuple[int, int, str]]) -> list[str]:
    """Letter by letter: each letter of a span belongs to it, so does the rest of its words."""
    words, tags = split_words(text), []
    owner: list[int | None] = [None] * len(words)
    stripped = []
    for a, b, kind in dict.fromkeys(spans):
        letters = [i for i in range(a, b) if not text[i].isspace()]
        stripped.append((min(letters), max(letters) + 1, kind, set(letters)))
    for number, (_, _, _, letters) in sorted(enumerate(stripped), key=lambda x: (x[1][0] - x[1][1], x[1][0])):
        touched = [w for w, (c, d) in enumerate(words) if letters & set(range(c, d))]
        if all(owner[w] is None for w in touched):
            for w in touched:
                owner[w] = number
    for w, number in enumerate(owner):
        before = owner[w - 1] if w else None
        tags.append("O" if number is None else ("I-" if before == number else "B-") + stripped[number][2])
    return tags


def test_spans_of_any_place_against_letters(tmp_path):
    draw, seen = random.Random(5), set()
    for _ in range(300):
        text = "".join(draw.choices(["a", "é", "e\u0301", " ", "  ", "-", ".", "北", "😀", "ا", "\u00a0", "'s"], k=12))
        spans = []
        for _ in range(draw.choice([1, 2, 4])):
            a, b = sorted(draw.sample(range(len(text) + 1), 2))
            spans += [(a, b, draw.choice(["X", "Y"]))] if text[a:b].strip() else []
        found, told = read(tmp_path, json.dumps({"text": text + " .", "label": spans}), "train.jsonl")
        assert [tag for _, tag in found[0]] == slow_tags(text + " .", spans)
        seen |= {"widened" if "widened" in n else "left out" for n in told} or {"nothing"}
    assert seen == {"widened", "left out", "nothing"}


def test_spans_that_need_a_word_are_counted_and_the_first_is_shown(tmp_path):
    rows = [{"text": "Rio is far.", "label": [[0, 4, "LOC"]]},                # a blank at its end is nothing to say
            {"text": "Ulan-Bator is far", "label": [[0, 4, "LOC"], [5, 10, "LOC"], [14, 17, "X"]]},
            {"text": "New York City", "label": [[4, 8, "LOC"], [0, 13, "ORG"], [0, 13, "ORG"], [9, 12, "LOC"]]}]
    found, told = read(tmp_path, "".join(json.dumps(row) + "\n" for row in rows), "train.jsonl")
    assert [[tag for _, tag in s] for s in found] == [["B-LOC", "O", "O", "O"], ["B-LOC", "O", "B-X"],
                                                      ["B-ORG", "I-ORG", "I-ORG"]]
    widened, left = told
    assert widened.startswith("train.jsonl:2: 'Bator' in 'Ulan-Bator'") and widened.endswith("1 of 7 widened")
    assert left.startswith("train.jsonl:2: 'Ulan' (LOC)") and left.endswith("3 of 7 left out")
    assert "may not count characters" in widened


def test_offsets_in_bytes_are_told_or_refused(tmp_path):
    """Each letter of Thai is three bytes."""
    with refused("train.jsonl:1: ", "15 to 18", "count characters"):
        read(tmp_path, json.dumps({"text": "ลลิตา met", "label": [[15, 18, "PER"]]}), "train.jsonl")
    with refused("train.jsonl:1: ", "'élie'", "'Élie'"):
        read(tmp_path, json.dumps({"text": "Ada, Élie, élie", "spans": [
            {"start": 11, "end": 15, "label": "PER", "text": "Élie"}]}), "train.jsonl")
    row = {"text": "Ada left", "spans": [{"start": 0, "end": 3, "label": "PER", "text": "Ada "}]}
    assert read(tmp_path, json.dumps(row), "train.jsonl")[0][0][0] == ("Ada", "B-PER")       # but for a blank
    _, told = read(tmp_path, json.dumps({"text": "Né à Évry, 2 rue Verte", "label": [[7, 12, "LOC"]]}), "train.jsonl")
    assert told and "may not count characters" in told[0]


@pytest.mark.parametrize("name, text, line, parts", [
    ("train.jsonl", '{"text": "Bo", "label": [[0, 3, "PER"]]}', 1, ["0 to 3", "2 characters"]),
    ("train.jsonl", GOOD + '{"text": "Bo", "label": [[1, 1, "PER"]]}', 2, ["1 to 1", "not inside"]),
    ("train.jsonl", GOOD + '{"text": "B", "label": [[-1, 1, "PER"]]}', 2, ["-1 to 1", "not inside"]),
    ("train.jsonl", GOOD + '{"text": "a  b", "label": [[1, 3, "PER"]]}', 2, ["1 to 3", "blanks"]),
    ("train.jsonl", '{"text": "Bo", "label": [[0, 2]]}', 1, ["[0, 2]", "[start, end, type]"]),
    ("train.jsonl", '{"text": "Bo", "label": [["0", 2, "X"]]}', 1, ["no span"]),
    ("train.jsonl", '{"text": "Bo", "label": [[false, 2, "X"]]}', 1, ["no span"]),
    ("train.jsonl", '{"text": "Bo", "label": [[0, 2, " "]]}', 1, ["no span"]),
    ("train.jsonl", '{"text": "Bo", "label": [{"start": 0, "end": 2}]}', 1, ["no span"]),
    ("train.jsonl", '{"text": "Bo", "label": "PER"}', 1, ["'text', 'label'", "ner_tags", "--columns"]),
    ("train.jsonl", '{"text": "Bo", "label": ["PER"]}', 1, ["--columns"]),
    ("train.jsonl", "{}", 1, ["none"]), ("train.jsonl", "3", 1, ["int"]), ("train.jsonl", '["Bo"]', 1, ["list"]),
    ("train.jsonl", '{"tokens": ["a", "b"], "ner_tags": ["O"]}', 1, ["2 tokens", "1 ner_tags"]),
    ("train.jsonl", '{"tokens": ["a", "b"], "ner_tags": [0, 1]}', 1, ["number without a name", "ner_tags"]),
    ("train.jsonl", '{"tokens": ["a"], "ner_tags": ["PER"]}', 1, ["'PER'", "no tag"]),
    ("train.jsonl", GOOD + '{"text": ', 2, ["not JSON"]), ("train.jsonl", GOOD + "[" * 9999, 2, ["not JSON"]),
    ("train.jsonl", GOOD.strip() + GOOD, 1, ["not JSON"]),
    ("train.jsonl", '{"text": "\\ud800", "label": []}', 1, ["\\ud", "UTF-8"]),
    ("train.json", "[\n" + GOOD + GOOD + "]", 2, ["comma"]), ("train.json", "[\n" + GOOD, 2, ["end"]),
    ("train.json", "[" + GOOD + "] 5", 1, ["more follows"]), ("train.json", "[", 1, ["end"]),
    ("train.json", "\n[\n" + GOOD + ",\n{\n'text': 3}]", 5, ["not JSON"]),
    ("train.json", "[" + GOOD + ',\n{"text": "Bo", "label": [[0, 9, "X"]]}]', 3, ["0 to 9"])])
def test_json_that_is_refused(tmp_path, name, text, line, parts):
    with refused(f"{tmp_path / name}:{line}: ", *parts):
        read(tmp_path, text, name)


@pytest.mark.parametrize("name, text", [("train.json", "[]"), ("train.json", ""), ("train.jsonl", "\n"),
                                        ("train.jsonl", '{"text": " ", "entities": []}')])
def test_json_without_a_word(tmp_path, name, text):
    with refused(tmp_path / name, "no sentence"):
        read(tmp_path, text, name)


def test_a_text_is_a_document_of_one_sentence(tmp_path):
    """Also beside CoNLL files that have documents."""
    (tmp_path / "dev.conll").write_text("-DOCSTART- O\n\na O\n\nb O\n")
    (tmp_path / "train.jsonl").write_text(GOOD + '{"text": "", "label": []}\n' + '{"text": "a. b.", "label": []}\n')
    task = NER(NER.Options(context="document"))
    splits = task.read(tmp_path)
    assert [[e.sentences for e in examples] for examples in splits.values()] == [[[0], [0]], [[0, 1]]]
    assert [e.where for e in splits["train"]] == [f"{tmp_path / 'train.jsonl'}:{n}" for n in (1, 3)]
    assert task.notices == []


def test_the_cache_keeps_such_examples_and_what_was_said(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "WORTH", 0)
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"text": "Ulan-Bator", "label": [[0, 4, "LOC"]]}\n')
    (data / "dev.conll").write_text("1 Bo B\n2 is O\n")
    first, second = NER(NER.Options()), NER(NER.Options())
    wanted = read_splits(first, data, str(tmp_path / "c"))
    monkeypatch.setattr(NER, "read", None)
    found = read_splits(second, data, str(tmp_path / "c"))
    assert {k: list(v) for k, v in found.items()} == {k: list(v) for k, v in wanted.items()}
    assert len(first.notices) == 3 and [n for n in second.notices if "come from" not in n] == first.notices
    assert all(np.array_equal(found["dev"].arrays()[k], x) for k, x in wanted["dev"].arrays().items())


def test_no_text_breaks_the_readers(tmp_path):
    """One line, or examples with a tag in IOB2 for each word."""
    draw, read_at_all = random.Random(8), 0
    parts = ["1", "2", "3-4", "#", " ", "\t", "\n", "\n\n", "O", "B-X", "B", "X-B", "O\n", "\tO\n", "é O\n", "é", "[",
             "]", '{"text": "a b", "label": [[0, 1, "X"]]}', ",", "{", "-DOCSTART-", "\u2028"]
    for i in range(1500):
        name = ("train.conll", "train.json", "train.jsonl")[i % 3]
        for file in tmp_path.iterdir():
            file.unlink()
        try:
            found, _ = read(tmp_path, "".join(draw.choices(parts, k=draw.randint(1, 14))), name)
        except MinibertError as e:
            assert len(str(e).splitlines()) == 1 and name in str(e)
            continue
        read_at_all += 1
        assert all(word and (tag == "O" or tag[:2] in ("B-", "I-")) for s in found for word, tag in s)
    assert read_at_all > 25


def test_rows_that_an_annotator_has_not_accepted(tmp_path):
    rows = [{"text": "Ada left", "spans": [[0, 3, "PER"]], "answer": answer} for answer in
            ("accept", "reject", "ignore", "accept")]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = NER(NER.Options())
    assert [e.where[-1] for e in found.read(tmp_path)["train"]] == ["1", "4"]
    assert any(note.startswith(f"{tmp_path}/train.jsonl:2: \"answer\": 'reject'") and note.endswith("; 2 rejected")
               for note in found.notices)
