"""Parts of the page: outlines as text, matches at any score, pictures, plots."""

import io
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cellseg.look import gallery, parts, plots
from cellseg.look.gallery import Side
from cellseg.outline import trace
from cellseg.read.coco import class_names
from cellseg.read.pairs import pair_by_image
from cellseg.read.window import from_array
from cellseg.rle import areas, boxes_xyxy, label_map_to_runs
from cellseg.score.confusion import confusion_matrix
from cellseg.score.detection import count_matches
from cellseg.score.labelmap import compare_label_maps
from cellseg.score.summary import MEAN, difference, score
from tests.score.scoring_cases import entry, random_case, rectangle, truth_of

DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_"
SIZE = (20, 30)


def decode_outlines(text):
    """Decode `encode_outlines` number by number, following its docstring."""
    numbers, value, shift = [], 0, 0
    for letter in text:
        digit = DIGITS.index(letter)
        value |= (digit & 31) << shift
        shift += 5
        if digit < 32:
            numbers.append(-(value + 1) // 2 if value % 2 else value // 2)
            value = shift = 0
    assert shift == 0
    stream = iter(numbers)
    cells = []
    x0 = y0 = 0
    for n_rings in stream:
        rings = []
        for _ in range(n_rings):
            n_steps = next(stream)
            x0, y0 = x, y = x0 + next(stream), y0 + next(stream)
            ring = [(x, y)]
            for step in range(n_steps):
                x, y = (x, y + next(stream)) if step % 2 else (x + next(stream), y)
                ring.append((x, y))
            rings.append([*ring, (x0, y0)])
        cells.append(rings)
    return cells


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 4))
)
def test_outlines_come_back(labels):
    _, runs = label_map_to_runs(labels)
    traced = trace(runs)
    expected = [
        [[tuple(point) for point in ring.tolist()] for polygon in cell for ring in polygon]
        for cell in traced
    ]
    assert decode_outlines(gallery.encode_outlines(traced)) == expected


def test_outlines_worked_out_by_hand():
    """A pixel at x 2, y 1: one ring, three steps, from 2, 1: right 1, down 1, left 1."""
    labels = np.zeros((3, 40), np.int32)
    labels[1, 2] = 1
    # The numbers 1; 3; 2, 1; 1, 1, −1, each doubled, the last one less a sign's half.
    assert gallery.encode_outlines(trace(label_map_to_runs(labels)[1])) == "2642221"
    assert decode_outlines("2642221") == [[[(2, 1), (3, 1), (3, 2), (2, 2), (2, 1)]]]
    assert gallery.encode_outlines([]) == ""
    assert gallery.encode_outlines([[]]) == "0"  # a mask without pixels


def counted(eval_image, threshold, n_classes):
    """Count at a threshold from one match without a threshold, as the page does."""
    matched = gallery.match_detections(eval_image)
    matrix = np.zeros((n_classes + 1, n_classes + 1), int)
    tp, fp, detections = (np.zeros(n_classes, int) for _ in range(3))
    predicted = np.full(len(eval_image.gt_classes), -1)
    for d in np.flatnonzero(eval_image.scores >= threshold):
        k, match, state = eval_image.classes[d], matched.match[d], matched.state[d]
        detections[k] += state > 0
        is_tp = match >= 0 and eval_image.gt_classes[match] == k
        tp[k] += is_tp
        fp[k] += not is_tp and state == 1
        if match >= 0:
            predicted[match] = k
        elif state == 1:
            matrix[-1, k] += 1
    for t in np.flatnonzero(matched.gt_state == 1):
        matrix[eval_image.gt_classes[t], predicted[t]] += 1
    return matrix, tp, fp, detections


@pytest.mark.parametrize("seed", range(12))
def test_one_match_holds_for_all_thresholds(seed):
    """With crowds, ties, overlaps and empty masks: the counts of a comparison at each score."""
    truth, results = random_case(np.random.default_rng(seed), n_gt=9, n_results=14)
    for eval_image in pair_by_image(truth, results):
        for threshold in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1):
            compared = compare_label_maps(eval_image, threshold)
            sums = count_matches([compared], 3)
            matrix, tp, fp, detections = counted(eval_image, threshold, 3)
            assert matrix.tolist() == confusion_matrix([compared], 3).tolist()
            assert tp.tolist() == sums.tp[0].tolist()
            assert fp.tolist() == sums.fp[0].tolist()
            assert detections.tolist() == np.bincount(compared.classes, minlength=3).tolist()


