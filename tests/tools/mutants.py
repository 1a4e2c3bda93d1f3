"""Changes each labelled line, one change at a time, and runs the tests that its label names: every mutant must die.

    make mutants                                # all of them
    make mutants-changed                        # those that have changed since their mutants died, a tenth of the rest
    python tests/tools/mutants.py LN-3 GELU-4   # some labels

The functions of docs/exercises.md lose their bodies too, one at a time, and the exercise's own command must fail. What
died is recorded in mutants.json, with a hash of the statement, its equation and its tests, and told in docs/mutants.md;
every change and its killer stand in build/mutants.tsv. Nothing is recorded of a label of which one mutant lives.

A mutant is a copy of the project in which one line is wrong: a factor of 1.001 on what it computes, a sign turned, a
product made a quotient, a term or a factor dropped, a comparison or a condition turned round. It dies when a test whose
name contains the label fails; one that lives means that the link from equation to line to test is only a word.
"""
import argparse
import ast
import contextlib
import copy
import functools
import hashlib
import json
import multiprocessing
import os
import queue
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from crossrefs import ROOT, Found, broken_references, definition, exercises, generated, in_order, recorded, scan

FORK = multiprocessing.get_context("forkserver")
COPIED = ("minibert", "tests", "train.py", "pyproject.toml", "docs", "data")
TABLE = ROOT / "build" / "mutants.tsv"
FACTOR = "1.001"
FAST = ["-x", "-q", "--tb=no", "--assert=plain", *(word for name in ("cacheprovider", "hypothesispytest", "xdist")
                                                  for word in ("-p", f"no:{name}"))]
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
    statement = statement_at(parsed(source), line)
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


# -------------------------------------------------------------------------------- what is mutated, and what it hangs on


@dataclass(frozen=True)
class Item:
    """A labelled line or an exercise: its mutants, the tests that must see them, a hash of all that this hangs on."""
    mutants: list[Mutant]
    tests: list[str]                               # arguments of pytest
    hash: str


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()[:16]


def labelled(label: str, found: Found, root: Path = ROOT) -> Item:
    """The hash is of the statement, of what is done to it, of the equation on its page, of the tests."""
    file, _, line = found.lines[label]
    mutants = mutants_of(label, root, found)
    statement = ast.unparse(statement_at(parsed((root / file).read_text("utf-8")), line))
    page = (root / "docs" / found.docs[label]).read_text("utf-8")
    equation = re.search(rf"\*\*\[{label}\]\*\*.*?^\$\$\n.*?^\$\$$", page, flags=re.S | re.M)
    tests = sorted(found.tests[label])
    named = (test.split("::") for test in tests)
    sources = [functions((root / test_file).read_text("utf-8"))[name] for test_file, name in named]
    return Item(mutants, tests, digest(statement, *(m.what for m in mutants), " ".join(equation[0].split()), *sources))


def exercise(key: str, file: str, name: str, command: str, root: Path = ROOT) -> Item:
    """A function without its body; the hash is of the function, the command and the files of tests that it names."""
    text = (root / file).read_text("utf-8")
    scope = definition(text, name)
    lines = text.splitlines(keepends=True)
    first = scope.body[1].lineno if ast.get_docstring(scope) else scope.body[0].lineno
    lines[first - 1:scope.end_lineno] = [" " * scope.body[0].col_offset + "raise NotImplementedError\n"]
    tests = shlex.split(command)
    sources = [s for t in tests if t.endswith(".py") for s in functions((root / t).read_text("utf-8")).values()]
    return Item([Mutant(key, file, first, f"{name} without its body", "".join(lines))], tests,
                digest(ast.unparse(scope), command, *sources))


parsed = functools.cache(ast.parse)


@functools.cache
def functions(text: str) -> dict[str, str]:
    """{name: source without comments} of the functions of a file."""
    return {n.name: ast.unparse(n) for n in parsed(text).body if isinstance(n, ast.FunctionDef)}


def every_item(found: Found, root: Path = ROOT) -> dict[str, Item]:
    """All labels, chapter by chapter, then all exercises."""
    return ({label: labelled(label, found, root) for label in in_order(found)}
            | {key: exercise(key, *row, root) for key, row in exercises(root).items()})


def changed(items: dict[str, Item], record: dict[str, dict[str, Any]]) -> list[str]:
    """What has another hash than when its mutants died, or none."""
    return [key for key, item in items.items() if record.get(key, {}).get("hash") != item.hash]


