"""Plots of scores, sizes and training curves as SVG for the report page."""

from __future__ import annotations

import io
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from cellseg.colours import class_colour
from cellseg.runs import rescale_score
from cellseg.score.ap import RECALLS
from cellseg.score.summary import Difference, Scores
from cellseg.text import shorten

# Replaced by the text colour of the page, which is light or dark.
_INK = "#010203"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a class may be called $x$
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.grid": True,
    "grid.color": "#808080",
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_SIZE = (5.2, 3.4)
BARS = ("AP50@all", "PQ", "AJI", "F1")  # the metrics of `metric_bars`
# Colours of what is no class, and lines that differ without their colours.
_OTHERS = (_INK, "#8c6bb1", "#c05a9a", "#808080", "#a0705a", "#5b7f95")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))


@contextmanager
def _drawing(name: str, size: tuple[float, float] = _SIZE) -> Iterator[tuple[Any, list[str]]]:
    """Return the axes to draw on, and a list to which the SVG is added."""
    result: list[str] = []
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        # The browser has fonts for the letters that this one lacks.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        yield figure.add_subplot(), result
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    # Remove what only a separate file needs, and use the text colour of the page.
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
    result.append(re.sub(r"\s*\n\s*", "\n", svg.replace(_INK, "currentColor")))


def _colour(index: int) -> Any:
    red, green, blue = class_colour(index)
    if (red, green, blue) == (0, 0, 0):  # black on a dark page
        return _INK
    return red / 255, green / 255, blue / 255


def _of_class(index: int) -> dict[str, Any]:
    """Return the colour of a class, with a dark edge if it is lost on white paper."""
    red, green, blue = class_colour(index)
    is_pale = 0.3 * red + 0.6 * green + 0.1 * blue > 180
    edge = [withStroke(linewidth=2.8, foreground="#6f6a3c")] if is_pale else None
    return {"color": _colour(index), "path_effects": edge}


def _legend(axes: Any) -> None:
    """Add a legend below the axes, if there is anything to name; the figure grows by its height.

    It has as many columns as fit into the width. What doesn't fit into one is shortened.
    """
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    figure = axes.figure
    for n_columns, length in ((4, 60), (3, 60), (2, 60), (1, 60), (1, 40), (1, 24)):
        shown = [shorten(label, length) for label in labels]
        legend = figure.legend(handles, shown, loc="outside lower center", ncols=n_columns)
        box = legend.get_window_extent()
        if box.width <= 0.96 * figure.bbox.width or length == 24:
            break
        legend.remove()
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + box.height / figure.dpi)


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 100, not with a power of 10, which needs math text."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers within bounds, 1, 2 and 5 times powers of 10; of many only these."""
    powers = range(math.floor(math.log10(max(low, 1))), math.ceil(math.log10(max(high, 1))) + 1)
    steps = (1, 2, 5) if high < 200 * max(low, 1) else (1,)
    ticks = [float(step * 10**power) for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high] or [max(low, 1)]


def _label(name: str) -> str:
    """Return a name for a legend, from which matplotlib would exclude one that begins with _."""
    return "\u200b" + name if name.startswith("_") else name


def training_curves(path: Path) -> list[tuple[str, str]]:
    """Draw the losses, the validation AP and the learning rate from `metrics.json`.

    The file has a JSON object in each line; it may be missing or incomplete. Returns
    `(title, SVG)` of each plot.
    """
    series = _read_series(path)
    losses = {n: s for n, s in series.items() if n == "total_loss" or n.startswith("loss_")}
    validation = {
        n.removeprefix("validation/"): s for n, s in series.items() if n.startswith("validation/")
    }
    rate = {n: s for n, s in series.items() if n == "lr"}
    plots = []
    for title, ylabel, lines in (
        ("Training loss", "loss", losses),
        ("Validation during training", "AP, 0 to 1", validation),
        ("Learning rate", "learning rate", rate),
    ):
        if not lines:
            continue
        with _drawing(title) as (axes, svg):
            for n, (name, points) in enumerate(sorted(lines.items(), key=lambda x: -x[1][-1][1])):
                axes.plot(
                    *zip(*points, strict=True), color=_OTHERS[n % 6], ls=_DASHES[n % 4],
                    marker="o" if len(points) < 25 else None, ms=3, label=_label(name),
                )  # fmt: skip
            axes.set(xlabel="iteration", ylabel=ylabel)
            if lines is validation:
                axes.set_ylim(0, 1)
            if len(lines) > 1:
                _legend(axes)
        plots.append((title, svg[0]))
    return plots