@pytest.fixture
def case():
    """One image: a TP, an FN, a misclassified cell, an FP, a crowd region, a hidden detection."""
    cells = [
        (1, rectangle(SIZE, 0, 0, 6, 6), 0),
        (2, rectangle(SIZE, 0, 10, 6, 16), 0),
        (2, rectangle(SIZE, 10, 0, 16, 6), 0),
        (3, rectangle(SIZE, 10, 20, 20, 30), 1),
    ]
    results = [
        entry(1, 1, rectangle(SIZE, 10, 0, 16, 5), 0.6),
        entry(1, 1, rectangle(SIZE, 0, 0, 6, 5), 0.9),
        entry(1, 3, rectangle(SIZE, 10, 10, 14, 14), 0.7),
        entry(1, 3, rectangle(SIZE, 11, 21, 15, 25), 0.8),
        entry(1, 1, rectangle(SIZE, 0, 0, 4, 4), 0.2),
    ]
    return truth_of({1: (SIZE, cells)}), results


def test_data_of_an_image(case):
    (eval_image,) = pair_by_image(*case)
    eval_image = gallery.sort_detections(eval_image)
    data = gallery.image_data([eval_image], [gallery.match_detections(eval_image)])
    assert data["name"] == "1.tif"
    assert data["size"] == [20, 30]
    assert data["gt"] == {
        "classes": [0, 1, 1, 2], "state": [1, 1, 1, 2],
        "x": [3, 13, 3, 25], "y": [3, 3, 13, 15], "area": [36, 36, 36, 100],
    }  # fmt: skip
    assert data["results"] == [
        {
            "classes": [0, 2, 2, 0, 0],
            "scores": [0.9, 0.8, 0.7, 0.6, 0.2],
            "match": [0, -1, -1, 2, -1],
            "iou": [round(5 / 6, 6), 0, 0, round(5 / 6, 6), 0],
            "state": [1, 2, 1, 1, 0],  # the last is hidden under the first
            "x": [2, 23, 12, 2, 2],
            "y": [3, 13, 12, 13, 2],
            "area": [30, 16, 16, 30, 16],
        }
    ]


def unusual_cells(eval_images, n_classes):
    matches = [gallery.match_detections(one) for one in eval_images]
    return gallery.unusual_cells(eval_images, matches, n_classes)


def test_unusual_cells():
    size = (60, 60)
    ring = rectangle(size, 0, 0, 10, 10) & ~rectangle(size, 3, 3, 6, 6)
    two = rectangle(size, 20, 0, 25, 8) | rectangle(size, 20, 12, 25, 20)
    cells = [
        (1, ring, 0),
        (1, two, 0),
        (1, rectangle(size, 30, 0, 40, 10), 0),
        (1, rectangle(size, 30, 0, 40, 10), 0),
        (1, rectangle(size, 50, 50, 52, 52), 0),
        (1, rectangle(size, 30, 20, 58, 59), 0),
        (2, rectangle(size, 0, 40, 1, 41), 0),
        (1, rectangle(size, 5, 50, 14, 59) & ~ring, 0),
    ]
    eval_images = pair_by_image(truth_of({1: (size, cells), 2: (size, [])}), [])
    first, empty = unusual_cells(eval_images, 3)
    assert first == [
        (0, "1 hole"),
        (1, "2 pieces"),
        (3, "hidden under other cells"),
        (4, "very small"),
        (5, "very large"),
    ]
    assert empty == []


