"""The way back: export.py --to_correct, a person who corrects, annotation.py --corrected."""

from __future__ import annotations

import json
import shutil
import unicodedata
import uuid
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tifffile
from pycocotools.coco import COCO

import annotation
import export
from cellseg.read.corrected_store import (
    Cell,
    Corrected,
    Source,
    add_windows,
    crop,
    load_store,
    write_store,
)
from cellseg.read.layout import TEST_LIST
from tests.read.refusal import refusal
from tests.score.scoring_cases import decode, rle

SIZE = 40, 60
SQUARES = {  # left, top, class 1…, score; 6 x 6 px
    "kept": (4, 4, 1, 0.9),
    "moved": (14, 4, 1, 0.8),
    "renamed": (24, 4, 1, 0.7),
    "deleted": (4, 20, 2, 0.6),
    "crossing": (35, 20, 2, 0.9),  # 5 of its 6 columns are left of 40
    "outside": (50, 20, 1, 0.55),
    "unsure": (50, 4, 2, 0.2),  # below the threshold
}
NAMES = ["alpha", "beta"]


def square(left, top, side=6, size=SIZE):
    mask = np.zeros(size, np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def result(image, left, top, category, score, size=SIZE):
    mask = rle(square(left, top, size=size))
    box = [left, top, 6, 6]
    entry = {"image_id": image, "category_id": category, "score": score}
    return {**entry, "segmentation": mask, "bbox": box}


@pytest.fixture
def data(tmp_path):
    """A data folder with an annotated training image, and three test images."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "data"
    (folder / "train" / "old").mkdir(parents=True)
    (folder / "test").mkdir()
    tifffile.imwrite(
        folder / "train" / "old" / "image.tif", rng.integers(0, 200, (*SIZE, 3), np.uint8)
    )
    labels = np.zeros(SIZE, np.int32)
    for number, (left, top) in enumerate(((4, 4), (30, 10), (50, 30)), 1):
        labels += number * square(left, top)
    tifffile.imwrite(folder / "train" / "old" / "class1.tif", labels)
    listed = []
    for id_, name in enumerate(("new.tif", "empty.tif", "sure.tif"), 7):
        pixels = rng.integers(0, 200, (*SIZE, 3), np.uint8)
        tifffile.imwrite(folder / "test" / name, pixels)
        listed.append({"file_name": name, "id": id_, "height": SIZE[0], "width": SIZE[1]})
    (folder / TEST_LIST).write_text(json.dumps(listed))
    return folder


@pytest.fixture
def results(data):
    path = data.parent / "run" / "test-results.json"
    path.parent.mkdir()
    entries = [result(7, *square) for square in SQUARES.values()]
    entries += [result(9, left, 4, 1, 0.99) for left in range(0, 54, 8)]
    path.write_text(json.dumps(entries))
    return path


def to_correct(data, results, folder, *flags):
    argv = [results, "--data", data, "--to_correct", folder, "--class_names", *NAMES, *flags]
    assert export.main([str(word) for word in argv]) == 0
    return folder


@pytest.fixture
def folder(data, results, tmp_path):
    """The exported windows: new, sure, empty in this order."""
    return to_correct(data, results, tmp_path / "fix")


def take_back(data, folder, *flags):
    argv = ["--data", data, "--corrected", folder, *flags]
    return annotation.main([str(word) for word in argv])


def store(data, corrected, names):
    """Add windows to those of a data folder, as annotation.py does."""
    former = load_store(data, names)
    write_store(data, add_windows(former, corrected, data), names, former)


def load(folder, name="new"):
    return json.loads((folder / f"{name}.geojson").read_text())


def save(folder, features, name="new"):
    """Write as QuPath does: not the bytes that were written."""
    collection = features if isinstance(features, dict) else {"features": features}
    text = json.dumps({"type": "FeatureCollection", **collection}, indent=1)
    (folder / f"{name}.geojson").write_text(text)


def polygon(left, top, right, bottom):
    ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
    return {"type": "Polygon", "coordinates": [ring]}


def drawn(box, class_name=None, id_=None):
    properties: dict[str, object] = {"objectType": "annotation"}
    if class_name:
        properties["classification"] = {"name": class_name}
    id_ = id_ or str(uuid.uuid4())
    return {"type": "Feature", "id": id_, "geometry": polygon(*box), "properties": properties}


def feature_of(features, name):
    left, top, *_ = SQUARES[name]
    return next(
        f for f in features if [left, top] in [p[:2] for p in f["geometry"]["coordinates"][0]]
    )


def correct(folder, region=None):
    """Move, rename, delete and add a cell each."""
    features = load(folder)["features"]
    left, top, *_ = SQUARES["moved"]
    feature_of(features, "moved")["geometry"] = polygon(left, top, left + 8, top + 6)
    feature_of(features, "renamed")["properties"]["classification"] = {"name": "beta"}
    features.remove(feature_of(features, "deleted"))
    features.append(drawn((14, 20, 20, 26), "beta"))
    if region:
        features.append(drawn(region))
    save(folder, features)
    return features


def table(out):
    """The rows of changes by class."""
    lines = out.splitlines()
    first = next(n for n, line in enumerate(lines) if "renamed from" in line)
    rows = {}
    for line in lines[first + 1 :]:
        name, *numbers = line.split()
        rows[name] = [int(number) for number in numbers]
        if name == "all":
            return rows
    raise AssertionError(out)


def cells_of(data, file_name):
    """The masks of an image's cells, by class, in the annotation file."""
    coco = COCO(str(data / "train__annot.json"))
    (image,) = [i for i in coco.imgs.values() if i["file_name"] == file_name]
    found: dict[str, list[np.ndarray]] = {}
    for a in coco.imgToAnns[image["id"]]:
        assert a["iscrowd"] == 0
        name = coco.cats[a["category_id"]]["name"]
        found.setdefault(name, []).append(decode(a["segmentation"]))
    return found


def boxes(masks):
    """Left, top, right, bottom of masks that are full rectangles."""
    found = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns)
        found.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return sorted(tuple(int(n) for n in box) for box in found)


def read_png(path):
    return np.asarray(cv2.imread(str(path)))[..., ::-1]


