"""What is read and what runs: the path that README names, and what a small run of `--task ner` executes.

    python tests/tools/reading.py              # stops and lines of the path; files, lines and labels that each engine
                                               # executes
    python tests/tools/reading.py --write      # the same, and what pages say of it anew: the table of docs/00-map.md,
                                               # at the head of each chapter which of its labels run
"""
import ast
import contextlib
import io
import re
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from crossrefs import ROOT, definition, scan, sort_key, with_part

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]                    # as pytest has it

ENGINES = ("by-hand", "fast", "autograd")
STOP = re.compile(r"(?m)^\| (\d+) \| (.+?) \| (.*?) \| (.+?) \| (.+?) \|$")    # number, code, chapter, minutes, command
PART = re.compile(r"`([\w/]+\.py)`(?: `([\w.]+)`(?: to `([\w.]+)`)?)?")        # file, first function, last function
CHAPTER = re.compile(r"\(docs/(\d\d-[\w-]+\.md)\)")
WRITER = "tests/tools/reading.py"


@dataclass(frozen=True)
class Part:
    """A file, or what stands in it from one function or class to another."""
    file: str
    first: str = ""
    last: str = ""

    def lines(self, root: Path = ROOT) -> range:
        """The numbers of its lines. Raises ValueError for a function that is not there."""
        text = (root / self.file).read_text("utf-8")
        if not self.first:
            return range(1, len(text.splitlines()) + 1)
        ends = [definition(text, name) for name in (self.first, self.last or self.first)]
        if None in ends:
            raise ValueError(f"{self.file} has no {self.first if ends[0] is None else self.last}")
        return range(min(n.lineno for n in (ends[0], *ends[0].decorator_list)), ends[1].end_lineno + 1)


@dataclass(frozen=True)
class Stop:
    """A stop of the reading order; without code, of the chapter alone."""
    number: int
    parts: list[Part]
    chapters: list[str]


def stops(root: Path = ROOT) -> list[Stop]:
    """The table of README's section on the reading order."""
    section = (root / "README.md").read_text("utf-8").split("## Reading order")[1].split("\n## ")[0]
    return [Stop(int(number), [Part(*found) for found in PART.findall(code)], CHAPTER.findall(chapters))
            for number, code, chapters, _, _ in STOP.findall(section)]


def read_lines(root: Path = ROOT) -> int:
    """Lines of all parts of the path, each once."""
    return len({(part.file, line) for stop in stops(root) for part in stop.parts for line in part.lines(root)})


# ----------------------------------------------------------------------------------------------------- what executes


@contextlib.contextmanager
def traced(root: Path) -> Iterator[dict[str, set[int]]]:
    """{file: lines of functions that were executed within}, of the package and of train.py, in all threads."""
    found: dict[str, set[int]] = {}
    names: dict[str, str | None] = {}

    def name_of(file: str) -> str | None:
        if file not in names:
            path = Path(file)
            inside = path.is_relative_to(root / "minibert") or path == root / "train.py"
            names[file] = str(path.relative_to(root)) if inside else None
        return names[file]

    def call(frame: FrameType, event: str, argument: Any) -> Callable | None:
        file = name_of(frame.f_code.co_filename)
        if file is None or frame.f_code.co_name == "<module>":
            return None
        lines = found.setdefault(file, set())

        def line(frame: FrameType, event: str, argument: Any) -> Callable:
            lines.add(frame.f_lineno)
            return line
        return line

    before = sys.gettrace()
    threading.settrace(call)
    sys.settrace(call)
    try:
        yield found
    finally:
        sys.settrace(before)
        threading.settrace(before)


def executed(engine: str, root: Path = ROOT) -> dict[str, set[int]]:
    """traced() of three updates of `--task ner` by this engine, with dropout, and the evaluation after them."""
    from tiny import write_tiny_data, write_tiny_folder

    import train
    with tempfile.TemporaryDirectory() as folder:
        weights, data = (Path(folder) / name for name in ("weights", "data"))
        weights.mkdir()
        data.mkdir()
        argv = ["--task", "ner", "--weights", str(write_tiny_folder(weights)), "--data", str(write_tiny_data(data)),
                "--output", str(Path(folder) / "run"), "--gradients", engine, "--max-steps", "3", "--max-pieces", "24",
                "--precision", "fp32"]
        silent = io.StringIO()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent), traced(root) as found:
            train.train(argv)
    return found


def ran(file: str, line: int, lines: set[int], root: Path = ROOT) -> bool:
    """Whether the statement that has this line was executed."""
    around = [n for n in ast.walk(ast.parse((root / file).read_text("utf-8"))) if isinstance(n, ast.stmt)
              and not hasattr(n, "body") and n.lineno <= line <= n.end_lineno]
    here = range(around[-1].lineno, around[-1].end_lineno + 1) if around else [line]
    return not lines.isdisjoint(here)


