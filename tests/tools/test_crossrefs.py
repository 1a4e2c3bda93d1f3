"""Equation ⇔ line ⇔ test: every label of docs/ has all three, and the checker is seen to miss none of them."""
import re
import shutil
from pathlib import Path

import mutants
import pytest
from crossrefs import ROOT, broken_references, generated, index, recorded, scan
from mutants import changed, every_item, labelled, tenth

CHAPTERS = ["00-map", "01-embeddings", "02-attention", "03-layernorm-gelu", "04-losses", "05-optimizers", "06-loop",
            "07-pieces", "08-weights", "09-backward", "10-evaluation"]
SECTIONS = ["What it is for", "Formula", "Shapes", "Derivation", "Backward", "A worked example",
            "What is kept for the backward, and why", "Run this", "Exercises"]


def test_every_label_has_its_equation_its_line_and_its_test():
    found = scan()
    assert found.faults == []
    assert len(found.docs) >= 70 and set(found.docs) == set(found.lines) == set(found.tests)


def test_no_page_refers_to_what_is_not_there():
    assert broken_references() == []


def test_what_the_tool_writes_is_as_written():
    found = scan()
    for page, text in generated(found).items():
        assert page.read_text("utf-8") == text, f"{page.name}: python tests/tools/crossrefs.py --write"
    table = index(found)
    assert all(f"| {label} |" in table for label in found.docs)


def test_every_page_is_there_and_on_the_map():
    pages = {f.name for f in (ROOT / "docs").glob("*.md")}
    assert {f"{c}.md" for c in CHAPTERS} | {"notation.md", "exercises.md", "faq.md", "mutants.md"} <= pages
    on_the_map = (ROOT / "docs" / "00-map.md").read_text("utf-8")
    assert [p for p in sorted(pages - {"00-map.md"}) if p not in on_the_map] == []


@pytest.mark.parametrize("chapter", CHAPTERS[1:])
def test_chapters_have_one_order_inside(chapter):
    """Sections that a chapter has stand in the fixed order; each begins with what it is for and ends with exercises."""
    text = (ROOT / "docs" / f"{chapter}.md").read_text("utf-8")
    heads = [h for h in re.findall(r"(?m)^## (.+)$", text) if h in SECTIONS]
    assert heads == sorted(heads, key=SECTIONS.index)
    assert {"What it is for", "Run this", "Exercises"} <= set(heads) and ("A worked example" in heads)


def test_every_label_and_every_exercise_has_its_dead_mutants_on_record():
    """As many as there are now; what changed without another number of them, `make mutants-changed` finds."""
    record, items = recorded(), every_item(scan())
    assert list(record) == list(items), "make mutants-changed"
    for key, item in items.items():
        number, killers, advice = len(item.mutants), record[key]["killers"], f"{key}: make mutants-changed"
        assert record[key]["mutants"] == sum(killers.values()) == number, advice
        assert set(killers) <= {t.split("::")[1] for t in item.tests if "::" in t} or key.startswith("exercise"), advice


# ------------------------------------------------------------------------------------------- the checker can fail


@pytest.fixture
def twin(tmp_path) -> Path:
    """A copy of what the checker reads."""
    for name in ("docs", "minibert", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "oracle"))
    shutil.copy(ROOT / "train.py", tmp_path)
    assert scan(tmp_path).faults == []
    return tmp_path


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize("file, old, new, fault", [
    ("minibert/core/ops.py", "  # [LN-3]", "", "[LN-3] stands on no line of code"),
    ("docs/03-layernorm-gelu.md", "**[LN-3]**", "LN-3:", "without a label"),
    ("docs/03-layernorm-gelu.md", "**[LN-12]**", "**[LN-77]**", "[LN-77] stands on no line of code"),
    ("tests/equations/test_eq_03_layernorm_gelu.py", "GELU_9", "GELU_nine", "[GELU-9] stands in no test's name"),
    ("minibert/core/ops.py", "# [LN-3]", "# [LN-4]", "[LN-4] stands in minibert/core/ops.py already"),
    ("docs/03-layernorm-gelu.md", "**[LN-3]**", "**[LN-2]**", "defined in 03-layernorm-gelu.md already"),
    ("docs/03-layernorm-gelu.md", "## Shapes", "**[LN-50]** Nothing.\n\n## Shapes", "no displayed equation"),
    ("docs/03-layernorm-gelu.md", "## Shapes", "$$\nx\n$$\n\n## Shapes", "without a label"),
    ("tests/equations/test_eq_03_layernorm_gelu.py", "_LN_3_LN_4(", "_LN_3_LN_4_LN_5_LN_6(", "4 labels in one test"),
    ("minibert/core/ops.py", "# [LN-3] [P,1]", "# [LN-3] [GELU-1]", "more than one label"),
    ("minibert/core/ops.py", "# [LN-3] [P,1]", "\n    pass  # [LN-3]", "a line that computes nothing"),
    ("minibert/core/ops.py", "# [LN-3] [P,1]", "\n    # [LN-3]", "[LN-3] stands on no line of code"),
    ("docs/03-layernorm-gelu.md", "## Shapes", "$$ y = x^3 $$\n\n## Shapes", "not $$ alone"),
    ("docs/03-layernorm-gelu.md", "## Shapes", "```math\nx\n```\n\n## Shapes", "not $$ alone")])
