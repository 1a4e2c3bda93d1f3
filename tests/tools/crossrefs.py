"""Equation ⇔ line ⇔ test: finds every label in docs/, on code lines and in names of tests, and says what is missing.

    python tests/tools/crossrefs.py            # what is missing
    python tests/tools/crossrefs.py --write    # write anew what is generated: the label index of docs/notation.md, the
                                               # map of docs/00-map.md, docs/mutants.md from tests/tools/mutants.json

In docs/ a bold **[LN-3]** defines a label and is followed by its displayed equation; a plain [LN-3] refers to it. The
line that is the equation ends with `# [LN-3]`: in minibert/ or train.py, or in a test_eq_ file for a claim that no line
of the program computes. A test that checks it has LN_3 in its name, and at most three labels.
"""
import ast
import functools
import io
import json
import re
import sys
import tokenize
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import packages

ROOT = Path(__file__).resolve().parents[2]
LABEL = r"[A-Z]+-[0-9]+"
DEFINED = re.compile(rf"\*\*\[({LABEL})\]\*\*")
MENTIONED = re.compile(rf"\[({LABEL})\]")
ON_A_LINE = re.compile(rf"#.*\[({LABEL})\]")
IN_A_NAME = re.compile(r"_([A-Z]+)_([0-9]+)(?=_|$)")
EXERCISE = re.compile(r"(?m)^\| (\d+) \| `(\S+)` `(\S+)` \|.*\| `(.+)` \|$")     # number, file, function, command
BEGIN, END = "<!-- {}: written by {} -->", "<!-- end of {} -->"
WRITER = "tests/tools/crossrefs.py"


@dataclass
class Found:
    """Everything that carries a label, and every fault in how it does."""
    docs: dict[str, str] = field(default_factory=dict)            # label -> chapter
    lines: dict[str, tuple[str, str, int]] = field(default_factory=dict)   # label -> file, function, line
    tests: dict[str, list[str]] = field(default_factory=dict)     # label -> file::test
    faults: list[str] = field(default_factory=list)


def scan(root: Path = ROOT) -> Found:
    """All labels of a checkout."""
    found = Found()
    for file in pages(root):
        scan_chapter(str(file.relative_to(root / "docs")), file.read_text("utf-8"), found)
    programs = [*sorted((root / "minibert").rglob("*.py")), root / "train.py"]
    tests = sorted(f for f in (root / "tests").rglob("test_*.py") if f.parent.name != "oracle")
    for file in [*programs, *(t for t in tests if t.name.startswith("test_eq_"))]:
        scan_lines(str(file.relative_to(root)), file.read_text("utf-8"), found)
    for file in tests:
        scan_names(str(file.relative_to(root)), file.read_text("utf-8"), found)
    faults = {"docs": "has no displayed equation in docs/", "lines": "stands on no line of code",
              "tests": "stands in no test's name"}
    for label in sorted({*found.docs, *found.lines, *found.tests}, key=sort_key):
        for place, fault in faults.items():
            if label not in getattr(found, place):
                have = next(v[label] for v in (found.docs, found.lines, found.tests) if label in v)
                found.faults.append(f"[{label}] {fault}; it is in {have}")
    return found


def pages(root: Path) -> list[Path]:
    """The pages of docs/, those of its folders last."""
    return sorted((root / "docs").rglob("*.md"), key=lambda file: (len(file.parts), file))


def sort_key(label: str) -> tuple[str, int]:
    """EMB-2 before EMB-10."""
    family, number = label.split("-")
    return family, int(number)


