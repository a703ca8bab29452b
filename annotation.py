"""Turn what is drawn on the training images into one COCO annotation file."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from cellseg.device import count_cores
from cellseg.errors import InputError
from cellseg.files import write_json
from cellseg.read.annotate import (
    annotate_coco_image,
    annotate_image,
    read_coco_images,
)
from cellseg.read.coco import AnnotatedImage, build_coco
from cellseg.read.images import read_test_list
from cellseg.read.layout import (
    CLASS_NAMES,
    TEST_LIST,
    list_train_folders,
    train_image,
)
from cellseg.read.names import short_name
from utils import ANNOTATIONS, DATA, CommandParser, run_command, shown

DESCRIPTION = """\
Read every training image and its label maps, check them, and write them as one COCO
file with a run-length encoded mask a cell. Run it once, before training.

The data folder holds train/<image>/image.tif (8- or 16-bit, grey, RGB or RGBA) and
beside it class1.tif, class2.tif, ...: a label map for each class that occurs, of any
integer or float type, with 0 for background and one value for each cell.
In place of label maps it may hold the cells' outlines: one .geojson file from QuPath,
or one .xml file from Aperio ImageScope (MoNuSAC's). Their classes are those of
--class_names, or MoNuSAC's (Epithelial, Lymphocyte, Neutrophil, Macrophage).
With --coco, images and cells are those of a COCO file of any program.
"""

EXAMPLES = """\
python annotation.py
python annotation.py --data ~/tissue --output annotations.json --skip-bad
python annotation.py --data ~/lymph --class_names lymphocyte other
python annotation.py --data ~/tissue --coco ~/tissue/export.json
"""


def get_parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser(DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        metavar="DIR",
        help="the data folder (default: nycu-hw3-data beside this script)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the annotation file to write (default: {ANNOTATIONS} in the data folder)",
    )
    parser.add_argument(
        "--class_names",
        "--class-names",
        nargs="+",
        metavar="NAME",
        help="the classes, the first for class1.tif, the second for class2.tif and so on; from "
        "here on the annotation file says which there are (default: class1 class2 class3 class4)",
    )
    parser.add_argument(
        "--coco",
        type=Path,
        metavar="FILE",
        help="take images, classes and cells from this COCO file, with polygons or RLE, whose "
        "file_name is relative to the data folder (default: read the folder's train/)",
    )
    parser.add_argument(
        "--jobs",
        type=_jobs,
        default=count_cores(),
        metavar="N",
        help="images to read at the same time, 1 or more (default: the cores there are, "
        "%(default)s)",
    )
    parser.add_argument(
        "--skip-bad",
        "--skip_bad",
        action="store_true",
        help="go on without the images that can't be used, and list them (default: stop at the "
        "first and write nothing)",
    )
    return parser


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


Source = TypeVar("Source")


def annotate(
    sources: Sequence[Source],
    read: Callable[[Source], AnnotatedImage],
    jobs: int,
    skip_bad: bool,
) -> tuple[list[AnnotatedImage], list[str]]:
    """Read one image from each source, `jobs` at a time, in their order.

    Returns
    -------
    The images, and a line for each that can't be used.

    Raises
    ------
    InputError
        Without `skip_bad`, for the first image that can't be used.
    """

    def try_to_read(source: Source) -> AnnotatedImage | InputError:
        try:
            return read(source)
        except InputError as error:
            return error

    images: list[AnnotatedImage] = []
    refused: list[str] = []
    # Threads do: decoding and numpy's passes leave the interpreter to the others.
    executor = ThreadPoolExecutor(jobs)
    try:
        results = executor.map(try_to_read, sources)
        for result in tqdm(results, "reading", len(sources), unit="image", disable=None):
            if isinstance(result, AnnotatedImage):
                images.append(result)
            elif skip_bad:
                refused.append(str(result))
            else:
                raise InputError(f"{result} (--skip-bad goes on without the image)")
    finally:
        executor.shutdown(cancel_futures=True)
    return images, refused


def summary(images: Sequence[AnnotatedImage], class_names: Sequence[str]) -> str:
    """Tell how many images and cells each class has, and what looks odd in which images."""
    per_class = [
        [len(image.cells[number]) for image in images if image.cells.get(number)]
        for number in range(1, len(class_names) + 1)
    ]
    rows = [
        (f"{number} {name}", len(cells), sum(cells))
        for number, (name, cells) in enumerate(zip(class_names, per_class, strict=True), 1)
    ]
    rows.append(("all", len(images), sum(cells for _, _, cells in rows)))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'class':{width}}  images  instances"]
    lines += [f"{name:{width}}  {n_images:6}  {n_cells:9}" for name, n_images, n_cells in rows]
    odd: Counter[str] = sum((image.odd for image in images), Counter())
    for what, count in sorted(odd.items()):
        where = [short_name(image.file_name) for image in images if image.odd[what]]
        more = ", …" if len(where) > 3 else ""
        lines.append(f"odd: {count} {what}, in {len(where)}: {', '.join(where[:3])}{more}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = get_parser()
    args = parser.parse_args(argv)
    output = args.output or args.data / ANNOTATIONS
    if args.coco and args.coco.resolve() == output.resolve():
        parser.error(f"argument --output: {output} is the file of --coco; name another")
    if args.coco and args.class_names:
        parser.error("argument --class_names: the file of --coco names its classes; omit it")
    names = args.class_names or list(CLASS_NAMES)
    # Outlines call them so, whatever the case.
    distinct = {name.strip().casefold() for name in names}
    if "" in distinct or len(distinct) < len(names):
        parser.error(
            "argument --class_names: give each class a name of its own; capitals don't tell two "
            "apart"
        )

    folders = [] if args.coco else list_train_folders(args.data)
    refused = []
    if (args.data / TEST_LIST).exists():
        try:
            read_test_list(args.data)
        except InputError as error:
            if not args.skip_bad:
                raise
            refused.append(str(error))
    if args.coco:
        bad: dict[int, str] = {}
        names, sources = read_coco_images(args.coco, args.data, bad if args.skip_bad else None)
        images, bad_images = annotate(sources, annotate_coco_image, args.jobs, args.skip_bad)
        bad_images = [*bad.values(), *bad_images]
    else:

        def read(folder: Path) -> AnnotatedImage:
            return annotate_image(train_image(folder, len(names)), names)

        images, bad_images = annotate(folders, read, args.jobs, args.skip_bad)
    refused += bad_images
    if not images:
        raise InputError(
            f"{args.coco or args.data}: none of its {len(bad_images)} training images can be used; "
            f"the first: {bad_images[0]}"
        )
    write_json(output, build_coco(images, names))

    print(summary(images, names))
    for line in refused:
        print(f"left out: {line}")
    print(f"wrote {shown(output)}")
    return 0


if __name__ == "__main__":
    run_command(main)
