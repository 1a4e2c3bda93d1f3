"""The map of docs/00-map.md, read from the code: what each package holds and imports, what each of its files is for.

A package comes after all that it imports, so that the table can be read from top to bottom. What stands at the top of
minibert/ is a package of one file, and so is train.py. Lines are
rounded to tens, so that a small change leaves the map as it is.
"""
import ast
import functools
import re
from pathlib import Path


def packages(root: Path) -> dict[str, list[Path]]:
    """{package: its files, __init__.py first}, each after the packages that it imports."""
    members: dict[str, list[Path]] = {}
    for file in [*sorted((root / "minibert").rglob("*.py"), key=lambda f: (f.parent, f.stem)), root / "train.py"]:
        first, *rest = file.relative_to(root).with_suffix("").parts
        members.setdefault(rest[0] if rest and rest != ["__init__"] else first, []).append(file)
    needs, ordered = {package: imports(package, members) for package in members}, {}
    while waiting := [p for p in members if p not in ordered]:
        ready = [p for p in waiting if needs[p] <= set(ordered)]
        first = min(ready or waiting)                              # of a circle, test_structure.py complains
        ordered[first] = members[first]
    return ordered


def imports(package: str, members: dict[str, list[Path]]) -> set[str]:
    """The other packages of ours that the files of one import, in whatever form."""
    found = set()
    for node in (n for file in members[package] for n in ast.walk(parsed(file.read_text("utf-8")))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [[*name.split("."), ""] for name in names]
        found |= {second if second in members else first for first, second, *_ in parts if first == "minibert"}
    return found - {package}


parsed = functools.cache(ast.parse)


def first_sentence(file: Path) -> str:
    """Of a file's docstring."""
    paragraph = (ast.get_docstring(parsed(file.read_text("utf-8"))) or "").split("\n\n")[0]
    return re.split(r"(?<=\.)\s", " ".join(paragraph.split()))[0].rstrip(":.").replace("|", "\\|")


def lines(files: list[Path]) -> int:
    return round(sum(len(f.read_text("utf-8").splitlines()) for f in files), -1) or 10


def table(root: Path) -> str:
    """The map, a table in Markdown: a row a package in bold, below it a row for each of its files."""
    rows = ["| file | what it holds | imports | lines |", "|---|---|---|---:|"]
    members = packages(root)
    for package, files in members.items():
        first, *others = files
        name = f"{first.parent.relative_to(root)}/" if others else first.relative_to(root)
        below = imports(package, members)
        needed = " ".join(p for p in members if p in below)
        rows.append(f"| **`{name}`** | {first_sentence(first)} | {needed} | {lines(files)} |")
        rows += [f"| `{file.relative_to(root)}` | {first_sentence(file)} | | {lines([file])} |" for file in others]
    return "\n".join(rows)