def scan_chapter(name: str, text: str, found: Found) -> None:
    """Definitions of one page: each followed by exactly one display; references to labels are checked at the end."""
    index = re.escape(BEGIN.format("labels", WRITER)) + ".*?" + re.escape(END.format("labels"))
    text = re.sub(index, "", text, flags=re.S)
    waiting = None
    for number, block in enumerate(re.split(r"(?m)^\$\$\n(.*?)^\$\$$", text, flags=re.S)):
        if number % 2 == 0 and re.search(r"\$\$|^\s*(```|~~~)\s*math|\\\[", block, flags=re.M):
            found.faults.append(f"{name}: a display that is not $$ alone on its lines")
        if number % 2:                                             # a display
            if waiting is None:
                found.faults.append(f"{name}: a displayed equation without a label: {' '.join(block.split())[:60]}")
            waiting = None
            continue
        for label in DEFINED.findall(block):
            if waiting is not None:
                found.faults.append(f"{name}: [{waiting}] has no displayed equation before [{label}]")
            if label in found.docs:
                found.faults.append(f"{name}: [{label}] is defined in {found.docs[label]} already")
            found.docs[label], waiting = name, label
    if waiting is not None:
        found.faults.append(f"{name}: [{waiting}] has no displayed equation")


def scan_lines(name: str, text: str, found: Found) -> None:
    """Labels at the end of code lines; one label a line, one line a label."""
    if not MENTIONED.search(text):
        return
    functions, computing, comments = structure(text)
    for number, line in comments.items():
        labels = ON_A_LINE.findall(line)
        for label in labels:
            if number not in computing:
                found.faults.append(f"{name}:{number}: [{label}] stands on a line that computes nothing")
            around = [f for f in functions if f.lineno <= number <= f.end_lineno]
            where = ".".join(f.name for f in sorted(around, key=lambda f: f.lineno))
            if label in found.lines:
                found.faults.append(f"{name}:{number}: [{label}] stands in {found.lines[label][0]} already")
            found.lines[label] = (name, where, number)
        if len(MENTIONED.findall(line)) > 1 and labels:
            found.faults.append(f"{name}:{number}: more than one label on a line")


@functools.cache
def structure(text: str) -> tuple[list[ast.stmt], set[int], dict[int, str]]:
    """Of a source: its functions and classes, the lines that compute something, {line: comment at its end}."""
    tree = ast.parse(text)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    working = [getattr(n, "test", n) for n in ast.walk(tree)       # of an if, its condition
               if isinstance(n, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Return | ast.Expr | ast.If)]
    computing = {line for n in working for line in range(n.lineno, n.end_lineno + 1)}
    comments = {t.start[0]: t.string for t in tokenize.generate_tokens(io.StringIO(text).readline)
                if t.type == tokenize.COMMENT and t.line.strip() != t.string.strip()}
    return functions, computing, comments


@functools.cache
def collected(text: str) -> list[tuple[str, int]]:
    """(name, line) of what pytest collects of a source."""
    return [(n.name, n.lineno) for n in ast.parse(text).body
            if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]


def scan_names(name: str, text: str, found: Found) -> None:
    """Labels in the names of test functions."""
    for test, line in collected(text):
        labels = ["-".join(pair) for pair in IN_A_NAME.findall(test)]
        if len(labels) > 3:
            found.faults.append(f"{name}:{line}: {len(labels)} labels in one test; three at most")
        if twice := [k for k, n in Counter(labels).items() if n > 1]:
            found.faults.append(f"{name}:{line}: [{twice[0]}] twice in one name")
        for label in labels:
            found.tests.setdefault(label, []).append(f"{name}::{test}")


def broken_references(root: Path = ROOT) -> list[str]:
    """Plain [LN-3] on a page, file names in `docs/…` or `tests/…` form, functions of exercises, that lead nowhere."""
    known, faults = set(scan(root).docs), []
    for file in pages(root):
        text, page = file.read_text("utf-8"), file.relative_to(root / "docs")
        faults += [f"{page}: [{m}] is defined nowhere" for m in sorted(set(MENTIONED.findall(text)) - known)]
        for path in sorted(set(re.findall(r"\b(?:docs|tests|minibert|benchmarks)/[\w/.-]+\.(?:md|py)\b", text))):
            faults += [] if (root / path).is_file() else [f"{page}: {path} is not there"]
        for link in sorted(set(re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text))):
            faults += [] if (file.parent / link).exists() else [f"{page}: link to {link} leads nowhere"]
    for key, (path, name, _) in exercises(root).items():
        if not (root / path).is_file() or definition((root / path).read_text("utf-8"), name) is None:
            faults.append(f"exercises.md: {key}: {path} has no {name}")
    return faults


