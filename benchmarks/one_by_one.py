"""How long a question waits for its answer where questions come one by one: what docs/tasks/reply.md says of that.

    python benchmarks/one_by_one.py RUN ANSWERS QUESTIONS [--rerank N] [--limit 5]

RUN is a run folder of --task reply, ANSWERS the file for `predict --answers`, QUESTIONS a .csv with a column question.
One process of `python -m minibert predict RUN -` gets a line, and the next when its answer is there. Then another gets
all lines at once. One JSON line: seconds until the first answer (the start of Python, the model and all answers read),
of each later one, of all at once with the start.
"""
import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Ask, wait, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("run", "answers", "questions"):
        parser.add_argument(name, type=lambda text: Path(text).resolve())
    parser.add_argument("--rerank", type=int)
    parser.add_argument("--limit", type=int, default=5, help="questions asked one by one")
    options = parser.parse_args()
    with open(options.questions, encoding="utf-8", newline="") as f:
        questions = [" ".join(row["question"].split()) for row in csv.DictReader(f)]
    command = [sys.executable, "-m", "minibert", "predict", str(options.run), "-", "--answers", str(options.answers),
               "--json", *([] if options.rerank is None else ["--rerank", str(options.rerank)])]
    waits = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          encoding="utf-8") as asked:
        for question in questions[:options.limit]:
            start = time.perf_counter()
            asked.stdin.write(question + "\n")
            asked.stdin.flush()
            if not asked.stdout.readline():
                break
            waits.append(time.perf_counter() - start)
        asked.stdin.close()
    if asked.returncode or not waits:
        return asked.returncode or 1                                           # its own line says why
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, input="\n".join(questions), stdout=subprocess.DEVNULL, text=True,
                   encoding="utf-8", check=True)
    print(json.dumps({"first": round(waits[0], 2), "later": [round(w, 3) for w in waits[1:]],
                      "questions": len(questions), "at_once": round(time.perf_counter() - start, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
