"""The parts of a report page that are computed before it is written: scores, plots, examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellseg import rle
from cellseg.images import EvalImage, searched_area
from cellseg.look import plots
from cellseg.look.gallery import Example, MatchedDetections
from cellseg.score.composition import composition, composition_rows
from cellseg.score.summary import Scores, difference
from cellseg.score.tables import as_text, difference_as_text

_N_EXAMPLES = 10  # of each group
_HEADLINES = ("AP50@all", "AP50@100", "PQ", "DQ", "SQ", "AJI", "F1")


@dataclass(frozen=True)
class ReportContent:
    """The content of a page.

    Attributes
    ----------
    title
        Heading of the page.
    sources
        `(type, name)` of each file that it shows.
    classes
        The K class names.
    images
        For each image one `EvalImage` for each of the results, or one without detections.
    results
        Names of the results: none for annotations only, two for a comparison.
    has_ground_truth
        Whether the images have ground-truth cells.
    scores
        Scores of each of the results; empty without ground truth.
    threshold
        Initial minimum score, 0 to 1.
    metrics
        `metrics.json` of the training, if any.
    """

    title: str
    sources: list[tuple[str, str]]
    classes: list[str]
    images: list[list[EvalImage]]
    results: list[str]
    has_ground_truth: bool
    scores: list[Scores] = field(default_factory=list)
    threshold: float = 0.5
    metrics: Path | None = None


def compositions(content: ReportContent, mpp: Sequence[float | None]) -> list[dict[str, Any]]:
    """Return tables of counts, areas, densities and shares: of the ground truth and each result.

    As in export.py, all cells count, and detected ones with the initial minimum score once each,
    also those without a pixel in the label maps of the scores. Crowds are no cells.
    """
    sides = []
    if content.has_ground_truth:
        cells = [
            (one[0].gt_classes, rle.areas(one[0].gt_runs), ~one[0].crowd) for one in content.images
        ]
        sides.append(("Ground truth", 0, cells))
    for r in range(len(content.results)):
        of = f" of {'AB'[r]}" if len(content.results) > 1 else ""
        cells = [
            (one[r].classes, rle.areas(one[r].mask_runs), one[r].scores >= content.threshold)
            for one in content.images
        ]
        title = f"Detections{of} with a score of {content.threshold:g} or more"
        sides.append((title, r, cells))
    # Without resolution, cells per megapixel: as if a pixel had a side of 1 µm.
    is_known = any(mpp)
    names = [image[0].name for image in content.images]
    return [
        {
            "title": title,
            "per": "mm²" if is_known else "Mpx",
            "rows": composition_rows(
                composition(
                    [classes[some] for classes, _, some in cells],
                    len(content.classes),
                    [searched_area(image[r]) for image in content.images],
                    mpp if is_known else [1.0] * len(mpp),
                    [areas[some] for _, areas, some in cells],
                ),
                names,
                content.classes,
            ),
            "is_known": is_known,
            "n_known": sum(map(bool, mpp)),
            "n_totals": len(content.classes) + 1,
        }
        for title, r, cells in sides
    ]


def n_hidden(content: ReportContent) -> int:
    """Return the number of cells that `distinct_cells` left out, mostly under others."""
    return sum(
        int(np.sum(one.hidden >= content.threshold)) for image in content.images for one in image
    )


def first_image(content: ReportContent, index: Sequence[dict[str, Any]]) -> int:
    """Return the image that the page opens with, which is written first.

    The page sorts the images itself; if it chooses another, it waits until the file is loaded.
    """
    if not content.results:
        return max(range(len(index)), key=lambda i: len(index[i]["unusual"]))
    if not content.scores:
        return 0
    f1 = [_f1_of_images(one) for one in content.scores]
    return int(np.argmin(f1[0] if len(f1) == 1 else f1[1] - f1[0]))


def _f1_of_images(scores: Scores) -> NDArray[np.float64]:
    """Return the F1 of all cells of each image, `(I,)`; 2 without cells, which sorts it last."""
    counts = scores.match_counts
    tp, errors = counts.tp.sum(axis=1), (counts.fn + counts.fp).sum(axis=1)
    return np.where(tp + errors > 0, 2 * tp / np.maximum(2 * tp + errors, 1), 2.0)


def cards(content: ReportContent) -> list[dict[str, Any]]:
    """Return the headline metrics, means over the classes, with their intervals."""
    cards = []
    for name in _HEADLINES if content.scores else ():
        values = []
        for one in content.scores:
            mean = len(one.classes)  # its row, after those of the classes
            value = one.metrics[name][mean]
            low, high = (
                bound[name][mean] if name in bound else np.nan for bound in (one.low, one.high)
            )
            values.append(
                {
                    "value": "–" if np.isnan(value) else f"{value:.3f}",
                    "interval": "" if np.isnan(low) else f"{low:.3f} – {high:.3f}",
                }
            )
        cards.append({"name": name, "values": values})
    return cards


def tables(content: ReportContent) -> list[tuple[str, str]]:
    """Return all scores as text, as evaluate.py prints them: `(title, text)`."""
    tables = [
        (f"All scores of {name}", as_text(one))
        for name, one in zip(content.results, content.scores, strict=False)
    ]
    if len(content.scores) == 2 and all(len(s.samples["F1"]) for s in content.scores):
        a, b = content.results
        text = difference_as_text(a, b, difference(*content.scores))
        tables.insert(0, ("Differences", text))
    return tables


def figures(content: ReportContent) -> list[tuple[str, str]]:
    """Draw the plots of the page that have something to show: `(title, SVG)`."""
    figures = []
    scores = content.scores
    images = [image[0] for image in content.images]
    has_gt = any(one.gt_counts.any() for one in scores)  # or there are no scores to draw
    if has_gt and len(scores) == 2 and all(len(s.samples["F1"]) for s in scores):
        title = "B − A, mean of classes, with 95 % intervals"
        figures.append((title, plots.differences(difference(*scores))))
    if has_gt:
        title = "Precision and recall at IoU 0.5, all detections"
        figures.append((title, plots.precision_recall(scores, "AB")))
    if has_gt and len(scores) == 1:
        low = scores[0].low
        has_intervals = any(np.isfinite(low[n][:-1]).any() for n in plots.BARS if n in low)
        figures += [
            (
                "Scores by class" + (", with 95 % intervals" if has_intervals else ""),
                plots.metric_bars(scores[0]),
            ),
            ("F1 by IoU threshold", plots.f1_by_iou(scores[0])),
            ("AP50 by size of the ground-truth cell", plots.ap_by_size(scores[0])),
        ]
    if len(scores) == 1 and (scores[0].gt_counts.any() or scores[0].counts.any()):
        figures.append(("Cells per image", plots.counts(scores[0])))
    if content.metrics is not None:
        of = " of B" if len(content.results) > 1 else ""
        figures += [(title + of, svg) for title, svg in plots.training_curves(content.metrics)]
    if content.has_ground_truth:
        areas = _join([rle.areas(one.gt_runs)[~one.crowd] for one in images])
        classes = _join([one.gt_classes[~one.crowd] for one in images])
        if len(areas):
            sizes = plots.size_histogram(areas, classes, content.classes)
            figures.append(("Sizes of the ground-truth cells", sizes))
    if len(content.results) == 1 and any(len(one.scores) for one in images):
        classes = _join([one.classes for one in images])
        histogram = plots.score_histogram(
            _join([one.scores for one in images]), classes, content.classes
        )
        figures.append(("Scores of the detected cells", histogram))
        if not content.has_ground_truth:
            areas = _join([rle.areas(one.mask_runs) for one in images])
            sizes = plots.size_histogram(areas, classes, content.classes)
            figures.append(("Sizes of the detected cells", sizes))
    if not content.results:
        n_cells = np.array([(~one.crowd).sum() for one in images])
        if n_cells.any():
            figures.append(("Cells per image", plots.cells_per_image(n_cells)))
    return figures


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0)


def examples(
    content: ReportContent, matches: Sequence[Sequence[MatchedDetections]]
) -> list[tuple[str, list[Example]]]:
    """Choose cells to show by themselves: the worst errors, or examples of each class."""
    if not content.results or not content.has_ground_truth:
        return _by_quantile(content)
    result = len(content.results) - 1
    names = content.classes
    false_positives: list[tuple[float, Example]] = []
    misclassified: list[tuple[float, Example]] = []
    false_negatives: list[tuple[float, Example]] = []
    for i, image in enumerate(content.images):
        one, matched = image[result], matches[i][result]
        kept = one.scores >= content.threshold
        for d in np.flatnonzero(kept):
            score, match = one.scores[d], matched.match[d]
            caption = f"{names[one.classes[d]]}, score {score:.2f}"
            if match < 0 and matched.state[d] == 1:
                false_positives.append((score, Example(i, result, int(d), caption)))
            elif match >= 0 and one.gt_classes[match] != one.classes[d]:
                caption = f"{names[one.gt_classes[match]]} detected as {caption}"
                misclassified.append((score, Example(i, result, int(d), caption)))
        is_detected = np.zeros(len(one.gt_classes), bool)
        is_detected[matched.match[kept & (matched.match >= 0)]] = True
        areas = rle.areas(one.gt_runs)
        for t in np.flatnonzero(~is_detected & (matched.gt_state == 1)):
            caption = f"{names[one.gt_classes[t]]}, {areas[t]} px"
            false_negatives.append((areas[t], Example(i, -1, int(t), caption)))
    of = " of B" if result else ""
    return [
        (title, [one for _, one in sorted(cells, key=lambda cell: -cell[0])[:_N_EXAMPLES]])
        for title, cells in (
            (f"False positives{of} with the highest score", false_positives),
            (f"Misclassified cells{of} with the highest score", misclassified),
            (f"Largest false negatives{of}", false_negatives),
        )
    ]


def _by_quantile(content: ReportContent) -> list[tuple[str, list[Example]]]:
    """Choose cells of each class evenly: ground truth by rising size, else by falling score."""
    images = [image[0] for image in content.images]
    is_gt = not content.results
    if is_gt:
        keys: list[NDArray[Any]] = [rle.areas(one.gt_runs) for one in images]
        classes = _join([one.gt_classes for one in images])
        is_shown = _join([~one.crowd for one in images])
    else:
        keys = [-one.scores for one in images]
        classes = _join([one.classes for one in images])
        is_shown = _join([rle.areas(one.mask_runs) > 0 for one in images])
    image = np.repeat(np.arange(len(keys)), [len(key) for key in keys])
    cell = _join([np.arange(len(key)) for key in keys])
    key = _join(keys)
    order = "by rising size" if is_gt else "by falling score"
    of = " of A" if len(content.results) > 1 else ""
    groups = []
    for k, name in enumerate(content.classes):
        some = np.flatnonzero((classes == k) & is_shown.astype(bool))
        some = some[np.argsort(key[some], kind="stable")]
        if len(some) > _N_EXAMPLES:
            some = some[np.linspace(0, len(some) - 1, _N_EXAMPLES).round().astype(int)]
        examples = [
            Example(
                int(image[n]),
                -1 if is_gt else 0,
                int(cell[n]),
                f"{key[n]} px" if is_gt else f"score {-key[n]:.2f}",
            )
            for n in some
        ]
        groups.append((f"{name}{of}, {order}", examples))
    return groups