def test_the_most_uncertain_windows_are_written(data, folder):
    index = json.loads((folder / "index.json").read_text())
    doubt = sum(score * (1 - score) for *_, score in SQUARES.values())
    assert [image["file_name"] for image in index["images"]] == [
        "new.png",
        "sure.png",
        "empty.png",
    ]
    # Small images count as 256 x 256 px.
    assert index["images"][0]["uncertainty"] == pytest.approx(doubt / 256**2 * 1e6, abs=1e-3)
    assert index["images"][2]["uncertainty"] == 0
    features = load(folder)["features"]
    assert len(features) == 6  # not the one below the threshold
    assert {f["properties"]["objectType"] for f in features} == {"annotation"}
    assert len({f["id"] for f in features}) == 6
    assert (read_png(folder / "new.png") == tifffile.imread(data / "test" / "new.tif")).all()
    assert len((folder / "README.txt").read_text().splitlines()) == 2


def test_a_correction_becomes_a_training_image(data, folder, capsys):
    correct(folder)
    assert take_back(data, folder) == 0
    out, err = capsys.readouterr()
    assert table(out) == {  # written, moved, renamed from, to, added, deleted, now
        "alpha": [4, 1, 1, 0, 0, 0, 3],
        "beta": [2, 0, 0, 1, 1, 1, 3],
        "all": [6, 1, 1, 1, 1, 1, 6],
    }
    assert "2 unchanged" in out
    assert "whole" in out
    assert "test images" in err  # which should not be scored any more
    found = cells_of(data, "corrected/new.png")
    assert boxes(found["alpha"]) == [(4, 4, 10, 10), (14, 4, 22, 10), (50, 20, 56, 26)]
    assert boxes(found["beta"]) == [(14, 20, 20, 26), (24, 4, 30, 10), (35, 20, 41, 26)]
    image = data / "corrected" / "new.png"
    assert (read_png(image) == tifffile.imread(data / "test" / "new.tif")).all()
    assert len(cells_of(data, "train/old/image.tif")["alpha"]) == 3  # as before


def test_only_the_region_is_learned_from(data, folder, capsys):
    features = correct(folder, region=(2, 2, 40, 32))
    assert take_back(data, folder) == 0
    assert "1 cell outside" in capsys.readouterr().out
    found = cells_of(data, "corrected/new.png")
    # Cropped to the region; the cell that crosses its border is whole.
    assert boxes(found["alpha"]) == [(2, 2, 8, 8), (12, 2, 20, 8)]
    assert boxes(found["beta"]) == [(12, 18, 18, 24), (22, 2, 28, 8), (33, 18, 39, 24)]
    pixels = read_png(data / "corrected" / "new.png")
    assert pixels.shape == (30, 39, 3)
    expected = np.full((30, 39, 3), 255, np.uint8)
    whole = tifffile.imread(data / "test" / "new.tif")
    expected[:, :38] = whole[2:32, 2:40]
    expected[18:24, 38] = whole[20:26, 40]
    assert (pixels == expected).all()

    # Nothing outside makes a difference: no pixel, no cell.
    before = (data / "train__annot.json").read_bytes()
    image = np.asarray(cv2.imread(str(folder / "new.png")))
    outside = np.ones(SIZE, bool)
    outside[2:32, 2:40] = False
    outside[20:26, 40] = False
    image[outside] = 255 - image[outside]
    cv2.imwrite(str(folder / "new.png"), image)
    features.remove(feature_of(features, "outside"))
    features.append(drawn((44, 30, 58, 38), "beta"))
    save(folder, features)
    assert take_back(data, folder) == 0
    assert (read_png(data / "corrected" / "new.png") == expected).all()
    assert (data / "train__annot.json").read_bytes() == before


@pytest.mark.parametrize("ids", ["kept", "lost"])
def test_corrections_outside_the_regions_are_said(data, folder, capsys, ids):
    def warned(features):
        features = [*features, drawn((0, 0, 12, 12))]
        if ids == "lost":
            features = [{**feature, "id": str(uuid.uuid4())} for feature in features]
        save(folder, features)
        assert take_back(data, folder) == 0
        out, err = capsys.readouterr()
        assert table(out)["all"] == [1, 0, 0, 0, 0, 0, 1]  # inside, nothing was changed
        found = [line for line in err.splitlines() if "outside the regions" in line]
        return out, [line.rpartition(": ")[2] for line in found]

    features = load(folder)["features"]
    out, lost = warned(features)
    assert "5 cells outside" in out
    assert not lost
    corners = [np.array(each["geometry"]["coordinates"][0]) for each in features]
    inside = [each for each, points in zip(features, corners, strict=True) if points.max() <= 12]
    assert len(inside) == 1
    assert not warned(inside)[1]  # the others were not exported
    moved = feature_of(features, "moved")
    moved["geometry"] = polygon(15, 4, 21, 10)  # IoU 30 / 42
    assert warned(features)[1] == ["new.png (1)"]
    feature_of(features, "renamed")["properties"]["classification"] = {"name": "beta"}
    assert warned(features)[1] == ["new.png (2)"]
    features.remove(feature_of(features, "deleted"))
    assert warned(features)[1] == ["new.png (3)"]
    features.append(drawn((14, 20, 20, 26), "beta"))
    out, lost = warned(features)
    assert "5 cells outside" in out
    assert lost == ["new.png (4)"]


def test_ignored_cells_outside_the_regions_do_not_count(data, folder, capsys):
    region = drawn((0, 0, 12, 12))
    there = [drawn(box, "Ignore*") for box in ((30, 30, 36, 36), (12, 2, 18, 8), (70, 4, 76, 8))]
    save(folder, [*load(folder)["features"], region, *there])
    assert take_back(data, folder) == 0
    assert "ignored classes" not in capsys.readouterr().out
    reaches_in = drawn((11, 11, 20, 20), "Ignore*")  # by one pixel
    save(folder, [*load(folder)["features"], region, *there, reaches_in])
    assert take_back(data, folder) == 0
    assert "1 cell of ignored classes" in capsys.readouterr().out
    pixels = read_png(data / "corrected" / "new.png")
    assert (pixels[11, 11] == 255).all()
    assert (pixels == 255).all(axis=2).sum() == 1


