"""files.py: a crash leaves the old file or the new one."""
import os
from pathlib import Path

import pytest
import torch

from minibert import files
from minibert.errors import MinibertError
from minibert.files import beside, copy, flushed_size, truncate, write_json, write_tensors


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
