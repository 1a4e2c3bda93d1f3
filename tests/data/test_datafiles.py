"""datafiles.py: the rows of a table in each of its four forms, and every fault with its line; benchmarks/sets.py."""
import csv
import json
import math
import sys
from pathlib import Path

import pytest
from refusing import refused

from minibert.data import tables
from minibert.data.tables import TABLES, find_files, read_lines, read_table, split_files
from minibert.errors import MinibertError
from minibert.tasks import conll
from minibert.tasks.classify import Classify
from minibert.tasks.match import Match
from minibert.tasks.tabular import is_blank

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import sets  # noqa: E402

WANTED = [["plain words", "a"], ['a "quoted", comma', "b"], ["ümlaut | bar", "a"]]
FORMS = {
    "x.csv": 'label,text\na,plain words\nb,"a ""quoted"", comma"\n\na,ümlaut | bar\n',
    "x.tsv": 'text\tother\tlabel\nplain words\t1\ta\na "quoted", comma\t2\tb\nümlaut | bar\t3\ta\n',
    "x.jsonl": '{"text": "plain words", "label": "a"}\n\n{"label": "b", "text": "a \\"quoted\\", comma", "z": 5}\n'
               '{"text": "ümlaut | bar", "label": "a"}\n',
    "x.json": '[\n{"text": "plain words", "label": "a"},\n {"label": "b",\n  "text": "a \\"quoted\\", comma"}, '
              '{"text": "ümlaut | bar", "label": "a"}\n]\n',
    "x.txt": 'a ||| plain words\nb ||| a "quoted", comma\n\na ||| ümlaut | bar\n'}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("end, mark", [("\n", ""), ("\r\n", "\ufeff")])
def test_each_form_gives_the_same_rows(tmp_path, name, end, mark):
    (tmp_path / name).write_bytes((mark + FORMS[name].replace("\n", end)).encode())
    rows = list(read_table(tmp_path / name, ["text", "label"], []))
    assert [values for _, values in rows] == WANTED


@pytest.mark.parametrize("name", FORMS)
def test_a_suffix_may_have_capitals(tmp_path, name):
    for file in (tmp_path / f"X{name[1:].upper()}", tmp_path / f"train{name[1:].title()}"):
        file.write_text(FORMS[name])
        assert [values for _, values in read_table(file, ["text", "label"], [])] == WANTED
    assert find_files(tmp_path, TABLES) == {"train": tmp_path / f"train{name[1:].title()}"}


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.csv.gz"])
def test_another_suffix_is_refused(tmp_path, name):
    (tmp_path / name).write_text(FORMS["x.csv"])
    with refused(f"{tmp_path / name}: no table by its suffix", ".csv, .tsv, .jsonl, .json, .txt"):
        Classify(Classify.Options()).read(tmp_path / name)


def test_two_files_of_one_split(tmp_path):
    for name in ("dev.csv", "valid.TXT"):
        (tmp_path / name).write_text("")
    with refused(f"{tmp_path}: dev.csv and valid.TXT could both be dev"):
        find_files(tmp_path, TABLES)


def test_what_is_neither_a_file_nor_a_folder():
    with refused("/dev/null: cannot be read (not a regular file)"):
        Classify(Classify.Options()).read(Path("/dev/null"))


@pytest.mark.parametrize("name, lines", [("x.csv", [2, 3, 5]), ("x.tsv", [2, 3, 4]), ("x.jsonl", [1, 3, 4]),
                                         ("x.json", [2, 3, 4]), ("x.txt", [1, 2, 4])])
def test_every_row_knows_its_line(tmp_path, name, lines):
    (tmp_path / name).write_text(FORMS[name])
    assert [where for where, _ in read_table(tmp_path / name, ["text", "label"], [])] == [
        f"{tmp_path / name}:{n}" for n in lines]


