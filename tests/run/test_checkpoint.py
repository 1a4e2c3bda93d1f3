"""checkpoint.py by itself: whole or not there, the newest whole one counts."""
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minibert.core.optim import SGD, AdamW
from minibert.errors import MinibertError
from minibert.run import checkpoint
from minibert.run.checkpoint import Checkpoints, Interval, fault, read_optimizer, write_optimizer

FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def fill(number: int):
    """A writer of three files that differ from one checkpoint to the next."""
    def write(folder: Path) -> None:
        for i, name in enumerate(FILES):
            (folder / name).write_bytes(bytes([number, i]) * (500 + 7 * i))
    return write


@pytest.fixture
def three(tmp_path) -> Checkpoints:
    """Checkpoints after 5, 10 and 15 updates, all three kept."""
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in (5, 10, 15):
        checkpoints.save(f"update-{step:08d}", fill(step))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(f.name for f in checkpoints.folder.iterdir())


def test_the_newest_counts_and_the_last_few_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.newest() is None and checkpoints.notices == []
    for step in (5, 10, 99_999_999, 100_000_000):          # by number, not by letter
        checkpoints.save(f"update-{step:08d}", fill(step % 251))
    assert names(checkpoints) == ["update-100000000", "update-99999999"]
    assert checkpoints.newest().name == "update-100000000" and checkpoints.notices == []


def test_at_one_update_the_scored_one_is_the_newer(three):
    three.save("update-00000015-scored", fill(16))
    assert three.newest().name == "update-00000015-scored"


def test_the_same_name_is_not_written_twice(three):
    three.save("update-00000010", lambda folder: pytest.fail("written again"))
    assert fault(three.folder / "update-00000010") == ""


def damage(kind: str, file: Path) -> None:
    data = file.read_bytes()
    if kind == "removed":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(data[:-1])
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "longer":
        file.write_bytes(data + b"\0")
    else:
        file.write_bytes(data[:40] + bytes([data[40] ^ 4]) + data[41:])


@pytest.mark.parametrize("name", [*FILES, "complete.json"])
@pytest.mark.parametrize("kind", ["removed", "cut", "emptied", "longer", "one bit"])
def test_a_damaged_one_is_named_passed_over_and_kept(three, name, kind):
    broken = three.folder / "update-00000015"
    if (name, kind) in {("complete.json", "cut"), ("complete.json", "longer")}:
        kind = "emptied"                                   # a line end less or a blank more is still the same marker
    damage(kind, broken / name)
    fresh = Checkpoints(three.folder.parent, keep=3)
    assert fresh.newest().name == "update-00000010"
    assert len(fresh.notices) == 1 and str(broken) in fresh.notices[0] and name in fresh.notices[0]
    for step in (20, 25, 30, 35):                          # whatever comes later, it stays for inspection
        fresh.save(f"update-{step:08d}", fill(step))
    assert names(fresh) == ["update-00000015-damaged", "update-00000025", "update-00000030", "update-00000035"]


def test_a_damaged_one_outlives_two_more_processes(three):
    """The second of them does not look as far back as to find it damaged again."""
    damage("one bit", three.folder / "update-00000010" / "state.json")
    damage("one bit", three.folder / "update-00000015" / "state.json")
    for step in (12, 20, 30, 40):
        fresh = Checkpoints(three.folder.parent, keep=1)
        fresh.newest()
        fresh.save(f"update-{step:08d}", fill(step))
    assert names(fresh) == ["update-00000010-damaged", "update-00000015-damaged", "update-00000040"]


def test_one_that_is_damaged_again_is_kept_under_a_name_of_its_own(three):
    """The same update, saved anew each time after its predecessor was put aside."""
    for _ in range(3):
        damage("one bit", three.folder / "update-00000015" / "state.json")
        fresh = Checkpoints(three.folder.parent, keep=3)
        assert fresh.newest().name == "update-00000010"
        assert fresh.inside()[0].name == "update-00000010"               # it is out of the way
        fresh.save("update-00000015", fill(15))
    assert names(three) == ["update-00000005", "update-00000010", "update-00000015", "update-00000015-damaged",
                            "update-00000015-damaged-2", "update-00000015-damaged-3"]