def test_each_way_of_breaking_the_chain_is_found(twin, file, old, new, fault):
    change(twin / file, old, new)
    assert any(fault in f for f in scan(twin).faults), scan(twin).faults


@pytest.mark.parametrize("text, fault", [
    ("by [LN-99] we see", "[LN-99] is defined nowhere"),
    ("read tests/test_nothing.py", "tests/test_nothing.py is not there"),
    ("see [there](11-more.md)", "link to 11-more.md leads nowhere")])
def test_a_reference_to_nothing_is_found(twin, text, fault):
    change(twin / "docs" / "03-layernorm-gelu.md", "## Shapes", text + "\n\n## Shapes")
    assert any(fault in f for f in broken_references(twin))


def test_an_exercise_without_its_function_is_found(twin):
    change(twin / "minibert" / "core" / "optim.py", "def lr_at", "def rate_at")
    assert "exercises.md: exercise 1: minibert/core/optim.py has no lr_at" in broken_references(twin)


@pytest.mark.parametrize("file, old, new, page", [
    ("minibert/core/ops.py", "def layernorm_forward", "def layernorm_onward", "notation.md"),
    ("minibert/core/ops.py", "Every operation", "Each operation", "00-map.md"),
    ("minibert/scores/tags.py", "from minibert.errors", "from minibert.core", "00-map.md"),
    ("tests/tools/mutants.json", '"mutants": 5', '"mutants": 6', "mutants.md")])
def test_a_stale_page_is_found(twin, file, old, new, page):
    change(twin / file, old, new)
    stale = {p.name for p, text in generated(scan(twin), twin).items() if p.read_text("utf-8") != text}
    assert page in stale


@pytest.mark.parametrize("file, old, new", [
    ("minibert/core/ops.py", "# [LN-3]", "+ 0  # [LN-3]"),
    ("docs/03-layernorm-gelu.md", "**[LN-3]**", "**[LN-3]** So"),
    ("tests/equations/test_eq_03_layernorm_gelu.py", "_LN_3_LN_4(", "_LN_3_LN_4(*rest, ")])
def test_a_label_has_another_hash_where_its_line_its_equation_or_its_tests_change(twin, file, old, new):
    before = labelled("LN-3", scan(twin), twin)
    assert changed({"LN-3": before}, {"LN-3": {"hash": before.hash}}) == []
    change(twin / file, old, new)
    after = labelled("LN-3", scan(twin), twin)
    assert changed({"LN-3": after}, {"LN-3": {"hash": before.hash}}) == ["LN-3"]


def test_a_label_keeps_its_hash_where_only_its_place_and_comments_change(twin):
    before = labelled("LN-3", scan(twin), twin).hash
    change(twin / "minibert" / "core" / "ops.py", "# [LN-3]", "# [LN-3] as it was,")
    change(twin / "minibert" / "core" / "ops.py", "import math", "import cmath\nimport math")
    (twin / "tests" / "equations" / "test_eq_03_layernorm_gelu.py").rename(twin / "tests" / "test_eq_03.py")
    assert labelled("LN-3", scan(twin), twin).hash == before


def test_the_tenth_is_drawn_by_its_seed():
    keys = [f"LN-{i}" for i in range(41)]
    draws = [tenth(keys, str(seed)) for seed in range(30)]
    assert all(len(draw) == 5 and set(draw) <= set(keys) for draw in draws) and tenth(keys, "3") == draws[3]
    assert len({tuple(draw) for draw in draws}) == 30


def test_nothing_is_recorded_of_a_label_of_which_a_mutant_lives(monkeypatch, tmp_path, capsys):
    found, kept, record = scan(), {}, {}
    items = {label: labelled(label, found) for label in ("LN-3", "LN-4")}
    monkeypatch.setattr(mutants, "run", lambda items, record: [
        (m, "" if m is items["LN-3"].mutants[1] else "killer") for item in items.values() for m in item.mutants])
    monkeypatch.setattr(mutants, "write", kept.update)
    monkeypatch.setattr(mutants, "TABLE", tmp_path / "mutants.tsv")
    assert mutants.take(items, ["LN-3", "LN-4"], record) == (sum(len(item.mutants) for item in items.values()), 1)
    assert list(kept) == ["LN-4"] and changed(items, record) == ["LN-3"]
    assert "LIVES" in capsys.readouterr().out and "LIVES" in (tmp_path / "mutants.tsv").read_text()