SPREADSHEETS = [                                   # name, text, what the notices say, line of the first row
    ("x.csv", "text;label\n\"a; b\";x\nगाँव, शहर;y\n", ["semicolons stand between"], 2),
    ("x.csv", "sep=;\ntext;label\n\"a; b\";x\nगाँव, शहर;y\n", ["semicolons stand between"], 3),
    ("x.csv", "\"sep=,\"\r\n\r\ntext,label\r\na; b,x\r\n\"गाँव, शहर\",y\r\n", [], 4),
    ("x.csv", "n\ttext\tlabel\n1\ta; b\tx\n2\tगाँव, शहर\ty\n", ["tabs stand between"], 2),
    ("x.csv", "text|label\na; b|x\nगाँव, शहर|y\n", ["bars stand between"], 2),
    ("x.tsv", "text,label\na; b,x\n\"गाँव, शहर\",y\n", ["commas stand between"], 2),
    ("x.csv", " Text ,LABEL\na; b,x\n\"गाँव, शहर\",y\n", ["Text as text, LABEL as label"], 2),
    ("x.tsv", "LABEL\ttext\tText\nx\ta; b\t?\ny\tगाँव, शहर\t?\n", ["LABEL as label"], 2),
    ("x.csv", "TEXT;Label;x\n\"a; b\";x;\nगाँव, शहर;y;\n", ["semicolons stand", "TEXT as text, Label as label"], 2),
    ("x.jsonl", '{"Text": "a; b", "Label": "x"}\n{"Text": "गाँव, शहर", "Label": "y"}\n', ["Text as text"], 1),
    ("x.jsonl", '[{"text": "a; b", "label": "x"}, {"text": "गाँव, शहर", "label": "y"}]', [], 1),
    ("x.json", '{"text": "a; b", "label": "x"}\n\n{"text": "गाँव, शहर", "label": "y"}\n', [], 1),
    ("x.json", '\n[\n{"text": "a; b", "label": "x"},\n{"text": "गाँव, शहर", "label": "y"},\n]\n', [], 3)]


@pytest.mark.parametrize("name, text, said, line", SPREADSHEETS)
def test_tables_as_people_have_them(tmp_path, name, text, said, line):
    (tmp_path / name).write_bytes(("\ufeff" + text).encode())
    notices: list[str] = []
    rows = list(read_table(tmp_path / name, ["text", "label"], notices))
    assert [list(values) for _, values in rows] == [["a; b", "x"], ["गाँव, शहर", "y"]]
    assert rows[0][0] == f"{tmp_path / name}:{line}"
    assert len(notices) == len(said) and all(part in note for part, note in zip(said, notices, strict=True))


def test_accents_of_names_are_written_in_two_ways(tmp_path):
    """macOS writes e and an accent, most keyboards one letter."""
    (tmp_path / "x.csv").write_text("Te\u0301xte,label\na,b\n")
    assert [values for _, values in read_table(tmp_path / "x.csv", ["t\u00e9xte", "label"], [])] == [["a", "b"]]


def test_what_is_no_number_says_nothing():
    assert [is_blank(v) for v in (math.nan, None, "", " \n", 0, False, "0", 1.5, [])] == [True] * 4 + [False] * 5


@pytest.mark.parametrize("names, split", [
    (["train.csv", "validation.csv"], "dev"), (["train.jsonl", "val.jsonl"], "dev"),
    (["Train.tsv", "Eval.TSV"], "dev"),
    (["train.json", "dev1.json"], "dev"), (["TRAIN.txt", "Test.txt"], "test")])
def test_names_of_splits(tmp_path, names, split):
    for name in names:
        (tmp_path / name).write_text("")
    assert find_files(tmp_path, TABLES) == {"train": tmp_path / names[0], split: tmp_path / names[1]}


def test_a_field_in_quotes_may_have_lines_and_the_next_row_is_counted_right(tmp_path):
    (tmp_path / "x.csv").write_text('text,label\n"two\nlines",a\nnext,b\n')
    rows = list(read_table(tmp_path / "x.csv", ["text", "label"], []))
    assert rows == [(f"{tmp_path / 'x.csv'}:2", ["two\nlines", "a"]), (f"{tmp_path / 'x.csv'}:4", ["next", "b"])]