def test_a_crowd_region_is_not_a_cell():
    """It is neither unusual nor in the median area of its class."""
    size = (60, 60)
    cells = [(1, rectangle(size, 0, 10 * n, 3, 10 * n + 3), 0) for n in range(3)]
    crowds = [(1, rectangle(size, 20, 0, 60, 60), 1)] * 4
    truth = truth_of({1: (size, [*cells, *crowds]), 2: (size, [crowds[0]])})
    eval_images = pair_by_image(truth, [])
    assert unusual_cells(eval_images, 1) == [[], []]


def sides(jpeg):
    return PIL.Image.open(io.BytesIO(jpeg)).size


def test_pictures_keep_within_their_bytes():
    pixels = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    whole, side = gallery.encode_picture(pixels, 10**9, 4096)
    assert (sides(whole), side) == ((500, 300), 500)
    for most in (60_000, 20_000):
        jpeg, side = gallery.encode_picture(pixels, most, 4096)
        assert len(jpeg) <= most
        assert max(sides(jpeg)) == side < 500
    assert sides(gallery.encode_picture(pixels, 10**9, 250)[0]) == (250, 150)
    # Never too small to see anything.
    assert gallery.encode_picture(pixels, 1, 4096)[1] > 30
    assert sides(gallery.encode_picture(pixels[:1, :1], 1, 4096)[0]) == (1, 1)
    assert sides(gallery.encode_picture(pixels[:1], 10**9, 250)[0]) == (250, 1)


def test_thumbnails_keep_the_colours():
    pixels = np.full((40, 400, 3), (200, 30, 90), np.uint8)
    picture = PIL.Image.open(io.BytesIO(gallery.thumbnail(pixels)))
    assert picture.size == (112, 11)
    assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - (200, 30, 90)).max() < 4


def sides_of(eval_image):
    """The ground truth and the detections of an image, as the pictures take them."""
    masks = [
        (eval_image.gt_runs, eval_image.gt_classes),
        (eval_image.mask_runs, eval_image.classes),
    ]
    return [Side(m, k, boxes_xyxy(m), np.ones(len(k), bool)) for m, k in masks]


def test_a_single_cell_is_drawn_in_the_middle(case):
    (eval_image,) = pair_by_image(*case)
    pixels = np.full((*SIZE, 3), 255, np.uint8)
    for cell, side in zip((2, 0), sides_of(eval_image), strict=True):
        jpeg = gallery.example_picture(from_array(pixels), side, cell)
        drawn = np.asarray(PIL.Image.open(io.BytesIO(jpeg)))
        assert min(drawn.shape[:2]) > 100
        ys, xs = np.nonzero(drawn.min(axis=2) < 150)
        assert xs.size > 50
        assert (ys.max() - ys.min()) < 0.8 * drawn.shape[0]
    # A cell as large as its image, and a pixel in a corner.
    for mask in (np.ones(SIZE, bool), rectangle(SIZE, 19, 29, 20, 30)):
        (eval_image,) = pair_by_image(truth_of({1: (SIZE, [(1, mask, 0)])}), [])
        assert gallery.example_picture(from_array(pixels), sides_of(eval_image)[0], 0)


def test_the_other_side_is_drawn_beside_a_cell(case):
    """On the left one detection, on the right the ground truth there, if it is shown."""
    (eval_image,) = pair_by_image(*case)
    gt, detections = sides_of(eval_image)
    image = from_array(np.full((*SIZE, 3), 255, np.uint8))
    n_drawn = []
    for other in (gt, replace(gt, is_shown=~gt.is_shown)):
        jpeg = gallery.example_picture(image, detections, 0, other)
        drawn = np.asarray(PIL.Image.open(io.BytesIO(jpeg))).min(axis=2) < 150
        assert drawn.shape[1] > 2 * drawn.shape[0]
        half = drawn.shape[0]
        n_drawn.append((drawn[:, :half].sum(), drawn[:, -half:].sum()))
    assert n_drawn[0][0] == n_drawn[1][0] > 50
    assert n_drawn[0][1] > 50
    assert n_drawn[1][1] == 0


def texts(svg):
    """Return the text of a plot, which must be well-formed XML."""
    root = ElementTree.fromstring(svg)
    return " ".join("".join(element.itertext()) for element in root.iter() if "text" in element.tag)


