"""The page in headless Chromium: what it draws, counts, sorts and describes."""

import json
import re

import numpy as np
import pytest
import tifffile

import report
from cellseg.images import distinct_detections
from cellseg.read.coco import load_coco
from cellseg.read.pairs import pair_by_image
from cellseg.score.confusion import confusion_matrix
from cellseg.score.detection import count_matches, detection_scores
from cellseg.score.labelmap import class_agnostic, compare_label_maps
from cellseg.score.panoptic import panoptic
from tests.look.browser import act, press, rows, slide, text
from tests.score.scoring_cases import entry, random_case, rectangle, truth_of

SIZE = (60, 80)
NAMES = ["<b>bold</b>", "lymph & co", "third"]
EVIL = "<script>window.broken = 1<!--'\"&.tif"  # a file name can't contain a slash


MISCLASSIFIED = "misclassified: the ground truth is lymph & co, IoU 1.00"


def grey(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full((*size, 3), 128, np.uint8))


def cells_of_image(n):
    """Cells for a true positive, a false negative and, not in image 7, a misclassified one."""
    return [
        (1, rectangle(SIZE, 5, 5, 20, 20), 0),
        (2, rectangle(SIZE, 5, 40, 20, 60), 0),
        *([(2, rectangle(SIZE, 30 + n, 5, 50, 25), 0)] if n < 5 else []),
    ]


