"""Write the cells of results or annotations for other programs, and to look at."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cellseg.errors import InputError
from cellseg.look.overlay import class_colour, draw_overlay, write_png
from cellseg.read.cells import (
    ImageCells,
    is_annotations,
    read_annotated_cells,
    read_predicted_cells,
)
from cellseg.read.tiff import read_image
from cellseg.score.results import newest_results
from cellseg.write.geojson import cell_features, write_geojson
from cellseg.write.labels import write_labels
from utils import DATA, RUNS, CommandParser, run_command, shown

FORMATS = ("geojson", "labels", "overlay")

DESCRIPTION = """\
Write the cells of a results file or of an annotation file for other programs.

  geojson  <output>/geojson/<image>.geojson: outlines along the pixels' edges with class,
           colour and score; QuPath opens them with File > Import objects from file
  labels   <output>/labels/<image>/class<K>.tif: label maps (int32, zlib), as annotation.py
           and evaluate.py read them. Where cells of one class overlap, the one with the
           higher score keeps the pixel, at equal scores the earlier one
  overlay  <output>/overlay/<image>.png: the outlines drawn on the image
"""

EXAMPLE = "python export.py tensorboard/my-model/my-run/test-results.json --format geojson overlay"


def get_parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser(DESCRIPTION, EXAMPLE)
    parser.add_argument(
        "source",
        nargs="?",
        type=Path,
        metavar="RESULTS_OR_ANNOTATIONS",
        help="a results file, the zip or the run folder that holds it, or a COCO annotation file "
        "(default: the newest run's test-results.json)",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        help="what to write (default: all of it)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        metavar="DIR",
        help="the data folder: its test list names the images of results, overlays need the "
        "images (default: nycu-hw3-data beside this script)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the folder to write to (default: export beside the results or annotations)",
    )
    parser.add_argument(
        "--score_threshold",
        "--score-threshold",
        type=_share,
        metavar="S",
        help="leave out predicted cells with a score below this, 0 to 1 (default: 0.5)",
    )
    parser.add_argument(
        "--class_names",
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="the classes of results, 1 and up (default: those of the run that the results lie "
        "in, else class1 class2 class3 class4); annotations name their own",
    )
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def read_cells(
    source: Path, data: Path, score_threshold: float | None, names: list[str] | None
) -> tuple[list[str], list[ImageCells]]:
    """Read class names and cells of either kind of source, without the cells of low score."""
    if is_annotations(source):
        if score_threshold is not None:
            raise InputError(f"--score_threshold: the annotations {source} have no scores; omit it")
        if names is not None:
            raise InputError(f"--class_names: the annotations {source} name their classes; omit it")
        return read_annotated_cells(source, data)
    names, images = read_predicted_cells(source, data, names)
    threshold = 0.5 if score_threshold is None else score_threshold
    return names, [_at_least(threshold, image) for image in images]


def _at_least(threshold: float, image: ImageCells) -> ImageCells:
    assert image.scores is not None
    keep = np.flatnonzero(image.scores >= threshold)
    masks = [image.masks[n] for n in keep]
    return ImageCells(
        image.name, image.path, image.size, masks, image.classes[keep], image.scores[keep]
    )


def write_image(image: ImageCells, names: Sequence[str], form: str, output: Path, bar: tqdm) -> int:
    """Write one image in one format. Returns how many cells have no pixel of their own there."""
    n_cells = len(image.masks)
    if form == "geojson":
        features = cell_features(
            image.name,
            image.size,
            image.masks,
            image.classes,
            names,
            [class_colour(k) for k in range(len(names))],
            image.scores,
            "detection" if image.scores is not None else "annotation",
        )

        def counted():
            for feature in features:
                bar.update()
                yield feature

        return n_cells - write_geojson(output / form / f"{image.name}.geojson", counted())
    lost = 0
    if form == "labels":
        folder = output / form / image.name
        lost = write_labels(folder, image.size, image.masks, image.classes, image.scores)
    else:
        pixels = read_image(image.path)
        if pixels.shape[:2] != image.size:
            raise InputError(
                f"{image.path}: {pixels.shape[0]} x {pixels.shape[1]} pixels (height x width), but "
                f"its cells lie in {image.size[0]} x {image.size[1]}; name the data folder that "
                "they are of with --data"
            )
        scores = None if image.scores is None else image.scores.astype(np.float32)
        picture = draw_overlay(pixels, image.masks, image.classes, names, scores)
        write_png(output / form / f"{image.name}.png", picture)
    bar.update(n_cells)
    return lost


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = get_parser().parse_args(argv)
    source = args.source or newest_results(RUNS)
    names, images = read_cells(source, args.data, args.score_threshold, args.class_names)
    output = args.output or (source if source.is_dir() else source.parent) / "export"

    n_cells = sum(len(image.masks) for image in images)
    for form in dict.fromkeys(args.format):
        lost = 0
        with tqdm(desc=form, total=n_cells, unit="cell", unit_scale=True, disable=None) as bar:
            for image in images:
                lost += write_image(image, names, form, output, bar)
        note = f", {lost} of them with no pixel of their own" if lost else ""
        print(f"{form}: {len(images)} images, {n_cells} cells{note}: {shown(output / form)}")
    return 0


if __name__ == "__main__":
    run_command(main)
