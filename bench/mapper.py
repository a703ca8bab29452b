"""Training samples per second: this project's mapper and Detectron2's, in one run.

    python bench/mapper.py [--images N] [--seconds S]

Both read the same files and apply the same augmentations: half crops resized to 608, flips and
brightness. Detectron2's `DatasetMapper` decodes and transforms each mask as an array of the whole
image. One process, no network; images have NYCU HW3's sizes and about 350 cells per megapixel.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import annotation
import utils
from bench.annotation import draw_data
from cellseg import config
from cellseg.device import detectron2_problem
from cellseg.images import ImageCells
from cellseg.learn.mapper import CellMapper
from cellseg.learn.samples import load_training_data

RECIPE = "mask_rcnn_R_50_DC5_3x"
MANY = 300  # cells


def write_rgb(folder: Path, samples: Sequence[ImageCells]) -> None:
    """Write the images as RGB for Detectron2's reader."""
    for sample in samples:
        pixels = tifffile.imread(sample.path)[..., :3]
        path = folder / f"{sample.name}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", compression="lzw", predictor=True)


def detectron2_record(sample: ImageCells, folder: Path) -> dict[str, Any]:
    """Return Detectron2's record of a sample, with its image from `write_rgb`."""
    from detectron2.structures import BoxMode

    cells = zip(sample.boxes.tolist(), sample.masks, sample.classes.tolist(), strict=True)
    return {
        "file_name": str(folder / f"{sample.name}.tif"),
        "height": sample.size[0],
        "width": sample.size[1],
        "annotations": [
            {
                "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": mask,
                "category_id": class_, "iscrowd": 0,
            }
            for box, mask, class_ in cells
        ],
    }  # fmt: skip


def detectron2_mapper(shortest: Sequence[int] = (608,)) -> Callable[[dict[str, Any]], Any]:
    """Build Detectron2's mapper, for `detectron2_record`."""
    from detectron2.data import DatasetMapper
    from detectron2.data import transforms as T

    mapper: Callable[[dict[str, Any]], Any] = DatasetMapper(
        is_train=True,
        augmentations=[
            T.RandomCrop("relative", (0.5, 0.5)),
            T.ResizeShortestEdge(tuple(shortest), 1333, "choice"),
            T.RandomFlip(horizontal=True, vertical=False),
            T.RandomFlip(horizontal=False, vertical=True),
            T.RandomBrightness(0.9, 1.1),
        ],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format="bitmask",
        recompute_boxes=True,
    )
    return mapper


def this_mapper() -> Callable[[ImageCells], Any]:
    """Build this project's mapper."""
    mapper = CellMapper(config.load_recipe(RECIPE, "torchvision"))
    rng = np.random.default_rng(0)
    return lambda sample: mapper(sample, rng)


def rate(
    map_one: Callable[[ImageCells], Any], samples: Sequence[ImageCells], seconds: float
) -> float:
    """Map samples in turn for some seconds. Return samples per second."""
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds or count < 2:
        map_one(samples[count % len(samples)])
        count += 1
    return count / took


def main() -> None:
    """Measure both mappers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=209, help="number of images (default: 209)")
    parser.add_argument("--seconds", type=float, default=20, help="per measurement (default: 20)")
    args = parser.parse_args()
    if detectron2_problem():
        parser.error(f"Detectron2 is not available: {detectron2_problem()}")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        draw_data(data, args.images)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            annotation.main(["--data", str(data)])
        samples = load_training_data(folder, str(data / utils.ANNOTATIONS)).train
        # Detectron2's mapper fails on images without cells, and its trainer excludes them.
        samples = [sample for sample in samples if sample.masks]
        order = np.random.default_rng(0).permutation(len(samples))
        shuffled = [samples[n] for n in order]
        crowded = [sample for sample in shuffled if len(sample.masks) > MANY]
        write_rgb(data, samples)
        mapper, this = detectron2_mapper(), this_mapper()

        def baseline(sample: ImageCells) -> Any:
            return mapper(detectron2_record(sample, data))

        print(f"{'images':24}{'count':>7}{'Detectron2':>12}{'this project':>16}{'ratio':>9}")
        for name, part in (("all", shuffled), (f"over {MANY} cells", crowded)):
            if not part:
                continue
            for sample in part:  # warms the caches of files and masks
                this(sample)
            slow, fast = (rate(map_one, part, args.seconds) for map_one in (baseline, this))
            print(f"{name:24}{len(part):7}{slow:10.2f}/s{fast:14.2f}/s{fast / slow:8.1f}x")


if __name__ == "__main__":
    main()
