"""Changes each labelled line, one change at a time, and runs the tests that its label names: every mutant must die.

    make mutants                                 # all of them; writes docs/mutants.md
    python tests/tools/mutants.py LN-3 GELU-4          # some labels, printed only

The functions of docs/exercises.md lose their bodies too, one at a time, and the exercise's own command must fail.

A mutant is a copy of the project in which one line is wrong: a factor of 1.001 on what it computes, a sign turned, a
product made a quotient, a term or a factor dropped, a comparison or a condition turned round. It dies when a test whose
name contains the label fails; one that lives means that the link from equation to line to test is only a word.
"""
import ast
import contextlib
import copy
import multiprocessing
import os
import queue
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from crossrefs import ROOT, Found, scan, sort_key

FORK = multiprocessing.get_context("forkserver")
COPIED = ("minibert", "tests", "train.py", "pyproject.toml", "docs", "data")
FACTOR = "1.001"
FAST = ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
TURNED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitOr: ast.BitAnd,
          ast.BitAnd: ast.BitOr}
OPPOSITE = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
SIGN = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.BitOr: "|", ast.BitAnd: "&"}


@dataclass(frozen=True)
class Mutant:
    """One change of one line."""
    label: str
    file: str
    line: int
    what: str                                      # in words, for the table
    source: str                                    # the whole file, changed


# ------------------------------------------------------------------------------------------------ making mutants


def statement_at(tree: ast.AST, line: int) -> ast.stmt:
    """The smallest statement that covers a line."""
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    return max(around, key=lambda n: (n.lineno, -n.end_lineno))


def values(statement: ast.stmt) -> list[ast.expr]:
    """The expressions that a statement computes; of a tuple each element."""
    value = getattr(statement, "value", None)
    if value is None:
        return []
    return list(value.elts) if isinstance(value, ast.Tuple) else [value]


def changes(statement: ast.stmt) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """(what, a node of the statement, what takes its place) for every mutation."""
    in_place = isinstance(statement, ast.Expr)
    for value in values(statement):
        if isinstance(value, ast.Constant) and value.value is None:
            continue
        if not in_place:
            yield f"{show(value)} times {FACTOR}", value, scaled(value)
    for node in walk_outside_indices(statement):
        if isinstance(node, ast.BinOp) and type(node.op) in TURNED:
            kind = type(node.op)
            yield (f"{SIGN[TURNED[kind]]} for {SIGN[kind]} in {show(node)}", node,
                   ast.BinOp(node.left, TURNED[kind](), node.right))
            yield f"without {show(node.right)} in {show(node)}", node, node.left
            yield f"without {show(node.left)} in {show(node)}", node, (
                ast.UnaryOp(ast.USub(), node.right) if kind is ast.Sub else node.right)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield f"factors exchanged in {show(node)}", node, ast.BinOp(node.right, ast.MatMult(), node.left)
        elif isinstance(node, ast.Attribute) and node.attr in ("T", "mT"):
            yield f"without the transpose of {show(node)}", node, node.value
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            yield f"without the power in {show(node)}", node, node.left
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
            yield f"without the sign of {show(node)}", node, node.operand
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITE:
            yield f"the opposite of {show(node)}", node, ast.Compare(
                node.left, [OPPOSITE[type(node.ops[0])]()], node.comparators)
        elif in_place and isinstance(node, ast.Call):
            for argument in [*node.args, *(k.value for k in node.keywords)]:
                yield f"{show(argument)} times {FACTOR} in {show(node.func)}", argument, scaled(argument)


