"""Write the cells of results or annotations for other programs, and to look at."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import utils
from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import ImageCells
from cellseg.look.overlay import class_colour, write_overlay
from cellseg.read.cells import (
    is_annotations,
    read_annotated_cells,
    read_predicted_cells,
)
from cellseg.read.results import find_newest_results
from cellseg.read.window import open_image
from cellseg.write.geojson import cell_features, write_geojson
from cellseg.write.labels import write_labels

FORMATS = ("geojson", "labels", "overlay")

DESCRIPTION = """\
Write the cells of a results file or of an annotation file for other programs.

  geojson  <output>/geojson/<image>.geojson: outlines along the pixels' edges with class,
           colour and score; QuPath opens them with File > Import objects from file
  labels   <output>/labels/<image>/class<K>.tif: label maps (int32, zlib), as annotation.py
           and evaluate.py read them. Where cells of one class overlap, the one with the
           higher score keeps the pixel, at equal scores the earlier one
  overlay  <output>/overlay/<image>.png: the outlines drawn on the image; of an image of more
           than 4096 pixels a side, <image>/x<left>_y<top>.png for each window of 4096 x 4096
"""

EXAMPLE = "python export.py tensorboard/my-model/my-run/test-results.json --format geojson overlay"


def get_parser() -> utils.CommandParser:
    """Describe the command line."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLE)
    parser.add_argument(
        "source", nargs="?", type=Path, metavar="RESULTS_OR_ANNOTATIONS",
        help="a results file, the zip or the run folder that holds it, or a COCO annotation file "
        "(default: the newest run's test-results.json)",
    )  # fmt: skip
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS, default=list(FORMATS),
        help="what to write (default: all of it)",
    )  # fmt: skip
    utils.add_data(parser, ": its test list names the images of results, overlays need the images")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="the COCO file whose images and classes the results are of (default: what "
        "inference.py leaves beside results of other images than the test list's, else that list)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="the folder to write to (default: export beside the results or annotations)",
    )  # fmt: skip
    parser.add_argument(
        "--score_threshold", type=utils.fraction, metavar="S",
        help="leave out predicted cells with a score below this, 0 to 1 (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--class_names", nargs="+", metavar="NAME",
        help="what to call the classes of results, in the order of their ids (default: as in "
        "--annotations, else in the run that the results lie in, else class1 class2 class3 "
        "class4); annotations name their own",
    )  # fmt: skip
    return parser


def read_cells(args: argparse.Namespace, source: Path) -> tuple[list[str], list[ImageCells]]:
    """Read class names and cells of either kind of source, without the cells of low score."""
    if is_annotations(source):
        for flag in ("annotations", "class_names", "score_threshold"):
            if getattr(args, flag) is not None:
                raise InputError(f"--{flag}: is for results, but {source} are annotations; omit it")
        return read_annotated_cells(source, args.data)
    names, images = read_predicted_cells(source, args.data, args.annotations, args.class_names)
    threshold = 0.5 if args.score_threshold is None else args.score_threshold
    return names, [_above_threshold(threshold, image) for image in images]


def _above_threshold(threshold: float, image: ImageCells) -> ImageCells:
    assert image.scores is not None
    keep = np.flatnonzero(image.scores >= threshold)
    return replace(
        image,
        masks=[image.masks[n] for n in keep],
        classes=image.classes[keep],
        boxes=image.boxes[keep],
        scores=image.scores[keep],
    )


def write_image(
    image: ImageCells, names: Sequence[str], format_name: str, output: Path, bar: tqdm
) -> int:
    """Write one image in one format. Returns how many cells have no pixel of their own there."""
    n_cells = len(image.masks)
    if format_name == "geojson":
        features = cell_features(
            image.name,
            image.size,
            image.masks,
            image.classes,
            names,
            [class_colour(k) for k in range(len(names))],
            image.scores,
            "detection" if image.scores is not None else "annotation",
            scale_to_finest(image),
        )

        def counted() -> Iterator[dict[str, Any]]:
            for feature in features:
                bar.update()
                yield feature

        return n_cells - write_geojson(output / format_name / f"{image.name}.geojson", counted())
    if format_name == "labels":
        folder = output / format_name / image.name
        n_hidden = write_labels(folder, image.size, image.masks, image.classes, image.scores)
        bar.update(n_cells)
        return n_hidden
    write_overlay(image, names, output / format_name)
    bar.update(n_cells)
    return 0


def scale_to_finest(image: ImageCells) -> tuple[float, float]:
    """Return what x and y are multiplied by to lie in the finest level, which viewers show."""
    if not image.level:
        return 1, 1
    with open_image(image.path) as finest:
        return finest.size[1] / image.size[1], finest.size[0] / image.size[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = get_parser().parse_args(argv)
    source = args.source or find_newest_results(utils.RUNS)
    names, images = read_cells(args, source)
    output = args.output or (source if source.is_dir() else source.parent) / "export"

    n_cells = sum(len(image.masks) for image in images)
    for format_name in dict.fromkeys(args.format):
        n_hidden = 0
        with tqdm(
            desc=format_name, total=n_cells, unit="cell", unit_scale=True, disable=None
        ) as bar:
            for image in images:
                n_hidden += write_image(image, names, format_name, output, bar)
        note = f", {n_hidden} of them with no pixel of their own" if n_hidden else ""
        print(
            f"{format_name}: {len(images)} images, {n_cells} cells{note}: "
            f"{display_path(output / format_name)}"
        )
    return 0


if __name__ == "__main__":
    utils.run_command(main)