def _read_series(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return `(iteration, value)` by name; of a repeated iteration the last value."""
    series: dict[str, dict[float, float]] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the last line of a training that was killed
        if not isinstance(entry, dict) or not _is_number(entry.get("iteration")):
            continue
        for name, value in entry.items():
            if name != "iteration" and _is_number(value):
                if name.startswith("validation/"):
                    value = rescale_score(value, entry)
                series.setdefault(name, {})[entry["iteration"]] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def precision_recall(scores: Sequence[Scores], names: Sequence[str]) -> str:
    """Draw the precision-recall curve at IoU 0.5 of each class, all detections.

    The curves of two scores, called `names`, differ by their dashes.
    """
    with _drawing("precision-recall") as (axes, svg):
        for r, one in enumerate(scores):
            for k, curve in enumerate(one.precisions[None][:, 0]):
                if np.isnan(curve).any():
                    continue
                label = f"{one.classes[k]}, AP50 {one.metrics['AP50@all'][k]:.3f}"
                if len(scores) > 1:
                    label = f"{names[r]}: {label}"
                dashes = _DASHES[r if len(scores) > 1 else k % 4]
                axes.plot(RECALLS, curve, ls=dashes, label=_label(label), **_of_class(k))
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        _legend(axes)
    return svg[0]


def metric_bars(scores: Scores) -> str:
    """Draw the main metrics of each class and their mean, with 95 % intervals."""
    metrics = [m for m in BARS if m in scores.metrics]
    n_rows = len(scores.rows) - 1
    with _drawing("metrics") as (axes, svg):
        for r in range(n_rows):
            x = np.arange(len(metrics)) + (r - (n_rows - 1) / 2) * 0.8 / n_rows
            value = np.array([scores.metrics[m][r] for m in metrics])
            low, high = (
                np.array([b[m][r] if m in b else np.nan for m in metrics])
                for b in (scores.low, scores.high)
            )
            style = _of_class(r) if r < len(scores.classes) else {"color": "#808080"}
            label = _label(scores.rows[r])
            axes.bar(x, np.nan_to_num(value), 0.7 / n_rows, label=label, **style)
            known = ~np.isnan(low) & ~np.isnan(value)
            error = np.clip([value - low, high - value], 0, None)[:, known]
            axes.errorbar(x[known], value[known], error, fmt="none", ecolor=_INK, elinewidth=1)
        axes.set(ylim=(0, 1))
        axes.set_xticks(range(len(metrics)), [m.replace("@all", "") for m in metrics])
        axes.grid(visible=False, axis="x")
        _legend(axes)
    return svg[0]


def f1_by_iou(scores: Scores) -> str:
    """Draw the F1 by IoU threshold, which shows how exact the outlines are."""
    with _drawing("f1-by-iou") as (axes, svg):
        for r, row in enumerate(scores.rows):
            if np.isnan(scores.by_threshold.f1[:, r]).all():
                continue
            style = _of_class(r) if r < len(scores.classes) else {"color": _INK}
            width = 2.2 if r > len(scores.classes) else 1.4  # any class
            axes.plot(
                scores.thresholds, scores.by_threshold.f1[:, r], lw=width,
                ls=_DASHES[r % 4], label=_label(row), **style,
            )  # fmt: skip
        axes.set(xlabel="IoU threshold", ylabel="F1", ylim=(0, 1))
        _legend(axes)
    return svg[0]


def ap_by_size(scores: Scores) -> str:
    """Draw the AP50 by ground-truth area, with a quarter of the cells in each bar."""
    with _drawing("ap-by-size") as (axes, svg):
        x = np.arange(len(scores.sizes))
        axes.bar(x, [np.nan_to_num(b.ap.ap50) for b in scores.sizes], color="#808080")
        labels = [f"{b.low}–{b.high} px\n{b.n_gt} cells" for b in scores.sizes]
        axes.set_xticks(x, labels, fontsize=8)
        axes.set(ylabel="AP50", ylim=(0, 1))
        axes.grid(visible=False, axis="x")
    return svg[0]


def counts(scores: Scores) -> str:
    """Draw detections against ground-truth cells, a point for each image and class."""
    with _drawing("counts") as (axes, svg):
        largest = max(scores.gt_counts.max(initial=1), scores.counts.max(initial=1))
        axes.plot([0, largest], [0, largest], color=_INK, lw=0.8)
        for k, name in enumerate(scores.classes):
            axes.plot(
                scores.gt_counts[:, k], scores.counts[:, k], "os^Dvp*"[k % 7],
                alpha=0.7, ms=5, mec="none", label=_label(name), **_of_class(k),
            )  # fmt: skip
        axes.set(
            xlabel="ground-truth cells (linear to 10, then logarithmic)",
            ylabel="detections (the same)",
        )
        axes.set_xscale("symlog", linthresh=10)
        axes.set_yscale("symlog", linthresh=10)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0, 5, *_log_ticks(10, largest)])
            _plain_numbers(axis)
        axes.set(xlim=(-0.5, largest * 1.3), ylim=(-0.5, largest * 1.3))
        _legend(axes)
    return svg[0]


def differences(difference: Difference) -> str:
    """Draw B − A of each metric, mean of classes, with 95 % intervals."""
    row = len(difference.rows) - 2  # the mean of classes
    known = [n for n, v in difference.value.items() if not math.isnan(v[row])]
    with _drawing("differences", (5.2, 1 + 0.24 * len(known))) as (axes, svg):
        for y, name in enumerate(reversed(known)):
            value = difference.value[name][row]
            low, high = (
                np.nan_to_num(b[name][row], nan=value) for b in (difference.low, difference.high)
            )
            axes.plot([low, high], [y, y], color=_INK, lw=1.2)
            axes.plot(value, y, "o" if value >= 0 else "s", color=_INK, ms=5)
        axes.axvline(0, color=_INK, lw=0.8)
        axes.set_yticks(range(len(known)), list(reversed(known)))
        axes.set(xlabel="B − A: better on the right")
    return svg[0]


def size_histogram(areas: NDArray[Any], classes: NDArray[Any], names: Sequence[str]) -> str:
    """Draw a histogram of the areas, `(N,)` in pixels, of each class."""
    with _drawing("sizes") as (axes, svg):
        if len(areas):
            low, high = np.log10(max(1, areas.min())), np.log10(areas.max() + 1)
            bins = np.logspace(low, max(high, low + 0.1), 36)
            bins[0] = min(bins[0], areas.min())  # the power of a logarithm may be above it
            _steps(axes, areas, classes, names, bins)
            axes.set_xscale("log")
            axes.xaxis.set_ticks(_log_ticks(float(areas.min()), float(areas.max())))
            _plain_numbers(axes.xaxis)
        axes.set(xlabel="area in pixels (logarithmic)", ylabel="cells")
    return svg[0]


def score_histogram(scores: NDArray[Any], classes: NDArray[Any], names: Sequence[str]) -> str:
    """Draw a histogram of the scores, `(N,)`, mostly from 0 to 1, of each class."""
    with _drawing("scores") as (axes, svg):
        bins = np.linspace(scores.min(initial=0), scores.max(initial=1), 41)
        _steps(axes, scores, classes, names, bins)
        axes.set(xlabel="score", ylabel="detections")
    return svg[0]


def _steps(
    axes: Any, values: NDArray[Any], classes: NDArray[Any], names: Sequence[str], bins: Any
) -> None:
    for k, name in enumerate(names):
        some = values[classes == k]
        if len(some):
            style = {"ls": _DASHES[k % 4], "lw": 1.6, **_of_class(k)}
            axes.hist(some, bins, histtype="step", **style)
            axes.plot([], [], label=_label(f"{name} ({len(some)})"), **style)
    axes.yaxis.get_major_locator().set_params(integer=True)
    _legend(axes)


def cells_per_image(n_cells: NDArray[Any]) -> str:
    """Draw a histogram of the number of cells in each image, `(I,)`."""
    with _drawing("per-image") as (axes, svg):
        axes.hist(n_cells, bins=min(40, int(max(n_cells, default=0)) + 1), color="#808080")
        axes.set(xlabel="cells in the image", ylabel="images")
        axes.yaxis.get_major_locator().set_params(integer=True)
    return svg[0]