def test_several_regions(data, folder):
    features = load(folder)["features"]
    features += [drawn((0, 0, 12, 12)), drawn((48, 18, 58, 28), "Region*")]
    save(folder, features)
    assert take_back(data, folder) == 0
    found = cells_of(data, "corrected/new.png")
    assert list(found) == ["alpha"]
    assert boxes(found["alpha"]) == [(4, 4, 10, 10), (50, 20, 56, 26)]
    pixels = read_png(data / "corrected" / "new.png")
    seen = np.zeros((28, 58), bool)
    seen[:12, :12] = seen[18:, 48:] = True
    whole = tifffile.imread(data / "test" / "new.tif")[:28, :58]
    assert (pixels[seen] == whole[seen]).all()
    assert (pixels[~seen] == 255).all()


def test_the_same_again_changes_nothing_and_can_be_undone(data, folder):
    argv = ["--data", str(data), "--class_names", *NAMES]
    assert annotation.main(argv) == 0
    output = data / "train__annot.json"
    before = output.read_bytes()
    correct(folder, region=(2, 2, 40, 32))
    assert take_back(data, folder) == 0
    files = {p.name: p.read_bytes() for p in (data / "corrected").iterdir()}
    with_correction = output.read_bytes()
    assert take_back(data, folder) == 0
    assert {p.name: p.read_bytes() for p in (data / "corrected").iterdir()} == files
    assert output.read_bytes() == with_correction
    assert annotation.main(argv) == 0  # keeps it
    assert output.read_bytes() == with_correction
    for path in (data / "corrected").iterdir():
        path.unlink()
    assert annotation.main(argv) == 0
    assert output.read_bytes() == before


def test_a_second_correction_replaces_the_first(data, results, folder, tmp_path):
    correct(folder)
    assert take_back(data, folder) == 0
    second = to_correct(data, results, tmp_path / "again", "--count", 1)
    save(second, [drawn((0, 0, 6, 6), "beta")])
    assert take_back(data, second) == 0
    assert [p.name for p in (data / "corrected").glob("*.png")] == ["new.png"]
    assert boxes(cells_of(data, "corrected/new.png")["beta"]) == [(0, 0, 6, 6)]


def test_what_was_not_looked_through_again_stays(data, results, folder, tmp_path):
    correct(folder)
    assert take_back(data, folder) == 0
    second = to_correct(data, results, tmp_path / "again", "--count", 1)
    save(second, [drawn((42, 18, 60, 40)), drawn((50, 30, 56, 36), "beta")])
    for _ in range(2):
        assert take_back(data, second) == 0
        assert {p.name for p in (data / "corrected").glob("*.png")} == {"new-2.png", "new.png"}
        assert boxes(cells_of(data, "corrected/new-2.png")["beta"]) == [(8, 12, 14, 18)]
        found = cells_of(data, "corrected/new.png")
        assert boxes(found["alpha"]) == [(4, 4, 10, 10), (14, 4, 22, 10)]
        assert boxes(found["beta"]) == [(14, 20, 20, 26), (24, 4, 30, 10), (35, 20, 41, 26)]


def test_lost_ids_are_matched_by_overlap(data, folder, capsys):
    features = correct(folder)
    for feature in features:
        feature["id"] = str(uuid.uuid4())
    save(folder, features)
    assert take_back(data, folder) == 0
    out = capsys.readouterr().out
    assert "matched by overlap" in out
    assert table(out)["all"] == [6, 1, 1, 1, 1, 1, 6]  # IoU of the moved one: 36 / 48


def test_negatives(data, folder, capsys):
    save(folder, [drawn((0, 0, 30, 30))], "empty")
    save(folder, [], "sure")
    assert take_back(data, folder) == 0
    assert ": 2" in next(e for e in capsys.readouterr().err.splitlines() if "without a cell" in e)
    assert cells_of(data, "corrected/empty.png") == cells_of(data, "corrected/sure.png") == {}


def test_a_file_of_selected_objects_only(data, folder, capsys):
    save(folder, load(folder)["features"][:1])
    assert take_back(data, folder) == 0
    assert "new.png (5)" in next(
        line for line in capsys.readouterr().err.splitlines() if "deleted" in line
    )


def test_all_that_must_be_fixed_is_said_at_once(data, folder):
    features = load(folder)["features"]
    del feature_of(features, "kept")["properties"]["classification"]
    feature_of(features, "moved")["properties"]["classification"] = {"name": "gamma cell"}
    save(folder, features)
    save(folder, [drawn((0, 0, 6, 6)), *load(folder, "sure")["features"]], "sure")
    (folder / "empty.geojson").write_text("{")
    error = refusal(take_back, data, folder)
    for text in ("new.geojson", "sure.geojson", "empty.geojson", "gamma cell", "without a class"):
        assert text in error
    assert "--class_names alpha beta 'gamma cell'" in error
    assert not (data / "corrected").exists()


@pytest.mark.parametrize("problem", ["class", "former", "mask", "list", "name", "output", "coco"])
def test_nothing_is_stored_unless_all_was_read(data, folder, tmp_path, problem):
    argv = ["--data", str(data), "--class_names", *NAMES]
    assert annotation.main(argv) == 0
    before = (data / "train__annot.json").read_bytes()
    old = data / "train" / "old"
    flags: list[object] = []
    if problem == "class":  # the classes are those of the windows
        (old / "class1.tif").rename(old / "class3.tif")
    elif problem == "former":  # former windows have other classes
        store(data, [window_of("a", 0, [(4, 4)])], ["gamma", "delta"])
    elif problem == "mask":
        (old / "class1.tif").write_bytes(b"II")
    elif problem == "list":
        (data / TEST_LIST).write_text("{")
    elif problem == "name":
        old.rename(data / "train" / "new")
    elif problem == "output":
        (tmp_path / "mine.json").write_text("[]")
        flags = ["--output", tmp_path / "mine.json"]
    else:
        flags = ["--coco", tmp_path / "gone.json"]
    files = {p: p.read_bytes() for p in data.rglob("*") if p.is_file()}
    correct(folder)
    error = refusal(take_back, data, folder, *flags)
    assert {p: p.read_bytes() for p in data.rglob("*") if p.is_file()} == files
    if problem == "former":
        assert f"{data / 'corrected'}, " in error  # the folder can be removed, too
        shutil.rmtree(data / "corrected")
        assert annotation.main(argv) == 0
        assert (data / "train__annot.json").read_bytes() == before


