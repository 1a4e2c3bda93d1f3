"""runfolder.py: a run folder is one process's."""
import os
import signal
import subprocess
import sys

import pytest

from minibert import runfolder
from minibert.errors import MinibertError
from minibert.runfolder import lock

HOLD = "import sys, pathlib, time; from minibert.runfolder import lock; f = lock(pathlib.Path(sys.argv[1]));" \
       "print('held', flush=True); time.sleep(60)"


def test_a_folder_is_one_processs_and_free_once_that_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(MinibertError, match=f"process {holder.pid} is training in it"):
            lock(tmp_path)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with lock(tmp_path), pytest.raises(MinibertError, match=f"process {os.getpid()} "):
        lock(tmp_path)
    lock(tmp_path).close()


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runfolder.fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(37, "No locks available")))
    with pytest.raises(MinibertError, match="cannot be locked .*No locks available"):
        lock(tmp_path)
