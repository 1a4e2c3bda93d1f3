"""A model that somebody else fine-tuned: its config.json says of which task it is and what its scores speak for.

Where a class says too little, what is taken for granted is said in a notice, or the user names the task.
"""
from dataclasses import dataclass, field
from pathlib import Path

from minibert.checkpoints.labels import read_outputs
from minibert.checkpoints.weights import read_tensors
from minibert.errors import MinibertError
from minibert.files import Json, read_json
from minibert.scores.tags import iob2_tags, is_tag

TOKENS, TEXTS = "BertForTokenClassification", "BertForSequenceClassification"
ONE, SEVERAL, NUMBER = "single_label_classification", "multi_label_classification", "regression"
NO_LABELS = ""                                     # of a class whose scores speak for no names

# (published class, what its labels are) -> the tasks that read it so, each with the options that say so. The first
# counts unless another is asked for. Of BertForPreTraining the masked words are read, not the two halves.
MEANINGS: dict[tuple[str, str], list[tuple[str, dict[str, str]]]] = {
    (TOKENS, ONE): [("ner", {})],
    (TEXTS, ONE): [("classify", {"choice": "one"}), ("match", {"answer": "class"})],
    (TEXTS, SEVERAL): [("classify", {"choice": "several"})],
    (TEXTS, NUMBER): [("match", {"answer": "score"})],
    ("BertForQuestionAnswering", NO_LABELS): [("qa", {"answers": "some"})],
    ("BertForMaskedLM", NO_LABELS): [("mlm", {})],
    ("BertForPreTraining", NO_LABELS): [("mlm", {})]}
CLASSES = list(dict.fromkeys(name for name, _ in MEANINGS))


@dataclass(frozen=True)
class Published:
    """What the config.json of somebody else's model means here."""
    task: str
    options: dict[str, str]                        # of the task; no others can be asked for
    labels: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def read_published(folder: Path, asked: str | None = None) -> Published:
    """The meaning of a folder without train.json; `asked`: the task, where the class may be of several.

    Raises MinibertError naming the file for any other class, for labels that the task cannot have, and for an `asked`
    that the class is not of.
    """
    file = folder / "config.json"
    config = read_json(file)
    name, kind, labels = class_of(config, file), NO_LABELS, []
    if name in (TOKENS, TEXTS):
        labels = label_names(folder)
        kind = ONE if name == TOKENS else label_kind(config, len(labels), file)

    meanings = dict(MEANINGS[name, kind])
    task = next(iter(meanings)) if asked is None else asked
    if task not in meanings:
        raise MinibertError(f"{file}: {name}{f' of {kind}' if kind else ''} is a model of --task "
                            f"{' or '.join(meanings)}, not {task!r}; leave --task out, or name another model")
    if name == TOKENS:
        decoding, notices = tag_decoding(labels, file)
        return Published(task, meanings[task] | decoding, labels, notices)
    return Published(task, meanings[task], ["score"] if kind == NUMBER else labels)


def class_of(config: Json, file: Path) -> str:
    """The one class among `architectures` that is known here. Raises MinibertError for none, or several."""
    names = config.get("architectures")
    known = [name for name in CLASSES if isinstance(names, list) and name in names]
    if len(known) != 1:
        what = "is missing" if names is None else f"is {repr(names)[:200]}"
        raise MinibertError(f"{file}: architectures {what}; expected one of {', '.join(CLASSES)}, or a run folder, "
                            "which has a train.json; an encoder alone is fine-tuned first (--weights of training)")
    return known[0]


def label_names(folder: Path) -> list[str]:
    """What each score of `classifier` speaks for: id2label, or LABEL_0, LABEL_1 ... where that is missing.

    Raises MinibertError where id2label is no list of different names by number.
    """
    if names := read_outputs(folder):
        return names
    shapes = (stored.get_shape() for name, _, stored in read_tensors(folder) if name == "classifier.weight")
    return [f"LABEL_{i}" for i in range(next(shapes, [0])[0])]


def label_kind(config: Json, count: int, file: Path) -> str:
    """What the `count` scores of a text are; where problem_type does not say, as transformers guesses.

    Raises MinibertError for a kind that is not known, or has another number of scores.
    """
    guess = NUMBER if count == 1 else ONE
    kind = config.get("problem_type") or guess
    if kind not in (ONE, SEVERAL, NUMBER):
        raise MinibertError(f"{file}: problem_type is {repr(kind)[:60]}; expected {ONE}, {SEVERAL} or {NUMBER}; mend "
                            "the file")
    if kind not in (guess, SEVERAL):
        raise MinibertError(f"{file}: problem_type is {kind}, but classifier has {count} labels; expected "
                            f"{'one score' if kind == NUMBER else 'two labels at least'}; mend the file")
    return str(kind)


def tag_decoding(labels: list[str], file: Path) -> tuple[dict[str, str], list[str]]:
    """(options, notices) for a model of tags. Raises MinibertError for labels that are none."""
    if wrong := [label for label in labels if not is_tag(label)] or ([] if "O" in labels else labels):
        raise MinibertError(f"{file}: id2label has {', '.join(map(repr, wrong[:3]))}; expected O, and B-TYPE and "
                            "I-TYPE of every type; if tags were what the labels were trained as, write them into "
                            "id2label")
    lacking = [tag for tag in iob2_tags(labels) if tag not in labels]
    others = [tag for tag in labels if tag not in iob2_tags(labels)]
    if not lacking and not others:
        return {}, []
    what = f"lacks {', '.join(lacking[:3])}" if lacking else f"has {', '.join(others[:3])}"
    return {"decoding": "argmax"}, [f"{file}: id2label {what}, so its tags are not IOB2: each word has its best tag "
                                    "alone (--decoding argmax), and entities are written in IOB2"]
