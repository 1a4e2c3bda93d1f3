"""Counts -> precision, recall, F1; their averages; text tables of them."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from minibert.errors import MinibertError, spelt_out

Right = TypeVar("Right")
Guess = TypeVar("Guess")
Row = dict[str, float]
Scores = dict[str, Any]                            # numbers, and dictionaries of them by name
COLUMNS = ("precision", "recall", "f1")


def side_by_side(gold: Sequence[Right], predicted: Sequence[Guess], things: str) -> list[tuple[Right, Guess]]:
    """Each right answer with the predicted one. Raises MinibertError where there are not as many of both."""
    if len(gold) != len(predicted):
        raise MinibertError(f"{len(gold)} gold {things} but {len(predicted)} predicted ones")
    return list(zip(gold, predicted, strict=True))


def ratio(part: float, whole: float) -> float:
    """part / whole; what would be 0/0 is 0."""
    return part / whole if whole else 0.0


def row_of(correct: int, predicted: int, gold: int) -> Row:
    """{"precision", "recall", "f1", "support"} of three counts."""
    precision = ratio(correct, predicted)                                    # [SCORE-1]
    recall = ratio(correct, gold)                                            # [SCORE-2]
    f1 = ratio(2 * correct, predicted + gold)                                # [SCORE-3]
    return {"precision": precision, "recall": recall, "f1": f1, "support": gold}


def averaged(rows: Mapping[str, Row], micro: Mapping[str, float]) -> dict[str, float]:
    """{"micro_…", "macro_…", "weighted_…": a number} for each of COLUMNS."""
    scores, every, support = {}, rows.values(), sum(row["support"] for row in rows.values())
    for column in COLUMNS:
        scores[f"micro_{column}"] = micro[column]
        scores[f"macro_{column}"] = ratio(sum(r[column] for r in every), len(rows))  # [SCORE-7]
        scores[f"weighted_{column}"] = ratio(sum(r[column] * r["support"] for r in every), support)  # [SCORE-8]
    return scores


def score_at(scores: Scores, path: str) -> float:
    """The number at a dotted path, such as "entity.f1"."""
    found: Any = scores
    for key in path.split("."):
        found = found[key]
    return found


# ---- tables


def table(*groups: Mapping[str, Row], before: Mapping[str, Row] | None = None, gaps: bool = True) -> str:
    """Text with a heading and one line a row, an empty one before each group; and F1 as it was, if any was `before`."""
    width = max((len(spelt_out(name)) for group in groups for name in group), default=0)
    lines = [f"{'':{width}}  {'precision':>9}  {'recall':>9}  {'f1-score':>9}"
             + f"  {'f1 before':>9}" * bool(before) + f"  {'support':>9}"]
    for group in filter(None, groups):
        lines += [""] * gaps
        for name, row in group.items():
            numbers = "  ".join(f"{row[column]:9.3f}" for column in COLUMNS)
            was = f"  {before.get(name, {}).get('f1', 0.0):9.3f}" if before else ""
            lines.append(f"{spelt_out(name):{width}}  {numbers}{was}  {row['support']:9d}")
    return "\n".join(lines)


def compared(rows: Callable[[Scores], Mapping[str, Row]], scores: Scores, before: Scores | None) -> str:
    """The rows() of scores as a table, with F1 as it was `before`."""
    return table(rows(scores), before=before and rows(before), gaps=False)


def averages(scores: Scores, kinds: Sequence[str] = ("micro", "macro", "weighted")) -> dict[str, Row]:
    """The rows of averages below a table, from what averaged() gave."""
    return {f"{kind} avg": {**{column: scores[f"{kind}_{column}"] for column in COLUMNS}, "support": scores["support"]}
            for kind in kinds}