def index(found: Found) -> str:
    """The label index, a table in Markdown, by chapter."""
    rows = ["| label | chapter | line | tests |", "|---|---|---|---|"]
    for label in in_order(found):
        file, function, _ = found.lines.get(label, ("", "", 0))
        tests = "<br>".join(f"`{t.split('::')[1]}`" for t in found.tests.get(label, []))
        chapter = found.docs[label]
        rows.append(f"| {label} | [{chapter.removesuffix('.md')}]({chapter}) | {file}: `{function}` | {tests} |")
    return "\n".join(rows)


def exercises(root: Path = ROOT) -> dict[str, tuple[str, str, str]]:
    """{"exercise 7": (file, function, arguments of its command)} of docs/exercises.md."""
    text = (root / "docs" / "exercises.md").read_text("utf-8")
    return {f"exercise {number}": tuple(rest) for number, *rest in EXERCISE.findall(text)}


def definition(text: str, name: str) -> ast.stmt | None:
    """The function, class or (SGD.update) method of this name in a source."""
    scope: ast.AST | None = ast.parse(text)
    for part in name.split("."):
        scope = next((n for n in getattr(scope, "body", []) if getattr(n, "name", "") == part), None)
    return scope


def recorded(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """What mutants.py has seen of each label and exercise: {key: {hash, mutants, killers {test: how many}}}."""
    return json.loads((root / "tests" / "tools" / "mutants.json").read_text("utf-8"))


def mutants_table(found: Found, record: dict[str, dict[str, Any]], root: Path = ROOT) -> str:
    """What has been mutated: a row a label, then a row an exercise, and their sum."""
    places = {label: found.lines[label][:2] for label in in_order(found) if label in found.lines}
    places |= {key: (file, function) for key, (file, function, _) in exercises(root).items()}
    known = {key: place for key, place in places.items() if key in record}
    total = sum(record[key]["mutants"] for key in known)
    rows = [f"{total:,} mutants of {len(known)} lines and functions; none lives.", "",
            "| label | line | mutants | killed by |", "|---|---|---:|---|"]
    for key, (file, function) in known.items():
        killers = "<br>".join(f"`{test}`" for test in record[key]["killers"])
        rows.append(f"| {key} | {file}: `{function}` | {record[key]['mutants']} | {killers} |")
    return "\n".join(rows)


def in_order(found: Found) -> list[str]:
    """The labels of the pages, chapter by chapter."""
    return sorted(found.docs, key=lambda label: (found.docs[label], sort_key(label)))


def generated(found: Found, root: Path = ROOT) -> dict[Path, str]:
    """The pages of which a part is written here, as they should be."""
    parts = {"notation.md": ("labels", index(found)), "00-map.md": ("packages", packages.table(root)),
             "mutants.md": ("mutants", mutants_table(found, recorded(root), root))}
    pages = {root / "docs" / name: part for name, part in parts.items()}
    return {page: with_part(page.read_text("utf-8"), *part) for page, part in pages.items()}


def with_part(page: str, name: str, text: str, writer: str = WRITER) -> str:
    """The page with the part of this name written anew."""
    begin, end = BEGIN.format(name, writer), END.format(name)
    return page.split(begin)[0] + f"{begin}\n\n{text}\n\n{end}" + page.split(end)[1]


def main() -> int:
    """Print faults; with --write the pages are written first."""
    found = scan()
    if "--write" in sys.argv[1:]:
        for page, text in generated(found).items():
            page.write_text(text, encoding="utf-8")
    faults = found.faults + broken_references()
    print("\n".join(faults) or f"{len(found.docs)} labels: each has its equation, its line and its test")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
