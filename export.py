"""Write the cells of results or annotations in other formats."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import utils
from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.images import ImageCells
from cellseg.look.formats import DEFAULT_FORMATS, FORMATS, FORMATS_HELP, write_format
from cellseg.look.overlay import WINDOW
from cellseg.messages import plural
from cellseg.read.cells import (
    is_annotations,
    read_annotated_cells,
    read_predicted_cells,
    select_by_score,
    with_resolution,
)
from cellseg.read.image_lists import warn_of_changed_images
from cellseg.read.results import find_newest_results, is_cohort
from cellseg.score.tables import composition_as_text
from cellseg.write.correction import write_most_uncertain
from cellseg.write.geojson import GeoJSONOptions
from cellseg.write.measured import measure_cells, measured_once
from cellseg.write.table import check_tables, summary_path, write_tables

DESCRIPTION = f"""\
Write the cells of a results file or of an annotation file in other formats.

{FORMATS_HELP}
docs/formats.md says how each is opened. --table and --h5ad write one table of all cells: place,
shape, stain and neighbours of each, as docs/cells.md defines them. Numbers, densities and shares
of the classes are printed, and written into FILE-summary.csv.
"""

EXAMPLES = """\
python export.py tensorboard/my-model/my-run/test-results.json --format geojson overlay
python export.py predicted/ --table cells.csv
python export.py cohort/ --table cells.parquet
python export.py predicted/images-results.json --to_correct fix/ --count 5
"""


def get_parser() -> utils.CommandParser:
    """Build the argument parser."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLES)
    # fmt: off
    add = parser.add_argument
    add("source", nargs="?", type=Path, metavar="RESULTS_OR_ANNOTATIONS",
        help="results file, zip, folder with results or of a table of slides, or a COCO "
        "annotation file (default: the newest run's test-results.json)")
    add("--format", nargs="+", choices=FORMATS, metavar="FORMAT",
        help="formats to write: " + ", ".join(FORMATS) + " (default: the first three; none with "
        "--table or --h5ad)")
    add("--table", type=Path, metavar="FILE", help="write the table of cells, .csv or .parquet")
    add("--h5ad", type=Path, metavar="FILE", help="write it as AnnData, for scanpy and squidpy")
    add("--mpp", type=utils.micrometres, metavar="MICROMETRES",
        help="micrometres per pixel at full resolution (default: as the results or files say)")
    add("--to_correct", type=Path, metavar="DIR",
        help="instead of the formats, write the images, or windows of large ones, whose cells "
        "are the most uncertain, with editable outlines, to correct them in QuPath and train "
        "again: see docs/correct.md")
    add("--count", type=utils.positive_int, metavar="N",
        help="number of windows for --to_correct (default: 10)")
    utils.add_data(
        parser, ": the test list defines the images of results, overlays need images", True
    )
    utils.add_limits(parser)
    add("--annotations", type=Path, metavar="FILE",
        help="the COCO file that the results refer to; its images without detections count as "
        "images without cells (default: the file that inference.py wrote next to results of "
        "other images than the test list's, else that list)")
    add("--output", type=Path, metavar="DIR",
        help="output folder (default: export, next to the results or annotations)")
    add("--as", dest="object_type", choices=("annotations", "detections"),
        help="what cells are in QuPath (default: detections of results, annotations otherwise)")
    add("--measurements", action="store_true", help="write the table's columns into GeoJSON too")
    add("--gzip", action="store_true", help="write .geojson.gz, which QuPath opens")
    add("--max_side", type=utils.non_negative_int, default=WINDOW, metavar="PX",
        help=f"longest side of overlays; larger images are reduced, 0: full size ({WINDOW})")
    add("--score_threshold", type=utils.fraction, metavar="S",
        help="minimum score of predicted cells, 0 to 1 (default: 0.5)")
    add("--class_names", nargs="+", metavar="NAME",
        help="class names of results, in the order of the category ids (default: those of "
        "--annotations, else of the run, else class1 class2 class3 class4)")
    # fmt: on
    return parser


