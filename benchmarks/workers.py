"""The parent's side of a worker process: orders out and answers in as JSON lines over pipes, and its obituary."""
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from minibert.errors import MinibertError

SCRIPT = Path(__file__).resolve().with_name("contender.py")
# alike for all: the tokenizers library may use every core, and nothing asks a network for files that are here
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "true", "HF_HUB_OFFLINE": "1"}


class Worker:
    """A process that works when asked and waits otherwise. `log` is a file for what it prints."""

    def __init__(self, name: str, command: list[str], log: Path):
        self.name, self.log = name, log
        with open(log, "w", encoding="utf-8") as printed:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed,
                                            text=True, encoding="utf-8", env={**os.environ, **ENVIRONMENT})

    def ask(self, job: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one order, waited for. Raises MinibertError with the worker's last words where it died."""
        try:
            self.process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):                # nothing, or half an answer
            raise MinibertError(self.obituary(job))
        return json.loads(line)

    def obituary(self, job: str) -> str:
        """Who died, how, doing what, and its last line."""
        self.close()
        code = self.process.returncode
        how = f"signal {-code}" + (" (out of memory?)" if code == -9 else "") if code < 0 else f"exit code {code}"
        said = [x.strip() for x in self.log.read_text("utf-8", errors="replace").splitlines() if x.strip()]
        last = said[-1].removeprefix("minibert.errors.MinibertError: ") if said else "it printed nothing"
        return f"worker {self.name!r} died at {job} with {how}: {last}"

    def close(self) -> None:
        """End the process; one that does not leave by itself is killed."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:                    # an order it never read
            pass
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is not None:                       # an error or Ctrl-C: do not wait for the end of a long order
            self.process.kill()
        self.close()


def start(name: str, spec: dict[str, Any], log: Path) -> Worker:
    """A worker for the contender that `spec` describes."""
    return Worker(name, [sys.executable, str(SCRIPT), json.dumps(spec)], log)