def test_only_windows_that_are_not_used(data, folder):
    """The data folder has nothing else: they are of validation images of the run."""
    index = json.loads((folder / "index.json").read_text())
    for image in index["images"]:
        image["source"]["held_out"] = True
    (folder / "index.json").write_text(json.dumps(index))
    shutil.rmtree(data / "train")
    correct(folder)
    assert str(data) in refusal(take_back, data, folder)
    assert not (data / "corrected").exists()


def test_the_resolution_that_was_stated_is_kept(data, folder, capsys):
    """As the class names are, --mpp need not be given again."""
    output = data / "train__annot.json"

    def resolutions():
        return {i["file_name"]: i.get("mpp") for i in json.loads(output.read_text())["images"]}

    argv = ["--data", str(data), "--class_names", *NAMES]
    index = json.loads((folder / "index.json").read_text())
    for image in index["images"]:
        image["mpp"] = 0.46
    (folder / "index.json").write_text(json.dumps(index))
    correct(folder)
    assert take_back(data, folder) == 0
    assert resolutions() == {"corrected/new.png": 0.46, "train/old/image.tif": None}
    assert annotation.main([*argv, "--mpp", "0.25"]) == 0
    both = {"corrected/new.png": 0.46, "train/old/image.tif": 0.25}
    assert resolutions() == both
    capsys.readouterr()
    for _ in range(2):
        assert take_back(data, folder) == 0
        assert resolutions() == both
        assert f"of 1 image as in the former {output}: 0.25" in capsys.readouterr().out
    # Into another file, too.
    other = data / "other.json"
    assert take_back(data, folder, "--output", other) == 0
    assert {i.get("mpp") for i in json.loads(other.read_text())["images"]} == {0.25, 0.46}
    assert take_back(data, folder, "--mpp", 0.3) == 0
    assert resolutions() == {**both, "train/old/image.tif": 0.3}
    # Anew without the flag, as without corrections: said, but not kept.
    capsys.readouterr()
    assert annotation.main(argv) == 0
    assert resolutions() == {**both, "train/old/image.tif": None}
    (lost,) = [e for e in capsys.readouterr().err.splitlines() if "--mpp 0.3" in e]
    assert str(output) in lost
    assert annotation.main(argv) == 0
    assert "--mpp" not in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--mpp", "0.25"]])
def test_training_images_that_are_lost_are_said(data, folder, capsys, flags):
    """Those of a COCO file, without that flag: only the windows would be left."""
    argv = ["--data", str(data), "--class_names", *NAMES]
    assert annotation.main(argv) == 0
    coco = data / "export.json"
    (data / "train__annot.json").rename(coco)
    (data / "train").rename(data / "images")
    coco.write_text(coco.read_text().replace("train/old", "images/old"))
    assert annotation.main(["--data", str(data), "--coco", str(coco)]) == 0
    correct(folder)
    capsys.readouterr()
    assert take_back(data, folder, "--coco", coco, *flags) == 0
    assert "--coco" not in capsys.readouterr().err
    assert take_back(data, folder, *flags) == 0
    (said,) = [e for e in capsys.readouterr().err.splitlines() if "--coco" in e]
    assert ": 1: images/old/image.tif" in said


@pytest.mark.parametrize("change", ["size", "stated", "damaged"])
def test_a_resolution_that_does_not_fit_is_not_kept(data, folder, capsys, change):
    """The image is another one now, or its file says another resolution than --mpp did."""
    output = data / "train__annot.json"
    assert annotation.main(["--data", str(data), "--class_names", *NAMES, "--mpp", "0.25"]) == 0
    path = data / "train" / "old" / "image.tif"
    pixels = tifffile.imread(path)
    if change == "size":
        tifffile.imwrite(path, pixels[:32])
        labels = tifffile.imread(path.parent / "class1.tif")
        tifffile.imwrite(path.parent / "class1.tif", labels[:32])
    elif change == "stated":
        tifffile.imwrite(path, pixels, resolution=(20000, 20000), resolutionunit="CENTIMETER")
    else:
        output.write_text(output.read_text()[:-2])
    correct(folder)
    capsys.readouterr()
    assert take_back(data, folder) == 0
    images = {i["file_name"]: i.get("mpp") for i in json.loads(output.read_text())["images"]}
    assert images["train/old/image.tif"] == (0.5 if change == "stated" else None)
    err = capsys.readouterr().err
    assert ("--mpp 0.25" in err) == (change != "damaged")
    assert str(output) in err


def test_skip_bad_leaves_out_whole_windows(data, folder, capsys):
    correct(folder)
    (folder / "empty.geojson").write_text("{")
    assert take_back(data, folder, "--skip_bad") == 0
    assert "empty.geojson" in capsys.readouterr().err
    assert [p.name for p in (data / "corrected").glob("*.png")] == ["new.png"]


def test_class_names_are_advised_where_one_is_unknown_only(data, folder, capsys):
    correct(folder)
    save(folder, [drawn((0, 0, 6, 6), "gamma")], "sure")
    (folder / "empty.geojson").write_text('{"features": [')
    assert take_back(data, folder, "--skip_bad") == 0
    of_file = {
        name: line
        for line in capsys.readouterr().err.splitlines()
        for name in ("sure", "empty")
        if f"{name}.geojson" in line
    }
    assert "--class_names alpha beta gamma" in of_file["sure"]
    assert "--class_names" not in of_file["empty"]


def test_ignored_outlines_are_said_with_their_files(data, folder, capsys):
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}
    outside = [drawn((9000, 9, 9008, 17), "alpha"), drawn((9020, 9, 9028, 17), "alpha")]
    save(folder, [*correct(folder), *outside])
    save(folder, [*load(folder, "sure")["features"], outside[0], point], "sure")
    assert take_back(data, folder) == 0
    lines = capsys.readouterr().err.splitlines()
    (empty,) = [line for line in lines if "no pixel" in line]
    assert "ignored: 3: new.geojson (2), sure.geojson (1)" in empty
    (points,) = [line for line in lines if "points, lines" in line]
    assert "ignored: 1: sure.geojson (1)" in points


