"""files.py: a crash leaves the old file or the new one."""
import pytest

from minibert import files
from minibert.files import copy


def test_a_copy_is_whole_or_not_there_and_damage_stays_in_one_place(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"an older one")
    copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"one" and not (tmp_path / "b").samefile(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"two")
    monkeypatch.setattr(files, "replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"one"
