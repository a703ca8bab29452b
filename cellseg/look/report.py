"""One HTML page to look at results or annotations: it needs no network and no server."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cellseg import rle
from cellseg.files import write_atomic
from cellseg.images import EvalImage
from cellseg.look import gallery, plots
from cellseg.look.gallery import Example, MatchedDetections
from cellseg.look.overlay import class_colour
from cellseg.score.summary import MEAN, Scores, difference
from cellseg.score.tables import as_text, difference_as_text

# The pictures of all images together; outlines, plots and the rest come on top.
PICTURES_MB = 36
MAX_SIDE_PX = 4096  # px: what a phone's browser still draws

_N_EXAMPLES = 10
_HEADLINES = ("AP50@all", "AP50@100", "PQ", "DQ", "SQ", "AJI", "F1")


@dataclass(frozen=True)
class ReportContent:
    """What goes into a page.

    Attributes
    ----------
    title
        The page's heading.
    sources
        `(what, name)`: the files that it shows.
    classes
        The K class names.
    images
        The images: each in each run, or once without detections.
    results
        The runs' names: none for annotations alone, two to compare.
    has_ground_truth
        Whether the images have ground-truth cells.
    scores
        The scores of each run; none without ground truth.
    threshold
        Score at which the slider begins, 0…1.
    metrics
        The `metrics.json` of the training, where there is one.
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