def test_plots_of_scores(case):
    truth, results = case
    names = ["<script>", "_$x^2$ & co", "細胞"]
    truth = {**truth, "categories": [{"id": k, "name": n} for k, n in enumerate(names, 1)]}
    scores = score(pair_by_image(truth, results), names, n_resamples=20)
    lines = plots.precision_recall([scores], "AB")
    # All classes except that of the crowd have ground truth.
    assert "<script>, AP50 1.000" in texts(lines)
    assert "_$x^2$ & co, AP50 0.000" in texts(lines)
    assert "細胞" not in texts(lines)
    assert "<script>" not in lines
    for drawing in (
        plots.metric_bars(scores),
        plots.f1_by_iou(scores),
        plots.ap_by_size(scores),
        plots.counts(scores),
        plots.differences(difference(scores, scores)),
    ):
        assert texts(drawing)
        assert "currentColor" in drawing
        assert "mathdefault" not in drawing
        assert "<g id=" not in drawing  # these ids would be repeated in a page
    assert "A: <script>" in texts(plots.precision_recall([scores, scores], "AB"))


def test_a_class_with_the_name_of_the_mean(case):
    """The headlines are means of the classes; the first class has an AP50 of 1, the second of 0."""
    truth, results = case
    shown = []
    for name in ("a", MEAN):
        categories = [{"id": k, "name": n} for k, n in enumerate((name, "b", "c"), 1)]
        images = pair_by_image({**truth, "categories": categories}, results)
        names = [name, "b", "c"]
        scores = score(images, names, n_resamples=0)
        content = parts.ReportContent("", [], names, [[i] for i in images], ["r"], True, [scores])
        shown.append(parts.cards(content))
    assert shown[0] == shown[1]
    assert {"name": "AP50@all", "values": [{"value": "0.500", "interval": ""}]} in shown[1]


def test_plots_of_nothing():
    truth = truth_of({1: (SIZE, [])})
    scores = score(pair_by_image(truth, []), class_names(truth), n_resamples=0)
    none = np.zeros(0)
    for drawing in (
        plots.precision_recall([scores], "AB"),
        plots.metric_bars(scores),
        plots.f1_by_iou(scores),
        plots.ap_by_size(scores),
        plots.counts(scores),
        plots.size_histogram(none, none, scores.classes),
        plots.score_histogram(none, none, scores.classes),
        plots.cells_per_image(none),
    ):
        assert drawing.startswith("<svg")
    assert plots.size_histogram(np.array([1]), np.array([0]), ["a"]).startswith("<svg")


@pytest.mark.parametrize("smallest", [1, 11, 25, 2999])
def test_histograms_have_all_cells(monkeypatch, smallest):
    """Also those of the smallest area, although 10 ** log10(25) > 25, and scores of more than 1."""
    drawn = []
    hist = Axes.hist

    def count(*args, **keywords):
        found = hist(*args, **keywords)
        drawn.append(np.sum(found[0]))
        return found

    monkeypatch.setattr(Axes, "hist", count)
    sizes = np.array([smallest] * 5 + [smallest + 3, 4 * smallest, 70_000])
    plots.size_histogram(sizes, np.arange(8) % 2, ["a", "b"])
    plots.size_histogram(sizes[:5], np.zeros(5), ["a"])
    plots.score_histogram(np.array([-0.5, 0, 0.3, 1, 7]), np.zeros(5), ["a"])
    assert drawn == [4, 4, 5, 5]


PANNUKE = ["Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial"]
LONG = "Tumour-infiltrating lymphocyte"


