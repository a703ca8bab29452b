"""Scores on the test images as other laboratories, scanners and files would have them.

    python bench/shifts.py --checkpoint RUN --data DIR [--only CHANGE …] [--json FILE] [KEY VALUE …]

DIR has test images with masks in `test_masks/`. Each change is applied to all test images; their
cells stay where they are. PQ and F1 are of any class.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import tifffile

from bench.learning import printed_as_errors, score, summarise
from bench.tissue import Image, compressed, lit, noisy, stained
from cellseg.files import write_json
from cellseg.read.image_lists import read_test_list
from cellseg.read.layout import TEST_LIST
from cellseg.read.window import read_image
from cellseg.stains import EOSIN, HAEMATOXYLIN, scale_stains

# Optical densities of the stains elsewhere: bluer haematoxylin and redder eosin, and the reverse.
_BLUER = ((0.75, 0.62, 0.23), (0.03, 0.94, 0.34))
_REDDER = ((0.50, 0.75, 0.43), (0.20, 0.97, 0.10))


def scaled(haematoxylin: float, eosin: float) -> Callable[[Image], Image]:
    """Return a function that multiplies the stains' densities."""
    return lambda image: scale_stains(image, haematoxylin, eosin)


def restained(
    stains: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> Callable[[Image], Image]:
    """Return a function that gives haematoxylin and eosin other colours, of the same densities."""
    here, there = np.array([[*each, np.cross(*each)] for each in ((HAEMATOXYLIN, EOSIN), stains)])
    here, there = (each / np.linalg.norm(each, axis=1)[:, None] for each in (here, there))
    change = np.linalg.inv(here) @ there

    def restain(image: Image) -> Image:
        densities = -np.log((image + 1.0) / 256) @ change
        return (256 * np.exp(-densities) - 1).round().clip(0, 255).astype(np.uint8)

    return restain


def blurred(sigma: float) -> Callable[[Image], Image]:
    """Return a function that blurs with a Gaussian of `sigma` pixels."""
    return lambda image: cv2.GaussianBlur(image, (0, 0), sigma)


def sharpened(image: Image) -> Image:
    """Sharpen as scanners do: unsharp mask."""
    return cv2.addWeighted(image, 2, cv2.GaussianBlur(image, (0, 0), 1.5), -1, 0)


CHANGES: dict[str, Callable[[Image], Image]] = {
    "none": lambda image: image,
    "haematoxylin 0.6": scaled(0.6, 1),
    "haematoxylin 1.4": scaled(1.4, 1),
    "eosin 0.5": scaled(1, 0.5),
    "eosin 1.5": scaled(1, 1.5),
    "pale, both 0.5": scaled(0.5, 0.5),
    "dark, both 1.5": scaled(1.5, 1.5),
    "bluer stains": restained(_BLUER),
    "redder stains": restained(_REDDER),
    "grey light 0.8": lit(0.8, 0.8, 0.8),
    "yellow light": lit(0.98, 0.95, 0.82),
    "blue light": lit(0.85, 0.93, 1),
    "gamma 0.7": stained(0.7),
    "gamma 1.4": stained(1.4),
    "blur 1 px": blurred(1),
    "blur 2 px": blurred(2),
    "sharpened": sharpened,
    "JPEG of quality 30": compressed(30),
    "noise": noisy,
}


def write_changed(data: Path, folder: Path, change: Callable[[Image], Image]) -> None:
    """Write a data folder for prediction and scoring with changed test images."""
    (folder / "test").mkdir()
    for record in read_test_list(data):
        image = change(read_image(record.path))
        tifffile.imwrite(folder / "test" / record.path.name, image, photometric="rgb")
    for name in (TEST_LIST, "test_masks", "train__annot.json"):
        (folder / name).symlink_to((data / name).resolve())


def main() -> None:
    """Predict and score with each change, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=CHANGES, metavar="CHANGE", help="some changes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    parser.add_argument("keys", nargs="*", metavar="KEY VALUE", help="as of inference.py")
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    print(f"{'change':20}{'AP50@100':>9}{'no cap':>8}{'PQ':>7}{'F1':>7}")
    for name, change in CHANGES.items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder, printed_as_errors():
            write_changed(args.data, Path(folder), change)
            metrics, _ = score(args.checkpoint, Path(folder), args.keys)
        values = summarise(metrics)
        print(
            f"{name:20}{values['mean of classes']:9.3f}{values['mean, no cap']:8.3f}"
            f"{values['PQ']:7.3f}{values['F1']:7.3f}",
            flush=True,
        )
        rows.append({"change": name, **values})
        if args.json:  # after each row, since all of them take long
            write_json(args.json, rows, indent=1)


if __name__ == "__main__":
    main()