def test_bars_in_the_text_stay(tmp_path):
    (tmp_path / "x.txt").write_text("a ||| one ||| two\n")
    assert [v for _, v in read_table(tmp_path / "x.txt", ["text", "label"], [])] == [["one ||| two", "a"]]


@pytest.mark.parametrize("name, text, line, said", [
    ("x.csv", "text,klass\na,b\n", 1, "must name the column 'label' once; with commas between it names 'text', "
                                        "'klass'"),
    ("x.csv", "text,label,label\na,b,c\n", 1, "'label' once"),
    ("x.csv", "text,label\na,b\nc\n", 3, "1 fields, but the first line names 2"),
    ("x.csv", 'text,label\na,b\n"c" d,e\n', 3, "does not parse"),
    ("x.csv", 'text,label\n"never ends,e\n', 2, "does not parse"),
    ("x.tsv", "text\tlabel\na\tb\nc\td\te\n", 3, "3 fields, but the first line names 2"),
    ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}\n', 2, "no 'label'; the object has 'text'"),
    ("x.jsonl", '{"text": "a", "label": "b"}\n["a", "b"]\n', 2, "list, not an object"),
    ("x.jsonl", "\n{'text': 1}\n", 2, "not JSON"), ("x.jsonl", "[" * 100_000 + "\n", 1, "not JSON"),
    ("x.txt", "a ||| b\n\nno bars\n", 3, "1 field; expected label ||| text"),
    ("x.csv", "Text,TEXT,label\na,b,c\n", 1, "'text' once; with commas between it names 'Text', 'TEXT', 'label'"),
    ("x.csv", "satz;klasse\na;b\n", 1, "'text' once; with commas between it names 'satz;klasse'; say with --columns"),
    ("x.csv", "text;label\na;b\n\"never ends;e\n", 3, "does not parse"),
    ("x.csv", "text;label\na;b\nc\n", 3, "1 fields, but the first line names 2"),
    ("x.json", '[{"text": "a", "label": "b"},\n{"text": "a"}]', 2, "no 'label'; the object has 'text'"),
    ("x.json", '[{"text": "a", "label": "b"},\n\n{"text": "a", }]', 3, "not JSON"),
    ("x.json", '[{"text": "a", "label": "b"}\n', 1, "no comma and no end of the array"),
    ("x.json", '[{"text": "a", "label": "b"}]\n[]', 1, "or more follows it"),
    ("x.json", '{"data": [\n{"text": "a", "label": "b"}]}', 1, "no 'text'; the object has 'data'"),
    ("x.json", '[\n{"text": "\\ud800", "label": "b"}]', 2, "half of a pair")])
def test_faults_name_their_line(tmp_path, name, text, line, said):
    (tmp_path / name).write_text(text)
    with refused(f"{tmp_path / name}:{line}: ", said):
        list(read_table(tmp_path / name, ["text", "label"], []))


@pytest.mark.parametrize("name, text", [("x.csv", ""), ("x.csv", "text,label\n"), ("x.jsonl", "\n\n"),
                                        ("x.txt", " \n")])
def test_a_file_without_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with refused(f"{tmp_path / name}: no rows in it"):
        list(read_table(tmp_path / name, ["text", "label"], []))


@pytest.mark.parametrize("name, form", [("x.csv", "text,label\n{},b\n"), ("x.csv", 'text,label\n"{}",b\n'),
                                        ("x.tsv", "text\tlabel\n{}\tb\n"), ("x.txt", "b ||| {}\n"),
                                        ("x.jsonl", '{{"text": "{}", "label": "b"}}\n')])
def test_a_field_of_a_megabyte_is_read(tmp_path, name, form):
    (tmp_path / name).write_text(form.format("a" * 2 ** 20))
    assert [v for _, v in read_table(tmp_path / name, ["text", "label"], [])] == [["a" * 2 ** 20, "b"]]


