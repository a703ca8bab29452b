"""The page in a real, headless Chromium: what it draws, counts, sorts and says."""

import json
import os
import re

import numpy as np
import pytest
import tifffile

import report
from cellseg.read.coco import load_coco
from cellseg.read.results import pair_by_image
from cellseg.score.confusion import confusion_matrix
from cellseg.score.detection import count_matches, detection_scores
from cellseg.score.labelmap import class_agnostic, compare_label_maps
from cellseg.score.panoptic import panoptic
from tests.look import browser
from tests.score.scoring_cases import entry, random_case, rectangle, truth_of

SIZE = (60, 80)
NAMES = ["<b>bold</b>", "lymph & co", "third"]
SCRIPT = "<script>window.broken = 1<"  # the file system's slash can't be in a name


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One Chromium for all tests."""
    if browser.find() is None:
        message = "no chromium and chromedriver on PATH: apt-get install chromium chromium-driver"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    blank = tmp_path_factory.mktemp("blank") / "blank.html"
    blank.write_text("<title>blank</title>")
    with browser.open_page(blank) as driver:
        driver.set_script_timeout(60)  # s, a machine may be busy
        yield driver


@pytest.fixture
def show(driver):
    """Open a page; at the end it must have fetched nothing and complained of nothing."""

    def show(page, size=(1400, 900)):
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        browser.show(driver, page, size)
        browser.wait_until_ready(driver)
        return driver

    yield show
    assert driver.get_log("browser") == []
    events = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}


def grey(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, np.full((*size, 3), 128, np.uint8))


def cells_of_image(shift):
    """A cell to find, one to miss, one to misname."""
    return [
        (1, rectangle(SIZE, 5, 5, 20, 20), 0),
        (2, rectangle(SIZE, 5, 40, 20, 60), 0),
        *([(2, rectangle(SIZE, 30 + shift, 5, 50, 25), 0)] if shift < 5 else []),
    ]


TRUTH = truth_of({n: (SIZE, cells_of_image(n)) for n in (1, 2, 7)}, NAMES)
FOUND = [
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
    """Three images, of which one has an evil name, with ground truth and two results."""
    folder = tmp_path_factory.mktemp("page")
    truth = {**TRUTH, "images": [dict(image) for image in TRUTH["images"]]}
    truth["images"][0]["file_name"] = f"{SCRIPT}!--'\"&.tif"
    for image in truth["images"]:
        grey(folder / image["file_name"])
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "found.json").write_text(json.dumps(FOUND))
    (folder / "better.json").write_text(
        json.dumps([*FOUND, entry(7, 1, rectangle(SIZE, 5, 5, 20, 20), 0.9)])
    )
    (folder / "test").mkdir()
    for n in (1, 2, 7):
        grey(folder / "test" / f"{n}.tif")
    (folder / "test_image_name_to_ids.json").write_text(
        json.dumps(
            [{"file_name": f"{n}.tif", "id": n, "height": 60, "width": 80} for n in (1, 2, 7)]
        )
    )
    return folder


def write(folder, *argv):
    page = folder / f"page{len(list(folder.glob('*.html')))}.html"
    assert report.main([*map(str, argv), "--data", str(folder), "--output", str(page)]) == 0
    return page


@pytest.fixture(scope="module")
def scored(folder):
    return write(folder, folder / "found.json", "--truth", folder / "truth.json", "--resamples", 20)


def rows(driver, table):
    """The cells of a table's body as text."""
    return driver.execute_script(
        "return [...document.querySelectorAll(`#${arguments[0]} tbody tr`)]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))",
        table,
    )


def act(driver, script, *arguments):
    """Run a script, and wait until the image that is asked for then is drawn as it is then."""
    driver.execute_script(script, *arguments)
    driver.execute_async_script(
        """
        const [done] = arguments, { dataset } = document.getElementById("canvas");
        const asked = () => document.querySelector("#list [aria-current]").value;
        const look = () => (dataset.image === asked() ? done() : requestAnimationFrame(look));
        requestAnimationFrame(() => requestAnimationFrame(look));
        """
    )


