"""The page of a slide in headless Chromium: moving, tiles, densities, rectangles, a phone.

The slide is small; the limits from which on an image is one, and the tiles, are made smaller.
"""

import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import tifffile

import report
from tests.look import browser
from tests.look.browser import act, press, rows, slide, text
from tests.score.scoring_cases import entry, rectangle, truth_of

SIZE = (600, 900)
MPP = 0.5
NAMES = ["</script><b>bold</b>", "l'\"ymph & <co>", "細胞"]
HOSTILE = '100% of \'"#1"?.html'
DARK = (60, 20, 90)


def cells():
    """Cells on a grid of 20 px, all of 10 x 8 px but a large one: (class, top, left, h, w)."""
    rng = np.random.default_rng(0)
    places = [(top, left) for top in range(5, 590, 20) for left in range(5, 890, 20)]
    some = [(int(rng.integers(1, 4)), *place, 10, 8) for place in places if rng.random() < 0.4]
    return [*some, (3, 120, 195, 5, 400)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The page of a slide with ground truth; a twentieth of the cells are not detected."""
    folder = tmp_path_factory.mktemp("slide")
    pixels = np.full((*SIZE, 3), 200, np.uint8)
    pixels[:, 450:] = 150
    masks = []
    for _, top, left, h, w in cells():
        pixels[top : top + h, left : left + w] = DARK
        masks.append(rectangle(SIZE, top, left, top + h, left + w))
    tifffile.imwrite(folder / "1.tif", pixels, tile=(64, 64))
    gt = [(cell[0], mask, 0) for cell, mask in zip(cells(), masks, strict=True)]
    truth = truth_of({1: (SIZE, gt)}, NAMES)
    truth["images"][0]["mpp"] = MPP
    scores = np.random.default_rng(1).random(len(masks)).round(3)
    results = [
        entry(1, cell[0], mask, float(score))
        for n, (cell, mask, score) in enumerate(zip(cells(), masks, scores, strict=True))
        if n % 20 or cell[-1] > 8
    ]
    for name, value in (("truth", truth), ("results", results)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    page = folder / HOSTILE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cellseg.look.report.SLIDE_PX", 256)
        patch.setattr("cellseg.look.tiles.PICTURE", 128)
        patch.setattr("cellseg.look.tiles.CELLS", 64)
        argv = [folder / "results.json", "--truth", folder / "truth.json", "--data", folder]
        assert report.main([*map(str, argv), "--resamples", "0", "--output", str(page)]) == 0
    return page


def kept(page, threshold=0.5):
    """The detections with a score: (class, middle x, middle y)."""
    results = json.loads((page.parent / "results.json").read_text())
    gt = {json.dumps(a["segmentation"]): a["bbox"] for a in annotations(page)}
    boxes = [(e["category_id"], gt[json.dumps(e["segmentation"])], e["score"]) for e in results]
    return [(k, int(x + w / 2), int(y + h / 2)) for k, (x, y, w, h), s in boxes if s >= threshold]


def annotations(page):
    return json.loads((page.parent / "truth.json").read_text())["annotations"]


def truths(page):
    boxes = [(a["category_id"], a["bbox"]) for a in annotations(page)]
    return [(k, int(x + w / 2), int(y + h / 2)) for k, (x, y, w, h) in boxes]


def numbers(pattern, shown):
    """Return the numbers in a text."""
    found = re.search(pattern, shown)
    assert found, shown
    return [float(value.replace(",", "")) for value in found.groups()]


def stage(driver):
    """Left, top, width, height of the viewer on the screen."""
    return driver.execute_script(
        "const box = document.getElementById('stage').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]"
    )


def mode(driver):
    return driver.execute_script("return document.getElementById('canvas').dataset.mode")


def colour(driver, x, y, zooms):
    """The colour at a place of the image, fitted and then enlarged about its middle."""
    _, _, width, height = stage(driver)
    scale = min(width / SIZE[1], height / SIZE[0]) * 1.5**zooms
    place = [width / 2 + (x - SIZE[1] / 2) * scale, height / 2 + (y - SIZE[0] / 2) * scale]
    return driver.execute_script(
        """
        const [x, y] = arguments, copy = document.createElement("canvas").getContext("2d");
        copy.drawImage(document.getElementById("canvas"), -Math.round(x), -Math.round(y));
        return [...copy.getImageData(0, 0, 1, 1).data.slice(0, 3)];
        """,
        *place,
    )


def drag(driver, start, end, shift=True):
    """Drag with the mouse between two places of the viewer, from 0 to 1."""
    left, top, width, height = stage(driver)
    event = {"button": "left", "buttons": 1, "clickCount": 1, "modifiers": 8 * shift}
    for kind, (x, y) in (("Pressed", start), ("Moved", end), ("Released", end)):
        event |= {"type": f"mouse{kind}", "x": left + x * width, "y": top + y * height}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
    act(driver, "")


def test_far_out_densities_near_outlines(show, scored):
    driver = show(scored)
    act(driver, "")
    assert mode(driver) == "density"
    (step,) = numbers(r"squares of ([\d.]+) µm", text(driver, "density"))
    step /= MPP
    counts = Counter((x // step, y // step) for _, x, y in kept(scored))
    most = max(counts.values()) / (step * MPP / 1000) ** 2
    (shown,) = numbers(r"up to ([\d,]+) per mm²", text(driver, "density"))
    assert shown == pytest.approx(most, rel=0.05)
    zooms = 3
    for _ in range(zooms):
        press(driver, "+")
    assert mode(driver) == "outlines"
    assert text(driver, "density") == "" or not driver.find_element("id", "density").is_displayed()
    # The pixels of the slide are where they belong, at full resolution.
    assert np.abs(np.subtract(colour(driver, 440, 300, zooms), 200)).max() < 12
    assert np.abs(np.subtract(colour(driver, 461, 320, zooms), 150)).max() < 12
    press(driver, "0")
    assert mode(driver) == "density"


def at(driver, x, y):
    """What is said of a place of the fitted image, and the colour with alpha there."""
    _, _, width, height = stage(driver)
    scale = min(width / SIZE[1], height / SIZE[0])
    place = width / 2 + (x - SIZE[1] / 2) * scale, height / 2 + (y - SIZE[0] / 2) * scale
    return driver.execute_script(
        """
        const [x, y] = arguments, canvas = document.getElementById("canvas");
        const { left, top } = canvas.getBoundingClientRect();
        const where = { clientX: left + x, clientY: top + y, bubbles: true, pointerId: 9 };
        canvas.dispatchEvent(new PointerEvent("pointermove", where));
        const pen = canvas.getContext("2d");
        return [document.getElementById("tip").textContent, [...pen.getImageData(x, y, 1, 1).data]];
        """,
        *place,
    )


def test_squares_at_the_edge_end_with_the_image(driver, scored):
    browser.show(driver, scored, (900, 1400))  # with room below the image
    browser.wait_until_ready(driver)
    act(driver, "")
    (step,) = numbers(r"squares of ([\d.]+) µm", text(driver, "density"))
    step /= MPP
    top = SIZE[0] // step * step
    assert top < SIZE[0]  # not a whole number of squares
    cells = Counter((x // step, k) for k, x, y in kept(scored) if y >= top)
    (column, class_), n = cells.most_common(1)[0]
    said, colour = at(driver, (column + 0.5) * step, SIZE[0] - 2)
    density = n / (step * (SIZE[0] - top) * MPP**2 / 1e6)
    name = NAMES[class_ - 1]
    assert f"{name}: {n}, {density:,.0f} per mm²" in said.splitlines()
    assert colour[3] == 255
    _, beyond = at(driver, (column + 0.5) * step, SIZE[0] + 4)
    assert beyond[3] == 0


def test_only_tiles_in_view_are_loaded(driver, scored):
    driver.get("about:blank")
    driver.get_log("performance")
    browser.show(driver, scored, (390, 844))
    browser.wait_until_ready(driver)
    act(driver, "document.querySelector('#worst button').click()")
    events = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    asked = [url for url in asked if "-files/" in url]
    names = Counter(url.rsplit("/", 2)[-2] for url in asked)
    index = json.loads(scored.read_text().split('id="index">')[1].split("</script>")[0])
    present = index["images"][0]["slide"]["cells"]
    assert 0 < names["cells"] < len(present) / 2
    assert 0 < names["0"] < 8  # of 8 x 5 at full resolution
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_a_rectangle_counts_the_cells_in_it(show, scored, threshold):
    driver = show(scored)
    slide(driver, threshold)
    for zooms in range(2):
        drag(driver, (0.3 + zooms / 10, 0.3), (0.6, 0.75))
        caption = text(driver, "in-region")
        x0, x1, y0, y1 = numbers(r"x (\d+) to (\d+), y (\d+) to (\d+)", caption)
        assert (x1 - x0) * (y1 - y0) > 10_000
        size = (x1 - x0) * (y1 - y0) * MPP**2 / 1e6
        expected = []
        for of in (kept(scored, threshold), truths(scored)):
            inside = Counter(k for k, x, y in of if x0 <= x < x1 and y0 <= y < y1)
            expected.append([inside[k] for k in (1, 2, 3)])
        table = rows(driver, "in-region")
        assert [row[0] for row in table] == [*NAMES, "shown classes"]
        for k, row in enumerate(table[:3]):
            assert [int(row[1]), int(row[4])] == [expected[0][k], expected[1][k]]
            assert float(row[2].replace(",", "")) == pytest.approx(expected[0][k] / size, abs=0.06)
            share = 100 * expected[0][k] / sum(expected[0])
            assert float(row[3].rstrip(" %")) == pytest.approx(share, abs=0.06)
        assert [int(table[3][1]), int(table[3][4])] == list(map(sum, expected))
        press(driver, "+")
    press(driver, "2")  # the second class is hidden
    table = rows(driver, "in-region")
    assert [row[0] for row in table] == [NAMES[0], NAMES[2], "shown classes"]
    assert int(table[2][1]) == expected[0][0] + expected[0][2]
    press(driver, "Escape")
    assert not driver.find_element("id", "in-region").is_displayed()


def test_the_view_counts_what_is_in_it(show, scored):
    driver = show(scored)
    act(driver, "")
    for threshold in (0.5, 0.9):
        slide(driver, threshold)
        counts = Counter(k for k, _, _ in kept(scored, threshold))
        expected = [counts[k] for k in (1, 2, 3)]
        assert [int(row[1]) for row in rows(driver, "in-view")] == [*expected, sum(expected)]
    press(driver, "+")
    press(driver, "+")
    assert int(rows(driver, "in-view")[-1][1]) < sum(expected)
    assert re.match(r"\d+ µm$", text(driver, "scale"))


def test_rows_and_the_overview_move_the_view(show, scored):
    driver = show(scored)
    assert not driver.find_element("id", "overview").is_displayed()
    act(driver, "document.querySelector('#worst button').click()")
    x, y = map(int, rows(driver, "worst")[0][0].split(", "))
    assert mode(driver) == "outlines"
    assert text(driver, "status").endswith("false negative")  # nothing else is wrong here
    top, left = (y - 5) // 20 * 20 + 5, (x - 5) // 20 * 20 + 5
    assert any(cell[1:3] == (top, left) for cell in cells())
    assert driver.find_element("id", "overview").is_displayed()
    before = text(driver, "in-view")
    act(
        driver,
        """
        const overview = document.getElementById("overview");
        const { left, top } = overview.getBoundingClientRect();
        overview.setPointerCapture = () => {};
        const where = {clientX: left + 9, clientY: top + 9, buttons: 1};
        overview.dispatchEvent(new PointerEvent("pointerdown", where));
        """,
    )
    assert text(driver, "in-view") != before
    # A cell over several tiles is drawn and described once, wherever it is pointed at.
    press(driver, "0")
    for _ in range(3):
        press(driver, "+")
    for _ in range(8):
        press(driver, "ArrowUp", shiftKey=True)  # the image moves down by 60 px
    left, top, width, height = stage(driver)
    scale = min(width / SIZE[1], height / SIZE[0]) * 1.5**3
    for x in (350, 450, 550):
        at_x, at_y = width / 2 + (x - 450) * scale, height / 2 + (122 - 300) * scale + 8 * 60
        assert 0 < at_x < width
        assert 0 < at_y < height
        event = {"type": "mouseMoved", "x": left + at_x, "y": top + at_y}
        driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)
        assert text(driver, "tip").count("ground truth: 細胞, 2000 px, 500.0 µm²") == 1


@pytest.mark.parametrize("width", [390, 1400])
def test_all_can_be_reached_and_touched(show, scored, width):
    driver = show(scored, (width, 844))
    act(driver, "document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    # What is wider than the page is in something that scrolls.
    cut_off = driver.execute_script(
        """
        const scrolls = (e) => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX)
          || scrolls(e.parentElement));
        return [...document.querySelectorAll("body *")].filter((e) => {
          const box = e.getBoundingClientRect();
          const isOut = box.width && box.right > innerWidth + 1;
          return isOut && !scrolls(e) && !e.closest("#stage, svg");
        }).map((e) => e.outerHTML.slice(0, 99));
        """
    )
    assert cut_off == []
    least = 40 if width < 500 else 28
    small = driver.execute_script(
        "return [...document.querySelectorAll('button, select, input, summary')].filter((e) => {"
        " const box = e.getBoundingClientRect(); return box.height && box.height < arguments[0]"
        "}).map((e) => e.outerHTML.slice(0, 99))",
        least,
    )
    assert small == []
    # What one jumps to is not under the controls.
    act(driver, "scrollTo(0, 1e6); document.querySelector('.examples button').click()")
    top, bottom = driver.execute_script(
        "return [document.getElementById('viewer').getBoundingClientRect().top,"
        " getComputedStyle(document.querySelector('.controls')).position === 'sticky'"
        " ? document.querySelector('.controls').getBoundingClientRect().bottom : 0]"
    )
    assert top >= bottom - 1


def test_fingers_draw_a_rectangle_and_pinch(show, scored):
    driver = show(scored, (390, 844))
    act(driver, "document.getElementById('viewer').scrollIntoView();")
    left, top, width, height = stage(driver)

    def touch(kind, *places):
        points = [{"x": left + x * width, "y": top + y * height} for x, y in places]
        event = {"type": f"touch{kind}", "touchPoints": points}
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", event)

    act(driver, "document.getElementById('measure').click()")
    touch("Start", (0.2, 0.4))
    for x in (0.4, 0.6, 0.8):
        touch("Move", (x, 0.6))
    touch("End")
    act(driver, "")
    x0, x1, y0, y1 = numbers(r"x (\d+) to (\d+), y (\d+) to (\d+)", text(driver, "in-region"))
    inside = [1 for _, x, y in kept(scored) if x0 <= x < x1 and y0 <= y < y1]
    assert int(rows(driver, "in-region")[-1][1]) == len(inside) > 0
    act(driver, "document.getElementById('measure').click()")
    before = text(driver, "scale")
    touch("Start", (0.4, 0.5), (0.6, 0.5))
    for d in (0.15, 0.25, 0.35):
        touch("Move", (0.5 - d, 0.5), (0.5 + d, 0.5))
    touch("End")
    act(driver, "")
    assert text(driver, "scale") != before
    assert driver.find_element("id", "overview").is_displayed()


def test_names_are_text(show, scored):
    driver = show(scored)
    assert driver.execute_script("return document.querySelectorAll('b b, td b').length") == 0
    assert text(driver, "class-0") == f"{NAMES[0]}1"
    assert text(driver, "class-1") == f"{NAMES[1]}2"
    assert [row[0] for row in rows(driver, "table")][:3] == NAMES


def test_a_page_without_its_folder_says_so(driver, scored, tmp_path):
    page = tmp_path / "moved.html"
    shutil.copy(scored, page)
    browser.show(driver, page)
    browser.wait_until_ready(driver)
    act(driver, "")
    press(driver, "+")
    assert "-files/" in text(driver, "status")
    assert "keep that folder" in text(driver, "status")
    driver.get_log("browser")