@pytest.mark.parametrize("link", [True, False])
def test_where_the_folder_of_checkpoints_should_be_is_something_else(tmp_path, link):
    """A link to a disk that is not mounted must not look like a run without checkpoints."""
    (tmp_path / "checkpoints").symlink_to(tmp_path / "away") if link else (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(MinibertError, match="checkpoints: is there and no folder"):
        Checkpoints(tmp_path, keep=2)


def test_all_damaged_is_none(three):
    for folder in three.folder.iterdir():
        damage("one bit", folder / "state.json")
    assert three.newest() is None and len(three.notices) == 3


def test_a_damaged_one_makes_room_for_its_whole_successor(three):
    damage("one bit", three.folder / "update-00000015" / "state.json")
    fresh = Checkpoints(three.folder.parent, keep=3)
    fresh.newest()
    fresh.save("update-00000015", fill(15))
    assert fault(three.folder / "update-00000015") == ""
    assert "not as it was written" in fault(three.folder / "update-00000015-damaged")
    fresh.save("update-00000020", fill(20))
    assert "update-00000015-damaged" in names(fresh)


def test_one_that_was_never_finished_is_named_passed_over_and_goes_with_the_next(three):
    growing = three.folder / ".update-00000020.new"
    growing.mkdir()
    (growing / "model.safetensors").write_bytes(b"half")
    fresh = Checkpoints(three.folder.parent, keep=3)
    assert fresh.newest().name == "update-00000015"
    assert len(fresh.notices) == 1 and str(growing) in fresh.notices[0]
    fresh.save("update-00000025", fill(25))
    assert not growing.exists()


@pytest.mark.parametrize("when", ["at the first file", "after all files", "at the marker", "at the name"])
def test_where_it_cannot_be_written_the_older_ones_stay(three, monkeypatch, when):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    def write(folder: Path) -> None:
        if when == "at the first file":
            full()
        fill(20)(folder)
        if when == "after all files":
            full()

    if when == "at the marker":
        monkeypatch.setattr(checkpoint, "write_json", full)
    if when == "at the name":
        monkeypatch.setattr(checkpoint.os, "rename", full)
    with pytest.raises(MinibertError, match="update-00000020: cannot be written .*No space left"):
        three.save("update-00000020", write)
    assert names(three) == ["update-00000005", "update-00000010", "update-00000015"]
    assert all(fault(f) == "" for f in three.folder.iterdir())


def test_what_a_writer_says_itself_is_said_once(three):
    def write(folder: Path) -> None:
        raise MinibertError("the best model is gone; look for it")

    with pytest.raises(MinibertError) as caught:
        three.save("update-00000020", write)
    assert str(caught.value) == "the best model is gone; look for it"
    assert names(three) == ["update-00000005", "update-00000010", "update-00000015"]


def test_a_marker_that_points_outside_is_refused(three, tmp_path):
    folder = three.folder / "update-00000015"
    (tmp_path / "other").write_bytes(b"x")
    (folder / "complete.json").write_text('{"files": {"../../other": {"bytes": 1, "sha256": ""}}}')
    assert "missing" in fault(folder)
    for text in ('{"files": 5}', '{"files": {}}', "{}"):
        (folder / "complete.json").write_text(text)
        assert "lists no files" in fault(folder)


def test_links_in_the_place_of_what_grows_or_goes_lead_nowhere(three, tmp_path):
    (outside := tmp_path / "outside").mkdir()
    (outside / "kept").write_text("kept")
    for name in (".update-00000020.new", ".update-00000001.old"):
        (three.folder / name).symlink_to(outside)
    three.save("update-00000020", fill(20))
    assert names(three) == ["update-00000010", "update-00000015", "update-00000020"]
    assert [f.name for f in outside.iterdir()] == ["kept"] and not (three.folder / "update-00000020").is_symlink()


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["state.json", "complete.json"])
def test_a_checkpoint_of_something_else_than_files_is_passed_over(three, kind, name):
    file = three.folder / "update-00000015" / name
    file.unlink()
    os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")
    signal.alarm(30)                                       # ends the process, where it waits for ever
    try:
        assert Checkpoints(three.folder.parent, keep=3).newest().name == "update-00000010"
    finally:
        signal.alarm(0)


def test_a_linked_folder_of_checkpoints_is_one(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "checkpoints").symlink_to("large")
    Checkpoints(tmp_path, keep=2).save("update-00000005", fill(5))
    assert Checkpoints(tmp_path, keep=2).newest().name == "update-00000005"
    assert fault(tmp_path / "large" / "update-00000005") == ""


# ------------------------------------------------------------------------------------------------------- the optimizer


