"""The same tissue at several resolutions and in several formats: cells and AP50 must stay.

    python bench/resolution.py --data DIR --run RUN [--mpp 0.25] [--to 0.25 0.5 0.37]

DIR has test images of MPP micrometres per pixel, which they need not say, with masks in
`test_masks/`, and RUN was trained at that resolution. The images are saved at each other
resolution as OME-TIFF and as SVS (JPEG), both with a pyramid, and as TIFF with tags, their label
maps beside them, and predicted without a flag, as a data folder; the last time as a run that
doesn't know its resolution would.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evaluate
import inference
from cellseg.files import read_json, write_json
from cellseg.read.image_lists import list_entry, read_test_list
from cellseg.read.tiff import read_labels
from cellseg.read.window import read_image

TILE = {"tile": (256, 256), "photometric": "rgb"}
Image = NDArray[np.uint8]


def write_ome(path: Path, pixels: Image, mpp: float) -> None:
    """Write an OME-TIFF with a half-size level."""
    physical = {f"PhysicalSize{side}": mpp for side in "XY"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(
            pixels, subifds=1, metadata=physical | {"axes": "YXS"}, compression="zlib", **TILE
        )
        tiff.write(resize(pixels, 0.5), subfiletype=1, compression="zlib", **TILE)


def write_svs(path: Path, pixels: Image, mpp: float) -> None:
    """Write a TIFF as Aperio does, with a half-size level."""
    size = f"{pixels.shape[1]}x{pixels.shape[0]}"
    text = f"Aperio Image Library v12\r\n{size} (256x256) JPEG Q=90|AppMag = 40|MPP = {mpp:.6f}"
    with tifffile.TiffWriter(path) as tiff:
        for level in (pixels, resize(pixels, 0.5)):
            tiff.write(
                level, description=text, metadata=None, compression="jpeg",
                compressionargs={"level": 90}, **TILE,
            )  # fmt: skip


def write_tags(path: Path, pixels: Image, mpp: float) -> None:
    """Write a TIFF with the tags of the resolution."""
    resolution = (10_000 / mpp, 10_000 / mpp)
    tifffile.imwrite(
        path, pixels, photometric="rgb", compression="lzw", rowsperstrip=64,
        resolution=resolution, resolutionunit="CENTIMETER",
    )  # fmt: skip


FORMATS: dict[str, tuple[str, Callable[[Path, Image, float], None]]] = {
    "OME-TIFF": (".ome.tif", write_ome),
    "SVS": (".svs", write_svs),
    "TIFF with tags": (".tif", write_tags),
}


def resize(pixels: NDArray[Any], factor: float, method: int = cv2.INTER_AREA) -> NDArray[Any]:
    """Resize an array of an image, by the mean of its pixels unless another method is given."""
    if factor == 1:
        return pixels
    height, width = (max(1, round(side * factor)) for side in pixels.shape[:2])
    resized: NDArray[Any] = cv2.resize(pixels, (width, height), interpolation=method)
    return resized


def write_data(source: Path, target: Path, factor: float, name: str, mpp: float) -> None:
    """Write test images and masks of a data folder, resized, to another one."""
    ending, write = FORMATS[name]
    (target / "test").mkdir(parents=True)
    entries = []
    for image in read_test_list(source):
        pixels = resize(read_image(image.path), factor)
        file_name = image.path.stem + ending
        write(target / "test" / file_name, pixels, mpp)
        size = {"height": pixels.shape[0], "width": pixels.shape[1]}
        entries.append(list_entry(image) | size | {"file_name": file_name})
        masks = target / "test_masks" / file_name.removesuffix(Path(file_name).suffix)
        masks.mkdir(parents=True)
        for path in (source / "test_masks" / image.path.stem).glob("class*.tif"):
            labels = resize(read_labels(path).astype(np.float64), factor, cv2.INTER_NEAREST_EXACT)
            tifffile.imwrite(masks / path.name, labels)
    write_json(target / "test_image_name_to_ids.json", entries)


def measure(data: Path, run: Path, *words: str) -> tuple[int, float]:
    """Predict and score: return the cells of score 0.5 and more, and AP50 at 100 detections."""
    with tempfile.TemporaryDirectory() as folder:
        results, scores = Path(folder) / "test-results.json", Path(folder) / "scores.json"
        flags = ["--checkpoint", str(run), "--data", str(data), "--output", str(results)]
        with contextlib.redirect_stdout(sys.stderr):
            inference.main([*flags, *words])
            evaluate.main([str(results), "--data", str(data), "--json", str(scores)])
        cells = json.loads(results.read_text())
        ap50 = read_json(scores, "scores", "")["metrics"]["AP50@100"]["mean of classes"]["value"]
        return sum(cell["score"] >= 0.5 for cell in cells), float(ap50)


def show_row(
    name: str, row: tuple[int, float], first: tuple[int, float] | None = None
) -> tuple[int, float]:
    """Print a row of the table, compared with the first."""
    cells, ap50 = first or row
    change = f"{row[0] / cells:7.2f}{row[1]:10.3f}{row[1] - ap50:+8.3f}"
    print(f"{name:44}{row[0]:7}{change}", flush=True)
    return row


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--run", type=Path, required=True, metavar="RUN")
    parser.add_argument("--mpp", type=float, default=0.25, help="of DIR and RUN (0.25)")
    parser.add_argument("--to", type=float, nargs="+", default=[0.25, 0.5, 0.37], metavar="MPP")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    args = parser.parse_args()
    known = ["DATA.MPP", str(args.mpp)]
    print(f"{'images':44}{'cells':>7}{'ratio':>7}{'AP50@100':>10}{'change':>8}")
    first = show_row(f"as they are, {args.mpp:g} µm", measure(args.data, args.run, *known))
    with tempfile.TemporaryDirectory() as folder:
        for mpp in args.to:
            for name in args.formats:
                data = Path(folder) / f"{mpp:g} {name}"
                write_data(args.data, data, args.mpp / mpp, name, mpp)
                show_row(f"{mpp:g} µm, {name}", measure(data, args.run, *known), first)
            ignored = measure(data, args.run, "DATA.MPP", "0")
            show_row(f"{mpp:g} µm, {name}, resolution ignored", ignored, first)


if __name__ == "__main__":
    main()
