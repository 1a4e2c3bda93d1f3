"""datafiles.py: the rows of a table in each of its four forms, and every fault with its line."""
import pytest
from refusing import refused

from minibert.datafiles import read_table

WANTED = [["plain words", "a"], ['a "quoted", comma', "b"], ["ümlaut | bar", "a"]]
FORMS = {
    "x.csv": 'label,text\na,plain words\nb,"a ""quoted"", comma"\n\na,ümlaut | bar\n',
    "x.tsv": 'text\tother\tlabel\nplain words\t1\ta\na "quoted", comma\t2\tb\nümlaut | bar\t3\ta\n',
    "x.jsonl": '{"text": "plain words", "label": "a"}\n\n{"label": "b", "text": "a \\"quoted\\", comma", "z": 5}\n'
               '{"text": "ümlaut | bar", "label": "a"}\n',
    "x.txt": 'a ||| plain words\nb ||| a "quoted", comma\n\na ||| ümlaut | bar\n'}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("end, mark", [("\n", ""), ("\r\n", "\ufeff")])
def test_each_form_gives_the_same_rows(tmp_path, name, end, mark):
    (tmp_path / name).write_bytes((mark + FORMS[name].replace("\n", end)).encode())
    rows = list(read_table(tmp_path / name, ["text", "label"]))
    assert [values for _, values in rows] == WANTED


@pytest.mark.parametrize("name, lines", [("x.csv", [2, 3, 5]), ("x.tsv", [2, 3, 4]), ("x.jsonl", [1, 3, 4]),
                                         ("x.txt", [1, 2, 4])])
def test_every_row_knows_its_line(tmp_path, name, lines):
    (tmp_path / name).write_text(FORMS[name])
    assert [where for where, _ in read_table(tmp_path / name, ["text", "label"])] == [
        f"{tmp_path / name}:{n}" for n in lines]


def test_a_field_in_quotes_may_have_lines_and_the_next_row_is_counted_right(tmp_path):
    (tmp_path / "x.csv").write_text('text,label\n"two\nlines",a\nnext,b\n')
    rows = list(read_table(tmp_path / "x.csv", ["text", "label"]))
    assert rows == [(f"{tmp_path / 'x.csv'}:2", ["two\nlines", "a"]), (f"{tmp_path / 'x.csv'}:4", ["next", "b"])]


def test_bars_in_the_text_stay(tmp_path):
    (tmp_path / "x.txt").write_text("a ||| one ||| two\n")
    assert [v for _, v in read_table(tmp_path / "x.txt", ["text", "label"])] == [["one ||| two", "a"]]


@pytest.mark.parametrize("name, text, line, said", [
    ("x.csv", "text,klass\na,b\n", 1, "must name the column 'label' once; it names 'text', 'klass'"),
    ("x.csv", "text,label,label\na,b,c\n", 1, "'label' once"),
    ("x.csv", "text,label\na,b\nc\n", 3, "1 fields, but the first line names 2"),
    ("x.csv", 'text,label\na,b\n"c" d,e\n', 3, "does not parse"),
    ("x.csv", 'text,label\n"never ends,e\n', 2, "does not parse"),
    ("x.tsv", "text\tlabel\na\tb\nc\td\te\n", 3, "3 fields, but the first line names 2"),
    ("x.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}\n', 2, "no 'label'; the object has 'text'"),
    ("x.jsonl", '{"text": "a", "label": "b"}\n["a", "b"]\n', 2, "list, not an object"),
    ("x.jsonl", "\n{'text': 1}\n", 2, "not JSON"), ("x.jsonl", "[" * 100_000 + "\n", 1, "not JSON"),
    ("x.txt", "a ||| b\n\nno bars\n", 3, "1 field; expected label ||| text")])
def test_faults_name_their_line(tmp_path, name, text, line, said):
    (tmp_path / name).write_text(text)
    with refused(f"{tmp_path / name}:{line}: ", said):
        list(read_table(tmp_path / name, ["text", "label"]))


@pytest.mark.parametrize("name, text", [("x.csv", ""), ("x.csv", "text,label\n"), ("x.jsonl", "\n\n"),
                                        ("x.txt", " \n")])
def test_a_file_without_rows(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with refused(f"{tmp_path / name}: no rows in it"):
        list(read_table(tmp_path / name, ["text", "label"]))


def test_a_field_of_a_megabyte_is_no_crash(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "a" * 2 ** 20 + ",b\n")
    with refused(f"{tmp_path / 'x.csv'}:2: ", "field larger than field limit"):
        list(read_table(tmp_path / "x.csv", ["text", "label"]))