@pytest.mark.parametrize("name, end, advised", [("x.csv", ",b", True), ("X.CSV", ",b", True), ("x.tsv", "\tb", False)])
def test_only_commas_bring_advice_about_quotes(tmp_path, name, end, advised):
    (tmp_path / name).write_text("text,label\n".replace(",", end[0]) + "a" * 50 + f"{end}\n")
    limit = csv.field_size_limit(20)
    try:
        with pytest.raises(MinibertError, match="2: does not parse .field larger than field limit") as caught:
            list(read_table(tmp_path / name, ["text", "label"], []))
        assert ("quotes" in str(caught.value)) == advised
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("bad, byte", [(b"caf\xe9", "e9"), (b"\xed\xa0\x80", "ed"), (b"\xc3", "c3"), (b"\x80", "80")])
def test_a_byte_that_is_not_utf8_has_its_line(tmp_path, end, bad, byte):
    """The separator U+2028 ends no line."""
    lines = ["\ufeffa ||| gr\u00fc\u2028n".encode(), b"", b"b ||| " + bad, b"\xff"]
    (tmp_path / "x.txt").write_bytes(end.join(lines))
    with refused(f"{tmp_path / 'x.txt'}:3: byte 0x{byte} is not UTF-8"):
        list(read_lines(tmp_path / "x.txt"))


# -------------------------------------------------------------------------------------------------- benchmarks/sets.py