def slide(driver, value):
    act(
        driver,
        "const [value] = arguments, slider = document.getElementById('score');"
        "slider.value = value;"
        "for (const type of ['input', 'change']) slider.dispatchEvent(new Event(type));",
        value,
    )


def press(driver, key, **more):
    """Press a key, and wait until the picture is drawn."""
    act(
        driver,
        "const [key, more] = arguments;"
        "document.activeElement.dispatchEvent("
        "  new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true, ...more}));",
        key,
        more,
    )


def names(driver):
    return driver.execute_script(
        "return [...document.querySelectorAll('#list li:not([hidden]) b')]"
        ".map((b) => b.textContent)"
    )


def text(driver, id_):
    return driver.execute_script("return document.getElementById(arguments[0]).textContent", id_)


def pixel(driver, x, y):
    """The colours drawn in 20 x 20 px round a point of the image."""
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
    """Point at a place of the image; what is said of it."""
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
    evil = f"{SCRIPT}!--'\"&.tif"
    # F1 0 of image 7, 0.4 of image 1 (one hit, two missed, two false), 1 of image 2.
    assert names(driver) == ["7.tif", evil, "2.tif"]
    assert driver.execute_script(
        "return [window.broken, document.querySelectorAll('b b').length]"
    ) == [None, 0]
    assert text(driver, "class-0") == "<b>bold</b>1"
    assert text(driver, "name") == "7.tif"
    press(driver, "ArrowRight")
    assert text(driver, "name") == evil
    assert text(driver, "told").startswith("3 true, 3 found: 1 hits; F1 0.33")
    press(driver, "ArrowRight")
    press(driver, "ArrowRight")
    assert text(driver, "name") == "2.tif"
    press(driver, "ArrowLeft")
    assert text(driver, "name") == evil


def test_no_script_runs_but_its_own(show, scored):
    driver = show(scored)
    driver.execute_script("document.body.append(document.createElement('i'))")
    html = scored.read_text()
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", html)
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


def test_the_slider_changes_what_is_drawn_counted_and_sorted(show, scored):
    driver = show(scored)
    assert text(driver, "score-shown") == "0.50"
    press(driver, "ArrowRight")
    assert "1 hits" in text(driver, "told")
    slide(driver, 0.2)
    assert text(driver, "score-shown") == "0.20"
    assert "4 found: 2 hits" in text(driver, "told")
    slide(driver, 0.85)  # of image 1 the hit alone is left, of image 2 nothing
    assert "1 found: 1 hits" in text(driver, "told")
    assert names(driver)[2].startswith("<script>")


def test_layers_toggle(show, scored):
    """What is drawn at a hit, a missed, a misclassified cell and a false positive, layer by layer."""
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


def test_pointing_says_class_score_and_iou(show, scored):
    driver = show(scored)
    press(driver, "ArrowRight")
    assert hover(driver, 10, 12) == (
        "truth: <b>bold</b>, 225 px\nfound, IoU 0.80, score 0.90\n"
        "found: <b>bold</b>, score 0.90, 180 px\nhit, IoU 0.80"
    )
    assert hover(driver, 50, 12) == "truth: lymph & co, 300 px\nmissed"
    assert hover(driver, 15, 40).endswith(
        "score 0.70, 380 px\nmisnamed: it is lymph & co, IoU 1.00"
    )
    assert hover(driver, 60, 50) == "found: third, score 0.60, 375 px\nfalse alarm"
    assert hover(driver, 75, 5) == ""


def test_mistakes_one_by_one(show, scored):
    driver = show(scored)
    press(driver, "ArrowRight")
    told = []
    for key in "...":
        press(driver, key)
        told.append(text(driver, "told").split("\n")[-1])
    assert told == ["misnamed: it is lymph & co, IoU 1.00", "false alarm", "missed"]
    press(driver, ",")
    assert text(driver, "told").endswith("false alarm")


