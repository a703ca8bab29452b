"""docs/datasets.md: its commands and Python, run on tiny imitations of the data sets."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import scipy.io
import tifffile

import annotation
from tests.score.scoring_cases import decode

TEXT = (Path(__file__).resolve().parents[1] / "docs/datasets.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?m)^## (.+)\n((?:(?!## ).*\n?)*)", TEXT))

HEIGHT, WIDTH = 40, 48
# Top, left, bottom, right of three cells; the last two touch, and reach edges of the image.
A, B, C = (3, 5, 9, 14), (20, 30, 31, 48), (31, 30, 40, 44)


def cell(box):
    """Return the mask of a box, whose bottom and right are exclusive."""
    top, left, bottom, right = box
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def label_map(*boxes, dtype=np.uint16, first=1):
    return sum(n * cell(box).astype(dtype) for n, box in enumerate(boxes, first))


def write(path, array, **how):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, array, **how)
    elif path.suffix == ".mat":
        scipy.io.savemat(path, array)
    elif path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".png":
        iio.imwrite(path, array)
    else:
        path.write_text(array, encoding="utf-8")


def picture(channels=3, dtype=np.uint8):
    return np.full((HEIGHT, WIDTH, channels), 200, dtype)


def conic():
    labels = np.zeros((2, HEIGHT, WIDTH, 2), np.uint16)
    labels[0, ..., 0] = label_map(A, B, C)
    labels[0, ..., 1] = 3 * cell(A) + 3 * cell(B) + 6 * cell(C)
    write("images.npy", np.stack([picture()] * 2))
    write("labels.npy", labels)
    return {"0000": {("Lymphocyte", A), ("Lymphocyte", B), ("Connective", C)}, "0001": set()}


def consep():
    for name in ("Train/{}/train_1", "Test/{}/test_1"):
        write("CoNSeP/" + name.format("Images") + ".png", picture(4))
        write("CoNSeP/" + name.format("Overlay") + ".png", picture())
        cells = {"inst_map": label_map(A, B, C, dtype=float), "inst_type": [[7.0], [1.0], [4.0]]}
        write("CoNSeP/" + name.format("Labels") + ".mat", cells)
    return {"train_1": {("spindle-shaped", A), ("other", B), ("epithelial", C)}}


def cryonuseg():
    name = "Human_Larynx_01.tif"
    write(f"tissue images/{name}", picture(), photometric="rgb")
    for annotator in ("Annotator 1 (biologist)", "Annotator 2 (bioinformatician)"):
        write(f"{annotator}/label masks modify/{name}", label_map(A, B, C))
        write(f"{annotator}/label masks/{name}", label_map(A))
    return {"Human_Larynx_01": nuclei(A, B, C)}


def nuclei(*boxes):
    return {("nucleus", box) for box in boxes}


def dsb():
    for name, boxes in {"0a": (A, B, C), "1b": ()}.items():
        write(f"stage1_train/{name}/images/{name}.png", picture(4))
        for n, box in enumerate(boxes):
            write(f"stage1_train/{name}/masks/f{n}.png", 255 * cell(box))
    return {"0a": nuclei(A, B, C), "1b": set()}


def kumar():
    name = "TCGA-18-5592-01Z-00-DX1"
    write(f"kumar/train/Images/{name}.tif", picture(), photometric="rgb")
    write(f"kumar/train/Overlay/{name}.png", picture())
    write(f"kumar/train/Labels/{name}.mat", {"inst_map": label_map(A, B, C, dtype=np.int32)})
    return {name: nuclei(A, B, C)}


def lizard():
    for name, folder in {"consep_1": "Lizard_Images1", "glas_2": "Lizard_Images2"}.items():
        write(f"{folder}/{name}.png", picture())
        cells = {"inst_map": label_map(A, B, C, dtype=np.int32), "id": [[3], [1], [2]]}
        write(f"Lizard_Labels/Labels/{name}.mat", cells | {"class": [[6], [1], [5]]})
    write("Lizard_Labels/info.csv", "Filename,Source,Split\n")
    found = {("Connective", C), ("Neutrophil", A), ("Eosinophil", B)}
    return {"consep_1": found, "glas_2": found}


def image_scope(classes):
    """Return XML of boxes by class, along the centres of their outer pixels."""
    text = '<Annotations MicronsPerPixel="0.252000">'
    for name, boxes in classes.items():
        text += f'<Annotation Name=""><Attributes><Attribute Name="{name}" Value=""/></Attributes>'
        text += "<Regions>"
        for top, left, bottom, right in boxes:
            corners = [(left, top), (right - 1, top), (right - 1, bottom - 1), (left, bottom - 1)]
            points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in corners)
            text += f'<Region Type="0"><Vertices>{points}</Vertices></Region>'
        text += "</Regions></Annotation>"
    return text + "</Annotations>"


def monusac():
    for name in ("TCGA-5P-A9K0-01Z-00-DX1_1", "TCGA-5P-A9K0-01Z-00-DX1_2"):
        stem = f"MoNuSAC_images_and_annotations/{name[:-2]}/{name}"
        write(f"{stem}.tif", picture(4), photometric="rgb", extrasamples=["unassalpha"])
        write(f"{stem}.svs", "not read")
        classes = {"Macrophage": [A], "Ambiguous": [(10, 0, 18, 9)], "Epithelial": [B, C]}
        write(f"{stem}.xml", image_scope(classes))
    # A test image without TIFF.
    Path("monusac/train").mkdir(parents=True)
    write_svs("monusac/train/TCGA-2Z.svs")
    write("monusac/train/TCGA-2Z.xml", image_scope({"Lymphocyte": [A]}))
    found = {("Macrophage", A), ("Epithelial", B), ("Epithelial", C)}
    training = dict.fromkeys(["TCGA-5P-A9K0-01Z-00-DX1_1", "TCGA-5P-A9K0-01Z-00-DX1_2"], found)
    return training | {"TCGA-2Z": {("Lymphocyte", A)}}


def write_svs(path):
    """Write an Aperio image whose thumbnail has its size."""
    text = f"Aperio Image Library v11\r\n{WIDTH}x{HEIGHT} (16x16) JPEG/RGB Q=70|MPP = 0.2520"
    how = {"compression": "jpeg", "photometric": "ycbcr", "subsampling": (1, 1), "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(picture(), tile=(16, 16), description=text, **how)
        file.write(picture(), description=text, **how)


def monuseg():
    name = "TCGA-18-5592-01Z-00-DX1"
    base = "MoNuSeg 2018 Training Data"
    write(f"{base}/Tissue Images/{name}.tif", picture(), photometric="rgb")
    write(f"{base}/Annotations/{name}.xml", image_scope({"Description": [A, B, C]}))
    write("MoNuSegTestData/TCGA-2Z.tif", picture(), photometric="rgb")
    write("MoNuSegTestData/TCGA-2Z.xml", image_scope({"Description": [A]}))
    return {name: nuclei(A, B, C)}


NUCLS = "TCGA-A1-A0SP-DX1_id-5ea4_left-7053_top-53840_bottom-54231_right-7311"


def nucls_row(number, kind, name, box, outline=True):
    top, left, bottom, right = box
    x, y = [left, right - 1, right - 1, left, left], [top, top, bottom - 1, bottom - 1, top]
    coordinates = (",".join(map(str, x)), ",".join(map(str, y))) if outline else ("", "")
    return [number, name, name, name, kind, left, top, right - 1, bottom - 1, *coordinates]


def write_nucls(*rows):
    write(f"rgb/{NUCLS}.png", picture())
    classes = ["raw_classification", "main_classification", "super_classification"]
    edges = ["xmin", "ymin", "xmax", "ymax", "coords_x", "coords_y"]
    Path("csv").mkdir()
    with open(f"csv/{NUCLS}.csv", "w", newline="") as file:
        csv.writer(file).writerows([["", *classes, "type", *edges], *rows])
    write("csv/ALL_FOV_LOCATIONS.csv", ",fovname,xmin\n0,x,0\n")


def nucls():
    write_nucls(
        nucls_row(0, "polyline", "tumor_any", A),
        nucls_row(1, "polyline", "nonTIL_stromal", B),
        nucls_row(2, "polyline", "AMBIGUOUS", C),
    )
    return {NUCLS: {("tumor_any", A), ("nonTIL_stromal", B)}}


def nuinsseg():
    for organ, boxes in {"human bladder": (A, B, C), "mouse spleen": ()}.items():
        name = f"{organ.replace(' ', '_')}_01"
        labels = label_map(*boxes) if boxes else np.zeros((HEIGHT, WIDTH), np.uint16)
        write(f"{organ}/tissue images/{name}.png", picture())
        write(f"{organ}/label masks modify/{name}.tif", labels)
        write(f"{organ}/label masks/{name}.tif", labels + 7 * cell((0, 0, 4, 9)))
        write(f"{organ}/mask binary/{name}.png", 255 * cell(A))
        write(f"{organ}/stacked mask/{name}.mat", {"stacked_mask": np.zeros((4, 4, 2))})
    return {"human_bladder_01": nuclei(A, B, C), "mouse_spleen_01": set()}


def pannuke():
    for fold in (1, 2, 3):
        masks = np.zeros((2, HEIGHT, WIDTH, 6))
        masks[0, ..., 0] = label_map(A, first=4)
        masks[0, ..., 4] = label_map(B, C, first=11)
        masks[..., 5] = masks.sum(axis=-1) == 0
        write(f"Fold {fold}/images/fold{fold}/images.npy", np.stack([picture(3, float)] * 2))
        write(f"Fold {fold}/masks/fold{fold}/masks.npy", masks)
    found = {("Neoplastic", A), ("Epithelial", B), ("Epithelial", C)}
    return {f"{fold}_000{n}": set() if n else found for fold in (1, 2, 3) for n in (0, 1)}


def puma():
    def feature(name, box):
        top, left, bottom, right = box
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        properties = {"objectType": "annotation", "classification": {"name": name, "color": [0]}}
        shape = {"type": "Polygon", "coordinates": [ring]}
        return {"type": "Feature", "geometry": shape, "properties": properties}

    found = {("nuclei_tumor", A), ("nuclei_apoptosis", B), ("nuclei_stroma", C)}
    features = {"type": "FeatureCollection", "features": [feature(*each) for each in found]}
    name = "training_set_primary_roi_001"
    write(f"01_training_dataset_tif_ROIs/{name}.tif", picture(4), photometric="rgb")
    write(f"01_training_dataset_geojson_nuclei/{name}_nuclei.geojson", json.dumps(features))
    return {name: found}


def tnbc():
    for name, boxes in {"01_1": (A, C), "02_1": (B,)}.items():
        write(f"TNBC_NucleiSegmentation/Slide_{name[:2]}/{name}.png", picture(4))
        mask = 255 * (label_map(*boxes) > 0).astype(np.uint8)
        write(f"TNBC_NucleiSegmentation/GT_{name[:2]}/{name}.png", mask)
    return {"01_1": nuclei(A, C), "02_1": nuclei(B)}


IMITATIONS = {
    "CoNIC": conic,
    "CoNSeP": consep,
    "CryoNuSeg": cryonuseg,
    "DSB2018, or a mask per cell": dsb,
    "Kumar, CPM-15, CPM-17": kumar,
    "Lizard": lizard,
    "MoNuSAC": monusac,
    "MoNuSeg 2018": monuseg,
    "NuCLS": nucls,
    "NuInsSeg": nuinsseg,
    "PanNuke": pannuke,
    "PUMA": puma,
    "TNBC": tnbc,
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_section(title, capsys):
    """Run the blocks of a section in their order; return class and mask of each image's cells."""
    data = ""
    for python, commands in re.findall(
        r"(?m)^```python\n([\s\S]*?)^```|((?:^    .*\n)+)", SECTIONS[title]
    ):
        if python:
            assert len(python.splitlines()) <= 12
            exec(compile(python, "docs/datasets.md", "exec"), {"__name__": "snippet"})
        for command in map(str.strip, commands.splitlines()):
            if command.startswith("python annotation.py"):
                arguments = shlex.split(command)[2:]
                assert annotation.main(arguments) == 0
                data = arguments[arguments.index("--data") + 1]
            else:
                subprocess.run(["bash", "-euc", command], check=True)
    capsys.readouterr()
    coco = json.loads(Path(data, "train__annot.json").read_text())
    classes = {category["id"]: category["name"] for category in coco["categories"]}
    images = {image["id"]: Path(image["file_name"]) for image in coco["images"]}
    cells: dict[int, list[Any]] = {n: [] for n in images}
    for each in coco["annotations"]:
        mask = decode(each["segmentation"])
        cells[each["image_id"]].append((classes[each["category_id"]], mask))
    return {
        path.parent.name if path.stem == "image" else path.stem: cells[n]
        for n, path in images.items()
    }