def convert(folder: Path, name: str, sources: dict[str, str], seed: int = 0, encoding: str = "utf-8") -> Path:
    """The folder that `sets.py name` writes from published files with these contents."""
    source, output = folder / "source", folder / f"output-{seed}"
    source.mkdir(exist_ok=True)
    for file, text in sources.items():
        (source / file).write_text(text, encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sets.py", name, str(source), str(output), "--seed", str(seed)])
        assert sets.main() == 0
    return output


def test_phrasebank_keeps_a_sentence_with_the_byte_0x85_whole(tmp_path, capsys):
    lines = [f"sentence {i} \x85 and m@re@{('neutral', 'positive')[i % 2]}\n" for i in range(20)]
    output = convert(tmp_path, "phrasebank", {"Sentences_50Agree.txt": "".join(lines)}, encoding="latin-1")
    splits = Classify(Classify.Options()).read(output)
    assert [(e.text, e.labels) for e in splits["dev"]] == [
        (f"sentence {i} \x85 and m@re", ("neutral",)) for i in (8, 18)]
    assert [len(splits[s]) for s in ("train", "dev", "test")] == [16, 2, 2]
    assert capsys.readouterr().out == "train.csv: 16 examples\ndev.csv: 2 examples\ntest.csv: 2 examples\n"


def test_sts_becomes_pairs_with_a_score(tmp_path):
    text = '\tid\tsentence1\tsentence2\tsimilarity\n7\tx\tOne, two\t"a ""b"" c"\t2.5\n8\ty\tlast \tone\t0.0\n'
    splits = Match(Match.Options(answer="score")).read(
        convert(tmp_path, "sts", {"train.csv": text, "dev.csv": text}))
    assert {s: [(e.first, e.second, e.label) for e in splits[s]] for s in splits} == dict.fromkeys(
        ("train", "dev"), [("One, two", 'a "b" c', 2.5), ("last", "one", 0.0)])


def test_ten_texts_of_each_class_are_drawn_by_the_seed(tmp_path):
    table = "text,category\n" + "".join(f'"{name}, {i}",{name}\n' for i in range(30) for name in "ba")
    sources = {"train.csv": table, "test.csv": table}
    drawn = {}
    for seed in (0, 1):
        output = convert(tmp_path, "banking77-10", sources, seed)
        splits = Classify(Classify.Options()).read(output)
        assert [e.labels for e in splits["train"]] == [("a",)] * 10 + [("b",)] * 10
        assert len({e.text for e in splits["train"]}) == 20 and len(splits["test"]) == 60
        drawn[seed] = (output / "train.csv").read_text()
    assert drawn[0] != drawn[1]
    again = tmp_path / "again"
    again.mkdir()
    assert (convert(again, "banking77-10", sources, 1) / "train.csv").read_text() == drawn[1]


def test_no_answer_of_the_bank_is_in_two_splits_and_no_pair_comes_twice(tmp_path):
    rows = [f'"Question {i}?","Answer {i // 3},\nfor you",cards\n' for i in range(600)]
    rows += [*rows[:50], *(row.upper() for row in rows[:50])]
    output = convert(tmp_path, "bank_faq", {"BankFAQs.csv": "Question,Answer,Class\n" + "".join(rows)})
    pairs = {s: [tuple(v) for _, v in read_table(output / f"{s}.csv", ["question", "answer"], [])]
             for s in ("train", "dev", "test")}
    assert sum(len(p) for p in pairs.values()) == len({p for split in pairs.values() for p in split}) == 650
    answers = [{answer.casefold() for _, answer in split} for split in pairs.values()]
    assert sum(map(len, answers)) == len(set.union(*answers)) == 200
    assert 140 < len(answers[0]) < 180 and min(map(len, answers)) > 8


def test_xquad_is_cut_between_articles(tmp_path):
    articles = [{"title": f"t{i}", "paragraphs": [{"context": "caf\u00e9", "qas": [{"id": f"q{i}"}] * 2}]}
                for i in range(48)]
    output = convert(tmp_path, "xquad", {"xquad.en.json": json.dumps({"data": articles, "version": "1.1"})})
    files = {s: json.loads((output / f"{s}.json").read_text("utf-8")) for s in ("train", "dev", "test")}
    assert [len(f["data"]) for f in files.values()] == [32, 8, 8]
    assert [a for f in files.values() for a in f["data"]] == articles
    assert {f["version"] for f in files.values()} == {"1.1"}


@pytest.mark.parametrize("row", ['{"text": "a", "label": "\\ud800"}', '{"text": "\\uDFFF x", "label": "b"}'])
def test_half_a_surrogate_pair_is_refused_where_it_stands(tmp_path, row):
    file = tmp_path / "train.jsonl"
    file.write_text('{"text": "\\ud83d\\ude00", "label": "a"}\n' + row + "\n")
    with refused(f"{file}:2", "UTF-8"):
        list(read_table(file, ["text", "label"], []))


def test_a_name_that_is_too_long_is_no_file(tmp_path):
    with refused("no such file or folder"):
        split_files(tmp_path / ("a" * 300), [".csv"])


@pytest.mark.parametrize("name, form", [("x.csv", 'text,label\na,b\n{},b\n'), ("x.jsonl", '{{}}\n\n{{"text": "{}"}}\n'),
                                        ("x.txt", "b ||| a\n\nb ||| {}\n")])
def test_a_line_that_is_no_text_is_refused(tmp_path, monkeypatch, name, form):
    """Here 90 characters are the most a line may have; the whole of it would be encoded at once."""
    monkeypatch.setattr(tables, "LONGEST", 90)
    (tmp_path / name).write_text(form.format("a" * 90).replace("{}", '{"text": "a", "label": "b"}'))
    with refused(f"{tmp_path / name}:3: a line of", "90 at most"):
        list(read_table(tmp_path / name, ["text", "label"], []))


def test_a_file_of_tags_that_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(conll, "MOST_TAGS", 5)
    monkeypatch.setattr(conll, "MOST_WORDS", 7)
    (tmp_path / "a.conll").write_text("".join(f"w B-{i}\n\n" for i in range(5)))
    assert len(conll.read_examples(tmp_path / "a.conll", False)) == 5
    (tmp_path / "a.conll").write_text("".join(f"w B-{i}\n\n" for i in range(6)))
    with refused(f"{tmp_path}/a.conll:11: more than 5 different tags"):
        conll.read_examples(tmp_path / "a.conll", False)
    (tmp_path / "a.conll").write_text("x O\n\n" + "w O\n" * 8)
    with refused(f"{tmp_path}/a.conll:3: a sentence of more than 7 words"):
        conll.read_examples(tmp_path / "a.conll", False)
