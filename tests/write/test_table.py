"""The table of cells: every column by hand or by a second implementation, and its files."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import skimage.color
import tifffile

from cellseg.images import ImageCells
from cellseg.messages import HANDLER, print_warnings
from cellseg.rle import boxes_xyxy, concatenate, encode, label_map_to_runs
from cellseg.stains import EOSIN, HAEMATOXYLIN, stain_densities
from cellseg.write import measured, table
from cellseg.write.measured import column_types, measure_cells, measurements
from cellseg.write.table import check_tables, summary_path, write_tables
from tests.read.refusal import refusal

NAMES = ["x", "y"]


def squares(*boxes, size=(40, 60)):
    """Return the masks of boxes, XYXY, which may overlap."""
    parts = []
    for left, top, right, bottom in boxes:
        labels = np.zeros(size, int)
        labels[top:bottom, left:right] = 1
        parts.append(label_map_to_runs(labels)[1])
    return concatenate(size, parts)


def image_of(folder, boxes, classes, name="a", mpp: float | None = 0.5, pixels=None, **more):
    """Return an image with a file and rectangular cells."""
    mask_runs = squares(*boxes)
    path = folder / f"{name}.tif"
    if pixels is None:
        pixels = np.full((*mask_runs.size, 3), 200, np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb")
    return ImageCells(
        id=1, file_name=path.name, path=path, size=mask_runs.size, mpp=mpp, name=name,
        masks=encode(mask_runs), classes=np.array(classes, np.int64),
        boxes=boxes_xyxy(mask_runs), **more,
    )  # fmt: skip


def near(value):
    return pytest.approx(value, abs=2e-6)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_column_by_hand(tmp_path):
    # 4 x 2 px at (10, 10), and 2 x 2 px 30 px further right.
    image = image_of(
        tmp_path, [(10, 10, 14, 12), (41, 10, 43, 12)], [0, 1], scores=np.array([0.75, 0.5])
    )
    path = tmp_path / "cells.csv"
    write_tables([image], NAMES, [path])
    row, other = rows_of(path)
    assert list(row) == list(column_types([image], NAMES))
    assert len({row.pop("id"), other["id"]}) == 2
    assert (row.pop("image"), row.pop("class"), other["class"]) == ("a", "x", "y")
    for name in [name for name in row if "_od_" in name]:
        row.pop(name)  # below
    major, minor = 4 * np.sqrt(15 / 12), 4 * np.sqrt(3 / 12)
    assert {name: float(value) for name, value in row.items()} == pytest.approx(
        {
            "score": 0.75,
            "centroid_x_px": 12, "centroid_y_px": 11, "centroid_x_um": 6, "centroid_y_um": 5.5,
            "box_left_px": 10, "box_top_px": 10, "box_right_px": 14, "box_bottom_px": 12,
            "area_px": 8, "area_um2": 2,
            "perimeter_px": 8, "perimeter_um": 4,
            "major_axis_px": major, "major_axis_um": major / 2,
            "minor_axis_px": minor, "minor_axis_um": minor / 2,
            "eccentricity": np.sqrt(1 - 3 / 15), "solidity": 1, "circularity": 1,
            "nearest_cell_px": 30, "nearest_cell_um": 15,
            "neighbours_25um_x": 0, "neighbours_25um_y": 1,
            "neighbours_50um_x": 0, "neighbours_50um_y": 1,
        },
        abs=1e-3,
    )  # fmt: skip


def test_stains_by_hand_and_by_skimage(tmp_path):
    # The left cell has 0.5 units of haematoxylin in one half and 1 in the other, the right one 0.8
    # of eosin.
    amounts = np.zeros((40, 60, 2))
    amounts[:, 10:12, 0], amounts[:, 12:14, 0], amounts[:, 40:, 1] = 0.5, 1, 0.8
    densities = amounts @ np.array([HAEMATOXYLIN, EOSIN])
    pixels = (256 * 10**-densities - 1).round().clip(0, 255).astype(np.uint8)
    image = image_of(tmp_path, [(10, 10, 14, 20), (42, 10, 50, 20)], [0, 1], pixels=pixels)
    columns = measure_cells(image, NAMES)
    found = [columns[f"{s}_od_{w}"] for s in measured.STAINS for w in ("mean", "std")]
    expected = np.array([[0.75, 0], [0.25, 0], [0, 0.8], [0, 0]])
    np.testing.assert_allclose(found, expected, atol=0.02)

    noise = np.random.default_rng(0).integers(60, 255, (8, 9, 3), dtype=np.uint8)
    residual = np.cross(HAEMATOXYLIN, EOSIN)
    unmix = np.linalg.inv(np.array([HAEMATOXYLIN, EOSIN, residual]))
    of_skimage = skimage.color.separate_stains((noise + 1.0) / 256, unmix)[..., :2]
    decimal = of_skimage * -np.log(1e-6) / np.log(10)
    np.testing.assert_allclose(np.maximum(stain_densities(noise), 0), decimal, atol=1e-4)


def test_stains_do_not_depend_on_windows_or_overlap(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    boxes = [(3, 3, 30, 30), (10, 5, 50, 39), (3, 3, 30, 30), (59, 39, 60, 40)]
    image = image_of(tmp_path, boxes, [0, 1, 0, 1], pixels=pixels)
    whole = measure_cells(image, NAMES)
    monkeypatch.setattr(measured, "_WINDOW", 7)
    densities = stain_densities(pixels).astype(float)
    for n, (left, top, right, bottom) in enumerate(boxes):
        inside = densities[top:bottom, left:right].reshape(-1, 2)
        for s, stain in enumerate(measured.STAINS):
            for columns in (whole, measure_cells(image, NAMES)):
                assert columns[f"{stain}_od_mean"][n] == pytest.approx(
                    inside[:, s].mean(), abs=2e-6
                )
                assert columns[f"{stain}_od_std"][n] == near(inside[:, s].std())


@pytest.mark.parametrize(
    ("mpps", "units"), [([0.5], ["um"]), ([None], ["px"]), ([0.5, None], ["um", "px"])]
)
def test_units_of_the_neighbours(tmp_path, mpps, units):
    # 30 px apart, which is 15 µm.
    images = [
        image_of(tmp_path, [(0, 0, 1, 1), (30, 0, 31, 1)], [0, 1], name=f"i{n}", mpp=mpp)
        for n, mpp in enumerate(mpps)
    ]
    path = tmp_path / "cells.csv"
    write_tables(images, NAMES, [path])
    rows = rows_of(path)
    found = [name for name in rows[0] if name.startswith("neighbours")]
    assert found == [f"neighbours_{r}{u}_{c}" for u in units for r in (25, 50) for c in NAMES]
    for row in rows:
        known = row["image"] == "i0" and mpps[0]
        assert (row["centroid_x_um"] != "") == bool(known)
        if "um" in units:
            assert row["neighbours_25um_x"] in (("0", "1") if known else ("",))
        if "px" in units and not known:
            assert {row["neighbours_25px_x"], row["neighbours_25px_y"]} == {"0"}
            assert {row["neighbours_50px_x"], row["neighbours_50px_y"]} == {"0", "1"}


def test_csv_parquet_and_blocks_have_the_same_rows(tmp_path, monkeypatch):
    images = [
        image_of(tmp_path, [(0, 0, n + 1, 4), (30, 0, 31, 1)], [0, 1], name=f"i{n}", mpp=mpp)
        for n, mpp in enumerate([0.5, None, 0.25])
    ]
    images.insert(1, image_of(tmp_path, [], [], name="empty"))
    paths = [tmp_path / "cells.csv", tmp_path / "cells.parquet"]
    write_tables(images, NAMES, paths)
    rows = pyarrow.parquet.read_table(paths[1])
    assert rows.num_rows == 6
    assert rows.column("image").to_pylist() == ["i0", "i0", "i1", "i1", "i2", "i2"]
    of_csv = pyarrow.csv.read_csv(paths[0])
    for name in ("area_px", "area_um2", "neighbours_25px_x", "solidity", "score"):
        assert of_csv.column(name).to_pylist() == rows.column(name).to_pylist()
    before = paths[0].read_bytes()
    monkeypatch.setattr(table, "_ROWS", 3)
    write_tables(images, NAMES, paths)
    assert paths[0].read_bytes() == before
    assert pyarrow.parquet.read_table(paths[1]).equals(rows)


def test_no_cells_and_no_images(tmp_path):
    for images in ([], [image_of(tmp_path, [], [])]):
        paths = [tmp_path / "cells.csv", tmp_path / "cells.parquet"]
        write_tables(images, NAMES, paths)
        assert rows_of(paths[0]) == []
        assert pyarrow.parquet.read_table(paths[1]).num_rows == 0
        assert rows_of(summary_path(paths[0]))[-1]["count"] == "0"


def test_an_image_that_is_missing_or_of_another_size_has_no_stains(tmp_path, capsys):
    boxes = [(0, 0, 4, 4)]
    images = [image_of(tmp_path, boxes, [0], name=name) for name in ("a", "b", "c")]
    images[0].path.unlink()
    tifffile.imwrite(images[1].path, np.zeros((5, 5, 3), np.uint8), photometric="rgb")
    path = tmp_path / "cells.csv"
    print_warnings()
    before = HANDLER.count
    write_tables(images, NAMES, [path])
    assert HANDLER.count == before + 1
    text = capsys.readouterr().err
    assert "2 images" in text
    assert "a.tif" in text
    assert [row["eosin_od_mean"] == "" for row in rows_of(path)] == [True, True, False]
    assert {row["area_px"] for row in rows_of(path)} == {"16"}
    assert "a.tif" in refusal(measure_cells, images[0], NAMES)


def test_the_summary_next_to_the_table(tmp_path):
    images = [
        image_of(tmp_path, [(0, 0, 4, 4), (9, 9, 11, 11)], [0, 1]),
        image_of(tmp_path, [(0, 0, 2, 2)], [1], name="b"),
    ]
    path = tmp_path / "out" / "cells.parquet"
    write_tables(images, NAMES, [path])
    rows = {(row["image"], row["class"]): row for row in rows_of(path.parent / "cells-summary.csv")}
    assert len(rows) == 9
    assert rows["all", "y"]["count"] == "2"
    # 40 x 60 px of 0.5 µm are 0.0006 mm².
    assert float(rows["a", "x"]["density_per_mm2"]) == pytest.approx(1 / 0.0006, rel=1e-4)
    assert float(rows["all", "all"]["mean_area_um2"]) == pytest.approx(2)
    assert rows["all", "x"]["share_low"] == "0"


def test_densities_are_those_of_the_tissue_that_was_searched(tmp_path):
    image = image_of(tmp_path, [(0, 0, 4, 4)], [0], tissue_px=1200.0)
    path = tmp_path / "cells.csv"
    write_tables([image], NAMES, [path])
    row = rows_of(summary_path(path))[-1]
    assert float(row["area_mm2"]) == pytest.approx(0.0003)
    assert float(row["density_per_mm2"]) == pytest.approx(1 / 0.0003, rel=1e-4)


def test_whole_numbers_of_the_summary_are_in_full(tmp_path):
    image = image_of(tmp_path, [(0, 0, 4, 4)], [0], tissue_px=123_456_789.0)
    write_tables([image], NAMES, [tmp_path / "cells.csv"])
    row = rows_of(tmp_path / "cells-summary.csv")[-1]
    assert (row["area_px"], row["area_mm2"]) == ("123456789", "30.8642")


def test_measurements_are_numbers(tmp_path):
    image = image_of(tmp_path, [(0, 0, 4, 4)], [0], mpp=None)
    (numbers,) = measurements(measure_cells(image, NAMES))
    assert numbers["area_px"] == 16
    assert numbers["area_um2"] is None
    assert "class" not in numbers
    assert "score" not in numbers


def test_anndata(tmp_path):
    anndata = pytest.importorskip("anndata")
    images = [
        image_of(tmp_path, [(0, 0, 4, 4), (9, 9, 11, 11)], [0, 1], scores=np.array([0.5, 1])),
        image_of(tmp_path, [(0, 0, 2, 2)], [1], name="b", mpp=None, scores=np.array([0.7])),
    ]
    paths = [tmp_path / "cells.h5ad", tmp_path / "cells.csv"]
    check_tables(paths[1], paths[0])
    write_tables(images, NAMES, paths)
    data = anndata.read_h5ad(paths[0])
    assert data.obs["class"].tolist() == ["x", "y", "y"]
    assert data.obs["image"].tolist() == ["a", "a", "b"]
    assert data.obs_names.tolist() == [row["id"] for row in rows_of(paths[1])]
    assert data[:, "area_px"].X.ravel().tolist() == [16, 4, 4]
    assert data.obsm["spatial"].tolist() == [[2, 2], [10, 10], [1, 1]]
    check_tables(None, paths[0])  # its own file may be replaced


@pytest.mark.parametrize(
    ("flag", "name", "package"),
    [("--table", "a.csv", "pyarrow"), ("--h5ad", "a.h5ad", "anndata")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, flag, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    paths = (tmp_path / name, None) if flag == "--table" else (None, tmp_path / name)
    text = refusal(check_tables, *paths)
    assert flag in text
    assert f"pip install {package}" in text


def test_other_endings_and_somebody_elses_files(tmp_path):
    assert "cells.xlsx" in refusal(check_tables, tmp_path / "cells.xlsx", None)
    assert "cells.csv" in refusal(check_tables, None, tmp_path / "cells.csv")
    mine = tmp_path / "cells.csv"
    mine.write_text("my,own\n")
    assert "cells.csv: exists" in refusal(check_tables, mine, None)
    mine.unlink()
    summary_path(mine).write_text("my,own\n")
    assert "cells-summary.csv: exists" in refusal(check_tables, mine, None)


def test_tables_and_summaries_have_names_of_their_own(tmp_path):
    table = tmp_path / "a-summary.csv"
    assert "a-summary.csv: is also" in refusal(check_tables, table, tmp_path / "a.h5ad")
    check_tables(tmp_path / "a.csv", tmp_path / "a.h5ad")  # with the same summary


def test_only_tables_of_cells_are_replaced(tmp_path):
    pytest.importorskip("anndata")
    import h5py

    paths = tmp_path / "a.parquet", tmp_path / "a.h5ad"
    write_tables([image_of(tmp_path, [(1, 1, 4, 4)], [0])], NAMES, paths)
    check_tables(*paths)
    pyarrow.parquet.write_table(pyarrow.table({"mine": [1]}), paths[0])
    assert "a.parquet: exists" in refusal(check_tables, *paths)
    paths[0].write_text("mine")
    assert "a.parquet: exists" in refusal(check_tables, *paths)
    paths[0].unlink()
    with h5py.File(paths[1], "w") as file:
        file["mine"] = 1
    assert "a.h5ad: exists" in refusal(check_tables, *paths)
    paths[1].unlink()
    paths[1].mkdir()
    assert "a.h5ad: can't be written (a folder)" in refusal(check_tables, *paths)
