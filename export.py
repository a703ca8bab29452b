"""Write the cells of results or annotations in other formats."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import utils
from cellseg import runs
from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import ImageCells
from cellseg.look.overlay import class_colour, write_overlay
from cellseg.messages import plural
from cellseg.read.cells import is_annotations, read_annotated_cells, read_predicted_cells
from cellseg.read.results import find_newest_results
from cellseg.read.window import open_image
from cellseg.write.correction import rank_windows, write_windows
from cellseg.write.geojson import cell_features, write_geojson
from cellseg.write.labels import write_labels

FORMATS = ("geojson", "labels", "overlay")

DESCRIPTION = """\
Write the cells of a results file or of an annotation file in other formats.

  geojson  <output>/geojson/<image>.geojson: outlines along the pixels' edges with class,
           colour and score; QuPath opens them with File > Import objects from file. --as
           annotations to edit them there, --as detections for many
  labels   <output>/labels/<image>/class<K>.tif: label maps (int32, zlib), as annotation.py
           and evaluate.py read them. Where cells of one class overlap, pixels go to the cell
           with the higher score, at equal scores to the earlier one
  overlay  <output>/overlay/<image>.png: outlines drawn on the image; for images of more than
           4096 pixels a side, <image>/x<left>_y<top>.png for each window of 4096 x 4096
"""

EXAMPLES = """\
python export.py tensorboard/my-model/my-run/test-results.json --format geojson overlay
python export.py --to_correct correct/ --count 5
"""


def get_parser() -> utils.CommandParser:
    """Build the argument parser."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "source", nargs="?", type=Path, metavar="RESULTS_OR_ANNOTATIONS",
        help="results file, zip or run folder with results, or a COCO annotation file (default: "
        "the newest run's test-results.json)",
    )  # fmt: skip
    parser.add_argument(
        "--format", nargs="+", choices=FORMATS,
        help="formats to write (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--to_correct", type=Path, metavar="DIR",
        help="instead of the formats, write the images, or windows of large ones, whose detections "
        "are the most uncertain, with editable outlines, to correct them in QuPath and train "
        "again: see docs/correct.md",
    )  # fmt: skip
    parser.add_argument(
        "--count", type=utils.positive_int, metavar="N",
        help="number of windows for --to_correct (default: 10)",
    )  # fmt: skip
    utils.add_data(
        parser, ": the test list defines the images of results, overlays need images", True
    )
    utils.add_limits(parser)
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help="the COCO file that the results refer to (default: the file that inference.py wrote "
        "next to results of other images than the test list's, else that list)",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="output folder (default: export, next to the results or annotations)",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="object_type", choices=("annotations", "detections"),
        help="what cells are in QuPath (default: detections of results, annotations otherwise)",
    )  # fmt: skip
    parser.add_argument("--gzip", action="store_true", help="write .geojson.gz, which QuPath opens")
    parser.add_argument(
        "--score_threshold", type=utils.fraction, metavar="S",
        help="minimum score of predicted cells, 0 to 1 (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--class_names", nargs="+", metavar="NAME",
        help="class names of results, in the order of the category ids (default: those of "
        "--annotations, else of the run, else class1 class2 class3 class4)",
    )  # fmt: skip
    return parser


def read_cells(args: argparse.Namespace, source: Path) -> tuple[list[str], list[ImageCells]]:
    """Read class names and cells of the source, detections with the minimum score."""
    if is_annotations(source):
        for flag in ("annotations", "class_names", "score_threshold"):
            if getattr(args, flag) is not None:
                raise InputError(
                    f"--{flag}: only for results, but {source} are annotations; leave it out"
                )
        return read_annotated_cells(source, args.data)
    names, images = read_predicted_cells(source, args.data, args.annotations, args.class_names)
    if args.to_correct:
        return names, images
    threshold = 0.5 if args.score_threshold is None else args.score_threshold
    n_left_out = 0
    for index, image in enumerate(images):
        assert image.scores is not None
        keep = np.flatnonzero(image.scores >= threshold)
        n_left_out += len(image.scores) - len(keep)
        images[index] = replace(
            image,
            masks=[image.masks[n] for n in keep],
            classes=image.classes[keep],
            boxes=image.boxes[keep],
            scores=image.scores[keep],
        )
    if n_left_out and args.score_threshold is None:
        below = plural(n_left_out, "detection")
        print(f"{below} with a score below {threshold} left out (--score_threshold)")
    return names, images