RESULTS = [
    entry(1, 1, rectangle(SIZE, 5, 5, 20, 17), 0.9),
    entry(1, 1, rectangle(SIZE, 31, 5, 50, 25), 0.7),
    entry(1, 3, rectangle(SIZE, 40, 50, 55, 75), 0.6),
    entry(1, 2, rectangle(SIZE, 5, 40, 20, 58), 0.3),
    entry(2, 1, rectangle(SIZE, 5, 5, 20, 20), 0.8),
    entry(2, 2, rectangle(SIZE, 5, 40, 20, 60), 0.8),
    entry(2, 2, rectangle(SIZE, 32, 5, 50, 25), 0.8),
    entry(7, 3, rectangle(SIZE, 40, 50, 55, 75), 0.95),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three images, one with an evil name, with ground truth and two results."""
    folder = tmp_path_factory.mktemp("page")
    truth = truth_of({n: (SIZE, cells_of_image(n)) for n in (1, 2, 7)}, NAMES)
    test_list = [{"file_name": f"{n}.tif", "id": n, "height": 60, "width": 80} for n in (1, 2, 7)]
    truth["images"][0]["file_name"] = EVIL
    for image in truth["images"]:
        grey(folder / image["file_name"])
        grey(folder / "test" / f"{image['id']}.tif")
    better = [*RESULTS, entry(7, 1, rectangle(SIZE, 5, 5, 20, 20), 0.9)]
    for name, value in (
        ("truth", truth), ("results", RESULTS), ("better", better),
        ("test_image_name_to_ids", test_list),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def write(folder, *argv):
    page = folder / f"page{len(list(folder.glob('*.html')))}.html"
    assert report.main([*map(str, argv), "--data", str(folder), "--output", str(page)]) == 0
    return page


@pytest.fixture(scope="module")
def scored(folder):
    return write(
        folder, folder / "results.json", "--truth", folder / "truth.json", "--resamples", 20
    )


def names(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('#list li:not([hidden]) b')]"
        ".map((b) => b.textContent)"
    )


def pixel(driver, x, y):
    """Return the colours drawn in 20 x 20 px around a point of the image."""
    return driver.execute_script(
        """
        const [x, y, height, width] = arguments, canvas = document.getElementById("canvas");
        const stage = canvas.parentElement;
        const scale = Math.min(stage.clientWidth / width, stage.clientHeight / height);
        const left = (stage.clientWidth - width * scale) / 2 + x * scale;
        const top = (stage.clientHeight - height * scale) / 2 + y * scale;
        // From a copy: reading the canvas itself would make it a slow one.
        const copy = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        copy.drawImage(canvas, 10 - left, 10 - top);
        const { data } = copy.getImageData(0, 0, 20, 20);
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) seen.add([...data.slice(i, i + 3)].join());
        return [...seen];
        """,
        x,
        y,
        *SIZE,
    )


def is_grey(colours):
    return all(len({*map(int, colour.split(","))}) == 1 for colour in colours)


def hover(driver, x, y):
    """Point at a position of the image; return its description."""
    driver.execute_script(
        """
        const [x, y, height, width] = arguments, canvas = document.getElementById("canvas");
        const box = canvas.getBoundingClientRect();
        const scale = Math.min(box.width / width, box.height / height);
        canvas.dispatchEvent(new PointerEvent("pointermove", {
          clientX: box.left + (box.width - width * scale) / 2 + x * scale,
          clientY: box.top + (box.height - height * scale) / 2 + y * scale,
          bubbles: true, pointerId: 9,
        }));
        """,
        x,
        y,
        *SIZE,
    )
    shown = driver.execute_script("return !document.getElementById('tip').hidden")
    return text(driver, "tip") if shown else ""


def test_the_worst_image_comes_first_and_names_are_text(show, scored):
    driver = show(scored)
    # F1 is 0 of image 7, 0.33 of image 1 (1 TP, 1 FN, 1 FP, 1 misclassified), 1 of image 2.
    assert names(driver) == ["7.tif", EVIL, "2.tif"]
    assert driver.execute_script(
        "return [window.broken, document.querySelectorAll('b b').length]"
    ) == [None, 0]
    assert text(driver, "class-0") == "<b>bold</b>1"
    assert text(driver, "name") == "7.tif"
    press(driver, "ArrowRight")
    assert text(driver, "name") == EVIL
    assert text(driver, "status") == (
        "3 ground-truth cells, 3 detections: 1 true positive, 1 false negative, 1 false positive, "
        "1 misclassified · F1 0.33 · 80 × 60 px"
    )
    press(driver, "ArrowRight")
    press(driver, "ArrowRight")
    assert text(driver, "name") == "2.tif"
    press(driver, "ArrowLeft")
    assert text(driver, "name") == EVIL


def test_only_its_own_script_runs(show, scored):
    driver = show(scored)
    driver.execute_script("document.body.append(document.createElement('i'))")
    html = scored.read_text()
    assert re.search(r"script-src 'strict-dynamic' 'sha256-[\w+/=]{44}'", html)
    # All others are data: <script> with a type, or the one script.
    assert len(re.findall(r"<script>", html)) == 1
    assert len(re.findall(r"</script>", html)) == 1 + 1 + 3
    assert "http:" not in html.replace("http://www.w3.org/", "")
    assert "https:" not in html.replace("https://www.w3.org/", "")


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_counts_at_any_score_are_those_of_evaluate(show, tmp_path, seed):
    """With crowds, ties, empty masks, overlaps: the tables against the Python scores."""
    truth, results = random_case(np.random.default_rng(seed), n_gt=9, n_results=14, largest=40)
    truth["annotations"] = [a for a in truth["annotations"] if a["area"]]
    for image in truth["images"]:
        grey(tmp_path / image["file_name"], (image["height"], image["width"]))
    for name, value in (("truth", truth), ("results", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    page = write(
        tmp_path, tmp_path / "results.json", "--truth", tmp_path / "truth.json", "--resamples", 0
    )
    driver = show(page)
    eval_images = pair_by_image(load_coco(tmp_path / "truth.json"), results)
    eval_images = [distinct_detections(eval_image) for eval_image in eval_images]
    for threshold in (0, 0.2, 0.4, 0.41, 0.6, 0.8, 1):
        slide(driver, threshold)
        compared = [compare_label_maps(eval_image, threshold) for eval_image in eval_images]
        once = np.ones(len(eval_images), np.int64)
        each, one = (
            count_matches(compared, 3),
            count_matches([class_agnostic(c) for c in compared], 1),
        )
        expected = []
        for sums, k in [(each, 0), (each, 1), (each, 2), (one, 0)]:
            some = [
                c.classes == k if sums is each else np.ones(len(c.classes), bool) for c in compared
            ]
            scores, quality = detection_scores(sums, once), panoptic(sums, once)
            tp, fn, false = (int(x[:, k].sum()) for x in (sums.tp, sums.fn, sums.fp))
            numbers = (scores.precision[k], scores.recall[k], scores.f1[k], quality.pooled_pq[k])
            expected.append([tp + fn, sum(int(x.sum()) for x in some), tp, fn, false, *numbers])
        for shown, wanted in zip(rows(driver, "table"), expected, strict=True):
            assert [int(value) for value in shown[1:6]] == wanted[:5]
            for value, number in zip(shown[6:], wanted[5:], strict=True):
                if np.isnan(number):
                    assert value == "–"
                else:
                    assert float(value) == pytest.approx(number, abs=6e-4)
        matrix = confusion_matrix(compared, 3).tolist()
        matrix[-1][-1] = 0
        assert [[int(v or 0) for v in row[1:]] for row in rows(driver, "confusion")] == matrix


def test_a_minimum_score_of_many_digits(show, folder):
    page = write(
        folder,
        folder / "results.json",
        "--truth",
        folder / "truth.json",
        "--score_threshold",
        0.504,
    )
    driver = show(page)
    assert text(driver, "score-shown") == "0.504"
    assert "score of 0.504 or more" in text(driver, "table")
    slide(driver, 0.2)
    assert text(driver, "score-shown") == "0.20"


def test_the_slider_changes_what_is_drawn_counted_and_sorted(show, scored):
    driver = show(scored)
    assert text(driver, "score-shown") == "0.50"
    press(driver, "ArrowRight")
    assert "1 true positive" in text(driver, "status")
    slide(driver, 0.2)
    assert text(driver, "score-shown") == "0.20"
    assert "4 detections: 2 true positives" in text(driver, "status")
    slide(driver, 0.85)  # only the true positive of image 1 is left, and nothing of image 2
    assert "1 detection: 1 true positive" in text(driver, "status")
    assert names(driver)[2] == EVIL


def test_layers_toggle(show, scored):
    """Each layer draws its cells and no others."""
    driver = show(scored)
    press(driver, "ArrowRight")
    inside = {"H": (10, 12), "M": (50, 12), "N": (15, 40), "F": (62, 48)}
    edge = {"T": (50, 5), "P": (62, 40)}
    for key in "TPMFN":
        press(driver, key.lower())
    for place in (*inside.values(), *edge.values()):
        assert is_grey(pixel(driver, *place))
    for key, place in (*inside.items(), *edge.items()):
        press(driver, key)
        assert (
            driver.execute_script(
                "return document.getElementById(arguments[0]).getAttribute('aria-pressed')",
                f"layer-{key}",
            )
            == "true"
        )
        assert not is_grey(pixel(driver, *place))
        for other, elsewhere in inside.items():
            assert is_grey(pixel(driver, *elsewhere)) == (other != key)
        driver.execute_script("document.getElementById(arguments[0]).click()", f"layer-{key}")
        press(driver, "unused")
        assert is_grey(pixel(driver, *place))


def test_pointing_shows_class_score_and_iou(show, scored):
    driver = show(scored)
    press(driver, "ArrowRight")
    assert hover(driver, 10, 12) == (
        "ground truth: <b>bold</b>, 225 px\ndetected, IoU 0.80, score 0.90\n"
        "detection: <b>bold</b>, score 0.90, 180 px\ntrue positive, IoU 0.80"
    )
    assert hover(driver, 50, 12) == "ground truth: lymph & co, 300 px\nfalse negative"
    assert hover(driver, 15, 40) == (
        "ground truth: lymph & co, 380 px\ndetected as <b>bold</b>, IoU 1.00, score 0.70\n"
        f"detection: <b>bold</b>, score 0.70, 380 px\n{MISCLASSIFIED}"
    )
    assert hover(driver, 60, 50) == "detection: third, score 0.60, 375 px\nfalse positive"
    assert hover(driver, 75, 5) == ""


def test_errors_one_by_one(show, scored):
    driver = show(scored)
    press(driver, "ArrowRight")
    errors = [MISCLASSIFIED, "false positive", "false negative", "false positive"]
    for key, error in zip("...,", errors, strict=True):
        press(driver, key)
        assert text(driver, "status").split("\n")[-1] == error


def test_classes_filter_cells_counts_and_list(show, scored):
    driver = show(scored)
    press(driver, "1")
    press(driver, "3")
    # Only class 2 is left: a false negative in image 7, also a misclassified cell in image 1.
    assert names(driver)[1:] == ["7.tif", "2.tif"]
    press(driver, "ArrowLeft")
    assert hover(driver, 10, 12) == ""
    assert "2 ground-truth cells, 0 detections" in text(driver, "status")
    press(driver, "2")
    assert names(driver) == []
    press(driver, "3")
    assert sorted(names(driver)) == ["7.tif", EVIL]
    driver.execute_script("for (const k of [0, 1]) document.getElementById(`class-${k}`).click()")
    assert len(names(driver)) == 3


@pytest.mark.parametrize(
    ("order", "first"),
    [*zip(["f1", "pq", "fn", "fp", "misclassified", "cells", "name"], "777<<<2", strict=True)],
)
def test_orders(show, scored, order, first):
    driver = show(scored)
    act(
        driver,
        "const select = document.getElementById('sort'); select.value = arguments[0];"
        "select.dispatchEvent(new Event('change'));",
        order,
    )
    assert names(driver)[0].startswith(first)
    assert text(driver, "name").startswith(first)


def test_zoom_pan_and_fit(show, scored):
    driver = show(scored)
    press(driver, "ArrowRight")
    description = hover(driver, 50, 12)
    press(driver, "+")
    press(driver, "=")
    assert hover(driver, 50, 12) != description  # another position now
    press(driver, "0")
    assert hover(driver, 50, 12) == description
    for _ in range(2):
        press(driver, "ArrowRight", shiftKey=True)
    assert hover(driver, 50, 12) != description
    press(driver, "0")
    press(driver, "-")
    assert hover(driver, 50, 12) != description
    driver.execute_script("document.getElementById('fit').click()")
    assert hover(driver, 50, 12) == description
    # A drag by 300 px, with real events.
    event = {"y": 600, "button": "left", "buttons": 1, "clickCount": 1}
    for kind, x in (("Pressed", 900), ("Moved", 700), ("Moved", 600), ("Released", 600)):
        event |= {"type": f"mouse{kind}", "x": x}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    assert hover(driver, 50, 12) != description
    # After that click into the image, the wheel zooms it.
    press(driver, "0")
    event = {"type": "mouseWheel", "x": 700, "y": 600, "deltaX": 0, "deltaY": -400}
    driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    assert hover(driver, 50, 12) != description


def test_help_and_labels(show, scored):
    driver = show(scored)
    press(driver, "?")
    assert driver.execute_script("return document.getElementById('help').open")
    assert "slanted hatching" in text(driver, "keys")
    driver.execute_script("document.querySelector('#help form button').click()")
    nameless = driver.execute_script(
        "return [...document.querySelectorAll('button, select, input, [role=img]')].filter((e) =>"
        " !e.textContent.trim() && !e.ariaLabel && !(e.labels && e.labels.length))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_single_cells_open_in_the_viewer(show, scored):
    driver = show(scored)
    act(
        driver,
        "[...document.querySelectorAll('.examples button')]"
        ".find((b) => b.textContent.includes('detected as')).click();",
    )
    assert text(driver, "name") == EVIL
    assert text(driver, "status").endswith(MISCLASSIFIED)


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone(show, scored, width):
    driver = show(scored, (width, 844))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("return document.getElementById('stage').clientHeight") > 250
    press(driver, "ArrowRight")
    assert hover(driver, 50, 12).endswith("false negative")


def test_two_results(show, folder):
    results, better, truth = (folder / f"{name}.json" for name in ("results", "better", "truth"))
    page = write(folder, better, "--compare", results, "--truth", truth, "--resamples", 20)
    driver = show(page)
    # A detects a cell in image 7 that B does not.
    assert names(driver)[0] == "7.tif"
    assert "F1 A 0.50, B 0.00" in text(driver, "status")
    assert hover(driver, 10, 12).endswith("false negative")
    press(driver, "r")
    assert hover(driver, 10, 12).endswith("true positive, IoU 1.00")
    assert rows(driver, "table")[0][3] == "3"
    assert "B − A, mean of classes" in page.read_text()


def test_the_mean_score_is_that_of_the_cells_that_count(show, folder):
    """Two detections of the same pixels are one cell, with a joined score."""
    mask = rectangle(SIZE, 5, 5, 20, 20)
    twice = [entry(7, 1, mask, 0.64), entry(7, 2, mask, 0.48)]
    (folder / "twice.json").write_text(json.dumps(twice))
    driver = show(write(folder, folder / "twice.json"))
    assert "1 detection\nmean score 0.80" in text(driver, "list")


def test_results_without_ground_truth(show, folder):
    driver = show(write(folder, folder / "results.json"))
    assert sorted(names(driver)) == ["1", "2", "7"]
    assert names(driver)[0] == "1"  # the lowest mean score
    assert hover(driver, 10, 12) == "detection: class1, score 0.90, 180 px"
    slide(driver, 0.75)
    assert rows(driver, "table") == [
        ["class1", "2"], ["class2", "2"], ["class3", "1"], ["class4", "0"], ["any class", "5"],
    ]  # fmt: skip
    press(driver, ".")
    assert "detection: class" in text(driver, "status")
    # A single cell lowers the minimum score to its own.
    slide(driver, 0.99)
    act(driver, "document.querySelector('.examples button').click()")
    score = float(text(driver, "status").split("score ")[1].split(",")[0])
    assert float(text(driver, "score-shown")) == score < 0.99
    two = write(folder, folder / "results.json", "--compare", folder / "better.json")
    driver = show(two)
    assert rows(driver, "table")[-1] == ["any class", "8"]
    press(driver, "r")
    assert rows(driver, "table")[-1] == ["any class", "7"]


def test_a_cell_wholly_under_a_much_larger_one_counts(show, folder):
    """Of one result without ground truth; in scores, it has no pixel in the label map."""
    large = entry(1, 1, rectangle(SIZE, 5, 5, 45, 45), 0.9)
    small = entry(1, 2, rectangle(SIZE, 10, 10, 20, 20), 0.8)
    (folder / "nested.json").write_text(json.dumps([large, small]))
    driver = show(write(folder, folder / "nested.json"))
    assert rows(driver, "table")[-1] == ["any class", "2"]
    assert "2 detections\nmean score 0.85" in text(driver, "list")
    for key in "..":
        press(driver, key)
    assert text(driver, "status").startswith("detection: class1, score 0.90")
    argv = ["--truth", folder / "truth.json", "--resamples", 0]
    driver = show(write(folder, folder / "nested.json", *argv))
    assert rows(driver, "table")[-1][1:3] == ["8", "1"]


@pytest.fixture(scope="module")
def one_empty(tmp_path_factory):
    """An image of 1000 x 2000 px with two cells, both detected, and one without any."""
    folder, size = tmp_path_factory.mktemp("empty"), (1000, 2000)
    cells = [(k, rectangle(size, 10 * k, 10, 10 * k + 8, 30), 0) for k in (1, 2)]
    truth = truth_of({1: (size, cells), 2: (SIZE, [])}, NAMES)
    truth["images"][0]["file_name"] = "x" * 200 + ".tif"
    for image in truth["images"]:
        grey(folder / image["file_name"], (image["height"], image["width"]))
    results = [entry(1, k, mask, 0.9) for k, mask, _ in cells]
    for name, value in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    return write(
        folder, folder / "results.json", "--truth", folder / "truth.json", "--resamples", 0
    )


def test_an_image_without_cells_has_no_f1(show, one_empty):
    driver = show(one_empty)
    spans = "[...document.querySelectorAll('#list span')]"
    f1 = f"return {spans}.map((span) => span.textContent.split('\\n')[0])"
    assert driver.execute_script(f1) == ["F1 1.00", "F1 –"]  # sorted last
    assert text(driver, "worst").endswith(": none")  # nothing but its caption
    assert rows(driver, "worst") == []
    press(driver, "ArrowRight")
    assert "F1 –" in text(driver, "status")
    for key in "123":
        press(driver, key)
    assert driver.execute_script(f1) == ["F1 –", "F1 –"]
    assert "F1 –" in text(driver, "status")


def test_a_density_has_one_format(show, one_empty, tmp_path):
    """Of an image as a whole, 2 cells in 2 Mpx, the view says what the table below says."""
    driver = show(one_empty)
    act(driver, "")
    tables = driver.execute_script(
        "return [...document.querySelectorAll('table.composition')].map((table) =>"
        " [...table.tBodies[0].rows].map((row) => [...row.cells].map((c) => c.textContent)))"
    )
    by_image = tables[-1][:3]  # detections of the first image
    assert [row[4] for row in by_image] == ["0.50", "0.50", "0.00"]
    assert [row[2] for row in rows(driver, "in-view")[:3]] == ["0.50", "0.50", "0.00"]
    cells = [(1, rectangle(SIZE, 5 * n, 5, 5 * n + 4, 9), 0) for n in range(10)]
    small = truth_of({1: (SIZE, cells)}, NAMES)
    grey(tmp_path / "1.tif")
    (tmp_path / "truth.json").write_text(json.dumps(small))
    driver = show(write(tmp_path, "--annotations", tmp_path / "truth.json"))
    act(driver, "")
    density = "2,083.3"  # 10 cells in 4800 px
    assert rows(driver, "in-view")[0][2] == density
    assert driver.execute_script(
        "return document.querySelector('table.composition').tBodies[0].rows[0].cells[3].textContent"
    ).startswith(density)


def test_a_long_file_name_leaves_the_numbers_in_view(show, one_empty):
    driver = show(one_empty, (1400, 900))
    driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    name, right, title = driver.execute_script(
        "const row = [...document.querySelectorAll('table.composition')].at(-1).tBodies[0].rows[0];"
        "return [row.cells[0].offsetWidth, row.lastElementChild.getBoundingClientRect().right,"
        " row.cells[0].title]"
    )
    assert name < 400
    assert right < 1400
    assert len(title) == 204


def test_columns_have_headings_over_their_text(show, scored):
    driver = show(scored)
    press(driver, "ArrowRight")
    heads = "[...document.querySelectorAll('#worst thead th')]"
    assert all(driver.execute_script(f"return {heads}.map((th) => th.textContent)"))
    # Class names, and their headings, begin at the left.
    aligned = driver.execute_script(
        "return [...document.querySelectorAll('table')].flatMap((table) =>"
        " [...(table.tHead?.rows[0].cells ?? [])].filter((th) => th.textContent === 'class')"
        " .flatMap((th) => [th, table.tBodies[0].rows[0].cells[th.cellIndex]]))"
        " .map((cell) => getComputedStyle(cell).textAlign)"
    )
    assert len(aligned) >= 10
    assert set(aligned) == {"left"}


def test_a_detection_without_pixels_is_not_zoomed_to(show, folder):
    there = entry(1, 1, rectangle(SIZE, 5, 5, 20, 20), 0.9)
    empty = [entry(1, k, rectangle(SIZE, 0, 0, 0, 0), 0.6) for k in (1, 2)]
    (folder / "empty.json").write_text(json.dumps([there, *empty]))
    driver = show(write(folder, folder / "empty.json"))
    example = "document.querySelector('.examples button')"
    assert driver.execute_script("return document.querySelectorAll('.examples button').length") == 1
    for key in ".,":
        press(driver, key)
        assert text(driver, "status") == "detection: class1, score 0.90, 225 px"
    press(driver, "0")
    act(driver, f"{example}.dataset.cell = 1; {example}.click()")
    assert hover(driver, 10, 12) == "detection: class1, score 0.90, 225 px"
    assert not is_grey(pixel(driver, 10, 5))


def test_annotations_only(show, tmp_path):
    two = rectangle(SIZE, 5, 5, 10, 15) | rectangle(SIZE, 5, 20, 10, 30)
    cells = {1: [(1, rectangle(SIZE, 0, 0, 10, 10), 0)], 2: [(1, two, 0)], 3: []}
    truth = truth_of({n: (SIZE, some) for n, some in cells.items()}, NAMES)
    for image in truth["images"]:
        grey(tmp_path / image["file_name"])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    driver = show(write(tmp_path, "--annotations", tmp_path / "truth.json"))
    assert names(driver) == ["2.tif", "1.tif", "3.tif"]
    assert hover(driver, 8, 8) == "ground truth: <b>bold</b>, 100 px\n2 pieces"
    press(driver, ".")
    assert text(driver, "status").endswith("2 pieces")
    press(driver, "0")
    press(driver, "t")
    assert not is_grey(pixel(driver, 10, 8))
    press(driver, "x")
    assert is_grey(pixel(driver, 10, 8))
    assert driver.execute_script("return document.getElementById('score')") is None


def test_a_large_image_is_reduced_and_its_outlines_are_not(show, tmp_path, monkeypatch):
    monkeypatch.setattr("cellseg.look.report.PICTURES_MB", 0.002)
    size = (300, 600)
    truth = truth_of({1: (size, [(1, rectangle(size, 100, 200, 200, 400), 0)])}, NAMES)
    grey(tmp_path / "1.tif", size)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    driver = show(write(tmp_path, "--annotations", tmp_path / "truth.json"))
    assert re.search(r"600 × 300 px, shown [0-9.]+ times smaller", text(driver, "status"))
    press(driver, ".")
    press(driver, "0")
    assert hover(driver, 40, 30) == "ground truth: <b>bold</b>, 20000 px"
    assert "1 of the 1 images are shown at reduced resolution" in driver.page_source
