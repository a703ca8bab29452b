"""Outlines along the pixels' edges or through their centres: which is which, and masks of both."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import skimage.draw
import tifffile

import annotation
from cellseg.messages import HANDLER, print_warnings
from cellseg.outline import trace
from cellseg.rle import encode, label_map_to_runs
from tests.read.refusal import refusal
from tests.score.scoring_cases import decode


def disks():
    """Return a label map of three disks."""
    labels = np.zeros((60, 90), np.uint8)
    for n, (y, x, radius) in enumerate([(20, 20, 8), (35, 50, 12), (20, 75, 5)], 1):
        labels[skimage.draw.disk((y, x), radius)] = n
    return labels


def ring_of(mask, convention):
    if convention == "edges":
        return trace(label_map_to_runs(mask)[1])[0][0][0][:-1]
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return contours[0][:, 0]


def write_case(data, labels, convention, area=None):
    """Write the image of disks with outlines, as COCO and as GeoJSON."""
    folder = data / "train" / "a"
    folder.mkdir(parents=True)
    pixels = np.full((*labels.shape, 3), 200, np.uint8)
    tifffile.imwrite(folder / "image.tif", pixels, photometric="rgb")
    masks = [(labels == n).astype(np.uint8) for n in range(1, labels.max() + 1)]
    rings = [ring_of(mask, convention) for mask in masks]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1],
         "segmentation": [ring.reshape(-1).tolist()], **({"area": area(mask)} if area else {})}
        for n, (ring, mask) in enumerate(zip(rings, masks, strict=True), 1)
    ]  # fmt: skip
    height, width = labels.shape
    coco = {
        "images": [{"id": 1, "file_name": "train/a/image.tif", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "class1"}],
        "annotations": annotations,
    }
    (data / "coco.json").write_text(json.dumps(coco))
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring.tolist(), ring[0].tolist()]]},
            "properties": {"classification": {"name": "class1"}},
        }
        for ring in rings
    ]
    (folder / "a.geojson").write_text(json.dumps(features))


def read(data, *flags):
    """Return the masks that annotation.py reads, and the number of its warnings."""
    print_warnings()
    before = HANDLER.count
    annotation.main(["--data", str(data), "--jobs", "1", *map(str, flags)])
    coco = json.loads((data / "train__annot.json").read_text())
    masks = [a["segmentation"] for a in sorted(coco["annotations"], key=lambda a: a["bbox"][0])]
    return masks, HANDLER.count - before


def expected(labels):
    order = np.argsort([np.nonzero(labels == n)[1].min() for n in (1, 2, 3)])
    masks = encode(label_map_to_runs(labels)[1])
    return [masks[n] for n in order]


@pytest.mark.parametrize("convention", ["edges", "centres"])
@pytest.mark.parametrize("source", ["coco", "geojson"])
def test_stated_conventions_give_the_masks(tmp_path, convention, source):
    labels = disks()
    write_case(tmp_path, labels, convention)
    flags = ["--coco", tmp_path / "coco.json"] if source == "coco" else []
    masks, _ = read(tmp_path, "--outlines", convention, *flags)
    assert masks == expected(labels)


@pytest.mark.parametrize("convention", ["edges", "centres"])
def test_the_areas_of_masks_tell_the_convention(tmp_path, capsys, convention):
    labels = disks()
    write_case(tmp_path, labels, convention, lambda mask: int(mask.sum()))
    masks, n_warnings = read(tmp_path, "--coco", tmp_path / "coco.json")
    assert masks == expected(labels)
    assert n_warnings == (convention == "centres")
    assert ("centres" in capsys.readouterr().err) == (convention == "centres")


def test_areas_of_polygons_are_those_along_edges(tmp_path):
    labels = disks()
    write_case(tmp_path, labels, "centres", lambda mask: cv2.contourArea(ring_of(mask, "centres")))
    masks, n_warnings = read(tmp_path, "--coco", tmp_path / "coco.json")
    assert n_warnings == 0
    assert sum(decode(mask).sum() for mask in masks) < 0.95 * (labels > 0).sum()


def test_areas_that_fit_nothing_are_a_warning(tmp_path, capsys):
    labels = disks()
    write_case(tmp_path, labels, "edges", lambda mask: 4 * int(mask.sum()))
    masks, n_warnings = read(tmp_path, "--coco", tmp_path / "coco.json")
    assert masks == expected(labels)
    assert n_warnings == 1
    assert "coco.json" in capsys.readouterr().err


@pytest.mark.parametrize("area", [None, "12", float("1e300"), -1, 0, True])
def test_areas_that_say_nothing(tmp_path, area):
    labels = disks()
    write_case(tmp_path, labels, "edges", lambda _: area)
    masks, n_warnings = read(tmp_path, "--coco", tmp_path / "coco.json")
    assert masks == expected(labels)
    assert n_warnings == 0


def test_polygons_that_are_too_long_are_refused(tmp_path, monkeypatch):
    write_case(tmp_path, disks(), "centres", lambda mask: int(mask.sum()))
    monkeypatch.setattr("cellseg.limits.OUTLINE_LENGTH", 10)
    monkeypatch.setattr("cellseg.limits.LENGTH_PER_POINT", 0)
    arguments = ["--data", str(tmp_path), "--coco", str(tmp_path / "coco.json")]
    assert "coco.json" in refusal(annotation.main, arguments)
