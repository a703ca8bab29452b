"""Tiles of slides: the pyramid, the cells in tiles, the folder beside the page."""

import base64
import contextlib
import io
import json
import math

import numpy as np
import PIL.Image
import pytest

from cellseg import rle
from cellseg.look import tiles
from cellseg.look.tiles import TileFolder, n_levels, write_cells, write_pyramid
from cellseg.outline import trace
from cellseg.read.window import from_array
from tests.look.test_report_parts import decode_outlines


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(tiles, "PICTURE", 16)
    monkeypatch.setattr(tiles, "CELLS", 20)


def read(folder):
    """Return the content of each tile by its name, as the page gets it."""
    content = {}
    for path in folder.rglob("*.js"):
        name, value = json.loads(f"[{path.read_text().removeprefix('cellsegTile(')[:-3]}]")
        assert f"{name}.js" == path.relative_to(folder).as_posix()
        content[name] = value
    return content


def pixels_of(tile):
    data = base64.b64decode(tile["picture"].removeprefix("data:image/jpeg;base64,"))
    return np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (33, 64), (50, 37), (1, 40)])
def test_each_level_has_all_pixels_once(tmp_path, size):
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.integers(0, 2, (*size, 3)), axis=1) + np.arange(size[0])[:, None, None]
    image = (40 + smooth).astype(np.uint8)
    with TileFolder(tmp_path / "page.html") as folder:
        last = write_pyramid(folder, "0", from_array(image))
        where = folder.finish()
    assert n_levels(size) == 1 + max(0, math.ceil(math.log2(max(size) / 16)))
    content = read(tmp_path / where) if where else {}
    expected = image.astype(float)
    for level in range(n_levels(size)):
        height, width = (math.ceil(side / 2**level) for side in size)
        drawn = np.full((height, width, 3), -1000)
        if level == n_levels(size) - 1:
            drawn[:] = last
        else:
            for row, column in np.ndindex(-(-height // 16), -(-width // 16)):
                picture = pixels_of(content.pop(f"0/{level}/{column}_{row}"))
                drawn[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = picture
        assert np.abs(drawn - expected).mean() < 3
        odd = [(0, side % 2) for side in expected.shape[:2]]
        even = np.pad(expected, (*odd, (0, 0)), mode="edge")
        expected = even.reshape(len(even) // 2, 2, even.shape[1] // 2, 2, 3).mean(axis=(1, 3))
    assert content == {}


def test_cells_are_in_every_tile_that_they_reach_into(tmp_path):
    """Also one over several tiles, one of a pixel in a corner, and one without pixels."""
    size = (45, 70)
    labels = np.zeros(size, np.int32)
    labels[2:43, 15:25] = 1
    labels[44, 69] = 2
    labels[10:20, 40:60] = 3
    _, runs = rle.label_map_to_runs(labels)
    none = np.zeros(0, np.int64)
    empty = rle.MaskRuns(size, none, none, np.zeros(2, np.int64))
    runs = rle.concatenate(size, [runs, empty])
    with TileFolder(tmp_path / "page.html") as folder:
        numbers = write_cells(folder, "3", [runs, rle.concatenate(size, [])])
        content = read(tmp_path / folder.finish())
    traced = [
        [[tuple(point) for point in ring.tolist()] for polygon in cell for ring in polygon]
        for cell in trace(runs)
    ]
    expected: dict[int, list[int]] = {}
    for cell, number in ((n, number) for n in range(3) for number in range(12)):
        row, column = divmod(number, 4)
        part = labels[row * 20 : row * 20 + 20, column * 20 : column * 20 + 20]
        if (part == cell + 1).any():
            expected.setdefault(number, []).append(cell)
    assert numbers == sorted(expected)
    for number in numbers:
        gt, detections = content[f"3/cells/{number}"]["cells"]
        assert gt["ids"] == expected[number]
        assert decode_outlines(gt["outlines"]) == [traced[n] for n in expected[number]]
        assert detections == {"ids": [], "outlines": ""}


def test_a_page_keeps_its_tiles_until_the_next_is_complete(tmp_path):
    page = tmp_path / "page.html"
    with TileFolder(page) as folder:
        folder.write("0/0/0_0", {"n": 1})
        first = folder.finish()
        folder.remove_former()
    with contextlib.suppress(KeyboardInterrupt), TileFolder(page) as folder:
        folder.write("0/0/0_0", {"n": 2})
        raise KeyboardInterrupt
    parent = tmp_path / "page-files"
    assert [tmp_path / first] == list(parent.iterdir())
    (parent / "mine.txt").write_text("kept")
    for n in (1, 2, 2):
        with TileFolder(page) as folder:
            folder.write("0/0/0_0", {"n": n})
            assert (folder.finish() == first) == (n == 1)  # the same content has the same place
            folder.remove_former()
        assert len(list(parent.iterdir())) == 2
    with TileFolder(page) as folder:  # a page without slides
        assert folder.finish() is None
        folder.remove_former()
    assert [path.name for path in parent.iterdir()] == ["mine.txt"]
    (parent / "mine.txt").unlink()
    other = parent / "0123456789abcdef"
    (other / "mine").mkdir(parents=True)
    (other / "mine" / "a.txt").write_text("kept")
    with TileFolder(page) as folder:
        folder.remove_former()
    assert (other / "mine" / "a.txt").is_file()
    (other / "mine" / "a.txt").unlink()
    with TileFolder(page) as folder:
        folder.remove_former()
    assert not parent.exists()
