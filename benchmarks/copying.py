"""Targets that need no model: the source as it is, and its first sentence. docs/tasks/seq2seq.md compares with them.

    python benchmarks/copying.py --data DIR

DIR is whatever the tasks translate, summarize and dialogue read. A sentence ends at . ! or ? before a blank and a
capital. BLEU and ROUGE as train.py has them, in lower case; one JSON line a split.
"""
import argparse
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from minibert.scores import texts as textscores  # noqa: E402 (this checkout's, whatever else is installed)
from minibert.tasks import TASKS  # noqa: E402

END = re.compile(r"(?<=[.!?])\s+(?=[A-ZÄÖÜ])")


def main() -> int:
    """Read, score every split but train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    kind = TASKS["translate"]
    splits = kind(kind.Options()).read(parser.parse_args().data)
    for split in (s for s in splits if s != "train"):
        gold = [e.target.lower() for e in splits[split]]
        whole = [e.source.lower() for e in splits[split]]
        first = [END.split(e.source, 1)[0].lower() for e in splits[split]]
        scores = {name: {"bleu": textscores.bleu(gold, said),
                         "rouge": {k: v["f1"] for k, v in textscores.rouge(gold, said).items()}}
                  for name, said in (("copied", whole), ("first sentence", first))}
        print(json.dumps({"split": split, **scores}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