def test_classes_filter_cells_counts_and_list(show, scored):
    driver = show(scored)
    press(driver, "1")
    press(driver, "3")
    # Class 2 alone is left: image 7 has a missed one, image 1 a misclassified and a missed one.
    assert names(driver)[1:] == ["7.tif", "2.tif"]
    press(driver, "ArrowLeft")
    assert hover(driver, 10, 12) == ""
    assert "2 true, 0 found" in text(driver, "told")
    press(driver, "2")
    assert names(driver) == []
    press(driver, "3")
    assert sorted(names(driver)) == ["7.tif", f"{SCRIPT}!--'\"&.tif"]
    driver.execute_script("for (const k of [0, 1]) document.getElementById(`class-${k}`).click()")
    assert len(names(driver)) == 3


@pytest.mark.parametrize(
    ("order", "first"),
    [
        ("f1", "7"),
        ("pq", "7"),
        ("missed", "7"),
        ("false", "<"),
        ("misnamed", "<"),
        ("cells", "<"),
        ("name", "2"),
    ],
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
    missed = hover(driver, 50, 12)
    press(driver, "+")
    press(driver, "=")
    assert hover(driver, 50, 12) != missed  # elsewhere now
    press(driver, "0")
    assert hover(driver, 50, 12) == missed
    for _ in range(2):
        press(driver, "ArrowRight", shiftKey=True)
    assert hover(driver, 50, 12) != missed
    press(driver, "0")
    press(driver, "-")
    assert hover(driver, 50, 12) != missed
    driver.execute_script("document.getElementById('fit').click()")
    assert hover(driver, 50, 12) == missed
    # A drag by 300 px, with real events.
    for kind, x in (
        ("mousePressed", 900),
        ("mouseMoved", 700),
        ("mouseMoved", 600),
        ("mouseReleased", 600),
    ):
        driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": 600, "button": "left", "buttons": 1, "clickCount": 1},
        )
    assert hover(driver, 50, 12) != missed
    # The wheel is the image's after that click into it.
    press(driver, "0")
    driver.execute_cdp_cmd(
        "Input.dispatchMouseEvent",
        {"type": "mouseWheel", "x": 700, "y": 600, "deltaX": 0, "deltaY": -400},
    )
    assert hover(driver, 50, 12) != missed


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
        ".find((b) => b.textContent.includes('called')).click();",
    )
    assert text(driver, "name").startswith("<script>")
    assert text(driver, "told").endswith("misnamed: it is lymph & co, IoU 1.00")


@pytest.mark.parametrize("width", [360, 390])
def test_a_phone(show, scored, width):
    driver = show(scored, (width, 844))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("return document.getElementById('stage').clientHeight") > 250
    press(driver, "ArrowRight")
    assert hover(driver, 50, 12).endswith("missed")


def test_two_runs(show, folder):
    found, better = folder / "found.json", folder / "better.json"
    page = write(
        folder, better, "--compare", found, "--truth", folder / "truth.json", "--resamples", 20
    )
    driver = show(page)
    # A found a cell in image 7 that B missed.
    assert names(driver)[0] == "7.tif"
    assert "F1 A 0.50, B 0.00" in text(driver, "told")
    assert hover(driver, 10, 12).endswith("missed")
    press(driver, "r")
    assert hover(driver, 10, 12).endswith("hit, IoU 1.00")
    assert rows(driver, "table")[0][3] == "3"
    assert "B − A with 95 % intervals" in page.read_text()


def test_the_mean_score_is_that_of_the_cells_that_count(show, folder):
    """Of two detections of the same pixels the better one is the cell."""
    mask = rectangle(SIZE, 5, 5, 20, 20)
    own = [entry(7, 1, mask, 0.9), entry(7, 2, mask, 0.8)]
    (folder / "twice.json").write_text(json.dumps(own))
    driver = show(write(folder, folder / "twice.json"))
    told = driver.execute_script("return document.getElementById('list').textContent")
    assert "1 cell, mean score 0.90" in told