@pytest.mark.parametrize(
    "names",
    [["a"], PANNUKE, [f"{LONG} {k}" for k in range(12)], ["W" * 90, "_" * 300]],
    ids=lambda names: f"{len(names)}-{names[0][:9]}",
)
def test_legends_are_whole_and_beside_the_data(monkeypatch, tmp_path, names):
    figures = []
    save = Figure.savefig

    def keep(figure, *args, **keywords):
        figures.append(figure)
        save(figure, *args, **keywords)

    monkeypatch.setattr(Figure, "savefig", keep)
    n = len(names)
    cells = [(k + 1, rectangle(SIZE, k, 0, k + 1, 9), 0) for k in range(n)]
    results = [entry(1, k + 1, mask, 0.9) for k, (_, mask, _) in enumerate(cells)]
    truth = truth_of({1: (SIZE, cells)}, names)
    scores = score(pair_by_image(truth, results), names, n_resamples=0)
    curves = "".join(
        json.dumps({"iteration": i, **{f"validation/AP50-{name}": 0.5 for name in names}}) + "\n"
        for i in (0, 20)
    )
    (tmp_path / "metrics.json").write_text(curves)
    plots.precision_recall([scores], "AB")
    plots.precision_recall([scores, scores], "AB")
    plots.metric_bars(scores)
    plots.f1_by_iou(scores)
    plots.counts(scores)
    plots.size_histogram(np.arange(1, n + 1), np.arange(n), names)
    plots.score_histogram(np.ones(n), np.arange(n), names)
    plots.training_curves(tmp_path / "metrics.json")
    n_entries = [n, 2 * n, n + 1, n + 2, n, n, n, n if n > 1 else 0]
    assert [len(f.legends[0].texts) if f.legends else 0 for f in figures] == n_entries
    for figure in figures:
        figure.draw_without_rendering()
        (axes,) = figure.axes
        assert axes.get_legend() is None
        assert axes.bbox.height > 200  # of 340: it does not shrink
        bottom = axes.get_tightbbox().y0
        for legend in figure.legends:
            for text in legend.get_texts():
                box = text.get_window_extent()
                assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
                assert figure.bbox.y0 <= box.y0 < box.y1 <= bottom


def test_training_curves(tmp_path):
    path, clean = tmp_path / "metrics.json", tmp_path / "clean.json"
    path.write_text(
        '{"iteration": 0, "total_loss": 3, "loss_mask": 1, "lr": 0.1, "time": 9}\n'
        '{"iteration": 20, "total_loss": 2, "loss_mask": NaN, "validation/AP50": 12.5}\n'
        '{"iteration": 20, "total_loss": 1, "lr": "high"}\n'
        '[1]\nnot JSON\n{"total_loss": 7}\n{"iteration": null, "lr": 1}\n{"iteration": 40, "tot'
    )
    clean.write_text(
        '{"iteration": 0, "total_loss": 3, "loss_mask": 1, "lr": 0.1}\n'
        '{"iteration": 20, "total_loss": 1, "validation/AP50": 0.125, "full_score": 1.0}\n'
    )
    curves = plots.training_curves(path)
    assert curves == plots.training_curves(clean)
    titles = ["Training loss", "Validation during training", "Learning rate"]
    assert [title for title, _ in curves] == titles
    assert "loss_mask" in texts(curves[0][1])
    assert plots.training_curves(tmp_path / "none") == []
    assert plots.training_curves(tmp_path) == []


def test_plots_are_deterministic():
    first, second = (plots.cells_per_image(np.array([1, 5, 5])) for _ in range(2))
    assert first == second


def test_areas_and_boxes_from_outlines():
    """As the page computes them: a cell with a hole and two pieces."""
    labels = np.zeros((12, 14), np.int32)
    labels[1:8, 1:8] = 1
    labels[3:5, 3:5] = 0
    labels[9:11, 10:13] = 1
    _, runs = label_map_to_runs(labels)
    (rings,) = decode_outlines(gallery.encode_outlines(trace(runs)))
    area = sum(y0 * (x1 - x0) for ring in rings for (x0, y0), (x1, _) in pairwise(ring))
    assert abs(area) == areas(runs)[0] == 49 - 4 + 6
    points = np.concatenate([np.array(ring) for ring in rings])
    assert [*points.min(axis=0), *points.max(axis=0)] == boxes_xyxy(runs)[0].tolist()


def test_any_score_is_matched(case):
    truth, results = case
    (eval_image,) = pair_by_image(truth, results[:1])
    for value in (-3.5, 7.0):
        one = replace(eval_image, scores=np.array([value]))
        assert gallery.match_detections(one).match.tolist() == [2]