def test_every_data_set_is_imitated():
    assert [*IMITATIONS] == [title for title in SECTIONS if title != "Train and score"]
    rows = re.findall(r"(?m)^\| \[.*?\]\(#(.+?)\)", TEXT)
    anchors = {re.sub("[^a-z0-9 -]", "", t.lower()).replace(" ", "-") for t in IMITATIONS}
    assert {*rows} == anchors


@pytest.mark.parametrize("title", IMITATIONS)
def test_the_cells_of_an_imitation(title, capsys):
    expected = IMITATIONS[title]()
    found = run_section(title, capsys)
    assert found.keys() == expected.keys()
    for image, cells in expected.items():
        pixels = [(name, mask.astype(np.uint8).tobytes()) for name, mask in found[image]]
        assert sorted(pixels) == sorted((name, cell(box).tobytes()) for name, box in cells)


def test_nuclei_that_touch_at_a_corner_are_one_in_tnbc(capsys):
    mask = np.maximum(cell((2, 2, 8, 9)), cell((8, 9, 15, 20)))
    write("TNBC_NucleiSegmentation/Slide_03/03_1.png", picture())
    write("TNBC_NucleiSegmentation/GT_03/03_1.png", 255 * mask)
    [(name, found)] = run_section("TNBC", capsys)["03_1"]
    assert name == "nucleus"
    assert (found == mask).all()


@pytest.mark.parametrize("outline", [True, False])
def test_a_box_becomes_the_ellipse_in_it_in_nucls(outline, capsys):
    # Centre x = 20, y = 14; half axes 10 and 8.
    write_nucls(nucls_row(0, "rectangle", "sTIL", (6, 10, 23, 31), outline))
    [(name, mask)] = run_section("NuCLS", capsys)[NUCLS]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = ((x - 20) / 10) ** 2 + ((y - 14) / 8) ** 2
    assert name == "sTIL"
    assert mask[distance < 0.97].all()
    assert not mask[distance > 1.001].any()