def tenth(keys: list[str], seed: str) -> list[str]:
    """A tenth of the keys, rounded up, drawn by the seed."""
    return random.Random(seed).sample(keys, -(-len(keys) // 10))


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
        raise RuntimeError(f"pytest ended with {code}: {test or ' '.join(tests)}")
    return test


def kill(mutant: Mutant | None, tests: list[str], folders: queue.Queue[str]) -> str:
    """The test that killed it, or "" for a mutant that lives; of None, the test that fails where nothing is changed."""
    folder = folders.get()
    try:
        if mutant is None:
            return run_tests(folder, tests)
        file = Path(folder) / mutant.file
        original = file.read_text("utf-8")
        try:
            file.write_text(mutant.source, encoding="utf-8")
            return run_tests(folder, tests)
        finally:
            file.write_text(original, encoding="utf-8")
    finally:
        folders.put(folder)


def run(items: dict[str, Item], record: dict[str, dict[str, Any]]) -> Iterator[tuple[Mutant, str]]:
    """(mutant, its killer or "") for all mutants of the items; exits where a test fails before any change."""
    os.environ["OMP_NUM_THREADS"] = "1"
    FORK.set_forkserver_preload(["torch", "pytest", "numpy", "tokenizers", "safetensors.torch"])
    workers, folders = os.cpu_count() or 1, queue.Queue()
    with tempfile.TemporaryDirectory() as base:
        for i in range(workers):
            copy_project(Path(base) / str(i))
            folders.put(f"{base}/{i}")
        named = sorted({t for item in items.values() for t in item.tests if "::" in t})
        commands = [item.tests for item in items.values() if "::" not in item.tests[0]]
        pairs = [(m, best_first(item.tests, record.get(key))) for key, item in items.items() for m in item.mutants]
        with ThreadPoolExecutor(workers) as threads:
            untouched = threads.map(lambda tests: kill(None, tests, folders), filter(None, [named, *commands]))
            if test := next(filter(None, untouched), ""):
                sys.exit(f"{test} fails before anything was changed")
            killers = threads.map(lambda pair: kill(*pair, folders), pairs)
            yield from zip((mutant for mutant, _ in pairs), killers, strict=True)


def best_first(tests: list[str], seen: dict[str, Any] | None) -> list[str]:
    """The tests, those first that killed most the last time; the arguments of an exercise stay as they are."""
    killers = (seen or {}).get("killers", {})
    return sorted(tests, key=lambda t: -killers.get(t.split("::")[-1], 0)) if all("::" in t for t in tests) else tests


def entry(item: Item, killers: list[str]) -> dict[str, Any]:
    """What the record keeps of an item whose mutants are all dead."""
    return {"hash": item.hash, "mutants": len(killers), "killers": dict(Counter(killers).most_common())}


def write(record: dict[str, dict[str, Any]], root: Path = ROOT) -> None:
    """mutants.json, a line a key."""
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in record.items())
    (root / "tests" / "tools" / "mutants.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def take(items: dict[str, Item], chosen: list[str], record: dict[str, dict[str, Any]]) -> tuple[int, int]:
    """(mutants, those alive) of what is chosen; told and recorded key by key, so that an early end loses little."""
    killers: dict[str, list[str]] = {key: [] for key in chosen}
    TABLE.parent.mkdir(exist_ok=True)
    with open(TABLE, "w", encoding="utf-8") as table:
        for mutant, test in run({key: items[key] for key in chosen}, record):
            key = mutant.label
            killers[key].append(test)
            print(f"{key:8} {mutant.what}: {test or 'LIVES'}", flush=True)
            print(key, f"{mutant.file}:{mutant.line}", mutant.what, test or "LIVES", sep="\t", file=table)
            if len(killers[key]) == len(items[key].mutants) and all(killers[key]):
                record[key] = entry(items[key], killers[key])
                write({key: record[key] for key in items if key in record})
    tests = [test for found in killers.values() for test in found]
    return len(tests), tests.count("")


def main() -> int:
    """0 when every mutant died."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("keys", nargs="*", metavar="LABEL", help='labels, or "exercise 7"; none: all of them')
    parser.add_argument("--changed", action="store_true",
                        help="what has changed since its mutants died, and a tenth of the rest")
    parser.add_argument("--seed", default=commit(), help="which tenth (default: the commit)")
    options = parser.parse_args()
    found = scan()
    if faults := found.faults + broken_references():
        print("\n".join(faults), file=sys.stderr)
        return 2
    items, record = every_item(found), recorded()
    if unknown := [key for key in options.keys if key not in items]:
        parser.error(f"no such label or exercise: {', '.join(unknown)}")
    chosen = options.keys or list(items)
    if options.changed:
        new = changed(items, record)
        drawn = tenth([key for key in items if key not in new], options.seed)
        print(f"changed: {', '.join(new) or 'nothing'}\na tenth of the rest, seed {options.seed}: {', '.join(drawn)}")
        chosen = new + drawn
    total, alive = take(items, chosen, record)
    page = ROOT / "docs" / "mutants.md"
    page.write_text(generated(found)[page], encoding="utf-8")
    print(f"{total} mutants of {len(chosen)} lines and functions, {alive} live; all changes: build/mutants.tsv")
    return 1 if alive else 0


def commit() -> str:
    """The commit at hand; "none" in a copy without git."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return "none"
    return git.stdout.strip() or "none"


if __name__ == "__main__":
    sys.exit(main())
