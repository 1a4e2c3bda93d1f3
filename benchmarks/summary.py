"""From raw rounds to what is said about them: medians, ratios pair by pair, shares of the limit, the table."""
import statistics
import textwrap
from collections.abc import Sequence
from typing import Any

from minibert.core.config import BertConfig

FLOPS_A_WEIGHT = {"train": 6, "score": 2}          # multiply and add: forward 2, backward 4
UNITS = {"train": "pieces/s", "score": "pieces/s", "start": "s", "memory": "MB"}
COUNTED = {
    "train": "pieces that are not padding a second of wall time: drawing and assembling batches, forward, backward, "
             "clipping, optimizer; not reading and tokenising",
    "score": "pieces that are not padding a second of wall time: sorting, assembling batches, forward, scores to "
             "numpy; not tokenising, not decoding tags",
    "start": "seconds from the start of a fresh process to the end of its first update: imports, reading and "
             "tokenising every split, loading weights, one update; one start of each before them does not count",
    "memory": "largest resident size (VmHWM) of a fresh process, the whole of it, imports included, in MB of 2^20 "
              "bytes",
    "ratio": "minibert / the other, pair by pair in the same round: median (quartiles)",
    "limit": "every product of the encoder's matrices at the machine's matrix-product rate in that number format, and "
             "nothing else: 6 floating-point operations a weight and piece in training, 2 in scoring; attention, "
             "embeddings and head cost nothing there. Two shares, as two rates are measured: at 2048 square, and "
             "(higher, all in cache) at the shapes of the model's own products",
    "machine": "GFLOP/s of x·w^T alone, 2·m·k·n operations each, shortest call: 2048 square, and the six products of a "
               "block at 600 pieces; copying: bytes read plus bytes written, a second",
}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third, by linear interpolation between the sorted values; two values at least."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, so that what disturbed a round disturbs both sides of its ratio."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def matrix_weights(c: BertConfig) -> int:
    """Numbers in the encoder's matrices: L blocks of query, key, value, output (H² each) and two of H·F."""
    return c.num_hidden_layers * (4 * c.hidden_size ** 2 + 2 * c.hidden_size * c.intermediate_size)


def limit(kind: str, weights: int, gflops: float) -> float:
    """Pieces a second if there were nothing but matrix products, at a rate of `gflops`."""
    return gflops * 1e9 / (FLOPS_A_WEIGHT[kind] * weights)