def labels_run(found: dict[str, set[int]], root: Path = ROOT) -> dict[str, set[str]]:
    """{file: labels of its lines that were executed}."""
    result: dict[str, set[str]] = {}
    for label, (file, _, line) in scan(root).lines.items():
        if not file.startswith("tests") and ran(file, line, found.get(file, set()), root):
            result.setdefault(file, set()).add(label)
    return result


def engine_table(runs: dict[str, dict[str, set[int]]], root: Path = ROOT) -> str:
    """Of each file's labelled lines, how many there are and how many each engine executes."""
    labels = {engine: labels_run(found, root) for engine, found in runs.items()}
    files: dict[str, int] = {}
    for file, _, _ in scan(root).lines.values():
        files[file] = files.get(file, 0) + (not file.startswith("tests"))
    rows = [[f"`{file}`", n, *(len(labels[engine].get(file, ())) for engine in ENGINES)]
            for file, n in sorted(files.items()) if n]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, 2 + len(ENGINES)))])
    head = [f"| labelled lines of | all | {' | '.join(f'`{engine}`' for engine in ENGINES)} |",
            "|---|" + "---:|" * (1 + len(ENGINES))]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def labels_sentence(chapter: str, run: set[str], root: Path = ROOT) -> str:
    """Which of a chapter's labels are on lines that were executed, on other lines of the program, on lines of tests."""
    found = scan(root)
    mine = sorted((label for label, page in found.docs.items() if page == chapter), key=sort_key)
    tested = {label for label in mine if found.lines[label][0].startswith("tests")}
    rest = [label for label in mine if label not in run | tested]
    parts = [f"Of the labelled lines of this page a small run of `--task ner --gradients by-hand` executes "
             f"{joined([label for label in mine if label in run]) or 'none'}."]
    if rest:
        parts.append(f"Lines for other tasks, settings, engines or texts, and textbook forms: {joined(rest)}.")
    if tested:
        parts.append(f"Lines of tests alone: {joined(sorted(tested, key=sort_key))}.")
    return textwrap.fill(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False)


def joined(labels: list[str]) -> str:
    """[LN-1] to [LN-3], [GELU-2]: three neighbours or more as their ends."""
    stretches: list[list[str]] = []
    for label in labels:
        family, number = sort_key(label)
        if stretches and sort_key(stretches[-1][-1]) == (family, number - 1):
            stretches[-1].append(label)
        else:
            stretches.append([label])
    return ", ".join(f"[{s[0]}] to [{s[-1]}]" if len(s) > 2 else ", ".join(f"[{label}]" for label in s)
                     for s in stretches)


def generated(runs: dict[str, dict[str, set[int]]], root: Path = ROOT) -> dict[Path, str]:
    """The pages of which a part is written here, as they should be."""
    docs = root / "docs"
    by_hand = set().union(*labels_run(runs["by-hand"], root).values())
    parts = {page: ("labels that run", labels_sentence(page.name, by_hand, root))
             for page in sorted(docs.glob("[01][0-9]-*.md")) if page.name != "00-map.md"}
    parts[docs / "00-map.md"] = "engines", engine_table(runs, root)
    return {page: with_part(page.read_text("utf-8"), *part, WRITER) for page, part in parts.items()}


def main() -> None:
    """Print it all."""
    for stop in stops():
        for part in stop.parts:
            where = " to ".join(filter(None, (part.first, part.last)))
            print(f"{stop.number:3}  {part.file} {where}".ljust(80), f"{len(part.lines()):6,}")
    print(f"{'':3}  the path".ljust(80), f"{read_lines():6,}\n")

    runs = {engine: executed(engine) for engine in ENGINES}
    for engine, found in runs.items():
        lines = {file: len((ROOT / file).read_text("utf-8").splitlines()) for file in found}
        print(f"train.py --task ner --gradients {engine}: {len(found)} files of {sum(lines.values()):,} lines, "
              f"{sum(map(len, found.values())):,} of them executed in functions")
        if engine == "fast":
            for file in sorted(found):
                print(f"     {file}".ljust(80), f"{len(found[file]):6,} of {lines[file]:,}")
    table = engine_table(runs)
    print(f"\n{table}")
    for engine, found in runs.items():
        print(f"\n{engine}: {' '.join(sorted(set().union(*labels_run(found).values())))}")

    if "--write" in sys.argv[1:]:
        for page, text in generated(runs).items():
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
