"""What the scores of a stored head speak for: the labels in config.json, and whether they are those of a task."""
from collections import Counter
from pathlib import Path
from typing import Any

from minibert.errors import MinibertError
from minibert.files import Json, read_json


def read_labels(folder: Path) -> list[str]:
    """The names of a head's labels in config.json, by number; [] for an encoder alone. Raises MinibertError."""
    own, outputs = read_own(folder), read_outputs(folder)
    numbers = read_json(folder / "config.json").get("label2id")
    if outputs and isinstance(numbers, dict) and numbers != {name: i for i, name in enumerate(outputs)}:
        raise MinibertError(f"{folder}/config.json: id2label and label2id disagree; mend the file")
    if "labels" in own:                            # more labels than outputs: yes and no
        return names_of(own["labels"], f"{folder}/config.json: minibert.labels")
    return outputs


def read_own(folder: Path) -> Json:
    """What config.json has that no other library knows; {} without."""
    own = read_json(folder / "config.json").get("minibert")
    return own if isinstance(own, dict) else {}


def read_outputs(folder: Path) -> list[str]:
    """What each score of a head speaks for, by number; [] for an encoder alone. Raises MinibertError as names_of()."""
    names, where = read_json(folder / "config.json").get("id2label"), f"{folder}/config.json: id2label"
    if names in (None, {}):
        return []
    if not isinstance(names, dict) or names.keys() != {str(i) for i in range(len(names))}:
        raise MinibertError(f"{where} is {str(names)[:60]}; expected names for 0, 1, 2 ...; mend the file")
    return names_of([names[str(i)] for i in range(len(names))], where)


def names_of(values: object, where: str) -> list[str]:
    """Names of labels, each once; a number is one too. Raises MinibertError for anything else."""
    if not isinstance(values, list) or not all(type(name) in (str, int) for name in values):
        raise MinibertError(f"{where}: {str(values)[:60]}; expected a list of names; mend the file")
    found = [str(name) for name in values]
    if len(set(found)) < len(found):
        twice, _ = Counter(found).most_common(1)[0]
        raise MinibertError(f"{where}: the name {twice[:60]!r} stands there twice; mend the file")
    return found


def holds_head_of(folder: Path, task: Any) -> bool:
    """Whether the head stored in `folder`, if there is one, means what a head of this task would mean.

    The same size is not enough: other labels, or a softmax where sigmoids are asked for.
    """
    config = read_json(folder / "config.json")
    kind = config.get("problem_type") or task.problem_type                     # some leave it to be guessed
    try:
        names = read_labels(folder), read_outputs(folder)
    except MinibertError:                          # nobody can say what its scores mean
        return False
    return config.get("architectures") == [task.architecture] and (
        (*names, kind) == (task.labels, task.outputs, task.problem_type))
