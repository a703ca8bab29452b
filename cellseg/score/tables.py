"""Format scores as text, as JSON and as a table with one row per image and class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg.messages import plural
from cellseg.score.bootstrap import FEW
from cellseg.score.composition import ALL, Composition, Quantity
from cellseg.score.panoptic import panoptic
from cellseg.score.summary import ANY, MEAN, Difference, Metrics, Scores
from cellseg.text import name_of_total

Floats = NDArray[np.float64]

# Metrics with intervals in the text; the JSON has the intervals of all.
HEADLINES = ("PQ", "DQ", "SQ", "AJI", "AJI+", "F1", "centroid F1")


def as_text(scores: Scores) -> str:
    """Return all tables except that of single images."""
    n_detections = scores.n_detections
    n_empty = n_detections.count(0)
    without = f" ({plural(n_empty, 'image')} without detections)" if n_empty else ""
    parts = [
        f"{plural(len(n_detections), 'image')}, "
        f"{plural(int(scores.gt_counts.sum()), 'ground-truth cell')}, "
        f"{plural(sum(n_detections), 'detection')}{without}"
    ]
    parts += [_ap_table(scores, cap) for cap in _caps(scores)]
    parts.append(_label_map_table(scores))
    if _n_samples(scores):
        parts.append(_interval_table(scores))
    parts.append(_confusion_table(scores))
    if scores.sizes:
        parts.append(_size_table(scores))
    parts.append(_f1_table(scores))
    return "\n\n".join(parts)


def _ap_table(scores: Scores, cap: int | None) -> str:
    names = [f"{name}@{_cap(cap)}" for name in ("AP", "AP50", "AP75")]
    title = "all detections" if cap is None else f"at most {cap} per image and class"
    if n_capped := _n_capped(scores, cap):
        title += (
            f": fewer than the cells of a class in {plural(n_capped, 'image')}, where up to "
            f"{scores.gt_counts.max()} are"
        )
    rows = [
        [row, *(_number(scores.metrics[name][r]) for name in names)]
        for r, row in enumerate(scores.rows[:-1])
    ]
    return _table(f"AP of masks, {title}", ["", "AP", "AP50", "AP75"], rows)


def _label_map_table(scores: Scores) -> str:
    names = ["PQ", "DQ", "SQ", "pooled PQ", "AJI", "AJI+"]
    names += ["F1", "precision", "recall", "centroid F1"]
    rows = [
        [row, *(_number(scores.metrics[name][r]) for name in names), *counts]
        for r, (row, counts) in enumerate(zip(scores.rows, _count_columns(scores), strict=True))
    ]
    kept = {"score": "higher score", "smaller": "smaller area", "larger": "larger area"}
    title = (
        f"Label maps: each detected cell once, with a score of {scores.score_threshold:g} or "
        f"more; centroids match up to {scores.radius:g} pixels apart; overlapping pixels go to the "
        f"{kept[scores.overlap]}"
    )
    return _table(title, ["", *names, "GT cells", "detections", "error", "|error|/image"], rows)


def _size_table(scores: Scores) -> str:
    rows = [
        [f"{b.low}–{b.high} pixels", _number(b.ap.ap), _number(b.ap.ap50), str(b.n_gt)]
        for b in scores.sizes
    ]
    title = "AP by ground-truth area, all detections"
    return _table(title, ["", "AP", "AP50", "GT cells"], rows)


def _f1_table(scores: Scores) -> str:
    f1 = scores.by_threshold.f1
    rows = [[row, *map(_number, f1[:, r])] for r, row in enumerate(scores.rows)]
    header = ["", *(f"{t:.2f}" for t in scores.thresholds)]
    return _table("F1 by IoU threshold", header, rows)


def _n_capped(scores: Scores, cap: int | None) -> int:
    """Count the images with more ground-truth cells of a class than a cap on detections."""
    return 0 if cap is None else int((scores.gt_counts > cap).any(axis=1).sum())


def _caps(scores: Scores) -> list[int | None]:
    """Return the caps on detections, last those below the number of ground-truth cells."""
    return sorted(scores.ap, key=lambda cap: _n_capped(scores, cap) > 0)


def _interval_table(scores: Scores) -> str:
    names = [f"{name}@{_cap(cap)}" for cap in _caps(scores) for name in ("AP", "AP50")]
    rows = []
    for name in (*names, *HEADLINES):
        values = zip(scores.metrics[name], scores.low[name], scores.high[name], strict=True)
        rows.append([name, *(_interval(*bounded) for bounded in [*values][-2:])])
    title = f"95 % intervals from {_n_samples(scores)} bootstrap resamples of the images"
    title += _if_few(len(scores.eval_images))
    return _table(title, ["", MEAN, ANY], rows)


def _if_few(n_images: int) -> str:
    return f"; of fewer than {FEW} images they are too narrow" if n_images < FEW else ""


def _n_samples(scores: Scores) -> int:
    return len(scores.samples["F1"])


def _confusion_table(scores: Scores) -> str:
    matrix = [[str(value) for value in row] for row in scores.confusion_matrix.tolist()]
    matrix[-1][-1] = ""
    rows = [[name, *row] for name, row in zip([*scores.classes, "background"], matrix, strict=True)]
    title = "Confusion matrix: ground truth (rows) by predicted class (columns)"
    return _table(title, ["", *scores.classes, "not detected"], rows)


def difference_as_text(name_a: str, name_b: str, difference: Difference) -> str:
    """Return tables of A, B and B − A, one row per metric: the mean of classes, and any class."""
    parts = [
        f"A: {name_a}\nB: {name_b}\nB − A with 95 % intervals over images; one with 0 shows no "
        "difference, one without it may still be chance, of few images or many metrics"
    ]
    for r, row in enumerate(difference.rows[-2:], -2):
        rows = [
            [
                name,
                _number(difference.a[name][r]),
                _number(difference.b[name][r]),
                _interval(value[r], difference.low[name][r], difference.high[name][r], form="+.4f"),
            ]
            for name, value in difference.value.items()
            if not np.isnan(value[r])
        ]
        parts.append(_table(row, ["", "A", "B", "B − A"], rows))
    return "\n\n".join(parts)


_IMAGES = 20  # rows of single images; files have all


def composition_as_text(found: Composition, images: Sequence[str], classes: Sequence[str]) -> str:
    """Return tables of all images by class, with intervals, and of the first images."""
    columns = [*classes, name_of_total(ALL, classes)]
    quantities = [(found.count, ".0f"), (found.share, ".4f")]
    titles = ["cells", "share"]
    if np.isnan(found.area_mm2).all():
        quantities += [(found.mean_area_px, ".1f")]
        titles += ["mean area, px"]
    else:
        quantities += [(found.density_per_mm2, ".1f"), (found.mean_area_um2, ".1f")]
        titles += ["cells/mm²", "mean area, µm²"]
    rows = [
        [name, *(_interval(*_bounds(each, k), form) for each, form in quantities)]
        for k, name in enumerate(columns)
    ]
    known = ~np.isnan(found.area_mm2)
    title = f"{plural(len(images), 'image')}, "
    title += f"{found.area_mm2[known].sum():.4g} mm²" if known.any() else "resolution unknown"
    if known.any() and not known.all():
        title += f" in {known.sum()} of them, the resolution of the others is unknown"
    if len(images) > 1:
        title += f"; 95 % intervals over images{_if_few(len(images))}"
    parts = [_table(title, ["", *titles], rows)]
    if len(images) > 1:
        rows = [
            [
                image,
                *(_number(value, ".0f") for value in found.count.by_image[i]),
                *(_number(value) for value in found.share.by_image[i, :-1]),
                _number(found.density_per_mm2.by_image[i, -1], ".1f"),
            ]
            for i, image in enumerate(images[:_IMAGES])
        ]
        header = ["", *columns, *(f"share {name}" for name in classes), "cells/mm²"]
        more = f", the first {_IMAGES}" if len(images) > _IMAGES else ""
        parts.append(_table(f"Cells by image{more}", header, rows))
    return "\n\n".join(parts)


def _bounds(quantity: Quantity, column: int) -> tuple[float, float, float]:
    return quantity.total[column], quantity.low[column], quantity.high[column]


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if c == 0 else cell.rjust(width)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([title, *lines])


def _number(value: float, form: str = ".4f") -> str:
    return "–" if math.isnan(value) else format(value, form)


def _interval(value: float, low: float, high: float, form: str = ".4f") -> str:
    if math.isnan(value) or math.isnan(low):
        return _number(value, form)
    return f"{_number(value, form)} [{_number(low, form)}, {_number(high, form)}]"


def _cap(cap: int | None) -> str:
    return "all" if cap is None else str(cap)


def _count_columns(scores: Scores) -> Iterator[list[str]]:
    """Yield ground-truth cells, detections, their difference, and the mean absolute one."""
    n_classes = len(scores.classes)
    for r in range(n_classes + 2):
        if r == n_classes:  # the mean of classes
            yield [""] * 4
            continue
        some = slice(r, r + 1) if r < n_classes else slice(None)
        n_gt = scores.gt_counts[:, some].sum(axis=1)
        n_detections = scores.counts[:, some].sum(axis=1)
        error = n_detections - n_gt
        mean = np.abs(error).mean() if len(error) else np.nan
        yield [str(n_gt.sum()), str(n_detections.sum()), f"{error.sum():+d}", _number(mean, ".1f")]


def as_json(scores: Scores) -> dict[str, Any]:
    """Return the scores as JSON data, with None for NaN."""
    return {
        "images": len(scores.eval_images),
        "classes": scores.classes,
        "score_threshold": scores.score_threshold,
        "overlap": scores.overlap,
        "centroid_radius": scores.radius,
        "resamples": _n_samples(scores),
        "metrics": {
            name: _bounded(scores.rows, values, scores.low[name], scores.high[name])
            for name, values in scores.metrics.items()
        },
        "ap_by_size": [
            {
                "least_pixels": bin.low,
                "most_pixels": bin.high,
                "true_cells": bin.n_gt,
                "AP": _plain(bin.ap.ap),
                "AP50": _plain(bin.ap.ap50),
            }
            for bin in scores.sizes
        ],
        "by_iou": {
            "iou": _plain(scores.thresholds),
            **{
                name: _by_row(scores.rows, _plain(getattr(scores.by_threshold, name).T))
                for name in ("precision", "recall", "f1")
            },
        },
        "confusion": {
            "rows": [*scores.classes, "nothing"],
            "columns": [*scores.classes, "missed"],
            "cells": scores.confusion_matrix.tolist(),
        },
        "per_image": list(per_image(scores)),
    }


def difference_as_json(name_a: str, name_b: str, difference: Difference) -> dict[str, Any]:
    """Return A, B and, with its interval, B − A by metric and row as JSON data."""
    return {
        "a": name_a,
        "b": name_b,
        "scores_a": _by_metric(difference, difference.a),
        "scores_b": _by_metric(difference, difference.b),
        "b_minus_a": {
            name: _bounded(difference.rows, value, difference.low[name], difference.high[name])
            for name, value in difference.value.items()
        },
    }


def _by_metric(difference: Difference, metrics: Metrics) -> dict[str, Any]:
    return {name: _by_row(difference.rows, _plain(v)) for name, v in metrics.items()}


def per_image(scores: Scores) -> Iterator[dict[str, Any]]:
    """Yield one row per image and class, and one for any class, with None for NaN."""
    n_classes = len(scores.classes)
    for i, eval_image in enumerate(scores.eval_images):
        weights = np.zeros(len(scores.eval_images), np.int64)
        weights[i] = 1
        by_class = scores.match_counts, panoptic(scores.match_counts, weights)
        agnostic = scores.agnostic_counts, panoptic(scores.agnostic_counts, weights)
        for k, name in enumerate([*scores.classes, scores.rows[-1]]):
            counts, quality = by_class if k < n_classes else agnostic
            column, some = (k, slice(k, k + 1)) if k < n_classes else (0, slice(None))
            n_gt = int(scores.gt_counts[i, some].sum())
            n_detections = int(scores.counts[i, some].sum())
            yield {
                "image_id": eval_image.id,
                "file_name": eval_image.file_name,
                "class": name,
                "true": n_gt,
                "found": n_detections,
                "error": n_detections - n_gt,
                "hits": int(counts.tp[i, column]),
                "misses": int(counts.fn[i, column]),
                "false_alarms": int(counts.fp[i, column]),
                "PQ": _plain(quality.pq[column]),
                "DQ": _plain(quality.dq[column]),
                "SQ": _plain(quality.sq[column]),
                "AJI": _plain(scores.aji[i, k]),
                "AJI+": _plain(scores.aji_plus[i, k]),
            }


def _bounded(rows: Sequence[str], value: Floats, low: Floats, high: Floats) -> dict[str, Any]:
    bounded = zip(_plain(value), _plain(low), _plain(high), strict=True)
    return _by_row(rows, [{"value": v, "low": a, "high": b} for v, a, b in bounded])


def _by_row(rows: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Return the classes separate from the two last rows, since a class may have any name."""
    return {
        "classes": dict(zip(rows[:-2], values[:-2], strict=True)),
        **dict(zip((MEAN, ANY), values[-2:], strict=True)),
    }


def _plain(value: Any) -> Any:
    """Return Python numbers, None for NaN."""
    if isinstance(value, np.ndarray):
        return [_plain(element) for element in value]
    return None if math.isnan(value) else float(value)