def quadratic(rule, seed: int, **settings):
    """An optimizer over three parameters in two groups after four steps, the last parameter never moved."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (11,), (6, 9))]
    groups = [{"params": params[:1], "names": ["a.weight"], "weight_decay": 0.1},
              {"params": params[1:], "names": ["a.bias", "b.weight"], "weight_decay": 0.0}]
    optimizer = rule(groups, lr=0.01, **settings)
    for _ in range(4):
        step(optimizer, params, generator)
    return optimizer, params


def step(optimizer, params, generator) -> None:
    for p in params[:2]:
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("rule, settings", [(AdamW, {}), (SGD, {"momentum": 0.9}), (SGD, {})])
def test_the_optimizer_goes_on_as_if_nothing_had_been(tmp_path, rule, settings):
    first, params = quadratic(rule, 3, **settings)
    rest = write_optimizer(tmp_path, first)
    second, others = quadratic(rule, 4, **settings)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    read_optimizer(tmp_path, second, rest)
    for optimizer, tensors in ((first, params), (second, others)):
        step(optimizer, tensors, torch.Generator().manual_seed(5))
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("what", ["one missing", "all missing", "half precision", "another shape", "one too many"])
def test_an_optimizer_that_kept_something_else_is_refused(tmp_path, what):
    """As another version, or a person, may have written it: the first update must not be what finds out."""
    first, _ = quadratic(AdamW, 3)
    rest = write_optimizer(tmp_path, first)
    file = tmp_path / "optimizer.safetensors"
    tensors = load_file(file)
    name = next(n for n in tensors if n.startswith("m."))
    if what == "half precision":
        tensors[name] = tensors[name].half()
    elif what == "another shape":
        tensors[name] = tensors[name].flatten()[:-1].contiguous()
    elif what == "one too many":
        tensors["v" + name[1:]] = tensors[name].clone()
    else:
        tensors = {n: x for n, x in tensors.items() if n != name and (what == "one missing" or n[0] != "m")}
    save_file(tensors, file)
    with pytest.raises(MinibertError, match="optimizer.safetensors: of .* it has .*, this run keeps"):
        read_optimizer(tmp_path, quadratic(AdamW, 3)[0], rest)


def test_an_optimizer_of_other_parameters_is_refused(tmp_path):
    first, _ = quadratic(AdamW, 3)
    rest = write_optimizer(tmp_path, first)
    second, _ = quadratic(AdamW, 3)
    second.groups[0]["names"] = ["c.weight"]
    with pytest.raises(MinibertError, match="optimizer.safetensors: does not fit"):
        read_optimizer(tmp_path, second, rest)


# ------------------------------------------------------------------------------------------------------ the run folder


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Every file, then the marker, then the name, then the folder that holds the name."""
    order, fsync, rename, replaced = [], os.fsync, os.rename, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (order.append(os.path.basename(os.readlink(f"/proc/self/fd/{n}"))
                                                             if os.path.isdir("/proc/self/fd") else "file"), fsync(n)))
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append(f"name {Path(b).name}"), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(f"name {Path(b).name}"), replaced(a, b)))
    Checkpoints(tmp_path, 2).save("update-00000005", fill(5))
    growing = ".update-00000005.new"
    assert order == [tmp_path.name, *FILES, "complete.json", "name complete.json", growing,
                     "name update-00000005", "checkpoints"]


def test_what_is_removed_loses_its_name_first(three, monkeypatch):
    """Killed while an old one is removed: what is left has no name, and goes with the next."""
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "remove", lambda folder: None)
        three.save("update-00000020", fill(20))
    assert names(three) == [".update-00000005.old", "update-00000010", "update-00000015", "update-00000020"]
    three.save("update-00000025", fill(25))
    assert names(three) == ["update-00000015", "update-00000020", "update-00000025"]


def test_what_a_killed_process_was_removing_goes_when_a_run_goes_on(three):
    """A finished run makes no further checkpoint that would take it along."""
    os.rename(three.folder / "update-00000005", three.folder / ".update-00000005.old")
    fresh = Checkpoints(three.folder.parent, keep=3)
    assert fresh.newest().name == "update-00000015" and ".update-00000005.old: removed" in fresh.notices[0]
    assert names(three) == ["update-00000010", "update-00000015"]


def test_an_interval_in_updates():
    assert [s for s in range(1, 23) if Interval("7").due(s)] == [7, 14, 21]


def test_an_interval_in_minutes(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    interval, due = Interval("2m"), []
    for step in range(1, 40):
        now[0] += 17.0
        if interval.due(step):
            due.append(step)
    assert due == [8, 16, 24, 32]                          # 8 · 17 s is the first above 120 s, and so on from there
