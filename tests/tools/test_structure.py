"""The shape of the code, read from its syntax trees: who imports whom, what is never imported or called, docstrings,
annotations, no task named outside tasks/, no machine's path or package host in any file.

Every rule is a function from a syntax tree (or a text) to a list of faults; below each stands a snippet that breaks it.
"""
import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Generic

import pytest

from minibert.tasks import TASKS
from minibert.tasks.base import Task, TaskOptions

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "minibert").rglob("*.py"))
PROGRAM = [*PACKAGE, ROOT / "train.py"]


def name_of(file: Path) -> str:
    """minibert/tasks/ner.py -> tasks.ner; minibert/tasks/__init__.py -> tasks; minibert/__init__.py -> minibert."""
    parts = list(file.relative_to(ROOT).with_suffix("").parts)
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts[1:] if parts[0] == "minibert" and len(parts) > 1 else parts)


TREES = {name_of(f): ast.parse(f.read_text("utf-8"), f.name) for f in PROGRAM}


def imported(tree: ast.AST) -> list[tuple[str, int]]:
    """(dotted name, line) of everything that a file imports, anywhere in it; `from a import b` gives a.b."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
    return found


def test_the_files_are_there():
    some = {"core.config", "core.model", "data.tokenizer", "tasks", "tasks.ner", "train", "minibert", "__main__"}
    assert some <= set(TREES)


# ---------------------------------------------------------------------------------------- what is never in the code


NEVER_IMPORTED = {"transformers", "pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
                  "sklearn", "seqeval", "datasets", "accelerate"}
NEVER_CALLED = {"eval", "exec", "compile", "__import__"}
NEVER_METHODS = {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "numpy.load", "np.load",
                 "importlib.import_module", "os.system"}


def dotted(node: ast.AST) -> str:
    """a.b.c of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def forbidden(tree: ast.AST) -> list[str]:
    """Imports and calls that may stand nowhere in the package or in train.py."""
    faults = [f"line {line}: imports {name}" for name, line in imported(tree)
              if name.lstrip(".").split(".")[0] in NEVER_IMPORTED or name in NEVER_METHODS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in NEVER_CALLED | NEVER_METHODS:
            faults.append(f"line {node.lineno}: calls {dotted(node.func)}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            faults.append(f"line {node.value.lineno}: allow_pickle")
        if isinstance(node, ast.keyword) and node.arg == "shell":
            faults.append(f"line {node.value.lineno}: shell")
    return faults


@pytest.mark.parametrize("module", TREES)
def test_no_pickle_no_transformers_no_code_from_data(module):
    assert forbidden(TREES[module]) == []


@pytest.mark.parametrize("source", [
    "import transformers", "from transformers import BertModel", "import pickle as p", "from pickle import loads",
    "def f():\n    import transformers.models", "torch.load('x')", "from torch import load", "eval('1')", "exec(text)",
    "x = [__import__('os')]", "np.load(f, allow_pickle=True)", "subprocess.run(c, shell=True)",
    "importlib.import_module(n)", "os.system('x')"])
def test_the_rule_against_them_can_fail(source):
    assert forbidden(ast.parse(source))


def test_the_rule_against_them_lets_the_usual_things_pass():
    assert forbidden(ast.parse("import torch\nmodel.eval()\nre.compile('x')\nweights.load(f)\nsafe_open(f)")) == []


@pytest.mark.parametrize("file", sorted(f for f in (ROOT / "tests").rglob("*.py") if f.parent.name != "oracle"),
                         ids=lambda f: f.name)
def test_only_the_oracle_needs_transformers(file):
    """`make test` runs without it."""
    peers = {"transformers", "sklearn", "seqeval"}
    tree = ast.parse(file.read_text("utf-8"))
    assert [name for name, _ in imported(tree) if name.split(".")[0] in peers] == []


# -------------------------------------------------------------------------------------- imports point one way


# Package by package, as docs/00-map.md has it. A package may also import what those it may import may import. What
# stands at the top of minibert/ is a package of one file; so is train.py.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(), "files": {"errors"}, "options": {"files"}, "settings": {"options"},
    "core": {"files"}, "scores": {"errors"}, "adapt": {"core"}, "engines": {"core"}, "data": {"core"},
    "checkpoints": {"data"}, "tasks": {"data", "options", "scores"},
    "use": {"checkpoints", "engines", "settings", "tasks"}, "run": {"adapt", "use"},
    "__main__": {"run"}, "minibert": {"use"}, "train": {"run"},
}


def closure(package: str) -> set[str]:
    """Everything that may be reached from a package by allowed imports, itself included."""
    found, waiting = {package}, [package]
    while waiting:
        new = MAY_IMPORT[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def own_imports(tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports, whatever form the import has."""
    found = set()
    for name, _ in imported(tree):
        if name.split(".")[0] != "minibert":
            continue
        path = name.split(".")[1:]
        longest_first = (".".join(path[:n]) for n in range(len(path), 0, -1))
        found.add(next((m for m in longest_first if m in modules), "minibert"))
    return found


def package_of(module: str) -> str:
    return module.split(".")[0]


USERS_OF_TASKS = {"train", "use.predict", "__main__"}                          # DESIGN: only these import the table


def wrong_imports(module: str, tree: ast.AST, modules: set[str]) -> set[str]:
    """Modules that `module` imports and may not; the table TASKS is for its users, a single task for the table."""
    allowed, mine = closure(package_of(module)), own_imports(tree, modules)
    wrong = {m for m in mine if package_of(m) not in allowed}
    wrong |= {"tasks"} & mine if module not in USERS_OF_TASKS else set()
    tasks = {kind.__module__.removeprefix("minibert.") for kind in TASKS.values()} | {"tasks.new"}
    return wrong | (mine & tasks if module != "tasks" else set())


MODULES = set(TREES)


@pytest.mark.parametrize("module", TREES)
def test_imports_point_one_way(module):
    assert package_of(module) in MAY_IMPORT, "a new package needs a row in MAY_IMPORT"
    assert wrong_imports(module, TREES[module], MODULES) == set()


def test_every_package_says_what_lives_there():
    packages = {f.parent for f in PACKAGE} - {ROOT / "minibert"}
    for package in packages:
        text = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
        files = {f.name for f in package.glob("*.py")} - {"__init__.py"}
        assert len(text) > 80, package
        missing = {name for name in files if name not in text}
        assert missing <= {kind.__module__.split(".")[-1] + ".py" for kind in TASKS.values()}, (package, missing)


def test_the_table_has_no_circle():
    for package in MAY_IMPORT:
        assert all(package not in closure(lower) for lower in MAY_IMPORT[package]), package


def test_no_package_of_the_table_is_unused():
    assert set(MAY_IMPORT) == {package_of(module) for module in TREES}


@pytest.mark.parametrize("module, source", [
    ("core.config", "import minibert.data.text"), ("core.model", "import minibert.checkpoints.weights"),
    ("core.batch", "import minibert.data.rows"), ("data.tokenizer", "from minibert import checkpoints"),
    ("use.evaluate", "from minibert.tasks import TASKS"),
    ("use.evaluate", "def f():\n    from minibert.tasks.ner import NER"),
    ("checkpoints.weights", "from minibert.tasks import TASKS"), ("tasks.ner", "from minibert.tasks import TASKS"),
    ("tasks.ner", "from minibert.use.evaluate import Evaluation"), ("adapt.freeze", "import minibert.checkpoints"),
    ("scores.tags", "import minibert"), ("scores.tags", "from minibert.core.config import BertConfig"),
    ("minibert", "from minibert.tasks import TASKS"), ("engines.fast.adamw", "from minibert.data.rows import windows"),
    ("use.predict", "from minibert.run.folder import lock"), ("run.resume", "import minibert.__main__"),
    ("tasks.new", "from minibert.tasks.ner import NER"), ("train", "from minibert.tasks.ner import NER")])
def test_the_rule_of_imports_can_fail(module, source):
    assert wrong_imports(module, ast.parse(source), MODULES | {"tasks.new"})


@pytest.mark.parametrize("module", sorted(set(TREES) - {"train"}))
def test_nothing_of_the_package_imports_train_tests_or_by_dots(module):
    for name, line in imported(TREES[module]):
        assert name.split(".")[0] not in ("train", "tests", ""), f"{module}:{line} imports {name}"


# ----------------------------------------------------------------------------- no task is named outside of tasks/


def task_names() -> set[str]:
    """The keys of TASKS, from the syntax tree of tasks/__init__.py."""
    for node in ast.walk(TREES["tasks"]):
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        if any(isinstance(t, ast.Name) and t.id == "TASKS" for t in targets):
            return {key.value for key in node.value.keys}
    raise AssertionError("no TASKS in tasks/__init__.py")


def compares_task(tree: ast.AST, names: set[str]) -> list[int]:
    """Lines that compare something with a task's name: ==, in, match, startswith, a dictionary of cases."""
    def mentions(node: ast.AST) -> bool:
        return any(isinstance(n, ast.Constant) and n.value in names for n in ast.walk(node))

    lines = []
    for node in ast.walk(tree):
        tests = []
        if isinstance(node, ast.Compare):
            tests = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            tests = [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in (
                "startswith", "endswith", "__eq__"):
            tests = node.args
        elif isinstance(node, ast.Dict):
            tests = [k for k in node.keys if k is not None]
        elif isinstance(node, ast.Subscript):
            tests = [node.slice]
        if any(mentions(t) for t in tests):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("module", [m for m in TREES if m.split(".")[0] != "tasks"])
def test_no_task_is_compared_by_name_outside_tasks(module):
    assert "ner" in task_names()
    assert compares_task(TREES[module], task_names()) == []


@pytest.mark.parametrize("module", [m for m in TREES if m.startswith("tasks.")])
def test_a_task_compares_with_no_other_tasks_name(module):
    assert compares_task(TREES[module], task_names() - {module.split(".")[1]}) == []


@pytest.mark.parametrize("source", [
    "if task.name == 'ner': pass", "x = 'ner' != name", "if name in ('qa', 'ner'): pass",
    "match name:\n    case 'ner': pass", "name.startswith('ner')", "{'ner': f, 'qa': g}[name]", "TASKS['ner']"])
def test_the_rule_of_task_names_can_fail(source):
    assert compares_task(ast.parse(source), {"ner"})


def test_the_rule_of_task_names_lets_the_default_pass():
    assert compares_task(ast.parse("task: str = option('ner', 'what to train')\nif a == 'other': pass"), {"ner"}) == []


def test_every_task_has_its_file_and_all_members():
    for name, kind in TASKS.items():
        one_file = {"translate": "seq2seq", "summarize": "seq2seq", "dialogue": "seq2seq"}
        assert kind.name == name and kind.__module__ == f"minibert.tasks.{one_file.get(name, name)}"
        assert issubclass(kind, Task) and issubclass(kind.Options, TaskOptions)
        assert WITHOUT_DEFAULT <= {m for c in kind.__mro__ if c not in (Task, Generic, object) for m in vars(c)}
    assert task_names() == set(TASKS)


WITHOUT_DEFAULT = {"encode", "decode", "score", "example", "result"}


def raising_members() -> set[str]:
    """Members of Task that some tasks need and others do not."""
    body = next(n for n in TREES["tasks.base"].body if isinstance(n, ast.ClassDef) and n.name == "Task").body
    return {f.name for f in body if isinstance(f, ast.FunctionDef) and any(
        isinstance(n, ast.Raise) and dotted(n.exc) == "NotImplementedError" for n in f.body)}


def test_every_other_member_of_a_task_has_a_default():
    """read_file() and encode_many() have none either, where read() is a task's own or examples are no arrays."""
    assert Task.__abstractmethods__ == WITHOUT_DEFAULT and raising_members() == {"read_file", "encode_many"}


def test_a_task_that_lacks_a_member_cannot_be_made():
    lacking = type("Lacking", (Task,), {name: getattr(TASKS["ner"], name) for name in WITHOUT_DEFAULT - {"score"}})
    with pytest.raises(TypeError, match="without an implementation for abstract method 'score'|method score"):
        lacking(TaskOptions())


# ------------------------------------------------------------------------------ nobody asks an object what it can do


PROBED = {"task", "head", "options", "kind"}       # what everything has a base class for
PROBES = {"getattr", "setattr", "delattr", "vars"}


def probes(tree: ast.AST) -> list[int]:
    """Lines that look for a member by its name on a task, a head or options, and every hasattr()."""
    def probed(node: ast.AST) -> bool:
        return dotted(node).split(".")[-1] in PROBED

    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) in PROBES and node.args and probed(node.args[0]):
            lines.append(node.lineno)
        if isinstance(node, ast.Call) and dotted(node.func) == "hasattr":
            lines.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr == "__dict__" and probed(node.value):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("file", [*PROGRAM, *sorted((ROOT / "benchmarks").glob("*.py"))], ids=lambda f: f.name)
def test_no_member_of_a_task_a_head_or_options_is_looked_for(file):
    assert probes(ast.parse(file.read_text("utf-8"))) == []


@pytest.mark.parametrize("module", [m for m in TREES if m.startswith("tasks.") or m == "core.heads"])
def test_a_head_or_a_task_hides_nothing_from_torch(module):
    """Not self.__dict__ either: what a head shares with the encoder lies in Head.encoder."""
    assert [n.lineno for n in ast.walk(TREES[module]) if isinstance(n, ast.Attribute) and n.attr == "__dict__"] == []


@pytest.mark.parametrize("source", [
    "getattr(task, 'rows', None)", "hasattr(x, 'infer')", "getattr(self.model.head, 'wide', False)",
    "vars(model.task)", "setattr(options, name, 1)", "model.head.__dict__['pooler'] = p", "getattr(kind, 'Options')"])
def test_the_rule_of_probing_can_fail(source):
    assert probes(ast.parse(source)) == [1]


def test_the_rule_of_probing_lets_records_pass():
    assert probes(ast.parse("getattr(record, name)\nvars(f)[name]\ntask.rows(x)\nsettings.task")) == []


# ------------------------------------------------------------------------------------ docstrings and annotations


def public(tree: ast.AST) -> list[tuple[str, ast.AST]]:
    """(dotted name, node) of public classes, functions and methods; what stands inside a function is its own affair."""
    found = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            found.append((prefix + node.name, node))
            if isinstance(node, ast.ClassDef):
                visit(node.body, prefix + node.name + ".")

    visit(tree.body, "")
    return found


def bases_of(node: ast.ClassDef) -> list[str]:
    """Names of the classes that one is derived from, Task[Example, Answer] being Task."""
    return [dotted(b.value if isinstance(b, ast.Subscript) else b) for b in node.bases]


# classes that tasks and heads are derived from, by name
SHARED = {name: node for module in ("tasks.base", "tasks.labelled", "tasks.pairs", "tasks.vocabulary", "core.heads")
          for name, node in dict(public(TREES[module])).items()}


def without_docstring(tree: ast.AST) -> list[str]:
    """Public names without a docstring, the file included; a method may have that of a class it is derived from."""
    own = dict(public(tree))
    every = SHARED | own

    def documented(name: str) -> bool:
        owner, _, method = name.rpartition(".")
        bases = bases_of(every[owner]) if owner in every else []
        return (name in every and bool(ast.get_docstring(every[name]))) or any(
            documented(f"{b}.{method}") for b in bases if b in every and b != owner)

    return ([] if ast.get_docstring(tree) else ["the file"]) + [name for name in own if not documented(name)]


@pytest.mark.parametrize("module", TREES)
def test_everything_public_has_a_docstring(module):
    assert without_docstring(TREES[module]) == []


def without_annotation(tree: ast.AST) -> list[str]:
    """Parameters and returns of public functions and methods, and parameters of __init__, that have no annotation."""
    faults = []
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    inits = [(f"{c.name}.__init__", f) for c in classes for f in c.body
             if isinstance(f, ast.FunctionDef) and f.name in ("__init__", "__call__")]
    for name, node in public(tree) + inits:
        if isinstance(node, ast.ClassDef):
            continue
        a = node.args
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        faults += [f"{name}({p.arg})" for p in every if p.annotation is None and p.arg not in ("self", "cls")]
        if node.returns is None and not name.endswith("__init__"):
            faults.append(f"{name} -> ?")
    return faults


@pytest.mark.parametrize("module", TREES)
def test_everything_public_is_annotated(module):
    assert without_annotation(TREES[module]) == []


def test_the_rules_of_docstrings_and_annotations_can_fail():
    source = '''
def good(x: int) -> int:
    """Good."""
def bad(x, *rest, key=1): pass
class Plain:
    def __init__(self, size): pass
    def method(self): pass
    def _private(self, x): pass
class Good:
    """Good."""
    def method(self) -> None:
        """Good."""
class Better(Good):
    """Better."""
    def method(self) -> None: pass
    def other(self) -> None: pass
'''
    tree = ast.parse(source)
    assert without_docstring(tree) == ["the file", "bad", "Plain", "Plain.method", "Better.other"]
    assert without_annotation(tree) == ["bad(x)", "bad(key)", "bad(rest)", "bad -> ?", "Plain.method -> ?",
                                        "Plain.__init__(size)"]


MOST_ANY = 40                                      # lines of the program


def lines_with_any(tree: ast.AST) -> set[int]:
    """Lines that say Any of a type; an import of the name is none."""
    return {node.lineno for node in ast.walk(tree) if dotted(node) in ("Any", "typing.Any")}


def test_any_stands_only_where_any_really_goes_in():
    found = {module: sorted(lines) for module, tree in TREES.items() if (lines := lines_with_any(tree))}
    assert sum(map(len, found.values())) <= MOST_ANY, found


def test_the_count_of_any_can_fail():
    source = "from typing import Any\nimport typing\nx: Any\ndef f(y: list[Any]) -> Any: ...\nz = typing.Any\nAny1 = 1"
    assert lines_with_any(ast.parse(source)) == {3, 4, 5}


# ----------------------------------------------------------------------- no machine and no package host in any file


def project_files() -> list[Path]:
    """What git holds or would hold; in a copy without git, everything outside of hidden folders and products."""
    if shutil.which("git"):
        git = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT,
                             capture_output=True)
        if git.returncode == 0 and git.stdout:
            return [ROOT / name for name in git.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    products = {"cache", "runs", "weights", "build"}
    return [f for f in ROOT.rglob("*") if f.is_file() and not f.name.endswith((".pyc", ".safetensors"))
            and not any(p.startswith(".venv") or p in (".git", "__pycache__", *products)
                        for p in f.relative_to(ROOT).parts)]


def forbidden_texts() -> dict[str, re.Pattern]:
    """Built from parts, so that this file does not hold them; the folders of the machine at hand come on top."""
    slash, dot = "/", "."
    folders = [slash + name + slash for name in ("work", "root", "home", "Users", "workspace", "mnt")]
    folders += ["C:" + "\\" + "Users", slash + "opt" + slash, slash + "scratch" + slash]
    folders += [str(p) for p in (ROOT, Path(sys.prefix).parent) if len(p.parts) > 2]
    hosts = [dot.join(p) for p in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"),
                                   ("anaconda", "org"), ("registry", "npmjs", "org"), ("pypi", "tuna"))]
    patterns = {p: re.compile(r"(?<![\w.:/-])" + re.escape(p)) for p in folders}
    return patterns | {h: re.compile(re.escape(h), re.IGNORECASE) for h in hosts}


def names_a_machine(text: str) -> list[str]:
    """The forbidden names in a text, with the line."""
    found = []
    for name, pattern in forbidden_texts().items():
        found += [f"line {text.count(chr(10), 0, m.start()) + 1}: {name}" for m in pattern.finditer(text)]
    return found


def test_no_file_names_a_machine_or_a_package_host():
    files, faults = project_files(), []
    assert ROOT / "train.py" in files and Path(__file__) in files and len(files) > 20
    for file in files:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:                                           # no text
            continue
        faults += [f"{file.relative_to(ROOT)}, {fault}" for fault in names_a_machine(text)]
    assert faults == []


@pytest.mark.parametrize("parts", [("/ro", "ot/.cache"), ("/wo", "rk/main"), ("'/ho", "me/x'"), ("=/Us", "ers/me"),
                                   ("https://py", "pi.org/simple"), ("FILES.PYTHON", "HOSTED.ORG")])
def test_the_rule_of_names_can_fail(parts):
    assert names_a_machine("x = 1\n" + "".join(parts) + "\n")[0].startswith("line 2")


def test_the_rule_of_names_lets_other_paths_pass():
    harmless = "#!/usr/bin/env python\n/dev/null tests/wo" "rk/x https://huggingface.co /tmp/x a/home/b"
    assert names_a_machine(harmless) == []


# ------------------------------------------------------------------------------------------ one line for every fault


def raised_texts(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, constant parts of the text) of every MinibertError that is raised."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] == "MinibertError":
            text = "".join(n.value for a in node.args for n in ast.walk(a)
                           if isinstance(n, ast.Constant) and isinstance(n.value, str))
            found.append((node.lineno, text))
    return found


@pytest.mark.parametrize("module", TREES)
def test_no_error_of_ours_has_a_second_line(module):
    assert [line for line, text in raised_texts(TREES[module]) if "\n" in text] == []


def test_errors_are_found_at_all():
    assert sum(len(raised_texts(tree)) for tree in TREES.values()) > 60
    assert raised_texts(ast.parse("raise MinibertError(f'a {x}\\nb')")) == [(1, "a \nb")]


# ------------------------------------------------------------------------------------- the table of faults has tests


RELIABILITY = (ROOT / "docs" / "reliability.md").read_text("utf-8")


def named_tests(text: str) -> list[tuple[str, set[str]]]:
    """(fault, tests that its row names as FILE::TEST) of the tables of faults; an empty set for none."""
    files = dict(re.findall(r"`tests/\w+/(test_\w+\.py)` \((\w)\)", text))
    letters = {letter: file for file, letter in files.items()}
    tables = re.findall(r"^\| fault \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    rows = re.findall(r"^\| (.+?) \| .+ \| (.+?) \|$", "".join(tables), re.M)
    result = []
    for fault, cell in rows:
        found, letter = set(), ""
        for mark, test in re.findall(r"(?:\b([A-Z]) )?`(test_\w+)`", cell):
            letter = mark or letter
            found.add(f"{letters[letter]}::{test}")
        result.append((fault, found))
    return result


def test_every_fault_in_the_table_has_a_test_that_is_there():
    rows = named_tests(RELIABILITY)
    assert len(rows) > 30 and all(tests for _, tests in rows), [fault for fault, tests in rows if not tests]
    there = {f"{file.name}::{node.name}" for file in (ROOT / "tests").rglob("test_*.py")
             for node in ast.parse(file.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert {test for _, tests in rows for test in tests} <= there


def test_the_table_of_faults_is_read_as_it_stands():
    text = ("`tests/run/test_resume.py` (R), `tests/data/test_hub.py` (H).\n\n"
            "| fault | promise | test |\n|---|---|---|\n"
            "| a | b, c | R `test_x`, `test_y`, H `test_z`, `make torture` |\n| d | e | none |\n\n"
            "| reader | read | refused |\n|---|---|---|\n| not | a | fault |\n")
    assert named_tests(text) == [("a", {"test_resume.py::test_x", "test_resume.py::test_y", "test_hub.py::test_z"}),
                                 ("d", set())]