def write_report(path: str | os.PathLike[str], content: ReportContent) -> int:
    """Write the page, whole or not at all.

    Returns
    -------
    How many images are shown in larger pixels than their own, to keep the file small.

    Raises
    ------
    InputError
        If an image can't be read or is of another size than its cells, or the page
        can't be written.
    """
    matched = [
        [gallery.match_detections(eval_image) for eval_image in eval_images]
        for eval_images in content.images
    ]
    index = [
        gallery.image_data(eval_images, j)
        for eval_images, j in zip(content.images, matched, strict=True)
    ]
    if not content.results:
        found = gallery.unusual_cells(
            [eval_images[0] for eval_images in content.images], len(content.classes)
        )
        for entry, unusual in zip(index, found, strict=True):
            entry["odd"] = unusual
            entry["runs"] = []
    groups = _examples(content, matched)
    shown: dict[int, list[dict[str, Any]]] = {}
    for _, examples in groups:
        for item in examples:
            shown.setdefault(item["image"], []).append(item)

    total = sum(eval_images[0].size[0] * eval_images[0].size[1] for eval_images in content.images)
    blocks = []
    n_reduced = 0
    bar = tqdm(content.images, desc="drawing", unit="image", leave=False, disable=None)
    for i, eval_images in enumerate(bar):
        height, width = eval_images[0].size
        pixels = gallery.read_pixels(eval_images[0])
        allowed = int(PICTURES_MB * 1e6 * 3 / 4 * height * width / total)
        jpeg, side = gallery.encode_picture(pixels, allowed, MAX_SIDE_PX)
        index[i]["reduced"] = round(max(height, width) / side, 2)
        n_reduced += side < max(height, width)
        index[i]["thumb"] = gallery.data_uri(gallery.thumbnail(pixels))
        for item in shown.get(i, []):
            example = Example(i, item["run"], item["cell"])
            jpeg_of_cell = gallery.example_picture(
                pixels, eval_images[max(0, item["run"])], example
            )
            item["picture"] = gallery.data_uri(jpeg_of_cell)
        payload = {
            "picture": gallery.data_uri(jpeg),
            **gallery.image_outlines(eval_images, matched[i]),
        }
        if not content.results:
            payload["runs"] = []
        blocks.append(_for_script(payload))
    for items in shown.values():
        for item in items:  # the page counts detections from the best score on
            if item["run"] >= 0:
                order = matched[item["image"]][item["run"]].order
                item["cell"] = int(np.flatnonzero(order == item["cell"])[0])

    page = {
        "classes": content.classes,
        "colours": [f"rgb{class_colour(k)}" for k in range(len(content.classes))],
        "runs": content.results,
        "truth": content.has_ground_truth,
        "threshold": content.threshold,
        "images": index,
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = Path(__file__).with_name("report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    text = environment.get_template("report.html.jinja").render(
        content=content,
        n_cells=sum(int((~eval_images[0].crowd).sum()) for eval_images in content.images),
        n_found=[
            sum(len(eval_images[r].scores) for eval_images in content.images)
            for r in range(len(content.results))
        ],
        cards=_cards(content),
        groups=[(title, items) for title, items in groups if items],
        figures=_figures(content),
        tables=_tables(content),
        n_reduced=n_reduced,
        style=Path(__file__).with_name("report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=digest,
        index=_for_script(page),
        blocks=blocks,
        first=_first_image(content, index),
    )
    with write_atomic(path, "wb") as file:
        # A file's name may hold bytes that are no letters; they are not worth a page.
        file.write(text.encode("utf-8", "replace"))
    return n_reduced


def _for_script(value: Any) -> str:
    """Write JSON that can stand in a <script>: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _first_image(content: ReportContent, index: Sequence[dict[str, Any]]) -> int:
    """Guess the image that the page opens with, so that it comes first in the file.

    The page sorts by itself; if it disagrees, it waits for the whole file, no more.
    """
    if not content.results:
        return max(range(len(index)), key=lambda i: len(index[i]["odd"]))
    if not content.scores:
        return 0
    f1 = [_f1_of_images(one) for one in content.scores]
    return int(np.argmin(f1[0] if len(f1) == 1 else f1[1] - f1[0]))


def _f1_of_images(scores: Scores) -> NDArray[np.float64]:
    """F1 of all cells of each image, `(I,)`; 2, the best, where there is nothing."""
    counts = scores.match_counts
    tp, wrong = counts.tp.sum(axis=1), (counts.fn + counts.fp).sum(axis=1)
    return np.where(tp + wrong > 0, 2 * tp / np.maximum(2 * tp + wrong, 1), 2.0)


def _cards(content: ReportContent) -> list[dict[str, Any]]:
    """The headline numbers: the mean of classes, with its interval."""
    cards = []
    for name in _HEADLINES:
        values = []
        for r, one in enumerate(content.scores):
            row = one.rows.index(MEAN)
            low, high = (
                bound[name][row] if name in bound else np.nan for bound in (one.low, one.high)
            )
            values.append(
                {
                    "run": content.results[r] if len(content.results) > 1 else "",
                    "value": _number(one.metrics[name][row]),
                    "interval": "" if np.isnan(low) else f"{low:.3f} – {high:.3f}",
                }
            )
        if values:
            cards.append({"name": name, "values": values})
    return cards


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}"


def _tables(content: ReportContent) -> list[tuple[str, str]]:
    """All numbers as text, as evaluate.py prints them."""
    tables = [
        (f"All scores of {name}", as_text(one))
        for name, one in zip(content.results, content.scores, strict=False)
    ]
    if len(content.scores) == 2 and all(len(s.samples["F1"]) for s in content.scores):
        a, b = content.results
        text = difference_as_text(a, b, difference(*content.scores))
        tables.insert(0, ("Differences", text))
    return tables


def _figures(content: ReportContent) -> list[tuple[str, str]]:
    """Draw what there is to draw: `(title, SVG)`."""
    figures = []
    scores = content.scores
    if len(scores) == 2 and all(len(s.samples["F1"]) for s in scores):
        title = "B − A, mean of classes, with 95 % intervals"
        figures.append((title, plots.differences(difference(*scores))))
    if scores:
        title = "Precision and recall at IoU 0.5, all detections"
        figures.append((title, plots.precision_recall(scores, "AB")))
    if len(scores) == 1:
        bars = "Scores by class" + (", with 95 % intervals" if len(scores[0].samples["F1"]) else "")
        figures += [
            (bars, plots.metric_bars(scores[0])),
            ("F1 by the least IoU of a hit", plots.f1_by_iou(scores[0])),
            ("AP50 by size of the true cell", plots.ap_by_size(scores[0])),
            ("Counts, image by image", plots.counts(scores[0])),
        ]
    if content.metrics is not None:
        from_run = " of B" if len(content.results) > 1 else ""
        figures += [
            (title + from_run, svg) for title, svg in plots.training_curves(content.metrics)
        ]
    eval_images = [image[0] for image in content.images]
    if content.has_ground_truth:
        areas = _join(
            [rle.areas(eval_image.gt_runs)[~eval_image.crowd] for eval_image in eval_images]
        )
        classes = _join([eval_image.gt_classes[~eval_image.crowd] for eval_image in eval_images])
        sizes = plots.size_histogram(areas, classes, content.classes)
        figures.append(("Sizes of the true cells", sizes))
    if content.results and len(content.results) == 1:
        classes = _join([eval_image.classes for eval_image in eval_images])
        all_scores = _join([eval_image.scores for eval_image in eval_images])
        figures.append(
            (
                "Scores of the detections",
                plots.score_histogram(all_scores, classes, content.classes),
            )
        )
        if not content.has_ground_truth:
            areas = _join([rle.areas(eval_image.mask_runs) for eval_image in eval_images])
            sizes = plots.size_histogram(areas, classes, content.classes)
            figures.append(("Sizes of the found cells", sizes))
    if not content.results:
        n_cells = np.array([(~eval_image.crowd).sum() for eval_image in eval_images])
        figures.append(("Cells in an image", plots.cells_per_image(n_cells)))
    return figures


def _join(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0)


def _examples(
    content: ReportContent, matched: Sequence[Sequence[MatchedDetections]]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Choose cells to show by themselves: the worst mistakes, or examples of each class."""
    eval_images = [image[0] for image in content.images]
    if not content.results:
        small_first = [rle.areas(eval_image.gt_runs) for eval_image in eval_images]
        return _by_quantile(
            content, -1, small_first, [~eval_image.crowd for eval_image in eval_images]
        )
    if not content.has_ground_truth:
        sure_first = [-eval_image.scores for eval_image in eval_images]
        return _by_quantile(
            content, 0, sure_first, [rle.areas(s.mask_runs) > 0 for s in eval_images]
        )
    result_index = len(content.results) - 1
    false: list[tuple[float, int, int, str]] = []
    misclassified: list[tuple[float, int, int, str]] = []
    missed: list[tuple[float, int, int, str]] = []
    for i, image in enumerate(content.images):
        eval_image, j = image[result_index], matched[i][result_index]
        scores, classes = eval_image.scores[j.order], eval_image.classes[j.order]
        sure = scores >= content.threshold
        for d in np.flatnonzero(sure & (j.match < 0) & (j.state == 1)):
            caption = f"{content.classes[classes[d]]}, score {scores[d]:.2f}"
            false.append((scores[d], i, int(j.order[d]), caption))
        for d in np.flatnonzero(sure & (j.match >= 0)):
            true = eval_image.gt_classes[j.match[d]]
            if true != classes[d]:
                caption = (
                    f"{content.classes[true]} called {content.classes[classes[d]]}, "
                    f"score {scores[d]:.2f}"
                )
                misclassified.append((scores[d], i, int(j.order[d]), caption))
        found = np.zeros(len(eval_image.gt_classes), bool)
        found[j.match[sure & (j.match >= 0)]] = True
        areas = rle.areas(eval_image.gt_runs)
        for t in np.flatnonzero(~found & (j.gt_state == 1)):
            caption = f"{content.classes[eval_image.gt_classes[t]]}, {areas[t]} px"
            missed.append((float(areas[t]), i, int(t), caption))
    return [
        (title, [
            {"image": i, "run": result_index, "cell": cell, "caption": caption}
            for _, i, cell, caption in sorted(cells, key=lambda c: (-c[0], *c[1:]))[:_N_EXAMPLES]
        ])
        for title, result_index, cells in (
            ("The surest false alarms", result_index, false),
            ("The surest wrong names", result_index, misclassified),
            ("The largest missed cells", -1, missed),
        )
    ]  # fmt: skip


def _by_quantile(
    content: ReportContent,
    result_index: int,
    keys: Sequence[NDArray[Any]],
    eligible: Sequence[NDArray[np.bool_]],
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Take cells of each class at even steps of a key: from small to large, from sure to unsure."""
    groups = []
    order = "from small to large" if result_index < 0 else "from sure to unsure"
    image = np.repeat(np.arange(len(keys)), [len(key) for key in keys])
    cell = _join([np.arange(len(key)) for key in keys]).astype(int)
    key = _join(keys)
    eval_images = [image[0] for image in content.images]
    classes = _join([s.gt_classes if result_index < 0 else s.classes for s in eval_images])
    shown = _join(eligible).astype(bool)
    for k, name in enumerate(content.classes):
        some = np.flatnonzero((classes == k) & shown)
        some = some[np.argsort(key[some], kind="stable")]
        if len(some) > _N_EXAMPLES:
            some = some[np.linspace(0, len(some) - 1, _N_EXAMPLES).round().astype(int)]
        items = [
            {
                "image": int(image[n]),
                "run": result_index,
                "cell": int(cell[n]),
                "caption": f"{key[n]} px" if result_index < 0 else f"score {-key[n]:.2f}",
            }
            for n in some
        ]
        groups.append((f"{name}, {order}", items))
    return groups