def write_image(
    image: ImageCells,
    names: Sequence[str],
    format_name: str,
    output: Path,
    args: argparse.Namespace,
    bar: tqdm,
) -> int:
    """Write one image in one format; return the number of cells hidden under others there."""
    n_cells = len(image.masks)
    if format_name == "geojson":
        predicted = image.scores is not None
        features = cell_features(
            image.name,
            image.size,
            image.masks,
            image.classes,
            names,
            [class_colour(k) for k in range(len(names))],
            image.scores,
            (args.object_type or ("detections" if predicted else "annotations"))[:-1],
            scale_to_full_resolution(image),
        )

        def counted() -> Iterator[dict[str, Any]]:
            for feature in features:
                bar.update()
                yield feature

        name = f"{image.name}.geojson{'.gz' * args.gzip}"
        return n_cells - write_geojson(output / format_name / name, counted())
    if format_name == "labels":
        folder = output / format_name / image.name
        n_hidden = write_labels(folder, image.size, image.masks, image.classes, image.scores)
    else:
        n_hidden = 0
        write_overlay(image, names, output / format_name)
    bar.update(n_cells)
    return n_hidden


def scale_to_full_resolution(image: ImageCells) -> tuple[float, float]:
    """Return the factors of x and y from the image's level to full resolution."""
    if not image.level:
        return 1, 1
    with open_image(image.path) as full:
        return full.size[1] / image.size[1], full.size[0] / image.size[0]


def write_to_correct(
    args: argparse.Namespace, source: Path, names: Sequence[str], images: Sequence[ImageCells]
) -> int:
    """Write the windows that are worth correcting most. Return the exit code."""
    if any(image.scores is None for image in images):
        raise InputError(
            f"--to_correct: {source} are annotations, which have no scores; give results of "
            "inference.py"
        )
    run = source if source.is_dir() else source.parent
    held_out = runs.read_record(run)["held_out"] if (run / runs.RECORD).is_file() else []
    ranked = rank_windows(images)
    chosen = ranked[: args.count or 10]
    threshold = 0.5 if args.score_threshold is None else args.score_threshold
    colours = [class_colour(k) for k in range(len(names))]
    n_cells = write_windows(args.to_correct, chosen, names, colours, threshold, held_out)
    for window in chosen:
        left, top, right, bottom = window.box
        print(
            f"{window.uncertainty:8.1f} cells in doubt per megapixel: {window.image.name}, "
            f"{right - left} x {bottom - top} px at {left}, {top}"
        )
    counts = f"{plural(len(chosen), 'window')} of {len(ranked)}, {plural(n_cells, 'cell')}"
    print(f"to correct: {counts}: {display_path(args.to_correct)}, see README.txt there")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.to_correct and (args.format or args.output or args.object_type or args.gzip):
        parser.error("--to_correct: leave out --format, --output, --as and --gzip")
    if args.count and not args.to_correct:
        parser.error("--count: only with --to_correct")
    source = args.source or find_newest_results(utils.RUNS)
    args.data = utils.choose_data(args.data, source)
    names, images = read_cells(args, source)
    if args.to_correct:
        return write_to_correct(args, source, names, images)
    output = args.output or (source if source.is_dir() else source.parent) / "export"
    n_cells = sum(len(image.masks) for image in images)
    for format_name in dict.fromkeys(args.format or FORMATS):
        n_hidden = 0
        with tqdm(
            desc=format_name, total=n_cells, unit="cell", unit_scale=True, disable=None
        ) as bar:
            for image in images:
                n_hidden += write_image(image, names, format_name, output, args, bar)
        note = f", {n_hidden} of them hidden under others" if n_hidden else ""
        folder = display_path(output / format_name)
        counts = f"{plural(len(images), 'image')}, {plural(n_cells, 'cell')}"
        print(f"{format_name}: {counts}{note}: {folder}")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
