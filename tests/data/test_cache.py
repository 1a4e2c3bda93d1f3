"""cache.py: an entry is whole or it is not used; nothing that is wrong with file or folder ends a run."""
import json
import os
import shutil

import numpy as np
import pytest

from minibert.data import cache as module
from minibert.data.cache import Cache

KEY = {"kind": "things", "files": {"train": "ab12"}, "limit": 7, "labels": ["O", "B-É"]}
EXTRA = {"notices": ["tags are IOB1"], "n": 5}


def arrays() -> dict[str, np.ndarray]:
    return {"train.ids": np.arange(-40, 60, dtype=np.int32), "train.labels": np.array([-1, 8, 127], np.int8),
            "none": np.zeros(0, np.int16), "ends": np.array([0, 2 ** 40]),
            "letters": np.frombuffer(b"abcdefg", np.uint8)}


def keep(*parts):
    return parts


def same(found) -> bool:
    """Equal in names, types and numbers to what was saved."""
    wanted = arrays()
    return (found[1] == EXTRA and found[0].keys() == wanted.keys()
            and all(found[0][n].dtype == x.dtype and np.array_equal(found[0][n], x) for n, x in wanted.items()))


@pytest.fixture
def saved(tmp_path) -> Cache:
    cache = Cache(tmp_path / "some" / "cache")
    cache.save(KEY, arrays(), EXTRA)
    assert cache.notices == []
    return cache


def test_what_was_saved_comes_back(saved):
    assert same(saved.load(KEY, keep))
    assert saved.notices == [f"things come from {saved.file(KEY)}"]
    assert [f.name for f in saved.folder.iterdir()] == [saved.file(KEY).name]   # and no temporary file
    assert saved.file(KEY).name.startswith("things-")


def test_arrays_are_mapped_from_the_file(saved):
    found = saved.load(KEY, keep)[0]
    address = found["train.ids"].ctypes.data
    with open("/proc/self/maps") as f:
        ranges = [line.split()[0].split("-") for line in f if str(saved.file(KEY)) in line]
    assert any(int(a, 16) <= address < int(b, 16) for a, b in ranges)


def test_the_order_of_keys_is_no_difference_and_every_value_is_one(saved):
    assert same(saved.load(dict(reversed(KEY.items())), keep))
    for change in ({"kind": "other"}, {"files": {"train": "ab13"}}, {"files": {"dev": "ab12"}}, {"limit": 8},
                   {"limit": None}, {"labels": ["B-É", "O"]}, {"new": 0}):
        saved.notices.clear()
        assert saved.load(KEY | change, keep) is None and saved.notices == []


def test_an_entry_under_the_name_of_another_is_not_used(saved):
    other = KEY | {"limit": 8}
    shutil.copy(saved.file(KEY), saved.file(other))
    assert saved.load(other, keep) is None
    assert saved.notices == [f"{saved.file(other)}: damaged; made again"]


def one_line(cache: Cache) -> None:
    notice, = cache.notices
    assert "made again" in notice and "\n" not in notice and cache.file(KEY).name in notice
    cache.notices.clear()


def test_every_changed_byte_is_seen(saved):
    whole = saved.file(KEY).read_bytes()
    for place in range(0, len(whole), 3):
        saved.file(KEY).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:])
        found = saved.load(KEY, keep)
        # spaces after the header, and the order of its names, carry nothing; all else must be seen
        assert found is None or same(found) and whole[place:place + 1] == b" ", place
        saved.notices.clear()
    saved.save(KEY, arrays(), EXTRA)
    assert same(saved.load(KEY, keep))


def test_numbers_read_as_another_type_are_seen(saved):
    """int32 as uint32 or float32: not a byte of the numbers differs."""
    whole = saved.file(KEY).read_bytes()
    for other in (b'"U32"', b'"F32"'):
        changed = whole.replace(b'"I32"', other)
        assert changed != whole
        saved.file(KEY).write_bytes(changed)
        assert saved.load(KEY, keep) is None
        one_line(saved)


def test_every_truncation_is_seen(saved):
    whole = saved.file(KEY).read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        saved.file(KEY).write_bytes(whole[:length])
        assert saved.load(KEY, keep) is None
        one_line(saved)
    saved.file(KEY).write_bytes(whole + b"x")
    assert saved.load(KEY, keep) is None


@pytest.mark.parametrize("metadata", [{}, {"about": "{}"}, {"about": "no json", "sha256": "0"}, {"sha256": "0" * 64},
                                      {"about": json.dumps({"key": KEY, "extra": 1}), "sha256": "0" * 64}])
def test_other_safetensors_files_are_not_used(saved, metadata):
    module.save_file(arrays(), saved.file(KEY), metadata=metadata)
    assert saved.load(KEY, keep) is None
    one_line(saved)


def test_arrays_that_do_not_make_what_they_should_are_a_damaged_entry(saved):
    def refuse(*_):
        raise ValueError("5 ends do not divide 3 numbers into 2 parts")

    assert saved.load(KEY, refuse) is None
    assert "5 ends" in saved.notices[0]
    one_line(saved)


def test_a_folder_or_a_pipe_in_the_place_of_an_entry(saved):
    file = saved.file(KEY)
    file.unlink()
    os.mkfifo(file)
    assert saved.load(KEY, keep) is None                                     # it does not wait for someone to write
    saved.save(KEY, arrays(), EXTRA)
    assert same(saved.load(KEY, keep))
    file.unlink()
    file.mkdir()
    saved.notices.clear()
    assert saved.load(KEY, keep) is None
    saved.save(KEY, arrays(), EXTRA)
    assert len(saved.notices) == 1 and "cannot be kept" in saved.notices[0]
    assert [f.name for f in saved.folder.iterdir()] == [file.name]           # the temporary file is gone


def test_a_folder_that_cannot_be_made_is_a_notice(tmp_path):
    (tmp_path / "file").write_text("x")
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.load(KEY, keep) is None and cache.notices == []
    cache.save(KEY, arrays(), EXTRA)
    assert len(cache.notices) == 1 and "--cache off" in cache.notices[0] and "\n" not in cache.notices[0]


def test_a_full_disk_leaves_the_old_entry(saved, monkeypatch):
    def full(values, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    saved.save(KEY, {"x": np.zeros(5, np.int8)})
    assert len(saved.notices) == 1 and "No space left" in saved.notices[0]
    assert [f.name for f in saved.folder.iterdir()] == [saved.file(KEY).name]
    assert same(saved.load(KEY, keep))


def test_two_processes_do_not_write_into_one_temporary_file(saved, monkeypatch):
    names, save = [], module.save_file
    monkeypatch.setattr(module, "save_file",
                        lambda x, file, **more: (names.append(file.parent.name), save(x, file, **more)))
    for process in (11, 12):
        monkeypatch.setattr(os, "getpid", lambda number=process: number)
        saved.save(KEY, arrays(), EXTRA)
    assert names == [f".{saved.file(KEY).name}.{process}.new" for process in (11, 12)]


def test_the_file_is_on_the_disk_before_it_has_its_name(saved, monkeypatch):
    order = []
    fsync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda n: (order.append("fsync"), fsync(n))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), rename(a, b))[1])
    saved.save(KEY, arrays(), EXTRA)
    assert order == ["fsync", "replace", "fsync"]          # the bytes, the name, the folder that holds the name