def test_ignored_cells_are_neither_cells_nor_background(data, folder):
    features = load(folder)["features"]
    feature_of(features, "kept")["properties"]["classification"] = {"name": "Ignore*"}
    save(folder, features)
    assert take_back(data, folder) == 0
    pixels = read_png(data / "corrected" / "new.png")
    assert (pixels[4:10, 4:10] == 255).all()
    assert not (pixels[3] == 255).all(axis=1).any()
    assert (4, 4, 10, 10) not in boxes(cells_of(data, "corrected/new.png")["alpha"])


def test_a_file_of_another_name_counts_before_the_unchanged_one(data, folder, capsys):
    (folder / "corrected by me").mkdir()
    text = json.dumps({"type": "FeatureCollection", "features": [drawn((0, 0, 6, 6), "alpha")]})
    (folder / "corrected by me" / "new.png.geojson").write_text(text)
    (folder / "foreign.geojson").write_text(text)
    assert take_back(data, folder) == 0
    assert "foreign.geojson" in capsys.readouterr().err
    assert boxes(cells_of(data, "corrected/new.png")["alpha"]) == [(0, 0, 6, 6)]
    save(folder, [])
    assert "new.png.geojson" in refusal(take_back, data, folder)


def test_nothing_corrected(data, folder):
    assert "3 windows" in refusal(take_back, data, folder)


@pytest.mark.parametrize("damage", ["missing", "no source", "outside", "not COCO"])
def test_a_damaged_index(data, folder, damage):
    correct(folder)
    path = folder / "index.json"
    index = json.loads(path.read_text())
    if damage == "missing":
        path.unlink()
    elif damage == "no source":
        del index["images"][0]["source"]["x"]
    elif damage == "outside":
        index["images"][0]["file_name"] = "../new.png"
    else:
        index = []
    if damage != "missing":
        path.write_text(json.dumps(index))
    assert "index.json" in refusal(take_back, data, folder)


def test_coco_of_another_program(data, folder, capsys):
    """As CVAT exports it: no ids, brush masks as crowds."""
    index = json.loads((folder / "index.json").read_text())
    first = [a for a in index["annotations"] if a["image_id"] == 1]
    for a in index["annotations"]:
        del a["cell"]
        a["iscrowd"] = 1
    index["annotations"].remove(first[-1])
    for image in index["images"]:
        del image["source"]
    path = folder / "instances_default.json"
    path.write_text(json.dumps(index))
    assert take_back(data, path) == 0
    out = capsys.readouterr().out
    assert "2 unchanged" in out
    assert "matched by overlap" in out
    assert table(out)["all"] == [6, 0, 0, 0, 0, 1, 5]


def test_a_window_of_a_training_image_replaces_that_part(data, tmp_path, capsys):
    results = tmp_path / "own" / "images-results.json"
    results.parent.mkdir()
    results.write_text(json.dumps([result(1, 4, 4, 2, 0.8), result(1, 30, 10, 1, 0.9)]))
    image = str(data / "train" / "old" / "image.tif")
    entry = {"file_name": image, "id": 1, "height": SIZE[0], "width": SIZE[1]}
    (results.parent / "images-results-list.json").write_text(json.dumps([entry]))
    folder = to_correct(data, results, tmp_path / "own fix")
    save(folder, [drawn((8, 8, 14, 14), "beta"), drawn((0, 0, 33, 20))], "old")
    assert take_back(data, folder) == 0
    assert "replace a part of a training image: 1" in capsys.readouterr().out
    found = cells_of(data, "train/old/image.tif")
    assert boxes(found["beta"]) == [(8, 8, 14, 14)]
    # Of the cell at 30, 10 half is outside the region; the one at 4, 4 was in it.
    assert boxes(found["alpha"]) == [(33, 10, 36, 16), (50, 30, 56, 36)]


