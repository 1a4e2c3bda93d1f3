"""odd_files.py sees what it watches for; `make torture` has every odd file in every place."""
from odd_files import ODD, fingerprint, put


def test_what_a_command_does_outside_of_its_folders_is_seen(tmp_path):
    """A link that is written through, a file that is new; odd things are put without touching what is outside."""
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "file.json").write_bytes(b"{}")
    before = fingerprint(outside)
    for make in ODD:
        put(make, run / "log.txt", outside)
        assert fingerprint(outside) == before
    put(ODD[0], run / "log.txt", outside)
    (run / "log.txt").write_bytes(b"[]")
    changed = fingerprint(outside)
    put(ODD[1], run / "log.txt", outside)
    (run / "log.txt").write_bytes(b"")
    assert len({before, changed, fingerprint(outside)}) == 3
