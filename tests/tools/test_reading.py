"""What is to be read stays short, the reading order is one, and pages say truly which engine executes their lines."""
import json
import re
import subprocess
import sys

import pytest
import reading
from reading import ROOT, Part, read_lines, stops

README = (ROOT / "README.md").read_text("utf-8")
CHAPTERS = sorted((ROOT / "docs").glob("[01][0-9]-*.md"))


def lines_of(file: str) -> int:
    return len((ROOT / file).read_text("utf-8").splitlines())


def test_the_path_is_short_and_as_long_as_readme_says():
    said = int(re.search(r"About ([\d,]+) lines lead from", README)[1].replace(",", ""))
    assert 1_000 < read_lines() <= 1_300 and abs(read_lines() - said) <= 50
    assert lines_of("train.py") <= 250 and len(README.splitlines()) <= 200


def test_no_file_is_long():
    files = {str(file.relative_to(ROOT)) for file in (ROOT / "minibert").rglob("*.py")}
    assert {file for file in files if lines_of(file) > 400} <= {"minibert/core/ops.py"} and len(files) > 50


def test_the_path_leads_through_the_chain_that_runs():
    files = {part.file for stop in stops() for part in stop.parts}
    assert {"train.py", "minibert/core/byhand.py", "minibert/core/kit.py", "minibert/core/ops.py"} <= files
    assert [stop.number for stop in stops()] == list(range(1, len(stops()) + 1))


def test_readme_the_map_and_the_chapters_have_one_order():
    in_readme = {chapter: stop.number for stop in stops() for chapter in stop.chapters}
    section = (ROOT / "docs" / "00-map.md").read_text("utf-8").split("## In which order")[1]
    rows = re.findall(r"(?m)^\| (\d+) \| .*\((\d\d-[\w-]+\.md)\)", section)
    in_map = {chapter: int(number) for number, chapter in rows}
    heads = {page.name: re.search(r"Stop (\d+) of \[the reading order\]", page.read_text("utf-8")) for page in CHAPTERS}
    in_chapters = {name: int(head[1]) for name, head in heads.items() if head}
    assert in_readme == in_map == in_chapters and len(in_readme) == 8


@pytest.mark.parametrize("page", CHAPTERS[1:], ids=lambda page: page.stem)
def test_every_chapter_says_at_its_head_what_is_read_with_it_and_which_engine_runs_it(page):
    head = page.read_text("utf-8").split("## What it is for")[0]
    assert "minutes" in head and "**What runs.**" in head
    if re.search(r"Stop \d+", head):
        mine = [stop for stop in stops() if page.name in stop.chapters]
        assert all(part.file in head and part.first.split(".")[-1] in head for stop in mine for part in stop.parts)


def test_chapter_09_shows_the_block_as_it_is():
    code = (ROOT / "minibert" / "core" / "byhand.py").read_text("utf-8").splitlines()
    blocks = re.findall(r"(?ms)^```python\n(.*?)^```$", (ROOT / "docs" / "09-backward.md").read_text("utf-8"))
    shown = [line for block in blocks for line in block.splitlines() if line]
    assert len(shown) > 25 and [line for line in shown if line not in code] == []


def test_the_map_and_the_chapters_say_what_each_engine_executes():
    """In a process of its own, so that every thread is one that is traced."""
    script = """import json, reading
runs = {engine: reading.executed(engine) for engine in reading.ENGINES}
stale = [page.name for page, text in reading.generated(runs).items() if page.read_text("utf-8") != text]
print(json.dumps([reading.engine_table(runs), stale]))
"""
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "tests" / "tools", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    table, stale = json.loads(ran.stdout)
    assert stale == [], "python tests/tools/reading.py --write"

    counts = {row[0].strip("`"): [int(n) for n in row[1:]] for row in
              (re.findall(r"[^| ]+", line) for line in table.splitlines()[2:])}
    total, by_hand, fast, autograd = counts["minibert/core/ops.py"]
    assert (f"Of the {total} labelled lines of `core/ops.py` a run of `--task ner` executes {by_hand} with `by-hand`, "
            f"{fast} with `fast` and {autograd} with `autograd`") in " ".join(README.split())
    assert counts["minibert/core/byhand.py"][1:] == [2, 2, 0] and counts["minibert/core/kit.py"][1:] == [2, 0, 0]


def test_labels_are_told_by_stretches():
    labels = ["ATT-1", "ATT-3", "ATT-4", "ATT-5", "LIN-1", "LIN-2"]
    assert reading.joined(labels) == "[ATT-1], [ATT-3] to [ATT-5], [LIN-1], [LIN-2]" and reading.joined([]) == ""


def test_parts_are_counted_and_a_part_that_is_not_there_is_an_error(tmp_path):
    text = "import x\n\n@x\ndef f():\n    return 1\n\nclass A:\n    def g(self):\n        pass\n"
    (tmp_path / "a.py").write_text(text, "utf-8")
    assert [len(Part("a.py", *ends).lines(tmp_path)) for ends in ((), ("f",), ("f", "A.g"))] == [9, 3, 7]
    with pytest.raises(ValueError, match="a.py has no h"):
        Part("a.py", "f", "h").lines(tmp_path)


def test_a_line_counts_as_executed_where_its_statement_was(tmp_path):
    text = "def f(x):\n    y = (x +\n         1)\n    if x:\n        return y\n    return x\n"
    (tmp_path / "a.py").write_text(text, "utf-8")
    assert [reading.ran("a.py", n, {2, 4, 6}, tmp_path) for n in (2, 3, 4, 5, 6)] == [True, True, True, False, True]
