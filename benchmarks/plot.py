"""compare.png: horizontal bars of every setting, minibert's ratio to each other contender written beside its bar."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from summary import number

COLOURS = {"minibert": "#0b6e4f", "transformers, best": "#8a94a6", "transformers, recipe": "#ccd1da"}
FADED = "#7fb8a4"                                  # minibert in a precision it is compared with itself in
PANELS = (("train", "minilm-l6", "Training minilm-l6, pieces/s"),
          ("train", "bert-base", "Training bert-base, pieces/s"),
          ("score", "minilm-l6", "Scoring with minilm-l6, pieces/s"),
          ("score", "bert-base", "Scoring with bert-base, pieces/s"),
          ("start", "minilm-l6", "Process start to first update, seconds: shorter is better"),
          ("memory", "minilm-l6", "Peak memory of training, MB: shorter is better"))
GAP = 0.6                                          # between settings, in rows
WIDTH = 1.6                                        # of a panel, in longest bars: room for numbers and ratio
INCHES = 0.3                                       # a row


def draw(report: dict[str, Any], file: Path) -> None:
    """Write the panels that have something to show, two a line, as PNG."""
    panels = [(title, found) for kind, geometry, title in PANELS
              if (found := [r for r in report["results"] if (r["kind"], r["geometry"]) == (kind, geometry)])]
    lines = [panels[i:i + 2] for i in range(0, len(panels), 2)]
    heights = [max(height(found) for _, found in line) for line in lines]
    figure = Figure(figsize=(15, 1.3 + sum(INCHES * h + 0.6 for h in heights)), layout="constrained")
    axes = figure.subplots(len(lines), 2, squeeze=False, height_ratios=heights)
    figure.get_layout_engine().set(wspace=0.05, hspace=0.04)
    for line, pair, space in zip(lines, axes, heights, strict=True):
        for k, ax in enumerate(pair):
            ax.axis("off")
            if k < len(line):
                panel(ax, *line[k], space)
    s, chosen = report["system"], report["settings"]
    figure.suptitle(f"{s['cpu']}, {s['threads']} threads, torch {s['torch']}, data {chosen['data']}: median of "
                    f"{chosen['rounds']} rounds, line from quartile to quartile\n× is minibert / that bar, pair by "
                    "pair; in brackets the share of the matrix-product rate at 2048 square", fontsize=10.5)
    keys = [Patch(color=colour, label=side.replace("transformers", "transformers " + s["transformers"]))
            for side, colour in COLOURS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    figure.savefig(file, dpi=110, format="png")


def height(results: Sequence[dict[str, Any]]) -> float:
    """Of a panel, in rows: a bar each and the gaps between settings."""
    return sum(len(r["contenders"]) for r in results) + GAP * (len(results) - 1)


def panel(ax: Axes, title: str, results: Sequence[dict[str, Any]], space: float) -> None:
    """One kind of measurement at one geometry: the bars of its settings below each other, in `space` rows."""
    longest, y = max(c["median"] for r in results for c in r["contenders"]), 0.0
    for result in results:
        compared = {r["to"]: r["median"] for r in result["ratios"]}
        for i, c in enumerate(result["contenders"]):
            colour = FADED if i and c["side"] == "minibert" else COLOURS[c["side"]]
            ax.barh(y, c["median"], color=colour, height=0.84)
            ax.plot(c["quartiles"], [y, y], color="#222222", linewidth=1)
            ax.text(-0.012 * longest, y, c["name"].removeprefix("transformers, "), ha="right", va="center", fontsize=10)
            words = number(c["median"], result["kind"])
            words += f"  ({c['share_of_limit']['square 2048']:.0%})" if "share_of_limit" in c else ""
            ax.text(max(c["median"], c["quartiles"][1]) + 0.012 * longest, y, words, va="center", fontsize=10)
            if c["name"] in compared:
                ax.text(WIDTH * longest, y, f"{compared[c['name']]:.2f} ×", ha="right", va="center", fontsize=12,
                        fontweight="bold", color=COLOURS["minibert"])
            y += 1
        y += GAP
    ax.set(xlim=(0, WIDTH * longest), ylim=(space - 0.4, -0.6))
    ax.set_title(title, fontsize=12.5, fontweight="bold", loc="left")