def read_cells(args: argparse.Namespace, source: Path) -> tuple[list[str], list[ImageCells]]:
    """Read class names and cells of the source, of results those with the minimum score."""
    if is_annotations(source):
        for flag in ("annotations", "class_names", "score_threshold"):
            if getattr(args, flag) is not None:
                raise InputError(
                    f"--{flag}: only for results, but {source} are annotations; leave it out"
                )
        return read_annotated_cells(source, args.data)
    if is_cohort(source):
        for flag in ("annotations", "to_correct"):
            if getattr(args, flag) is not None:
                raise InputError(
                    f"--{flag}: for the results of one slide, but {source} holds many; choose one"
                )
    names, images = read_predicted_cells(source, args.data, args.annotations, args.class_names)
    warn_of_changed_images(source)
    threshold = 0.5 if args.score_threshold is None else args.score_threshold
    # Those of many slides are selected as they are read, since not all may fit into memory.
    images, n_below = select_by_score(images, -math.inf if args.to_correct else threshold)
    if n_hidden := sum(int((image.hidden >= threshold).sum()) for image in images):
        print(f"{plural(n_hidden, 'cell')} mostly under others of higher scores left out")
    if n_below and args.score_threshold is None:
        below = plural(n_below, "cell")
        print(f"{below} with a score below {threshold} left out (--score_threshold)")
    return names, images


def _check_images(images: Sequence[ImageCells]) -> None:
    """Raise InputError if an image to draw on is missing."""
    for image in images:
        if not image.path.is_file():
            raise InputError(
                f"{image.path}: no such file, but overlays are drawn on it; put it back, run this "
                "in the folder that inference.py was run in, or choose formats without pixels "
                "(--format geojson labels)"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = get_parser()
    args = parser.parse_args(argv)
    tables = [path for path in (args.table, args.h5ad) if path]
    measure = (measured_once() if tables else measure_cells) if args.measurements else None
    object_type = args.object_type and args.object_type.removesuffix("s")
    geojson = GeoJSONOptions(object_type, measure, args.gzip)
    others = args.format, args.output, tables, args.mpp, geojson != GeoJSONOptions()
    if args.to_correct and any(others):
        parser.error(
            "--to_correct: leave out --format, --output, --table, --h5ad, --mpp, --as, "
            "--measurements and --gzip"
        )
    if args.count and not args.to_correct:
        parser.error("--count: only with --to_correct")
    source = args.source or find_newest_results(utils.RUNS)
    args.data = utils.choose_data(args.data, source)
    check_tables(args.table, args.h5ad)
    names, images = read_cells(args, source)
    if args.to_correct:
        threshold = 0.5 if args.score_threshold is None else args.score_threshold
        count = args.count or 10
        write_most_uncertain(args.to_correct, source, images, names, threshold, count)
        return 0
    formats = list(dict.fromkeys(args.format or ([] if tables else DEFAULT_FORMATS)))
    drawn = [image for image in images if args.format or max(image.size) <= WINDOW]
    if "overlay" in formats:
        _check_images(drawn)
    output = args.output or (source if source.is_dir() else source.parent) / "export"
    n_cells = sum(len(image.masks) for image in images)
    counts = f"{plural(len(images), 'image')}, {plural(n_cells, 'cell')}"
    if tables or args.mpp or args.measurements:
        images = with_resolution(images, args.mpp)

    def progress(what: str) -> tqdm:
        return tqdm(desc=what, total=n_cells, unit="cell", unit_scale=True, disable=None)

    if tables:
        with progress("table") as bar:
            found = write_tables(images, names, tables, bar.update, measure or measure_cells)
        print(composition_as_text(found, [image.name for image in images], names))
        written = [*tables, *dict.fromkeys(map(summary_path, tables))]
        print(f"table: {counts}: {', '.join(map(display_path, written))}")
    for name in formats:
        some = drawn if name == "overlay" else images
        if n_large := len(images) - len(some):
            large = plural(n_large, "image")
            print(f"overlay: {large} of more than {WINDOW} pixels a side left out (--format)")
            if not some:
                continue
        with progress(name) as bar:
            place, n_hidden = write_format(
                name, some, names, output, bar.update, geojson, args.max_side
            )
        note = f", {n_hidden} of them hidden under others" if n_hidden else ""
        print(f"{name}: {counts}{note}: {display_path(place)}")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