def walk_outside_indices(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but not inside [...] of a subscript, nor in the arguments that only name an axis."""
    yield node
    for name, child in ast.iter_fields(node):
        for item in child if isinstance(child, list) else [child]:
            if not isinstance(item, ast.AST) or (isinstance(node, ast.Subscript) and name == "slice"):
                continue
            if isinstance(node, ast.Call) and name == "args" and is_axis(item):
                continue
            if isinstance(item, ast.keyword) and item.arg in ("dim", "keepdim", "key", "default"):
                continue
            yield from walk_outside_indices(item)


def is_axis(node: ast.AST) -> bool:
    """-1, as in x.sum(-1)."""
    return (isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant)
            and isinstance(node.operand.value, int))


def scaled(node: ast.expr) -> ast.expr:
    return ast.BinOp(node, ast.Mult(), ast.Constant(float(FACTOR)))


def show(node: ast.AST) -> str:
    """Short source of a node."""
    text = ast.unparse(node)
    return text if len(text) <= 40 else text[:37] + "..."


def mutants_of(label: str, root: Path, found: Found) -> list[Mutant]:
    """All mutants of the line of a label."""
    file, _, line = found.lines[label]
    source = (root / file).read_text("utf-8")
    tree = ast.parse(source)
    statement = statement_at(tree, line)
    result, seen = [], {ast.unparse(statement)}
    for what, node, other in changes(statement):
        changed = replaced(statement, node, other)
        text = ast.unparse(changed)
        if text in seen:
            continue
        seen.add(text)
        lines = source.splitlines(keepends=True)
        indent = " " * statement.col_offset
        body = "".join(indent + row + "\n" for row in text.split("\n"))
        lines[statement.lineno - 1:statement.end_lineno] = [body]
        result.append(Mutant(label, file, line, what, "".join(lines)))
    return result


def replaced(statement: ast.stmt, node: ast.AST, other: ast.AST) -> ast.stmt:
    """A copy of the statement in which `node` is `other`."""
    twin = copy.deepcopy(statement)
    place = next(i for i, n in enumerate(ast.walk(statement)) if n is node)
    target = next(n for i, n in enumerate(ast.walk(twin)) if i == place)

    class Swap(ast.NodeTransformer):
        def visit(self, n: ast.AST) -> ast.AST:
            return copy.deepcopy(other) if n is target else self.generic_visit(n)

    return ast.fix_missing_locations(Swap().visit(twin))


def exercises(root: Path = ROOT) -> list[tuple[Mutant, list[str]]]:
    """(a function without its body, the arguments of its command) for every row of docs/exercises.md."""
    text = (root / "docs" / "exercises.md").read_text("utf-8")
    result = []
    for number, file, name, command in re.findall(r"(?m)^\| (\d+) \| `(\S+)` `(\S+)` \|.*\| `(.+)` \|$", text):
        source = (root / file).read_text("utf-8")
        scope: ast.AST = ast.parse(source)
        for part in name.split("."):
            scope = next(n for n in scope.body if getattr(n, "name", "") == part)
        lines = source.splitlines(keepends=True)
        first = scope.body[1].lineno if ast.get_docstring(scope) else scope.body[0].lineno
        lines[first - 1:scope.end_lineno] = [" " * scope.body[0].col_offset + "raise NotImplementedError\n"]
        result.append((Mutant(f"exercise {number}", file, first, f"{name} without its body", "".join(lines)),
                       shlex.split(command)))
    return result


# --------------------------------------------------------------------------------------------------- killing them


def copy_project(folder: Path, root: Path = ROOT) -> None:
    """What the tests need, without caches."""
    for name in COPIED:
        source, target = root / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "oracle"))
        else:
            shutil.copy(source, target)


class FirstFailure:
    """A pytest plugin that remembers what failed first."""

    def __init__(self):
        self.test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.test:
            self.test = report.nodeid.split("::")[-1].split("[")[0]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.test:
            self.test = f"{report.nodeid} cannot be imported"         # pytest ends with 2 then


def run_here(folder: str, tests: list[str], answer: Connection) -> None:
    """In a fresh process: pytest on `tests` in the copy at `folder`; sends its exit code and the first failure."""
    os.chdir(folder)
    sys.path[:] = [folder, *(p for p in sys.path if not p.startswith(str(ROOT) + "/tests"))]
    sys.dont_write_bytecode = True
    first = FirstFailure()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = pytest.main([*FAST, *tests], plugins=[first])
    answer.send((int(code), first.test))


def run_tests(folder: str, tests: list[str]) -> str:
    """The first of `tests` that fails in the copy at `folder`, or "". torch is imported once, by the fork server.

    Raises RuntimeError where pytest ends with neither: nothing collected, a crash, no end within ten minutes.
    """
    here, there = FORK.Pipe()
    child = FORK.Process(target=run_here, args=(folder, tests, there))
    child.start()
    there.close()
    try:
        code, test = here.recv() if here.poll(600) else (None, "")
    except EOFError:
        code, test = None, ""
    finally:
        child.terminate()
        child.join()
    if code not in (0, 1):
        raise RuntimeError(f"pytest on {' '.join(tests)} ended with {code}")
    return test


def kill(mutant: Mutant, tests: list[str], folders: queue.Queue[str]) -> str:
    """The test that killed it, or "" for a mutant that lives."""
    folder = folders.get()
    file = Path(folder) / mutant.file
    original = file.read_text("utf-8")
    try:
        file.write_text(mutant.source, encoding="utf-8")
        return run_tests(folder, tests)
    finally:
        file.write_text(original, encoding="utf-8")
        folders.put(folder)


def main() -> int:
    """0 when every mutant died."""
    found = scan()
    chosen = sys.argv[1:] or sorted(found.docs, key=lambda k: (found.docs[k], sort_key(k)))
    if unknown := [k for k in chosen if k not in found.lines or k not in found.tests]:
        print(f"no line or no test: {', '.join(unknown)}; python tests/tools/crossrefs.py tells more", file=sys.stderr)
        return 2
    mutants = [(m, found.tests[label]) for label in chosen for m in mutants_of(label, ROOT, found)]
    mutants += exercises() if not sys.argv[1:] else []
    os.environ["OMP_NUM_THREADS"] = "1"
    FORK.set_forkserver_preload(["torch", "pytest", "numpy", "tokenizers", "safetensors.torch"])
    workers, folders = os.cpu_count() or 1, queue.Queue()
    with tempfile.TemporaryDirectory() as base:
        for i in range(workers):
            copy_project(Path(base) / str(i))
            folders.put(f"{base}/{i}")
        if test := run_tests(f"{base}/0", sorted({t for k in chosen for t in found.tests[k]})):
            print(f"{test} fails before anything was changed", file=sys.stderr)
            return 2
        rows = []
        with ThreadPoolExecutor(workers) as threads:
            killers = threads.map(lambda pair: kill(*pair, folders), mutants)
            for (mutant, _), test in zip(mutants, killers, strict=True):
                rows.append((mutant, test))
                print(f"{mutant.label:8} {mutant.what}: {test or 'LIVES'}", flush=True)
    alive = [m for m, test in rows if not test]
    print(f"{len(rows)} mutants, {len(chosen)} labelled lines, {len(alive)} live")
    if not sys.argv[1:] and not alive:
        (ROOT / "docs" / "mutants.md").write_text(page(rows), encoding="utf-8")
    return 1 if alive else 0


def page(rows: list[tuple[Mutant, str]]) -> str:
    """docs/mutants.md."""
    head = ["# Mutants", "",
            "Written by `make mutants`. Each row is one change of one labelled line, and the first test that failed",
            "because of it; the tests that ran are those whose names contain the label. For an exercise, a function",
            "lost its body and the exercise's own command ran. None of the mutants lives.", "",
            "| label | file | change | killed by |", "|---|---|---|---|"]
    cells = [f"| {m.label} | {m.file} | `{m.what.replace(' | ', ' or ')}` | `{test}` |" for m, test in rows]
    return "\n".join([*head, *cells, ""])


if __name__ == "__main__":
    sys.exit(main())