def test_a_moved_image_is_still_the_training_image(data, tmp_path):
    """Or the same pixels would be learned from twice, and with former cells."""
    results = tmp_path / "own" / "images-results.json"
    results.parent.mkdir()
    results.write_text(json.dumps([result(1, 4, 4, 2, 0.8)]))
    moved = tmp_path / "elsewhere" / "old"
    shutil.copytree(data / "train" / "old", moved)
    image = str(moved / "image.tif")
    entry = {"file_name": image, "id": 1, "height": SIZE[0], "width": SIZE[1]}
    (results.parent / "images-results-list.json").write_text(json.dumps([entry]))
    folder = to_correct(data, results, tmp_path / "own fix")
    save(folder, [drawn((8, 8, 14, 14), "beta")], "old")
    assert take_back(data, folder) == 0
    coco = json.loads((data / "train__annot.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["train/old/image.tif"]
    assert boxes(cells_of(data, "train/old/image.tif")["beta"]) == [(8, 8, 14, 14)]


def test_cells_that_were_imported_twice_count_once(data, folder, capsys):
    features = load(folder)["features"]
    for n, feature in enumerate(features):
        features[n] = {**feature, "id": str(uuid.uuid4())}
    save(folder, features + load(folder)["features"])
    assert take_back(data, folder) == 0
    captured = capsys.readouterr()
    assert table(captured.out)["all"] == [6, 0, 0, 0, 0, 0, 6]
    assert "of another, ignored: 6: new.png (6)" in captured.err


def test_a_level_of_a_training_image_is_not_another_image(data, capsys):
    """It may be in the validation set."""
    window = window_of("a", 0, [(4, 4)])
    path = str(data / "train" / "old" / "image.tif")
    store(data, [replace(window, source=replace(window.source, path=path, level=1))], NAMES)
    assert annotation.main(["--data", str(data), "--class_names", *NAMES]) == 0
    assert "level of a training image, not used: 1: a" in capsys.readouterr().err
    coco = json.loads((data / "train__annot.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["train/old/image.tif"]


def test_a_region_of_a_single_class(data, results, tmp_path, capsys):
    """Whose cells need no name: what is large and new is no cell."""
    results.write_text(json.dumps([result(7, 4, 4, 1, 0.9), result(7, 14, 4, 1, 0.9)]))
    argv = [results, "--data", data, "--to_correct", tmp_path / "fix", "--class_names", "nucleus"]
    assert export.main([str(word) for word in argv]) == 0
    kept = load(tmp_path / "fix")["features"][:1]
    save(tmp_path / "fix", [*kept, drawn((14, 20, 22, 28)), drawn((0, 0, 40, 40))])
    shutil.rmtree(data / "train")
    assert take_back(data, tmp_path / "fix") == 0
    found = cells_of(data, "corrected/new.png")
    assert boxes(found["nucleus"]) == [(4, 4, 10, 10), (14, 20, 22, 28)]
    assert "without a region" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Region", "Tumor*"])
def test_classes_with_the_names_of_regions_and_ignored_cells(data, folder, name, capsys):
    save(folder, [drawn((14, 20, 22, 28), name)])
    assert take_back(data, folder, "--class_names", *NAMES, name) == 0
    assert boxes(cells_of(data, "corrected/new.png")[name]) == [(14, 20, 22, 28)]
    assert "ignored" not in capsys.readouterr().out


def test_the_classes_of_windows_are_those_after_merging(data, folder):
    old = data / "train" / "old"
    (old / "class1.tif").rename(old / "class3.tif")
    correct(folder)
    names = ["--class_names", "alpha 1", "beta", "alpha 2"]
    assert take_back(data, folder, *names, "--merge_classes", "alpha", "alpha 1", "alpha 2") == 0
    found = cells_of(data, "corrected/new.png")
    assert boxes(found["alpha"]) == [(4, 4, 10, 10), (14, 4, 22, 10), (50, 20, 56, 26)]
    assert boxes(found["beta"]) == [(14, 20, 20, 26), (24, 4, 30, 10), (35, 20, 41, 26)]
    assert boxes(cells_of(data, "train/old/image.tif")["alpha"]) == [
        (4, 4, 10, 10), (30, 10, 36, 16), (50, 30, 56, 36),
    ]  # fmt: skip


def test_windows_that_were_corrected_before_classes_were_merged(data, folder):
    """Exported, and stored, with the former names."""
    old = data / "train" / "old"
    correct(folder)
    assert take_back(data, folder) == 0
    before = cells_of(data, "corrected/new.png")
    (old / "class1.tif").rename(old / "class2.tif")
    names = [
        "--class_names",
        *NAMES,
        "--merge_classes",
        "Beta",
        "beta",
        "--merge_classes",
        "A",
        "alpha",
    ]
    for again in ([], ["--corrected", str(folder)]):
        assert annotation.main(["--data", str(data), *names, *again]) == 0
        after = cells_of(data, "corrected/new.png")
        assert {name: boxes(masks) for name, masks in after.items()} == {
            "A": boxes(before["alpha"]), "Beta": boxes(before["beta"]),
        }  # fmt: skip
        assert [*cells_of(data, "train/old/image.tif")] == ["Beta"]


def test_a_merge_is_not_forgotten(data, folder):
    merge = ["--class_names", "alpha", "a2", "beta", "--merge_classes", "alpha", "alpha", "a2"]
    assert annotation.main(["--data", str(data), *merge]) == 0
    former = (data / "train__annot.json").read_bytes()
    correct(folder)
    message = refusal(take_back, data, folder)
    assert "repeat --class_names alpha a2 beta --merge_classes alpha alpha a2" in message
    assert (data / "train__annot.json").read_bytes() == former
    assert take_back(data, folder, *merge) == 0


@pytest.mark.parametrize(("written", "read"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_with_accents_are_one_character_or_two(data, results, tmp_path, written, read):
    """macOS may decompose them: in GeoJSON, in COCO, in the flags and in what was stored."""
    ours, theirs = (unicodedata.normalize(form, "épithélium") for form in (written, read))
    assert ours != theirs
    folder = tmp_path / "fix"
    flags = ["--to_correct", folder, "--class_names", ours, "beta"]
    assert export.main([str(word) for word in [results, "--data", data, *flags]]) == 0
    features = load(folder)["features"]
    for feature in features:
        if feature["properties"]["classification"]["name"] == ours:
            feature["properties"]["classification"]["name"] = theirs
    expected = [(4, 4, 10, 10), (14, 4, 20, 10), (24, 4, 30, 10), (50, 20, 56, 26)]
    save(folder, features)
    assert take_back(data, folder) == 0
    assert boxes(cells_of(data, "corrected/new.png")[ours]) == expected
    # The stored cells and the index, with the classes of a later command.
    assert annotation.main(["--data", str(data), "--class_names", theirs, "beta"]) == 0
    assert boxes(cells_of(data, "corrected/new.png")[theirs]) == expected
    content = json.loads((folder / "coco.json").read_text())
    content["categories"][0]["name"] = theirs
    content["annotations"].remove(content["annotations"][0])
    path = folder / "cvat.json"
    path.write_text(json.dumps(content))
    for names in ([], ["--class_names", theirs, "beta"]):
        assert take_back(data, path, *names) == 0
        assert (
            boxes(cells_of(data, "corrected/new.png")[names[1] if names else ours]) == expected[1:]
        )


def test_class_names_that_can_not_be_used(data, folder):
    correct(folder)
    error = refusal(take_back, data, folder, "--class_names", *NAMES, "Alpha")
    assert "'alpha' and 'Alpha'" in error
    assert not (data / "corrected").exists()


def test_a_broken_outline_is_not_left_out_in_silence(data, folder, capsys):
    features = load(folder)["features"]
    features[0]["geometry"]["coordinates"][0][1] = [None, 3]
    save(folder, features)
    assert "feature 1" in refusal(take_back, data, folder)
    save(folder, load(folder, "sure")["features"], "sure")
    assert take_back(data, folder, "--skip_bad") == 0
    assert "new.geojson: feature 1" in capsys.readouterr().err


def test_problems_of_a_coco_file_are_those_of_its_windows(data, folder, capsys):
    coco = json.loads((folder / "coco.json").read_text())
    coco["categories"].append({"id": 9, "name": "gamma"})
    of_image = {i["file_name"]: i["id"] for i in coco["images"]}
    new = [a for a in coco["annotations"] if a["image_id"] == of_image["new.png"]]
    sure = [a for a in coco["annotations"] if a["image_id"] == of_image["sure.png"]]
    new[0]["category_id"] = 9
    coco["annotations"].remove(sure[0])
    coco["images"].append({"id": 99, "file_name": "foreign.png", "height": 9, "width": 9})
    path = folder / "instances_default.json"
    path.write_text(json.dumps(coco))
    error = refusal(take_back, data, path)
    assert "gamma" in error
    assert take_back(data, path, "--skip_bad") == 0
    captured = capsys.readouterr()
    assert "foreign.png" in captured.err
    assert table(captured.out)["all"][5] == 1
    new[0]["category_id"] = 1
    new[0]["segmentation"] = [[1, 2, None, 4, 5, 6]]
    path.write_text(json.dumps(coco))
    assert "neither an RLE" in refusal(take_back, data, path)


def test_the_coco_file_comes_back(data, folder, capsys):
    """Its polygons give the masks that were written."""
    content = json.loads((folder / "coco.json").read_text())
    path = folder / "instances_default.json"
    path.write_text(json.dumps(content))
    assert "3 windows" in refusal(take_back, data, path)  # nothing was changed
    first = content["annotations"][0]
    first["category_id"] = 2
    content["annotations"][1]["category_id"] = 7
    path.write_text(json.dumps(content | {"categories": [*content["categories"], GAMMA]}))
    assert "--class_names alpha beta gamma" in refusal(take_back, data, path)
    content["annotations"][1]["category_id"] = 1
    path.write_text(json.dumps(content))
    assert take_back(data, path) == 0
    assert table(capsys.readouterr().out)["all"] == [6, 0, 1, 1, 0, 0, 6]
    assert (4, 4, 10, 10) in boxes(cells_of(data, "corrected/new.png")["beta"])


@pytest.mark.parametrize("name", ["Ignore*", " ambiguous"])
def test_ignored_cells_of_a_coco_file(data, folder, name, capsys):
    """They are neither cells nor background, as in QuPath's files."""
    content = json.loads((folder / "coco.json").read_text())
    content["categories"].append({"id": 9, "name": name})
    path = folder / "cvat.json"
    path.write_text(json.dumps(content))
    assert "was changed" in refusal(take_back, data, path)
    first = content["annotations"][0]
    first["category_id"] = 9
    path.write_text(json.dumps(content))
    assert take_back(data, path) == 0
    out = capsys.readouterr().out
    assert table(out)["all"] == [6, 0, 0, 0, 0, 1, 5]
    assert "1 cell of ignored classes: neither cells nor background" in out
    left, top, width, height = map(int, first["bbox"])
    found = cells_of(data, "corrected/new.png")
    assert (left, top, left + width, top + height) not in boxes(found["alpha"])
    stored = read_png(data / "corrected" / "new.png")
    white = (stored == 255).all(axis=2)
    assert white[top : top + height, left : left + width].all()
    assert white.sum() == width * height
    # Also one that was drawn, and not a region, as such files have none.
    first["category_id"] = 1
    new = {**first, "id": 999, "category_id": 9, "segmentation": [[40, 30, 44, 30, 44, 33, 40, 33]]}
    content["annotations"].append({**new, "bbox": [40, 30, 4, 3], "area": 12})
    path.write_text(json.dumps(content))
    assert take_back(data, path) == 0
    assert table(capsys.readouterr().out)["all"] == [6, 0, 0, 0, 0, 0, 6]
    content["categories"][-1]["name"] = "Region*"
    path.write_text(json.dumps(content))
    assert "'Region*' (1)" in refusal(take_back, data, path)


GAMMA = {"id": 7, "name": "gamma"}


@pytest.fixture
def large(tmp_path):
    """A training image of 1500 x 40 px with a cell of 20 x 10 px at x = 740, and its results."""
    data = tmp_path / "large data"
    (data / "train" / "big").mkdir(parents=True)
    size = 40, 1500
    pixels = np.random.default_rng(1).integers(0, 200, (*size, 3), np.uint8)
    image = data / "train" / "big" / "image.tif"
    tifffile.imwrite(image, pixels)
    labels = np.zeros(size, np.int32)
    labels[10:20, 740:760] = 1
    labels[10:20, 100:110] = 2
    labels[10:20, 1300:1310] = 3
    tifffile.imwrite(image.with_name("class1.tif"), labels)
    results = tmp_path / "large" / "images-results.json"
    results.parent.mkdir()
    entries = []
    for left, width in ((740, 20), (100, 10), (1300, 10)):
        mask = np.zeros(size, np.uint8)
        mask[10:20, left : left + width] = 1
        box = [left, 10, width, 10]
        entry = {"image_id": 1, "category_id": 1, "score": 0.6, "bbox": box}
        entries.append({**entry, "segmentation": rle(mask)})
    results.write_text(json.dumps(entries))
    listed = {"file_name": str(image), "id": 1, "height": size[0], "width": size[1]}
    (results.parent / "images-results-list.json").write_text(json.dumps([listed]))
    return data, to_correct(data, results, tmp_path / "large fix")


def test_large_images_are_cut_into_windows(large):
    data, folder = large
    assert sorted(p.name for p in folder.glob("*.png")) == ["big_x0_y0.png", "big_x750_y0.png"]
    index = json.loads((folder / "index.json").read_text())
    whole = tifffile.imread(data / "train" / "big" / "image.tif")
    for image in index["images"]:
        left = image["source"]["x"]
        assert (read_png(folder / image["file_name"]) == whole[:, left : left + 750]).all()
    for name, expected in (("big_x0_y0", [100, 740]), ("big_x750_y0", [0, 550])):
        features = load(folder, name)["features"]
        lefts = [min(x for x, _ in f["geometry"]["coordinates"][0]) for f in features]
        assert sorted(lefts) == expected


def test_cells_that_windows_cut_are_whole_in_the_training_image(large):
    data, folder = large
    save(folder, load(folder, "big_x0_y0"), "big_x0_y0")
    assert take_back(data, folder) == 0
    found = cells_of(data, "train/big/image.tif")
    expected = [(100, 10, 110, 20), (740, 10, 760, 20), (1300, 10, 1310, 20)]
    assert boxes(found["alpha"]) == expected


def test_windows_of_another_image_of_that_name_are_images_of_their_own(large, capsys):
    data, folder = large
    save(folder, load(folder, "big_x750_y0"), "big_x750_y0")
    pixels = tifffile.imread(data / "train" / "big" / "image.tif")
    tifffile.imwrite(data / "train" / "big" / "image.tif", 255 - pixels)
    assert take_back(data, folder) == 0
    assert boxes(cells_of(data, "corrected/big_x750_y0.png")["alpha"]) == [
        (0, 10, 10, 20),
        (550, 10, 560, 20),
    ]
    # In the validation set of the run, but nowhere here: not learned from.
    for path in (folder / "index.json", data / "corrected" / "annotations.json"):
        content = json.loads(path.read_text())
        for image in content["images"]:
            image["source"]["held_out"] = True
        path.write_text(json.dumps(content))
    assert annotation.main(["--data", str(data), "--class_names", *NAMES]) == 0
    assert "validation images" in capsys.readouterr().err
    coco = json.loads((data / "train__annot.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["train/big/image.tif"]


def window_of(name, x, cells=(), source="slide.svs", size=(40, 60)):
    """A corrected window of a slide, grey, with squares of 6 px."""
    from_ = Source(source, f"/{source}", x, 0, size[1], size[0])
    encoded = [Cell("", 0, rle(square(left, top, size=size))) for left, top in cells]
    pixels = np.full((*size, 3), 100, np.uint8)
    return Corrected(name, from_, pixels, np.ones(size, bool), encoded, 0.5)


def cropped(window):
    found = crop(window)
    assert found is not None
    return found


def test_a_window_replaces_what_it_overlaps(tmp_path):
    store(tmp_path, [window_of("a", 0, [(4, 4), (37, 4), (50, 4)])], NAMES)
    store(tmp_path, [window_of("b", 40), window_of("c", 40, [(50, 4)], "other.svs")], NAMES)
    a, b, c = load_store(tmp_path, NAMES)
    assert [w.name for w in (a, b, c)] == ["a", "b", "c"]
    # a ends where b begins; the cell that reaches 3 of its 6 columns into b is in neither.
    assert a.size == (40, 40)
    assert boxes([decode(cell.mask) for cell in a.cells]) == [(4, 4, 10, 10)]
    assert (a.pixels[4:10, 37:] == 255).all()
    assert (a.pixels[~((a.pixels == 255).all(axis=2))] == 100).all()
    assert len(b.cells) == 0
    assert len(c.cells) == 1
    assert {w.mpp for w in (a, b, c)} == {0.5}
    # The last one of several counts.
    (tmp_path / "corrected" / "mine.png").write_bytes(b"a picture of the user")
    store(tmp_path, [window_of("d", 0, [(9, 9)]), window_of("e", 0)], NAMES)
    a, c = load_store(tmp_path, NAMES)  # of b, only a little background was left
    assert (a.name, c.name) == ("a", "c")
    assert a.size == (40, 60)
    assert not a.cells
    assert {p.name for p in (tmp_path / "corrected").glob("*.png")} == {
        "a.png",
        "c.png",
        "mine.png",
    }


def test_a_window_of_a_corrected_window(tmp_path):
    """As after a prediction of the training images."""
    first = window_of("a", 100, [(4, 4), (20, 4), (50, 30)])
    first.region[:, :2] = False
    store(tmp_path, [cropped(first)], NAMES)
    again = window_of("a", 0, [(20, 14)], size=(40, 58))
    path = tmp_path / "corrected" / "a.png"
    again = replace(again, source=replace(again.source, file_name="a.png", path=str(path)))
    again.region[:, 40:] = False
    store(tmp_path, [cropped(again)], NAMES)
    old, new = load_store(tmp_path, NAMES)
    assert {w.source.path for w in (old, new)} == {"/slide.svs"}
    assert boxes([decode(cell.mask) for cell in new.cells]) == [(20, 14, 26, 20)]
    assert (new.source.x + new.corner[0], new.size) == (102, (40, 40))
    assert boxes([decode(cell.mask) for cell in old.cells]) == [(8, 30, 14, 36)]
    assert (old.source.x + old.corner[0], old.size) == (142, (40, 18))


def test_names_of_different_slides_stay_apart(tmp_path):
    store(tmp_path, [window_of("x0", 0, source="one.svs")], NAMES)
    store(tmp_path, [window_of("x0", 0, source="two.svs")], NAMES)
    assert [w.name for w in load_store(tmp_path, NAMES)] == ["x0", "x0-2"]


@pytest.mark.parametrize("damage", ["region", "image", "size", "class", "not JSON"])
def test_damaged_corrections(tmp_path, damage):
    store(tmp_path, [window_of("a", 0, [(4, 4)])], NAMES)
    path = tmp_path / "corrected" / "annotations.json"
    content = json.loads(path.read_text())
    names = NAMES
    if damage == "region":
        content["images"][0]["region"] = {"size": [2, 2], "counts": "04"}
    elif damage == "size":
        cv2.imwrite(str(tmp_path / "corrected" / "a.png"), np.zeros((3, 3, 3), np.uint8))
    elif damage == "image":
        (tmp_path / "corrected" / "a.png").unlink()
    elif damage == "class":
        names = ["gamma"]
    path.write_text("{" if damage == "not JSON" else json.dumps(content))
    error = refusal(load_store, tmp_path, names)
    assert "a.png" in error if damage in ("image", "size") else "annotations.json" in error
    assert damage == "class" or "take the windows back again" in error


def test_the_resolution_of_a_window_is_its_own(data):
    """It may be of another level than the images."""
    store(data, [window_of("a", 0, [(4, 4)])], NAMES)
    argv = ["--data", str(data), "--mpp", "0.25", "--class_names", *NAMES]
    assert annotation.main(argv) == 0
    coco = json.loads((data / "train__annot.json").read_text())
    assert [image["mpp"] for image in coco["images"]] == [0.25, 0.5]


def test_a_window_that_was_corrected_is_not_overwritten(data, results, folder):
    to_correct(data, results, folder)  # not yet
    correct(folder)
    error = refusal(to_correct, data, results, folder)
    assert "new.geojson" in error
    for name in ("sub/new.png.geojson", "instances_default.json"):
        again = to_correct(data, results, folder.parent / f"fix {name[:3]}")
        (again / name).parent.mkdir(exist_ok=True)
        (again / name).write_text("{}")
        assert name in refusal(to_correct, data, results, again)
    other = folder.parent / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert "not empty" in refusal(to_correct, data, results, other)


def test_flags_that_do_not_fit(data, results, folder):
    for argv in (
        [results, "--count", "3"],
        [results, "--to_correct", folder, "--format", "labels"],
        [data / "train__annot.json", "--to_correct", folder.parent / "x", "--data", data],
    ):
        annotation.main(["--data", str(data)])
        assert "--to_correct" in refusal(export.main, [str(word) for word in argv])