def test_results_without_ground_truth(show, folder):
    driver = show(write(folder, folder / "found.json"))
    assert sorted(names(driver)) == ["1", "2", "7"]
    assert names(driver)[0] == "1"  # the least sure
    assert hover(driver, 10, 12) == "found: class1, score 0.90, 180 px"
    slide(driver, 0.75)
    assert rows(driver, "table") == [
        ["class1", "2"], ["class2", "2"], ["class3", "1"], ["class4", "0"], ["any class", "5"],
    ]  # fmt: skip
    press(driver, ".")
    assert "score" in text(driver, "told")
    two = write(folder, folder / "found.json", "--compare", folder / "better.json")
    driver = show(two)
    assert rows(driver, "table")[-1] == ["any class", "8"]
    press(driver, "r")
    assert rows(driver, "table")[-1] == ["any class", "7"]


def test_a_detection_with_no_pixel_is_nowhere_to_go(show, folder):
    there = entry(1, 1, rectangle(SIZE, 5, 5, 20, 20), 0.9)
    nowhere = [entry(1, k, rectangle(SIZE, 0, 0, 0, 0), 0.6) for k in (1, 2)]
    (folder / "nowhere.json").write_text(json.dumps([there, *nowhere]))
    driver = show(write(folder, folder / "nowhere.json"))
    example = "document.querySelector('.examples button')"
    assert driver.execute_script("return document.querySelectorAll('.examples button').length") == 1
    for key in ".,":
        press(driver, key)
        assert text(driver, "told") == "found: class1, score 0.90, 225 px"
    press(driver, "0")
    act(driver, f"{example}.dataset.cell = 1; {example}.click()")
    assert hover(driver, 10, 12) == "found: class1, score 0.90, 225 px"
    assert not is_grey(pixel(driver, 10, 5))


def test_annotations_alone(show, tmp_path):
    two = rectangle(SIZE, 5, 5, 10, 15) | rectangle(SIZE, 5, 20, 10, 30)
    truth = truth_of(
        {
            1: (SIZE, [(1, rectangle(SIZE, 0, 0, 10, 10), 0)]),
            2: (SIZE, [(1, two, 0)]),
            3: (SIZE, []),
        },
        NAMES,
    )
    for image in truth["images"]:
        grey(tmp_path / image["file_name"])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    driver = show(write(tmp_path, "--annotations", tmp_path / "truth.json"))
    assert names(driver) == ["2.tif", "1.tif", "3.tif"]
    assert hover(driver, 8, 8) == "truth: <b>bold</b>, 100 px\n2 pieces"
    press(driver, ".")
    assert text(driver, "told").endswith("2 pieces")
    press(driver, "0")
    press(driver, "t")
    assert not is_grey(pixel(driver, 10, 8))
    press(driver, "x")
    assert is_grey(pixel(driver, 10, 8))
    assert driver.execute_script("return document.getElementById('score')") is None


def test_a_large_image_is_reduced_and_its_outlines_are_not(show, tmp_path, monkeypatch):
    monkeypatch.setattr("cellseg.look.report.MAX_SIDE_PX", 200)
    size = (300, 600)
    truth = truth_of({1: (size, [(1, rectangle(size, 100, 200, 200, 400), 0)])}, NAMES)
    grey(tmp_path / "1.tif", size)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    driver = show(write(tmp_path, "--annotations", tmp_path / "truth.json"))
    assert "600 × 300 px, shown 3 times smaller" in text(driver, "told")
    press(driver, ".")
    press(driver, "0")
    assert hover(driver, 40, 30) == "truth: <b>bold</b>, 20000 px"
    assert "1 of the 1 images are shown in fewer pixels" in driver.page_source
