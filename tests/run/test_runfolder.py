"""run/folder.py: a run folder is one process's."""
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from minibert.errors import MinibertError
from minibert.run import folder as runfolder
from minibert.run.folder import RunFolder, claim_folder, lock
from minibert.run.processes import ALONE
from minibert.settings import TrainConfig

HOLD = """
import sys, pathlib, time
from minibert.run.folder import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder) -> None:
    """Hold it and let it go."""
    with lock(folder):
        pass


def test_the_log_takes_any_text_and_a_log_that_cannot_be_written_ends_nothing(tmp_path, capsys):
    folder = RunFolder(tmp_path, ALONE)
    folder.note("ignored: \ud800.weight")
    assert capsys.readouterr().out == "" and (tmp_path / "log.txt").read_text()[20:] == "ignored: \\ud800.weight\n"
    (tmp_path / "log.txt").unlink()
    (tmp_path / "log.txt").mkdir()
    folder.tell("said")
    assert capsys.readouterr().out == "said\n"


@pytest.mark.parametrize("there, new", [
    ([], "ner"), (["ner"], "ner-2"), (["ner-2"], "ner-3"), (["ner", "ner-2", "ner-11"], "ner-12"),
    (["ner-old", "ner-old-7", "ner-07", "ner-1", "ner2", "nerves-4"], "ner")])
def test_a_new_run_is_the_last_one_whatever_was_removed(tmp_path, monkeypatch, there, new):
    """Else --resume would go on with another run than the one just begun."""
    monkeypatch.chdir(tmp_path)
    for name in there:
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "train.json").write_text("{}")
    begun = claim_folder(TrainConfig())
    assert str(begun) == f"runs/{new}"
    (begun / "train.json").write_text("{}")
    assert claim_folder(TrainConfig(resume=True)) == begun


def test_a_run_that_never_began_is_not_resumed_and_its_number_not_taken_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "ner-2").mkdir(parents=True)
    (tmp_path / "runs" / "ner-2" / "train.json").write_text("{}")
    (tmp_path / "runs" / "ner-3").mkdir()
    assert str(claim_folder(TrainConfig(resume=True))) == "runs/ner-2"
    assert str(claim_folder(TrainConfig())) == "runs/ner-4"


def test_a_folder_is_one_processs_and_free_once_that_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MinibertError, match=f"process {holder.pid} is training in it"):
            hold(tmp_path)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with lock(tmp_path), pytest.raises(MinibertError, match=f"process {os.getpid()} "):
        hold(tmp_path)
    with pytest.raises(KeyError), lock(tmp_path):          # an error lets it go as well
        raise KeyError
    hold(tmp_path)


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with pytest.raises(MinibertError, match="cannot be locked .*No locks available"):
        hold(tmp_path)


def test_nothing_is_written_through_a_link_in_a_run_folder(tmp_path, capsys):
    """Whoever can make a name in the folder cannot have another file cut, or grown, with it."""
    (run := tmp_path / "run").mkdir()
    (outside := tmp_path / "outside").write_text("kept")
    for name in (".lock", "metrics.jsonl", "log.txt"):
        (run / name).symlink_to(outside)
    with pytest.raises(MinibertError, match="cannot be locked .*a link, and nothing is written through one"):
        hold(run)
    folder = RunFolder(run, ALONE)
    with pytest.raises(MinibertError, match="metrics.jsonl: cannot be written .a link, and"):
        folder.log({"step": 1})
    folder.tell("said")
    assert capsys.readouterr().out == "said\n" and outside.read_text() == "kept"


@pytest.mark.parametrize("name", [".lock", "log.txt", "metrics.jsonl"])
def test_a_pipe_in_a_run_folder_makes_nobody_wait(tmp_path, name):
    os.mkfifo(tmp_path / name)
    script = ("import sys, pathlib\nfrom minibert.run.folder import RunFolder, lock\n"
              "from minibert.run.processes import ALONE\npath = pathlib.Path(sys.argv[1])\nwith lock(path):\n"
              "    folder = RunFolder(path, ALONE)\n    folder.note('x')\n    folder.log({})\n")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (name == "log.txt"), done.stderr
    if name != "log.txt":
        assert f"MinibertError: {tmp_path}" in done.stderr.splitlines()[-1]


def test_a_full_disk_does_not_keep_a_folder_from_being_held(tmp_path, monkeypatch):
    real = runfolder.open_regular

    def full(file, mode, *more):
        if mode == "w":
            raise OSError(28, "No space left on device")
        return real(file, mode, *more)

    monkeypatch.setattr(runfolder, "open_regular", full)
    with lock(tmp_path), pytest.raises(MinibertError, match="another process is training in it"):
        hold(tmp_path)
