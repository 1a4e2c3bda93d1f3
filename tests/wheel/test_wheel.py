"""The wheel that `make wheel` leaves in dist/: what is in it, and that it works where there is no checkout.

It is really installed, into an environment of its own; torch and the other libraries are those of the environment that
runs the tests, which the new one looks into.
"""
import ast
import email
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOUND = sorted((ROOT / "dist").glob("minibert-*.whl"))

SENTENCES = [["Ada", "Lovelace", "wrote", "to", "Charles", "Babbage", "in", "London", "."],
             ["The", "letters", "lie", "in", "Oxford", "and", "in", "London", "."],
             ["Grace", "Hopper", "lived", "in", "New", "York", "."]]
TAGS = [["B-PER", "I-PER", "O", "O", "B-PER", "I-PER", "O", "B-LOC", "O"],
        ["O", "O", "O", "O", "B-LOC", "O", "O", "B-LOC", "O"], ["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "O"]]


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The one in dist/."""
    assert len(FOUND) == 1, f"dist/ has {len(FOUND)} wheels; make wheel builds one"
    return FOUND[0]


@pytest.fixture(scope="session")
def programs(wheel, tmp_path_factory) -> Path:
    """The folder of programs of a new environment in which the wheel is installed."""
    env = tmp_path_factory.mktemp("env")
    venv.create(env, with_pip=False, symlinks=os.name != "nt")
    programs = env / Path(sysconfig.get_path("scripts")).name
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", programs / "python",
                    "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, capture_output=True)

    # The libraries of this environment: a path alone, so that its own .pth files, one of which may lead to the
    # checkout, are not read.
    where = sysconfig.get_path("purelib", vars={"base": str(env), "platbase": str(env)})
    (Path(where) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
    return programs


@pytest.fixture(scope="session")
def run(programs, tmp_path_factory):
    """run("train", ...) -> the finished process of `minibert train ...`, in a folder that is no checkout."""
    place = tmp_path_factory.mktemp("place")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MINIBERT", "COV_"))}
    environment |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1",
                    "OMP_NUM_THREADS": "1"}

    def call(*words: str, program: str = "minibert") -> subprocess.CompletedProcess[str]:
        return subprocess.run([programs / program, *words], cwd=place, env=environment, capture_output=True, text=True,
                              encoding="utf-8", timeout=100)

    call.place = place
    return call


def succeeded(process: subprocess.CompletedProcess[str]) -> str:
    """What it printed; it must have ended well."""
    assert process.returncode == 0, process.stderr
    return process.stdout


# ------------------------------------------------------------------------------------------------------ what is in it


def test_the_wheel_holds_the_package_and_train_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
        assert archive.read("minibert/train.py") == (ROOT / "train.py").read_bytes()
    there = {f.relative_to(ROOT).as_posix() for f in (ROOT / "minibert").rglob("*.py")}
    assert names == there | {"minibert/train.py", "minibert/checkpoints/manifest.toml"}


def test_every_library_that_the_package_imports_is_asked_for(wheel):
    with zipfile.ZipFile(wheel) as archive:
        facts, = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        asked = email.message_from_bytes(archive.read(facts)).get_all("Requires-Dist")
        sources = [archive.read(n) for n in archive.namelist() if n.endswith(".py")]
    needed = set()
    for node in (n for source in sources for n in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            needed |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            needed.add(node.module.split(".")[0])
    assert needed - set(sys.stdlib_module_names) - {"minibert"} == {a for a in asked if "extra" not in a}


# ---------------------------------------------------------------------------------------------------- that it works


def test_nothing_comes_from_the_checkout(run, programs):
    where = succeeded(run("-c", "import minibert; print(minibert.__file__)", program="python")).strip()
    assert Path(where).is_relative_to(programs.parent)
    outside = run("-c", "import train", program="python")
    assert outside.returncode == 1 and "No module named 'train'" in outside.stderr


def test_help_names_every_command(run):
    said = succeeded(run("--help"))
    assert all(f"    {command} " in said for command in ("train", "fetch", "predict", "evaluate", "new"))
    assert succeeded(run("train", "--help")).startswith("usage: minibert train [--task TASK] [options]")


@pytest.mark.parametrize("words, said", [
    (("train",), "error: --data is needed: "), (("train", "--task", "qa"), "error: --data is needed: "),
    (("train", "--tusk", "ner"), "minibert train --help lists the options"),
    (("train", "--replay", "gone.json"), "error: gone.json: no such file")])
def test_a_mistake_in_training_is_one_line(run, words, said):
    process = run(*words)
    assert process.returncode == 2 and said in process.stderr and process.stderr.count("\n") == 1


def test_from_a_text_to_a_model_that_is_used(run):
    (run.place / "text.txt").write_text("\n".join(map(" ".join, SENTENCES)), "utf-8")
    (run.place / "data").mkdir()
    rows = "\n\n".join("\n".join(map(" ".join, zip(words, tags, strict=True)))
                       for words, tags in zip(SENTENCES, TAGS, strict=True))
    for split in ("train", "dev", "test"):
        (run.place / "data" / f"{split}.conll").write_text(rows + "\n", "utf-8")

    made = succeeded(run("new", "untrained", "--text", "text.txt", "--vocabulary", "100", "--layers", "2", "--hidden",
                         "24", "--heads", "2", "--feedforward", "40", "--positions", "64"))
    assert made.splitlines()[-1] == "next: minibert train --task mlm --weights untrained --data DIR"

    trained = succeeded(run("train", "--task", "ner", "--weights", "untrained", "--data", "data", "--output", "run",
                            "--max-pieces", "32", "--epochs", "2", "--cache", "off", "--device", "cpu"))
    program, *words = shlex.split(trained.splitlines()[-1].removeprefix("next: "))
    assert (program, words[:2]) == ("minibert", ["predict", "run"])
    assert succeeded(run(*words)).startswith("Angela ")

    found = json.loads(succeeded(run("predict", "run", "Ada lived in London.", "--json")))
    assert found["text"] == "Ada lived in London."
    assert json.loads(succeeded(run("evaluate", "run", "--data", "data", "--json"))).keys() == {"dev", "test"}
