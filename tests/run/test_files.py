"""files.py: only regular files are opened, and never in vain; a crash leaves the old file or the new one."""
import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from minibert import files
from minibert.checkpoints.weights import read_header
from minibert.core.config import BertConfig
from minibert.data.tables import read_lines, split_files
from minibert.data.tokenizer import Tokenizer
from minibert.errors import MinibertError
from minibert.files import (
    beside,
    copy,
    flushed_size,
    open_regular,
    read_json,
    read_text,
    remove,
    truncate,
    write_json,
    write_tensors,
)
from minibert.options import read_table


def test_a_copy_is_whole_or_not_there_and_damage_stays_in_one_place(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"an older one")
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"one" and not (tmp_path / "b").samefile(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"two")
    monkeypatch.setattr(files, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(MinibertError, match=f"{tmp_path}/b: cannot be written .*No space"):
        copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"one"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


def test_a_copy_of_what_is_gone_names_that_and_no_full_disk(tmp_path):
    with pytest.raises(MinibertError) as caught:
        copy(tmp_path / "a", tmp_path / "b")
    assert str(caught.value) == f"{tmp_path}/a: cannot be read (No such file or directory)"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [
    lambda file: write_tensors(file, {"w": torch.ones(3)}), lambda file: write_json(file, {"a": 1}),
    lambda file: copy(file.with_name("other"), file)], ids=["tensors", "json", "copy"])
def test_whoever_writes_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch, write):
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "x").write_bytes(b"old")
    with monkeypatch.context() as m:
        m.setattr(files, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(MinibertError, match=f"{tmp_path}/x: cannot be written .*No space left.*; free space or"):
            write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["other", "x"]
    write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() != b"old"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["other", "x"]


def test_an_error_that_is_not_the_disks_goes_on_as_it_is_and_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), beside(tmp_path / "x", ".7") as temporary:
        assert temporary.relative_to(tmp_path) == Path(".x.7.new/x")
        temporary.write_bytes(b"half")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size, left, whole", [(0, b"", True), (5, b"one\nt", True), (12, b"one\ntwo\nthr", False),
                                               (11, b"one\ntwo\nthr", True), (9, b"one\ntwo\nt", True)])
def test_a_file_is_cut_to_a_size_and_a_shorter_one_to_its_last_whole_line(tmp_path, size, left, whole):
    file = tmp_path / "lines"
    file.write_bytes(b"one\ntwo\nthr")
    assert truncate(file, size) is whole
    assert file.read_bytes() == (left if whole else b"one\ntwo\n")
    assert truncate(tmp_path / "none", 0) and not truncate(tmp_path / "none", 3)


def test_a_cut_and_a_size_are_on_the_disk(tmp_path, monkeypatch):
    """What the marker of a checkpoint speaks of must not be only in the system's memory."""
    file, seen, fsync = tmp_path / "lines", [], os.fsync
    file.write_bytes(b"one\ntwo\n")
    monkeypatch.setattr(os, "fsync", lambda n: (seen.append(os.path.samestat(os.fstat(n), file.stat())), fsync(n)))
    assert flushed_size(file) == 8 and seen == [True]
    truncate(file, 4)
    assert seen == [True, True] and flushed_size(tmp_path / "none") == 0


def test_half_of_a_surrogate_pair_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(MinibertError, match="x.json: cannot be written"):
        write_json(tmp_path / "x.json", {"data": "d\udcff"})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------- links, named pipes, devices


@contextlib.contextmanager
def within(seconds: int = 20) -> Iterator[None]:
    """Whoever waits for ever inside fails."""
    def late(*_):
        raise AssertionError(f"still waiting after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


SPECIAL = {"pipe": os.mkfifo, "device": lambda file: file.symlink_to("/dev/zero"), "folder": Path.mkdir}
READERS = {
    "json": ("config.json", read_json), "config": ("config.json", lambda file: BertConfig.read(file.parent)),
    "tokenizer": ("tokenizer.json", lambda file: Tokenizer.read(file.parent)),
    "vocabulary": ("vocab.txt", lambda file: Tokenizer.read(file.parent)),
    "weights": ("model.safetensors", read_header), "lines": ("train.txt", lambda file: list(read_lines(file))),
    "data": ("train.conll", lambda file: split_files(file, (".conll",)))}


@pytest.mark.parametrize("reader, kind", [(reader, kind) for reader in READERS for kind in SPECIAL
                                          if (reader, kind) != ("data", "folder")])    # of data a folder is right
def test_what_is_no_regular_file_is_one_line_and_nobody_waits(tmp_path, kind, reader):
    name, read = READERS[reader]
    SPECIAL[kind](tmp_path / name)
    with within(), pytest.raises(MinibertError) as caught:
        read(tmp_path / name)
    said = str(caught.value)
    assert f"{tmp_path}/{name}: cannot be read" in said and "\n" not in said
    assert ("a folder" if kind == "folder" else "not a regular file") in said


def test_a_pipe_among_the_data_is_named_and_not_passed_over(tmp_path):
    (tmp_path / "dev.conll").write_text("x O\n")
    os.mkfifo(tmp_path / "train.conll")
    with within(), pytest.raises(MinibertError, match="train.conll: cannot be read .not a regular file"):
        split_files(tmp_path, (".conll",))
    (tmp_path / "train.conll").unlink()
    (tmp_path / "train.conll").symlink_to("gone")
    with pytest.raises(MinibertError, match="train.conll: cannot be read .No such file"):
        split_files(tmp_path, (".conll",))


def test_a_link_is_followed_to_read_and_never_to_write(tmp_path):
    (tmp_path / "there").write_text("kept\n")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "dangling").symlink_to("new")
    assert read_text(tmp_path / "link") == "kept\n"
    for name in ("link", "dangling"):
        for mode in ("a", "w", "rb+", "x"):
            with pytest.raises(OSError, match="a link, and nothing is written through one|File exists"):
                open_regular(tmp_path / name, mode)
    for call in (lambda: truncate(tmp_path / "link", 1), lambda: flushed_size(tmp_path / "link")):
        with pytest.raises((MinibertError, OSError), match="a link, and nothing is written"):
            call()
    assert (tmp_path / "there").read_text() == "kept\n" and not (tmp_path / "new").exists()