def best_rates(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The highest of several measurements of the machine, each as Machine.rates() gives it."""
    gflops = {form: {shape: max(r["gflops"][form][shape] for r in runs) for shape in shapes}
              for form, shapes in runs[0]["gflops"].items()}
    return {"gflops": gflops, "copy_gb": max(r["copy_gb"] for r in runs)}


def summarise(result: dict[str, Any]) -> None:
    """Add to a setting's raw rounds medians, quartiles, padding, the share of a core taken while waiting, and ratios.

    The first contender is compared with each other one.
    `result` has "contenders", each with "values" (one a round) and "rounds" (the worker's answers).
    """
    first, *others = result["contenders"]
    for c in result["contenders"]:
        low, c["median"], high = quartiles(c["values"])
        c["quartiles"] = [low, high]
        cells = sum(r.get("cells", 0) for r in c["rounds"])
        c["padding"] = 1 - sum(r["pieces"] for r in c["rounds"]) / cells if cells else None
        waited = sum(r["waited_seconds"] for r in c["rounds"])
        c["waiting_cpu"] = sum(r["waited_cpu_seconds"] for r in c["rounds"]) / waited if waited else 0.0
    result["ratios"] = []
    for c in others:
        values = ratios(first["values"], c["values"])
        low, middle, high = quartiles(values)
        result["ratios"].append({"of": first["name"], "to": c["name"], "values": values, "median": middle,
                                 "quartiles": [low, high]})


def add_limits(result: dict[str, Any], gflops: dict[str, dict[str, float]]) -> None:
    """Add to each contender of training or scoring the limits, 2048 square and at its own shapes, and its shares.

    `gflops`: {format: {"square 2048" or a geometry: GFLOP/s}}.
    """
    if result["kind"] not in FLOPS_A_WEIGHT:
        return
    for c in result["contenders"]:
        rates = {shape: gflops[c["resolved"]][shape] for shape in ("square 2048", result["geometry"])}
        c["limit"] = {shape: limit(result["kind"], result["matrix_weights"], r) for shape, r in rates.items()}
        c["share_of_limit"] = {shape: c["median"] / most for shape, most in c["limit"].items()}


def disagreements(read: Sequence[dict[str, dict[str, Any]]]) -> list[str]:
    """The splits that the contenders did not read as the same pieces, in words; each {split: {rows, pieces, hash}}."""
    notes = []
    for split in read[0]:
        seen = [r.get(split, {"rows": 0, "pieces": 0, "sha256": ""}) for r in read]
        if len({s["sha256"] for s in seen}) > 1:
            sizes = ", ".join(f"{s['rows']:,} rows of {s['pieces']:,} pieces" for s in seen)
            notes.append(f"{split} is not read alike: {sizes} (long sentences: minibert makes windows, transformers "
                         "cuts; or odd words)")
    return notes


# ---------------------------------------------------------------------------------------------------------- the table


def number(value: float, kind: str) -> str:
    """With the digits that mean something."""
    return f"{value:,.2f}" if kind == "start" else f"{value:,.0f}"


def setting_lines(result: dict[str, Any]) -> list[str]:
    """One setting as lines: title, then a contender each."""
    kind = result["kind"]
    compared = {r["to"]: r for r in result["ratios"]}
    lines = [f"{result['name']}: {result['what']}"]
    for c in result["contenders"]:
        parts = [f"  {c['name']:27} {number(c['median'], kind):>8} {UNITS[kind]}"]
        if "share_of_limit" in c:
            parts.append("of limit " + " /".join(f"{share:4.0%}" for share in c["share_of_limit"].values()))
        if kind in FLOPS_A_WEIGHT:
            parts.append(f"padding {c['padding']:3.0%}" if c["padding"] is not None else " " * 11)
        if c["name"] in compared:
            r = compared[c["name"]]
            low, high = r["quartiles"]
            parts.append(f"minibert / this: {r['median']:.2f} ({low:.2f} to {high:.2f})")
        lines.append("  ".join(parts).rstrip())
    return lines + [f"  note: {note}" for note in result["notes"]]


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The machine's rates as lines."""
    lines = ["machine: matrix products, GFLOP/s"]
    for form, shapes in machine["gflops"].items():
        lines.append(f"  {form}  " + "  ".join(f"{shape} {value:,.0f}" for shape, value in shapes.items()))
    return lines + [f"  copying {machine['copy_gb']:.1f} GB/s"]


def table(report: dict[str, Any]) -> str:
    """Everything measured, then what each number counts."""
    system, kinds = report["system"], {r["kind"] for r in report["results"]}
    lines = [f"{system['cpu']}, {system['threads']} threads, torch {system['torch']}, transformers "
             f"{system['transformers']}, minibert {system['minibert']}; data {report['settings']['data']}", ""]
    if report["machine"]:
        lines += [*machine_lines(report["machine"]), ""]
    for result in report["results"]:
        lines += [*setting_lines(result), ""]
    in_turn = [c["waiting_cpu"] for r in report["results"] if r["kind"] in FLOPS_A_WEIGHT for c in r["contenders"]]
    if in_turn:
        lines.append(f"a contender that waited for its turn took at most {max(in_turn):.1%} of one core")
    kinds |= ({"ratio"} if kinds else set()) | ({"machine", "limit"} if report["machine"] else set())
    counted = [textwrap.fill(f"{k}: {v}", 116, initial_indent="  ", subsequent_indent="    ")
               for k, v in COUNTED.items() if k in kinds]
    return "\n".join([*lines, "what the numbers count", *counted])