def test_where_the_look_comes_too_early_the_system_refuses(tmp_path, monkeypatch):
    """A link that is made between the look and the opening."""
    (tmp_path / "there").write_text("kept")
    (tmp_path / "link").symlink_to("there")
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    with pytest.raises(OSError, match="symbolic link"):
        open_regular(tmp_path / "link", "w")
    assert (tmp_path / "there").read_text() == "kept"


@pytest.mark.parametrize("mode", ["a", "w", "rb+"])
def test_a_pipe_is_not_written_to_and_nobody_waits(tmp_path, mode):
    os.mkfifo(tmp_path / "pipe")
    with within(), pytest.raises(OSError, match="not a regular file|No such device"):
        open_regular(tmp_path / "pipe", mode)


@pytest.mark.parametrize("write", [
    lambda file: write_tensors(file, {"w": torch.ones(3)}), lambda file: write_json(file, {"a": 1}),
    lambda file: copy(file.with_name("other"), file)], ids=["tensors", "json", "copy"])
@pytest.mark.parametrize("left", ["link to a file", "link to a folder", "dangling", "file", "folder", "link inside"])
def test_what_a_killed_process_left_is_in_nobodys_way_and_leads_nowhere(tmp_path, write, left):
    (run := tmp_path / "run").mkdir()
    (outside := tmp_path / "outside").mkdir()
    (outside / "kept").write_text("kept")
    (outside / "x").write_text("kept")
    (run / "other").write_text("other")
    temporary = run / ".x.new"
    if left.startswith("link to") or left == "dangling":
        temporary.symlink_to({"link to a file": outside / "kept", "dangling": outside / "new"}.get(left, outside))
    elif left == "file":
        temporary.write_text("half")
    else:
        temporary.mkdir()
        (temporary / "x").symlink_to(outside / "x") if left == "link inside" else (temporary / "half").write_text("")
    (run / "x").symlink_to(outside / "kept")       # nor does the name itself lead out
    write(run / "x")
    assert sorted(f.name for f in run.iterdir()) == ["other", "x"] and not (run / "x").is_symlink()
    assert {f.name: f.read_text() for f in outside.iterdir()} == {"kept": "kept", "x": "kept"}


def test_a_library_that_is_killed_leaves_its_own_files_where_the_next_one_clears(tmp_path):
    with contextlib.suppress(KeyError), beside(tmp_path / "x") as temporary:
        (temporary.parent / "its-own.tmp").write_text("half")
        temporary.write_text("whole")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


def test_a_link_is_removed_itself(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    remove(tmp_path / "link")
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]
    remove(tmp_path / "folder")
    remove(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_too_large_to_be_settings_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 10 ** 12)        # of holes; as text it would fill any memory
    with within(), pytest.raises(MinibertError, match="config.json: cannot be read .more than 40,000,000 bytes"):
        read_json(tmp_path / "config.json")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="says how much memory is used")
def test_a_pipe_of_settings_is_read_to_its_bound_and_no_device_is(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 40)
    for text, fits in (("epochs = 5\n", True), ("epochs = 5 #" + 30 * "x", False)):
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        with within():
            if fits:
                assert read_table(Path(f"/dev/fd/{reading}")) == {"epochs": 5}
            else:
                with pytest.raises(MinibertError, match="more than 40 bytes"):
                    read_table(Path(f"/dev/fd/{reading}"))
        os.close(reading)
    used, before = int(Path("/proc/self/statm").read_text().split()[0]), resource.getrlimit(resource.RLIMIT_AS)
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        resource.setrlimit(resource.RLIMIT_AS, (used * resource.getpagesize() + 2 ** 28, before[1]))
        try:
            with pytest.raises(MinibertError, match="more than 40 bytes"):
                read_table(Path(f"/dev/fd/{endless.stdout.fileno()}"))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
            endless.kill()
    with within(), pytest.raises(MinibertError, match="/dev/zero: cannot be read as TOML .*not a regular file"):
        read_table(Path("/dev/zero"))
