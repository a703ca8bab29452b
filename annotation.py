"""Convert the annotations of the training images to one COCO file."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import utils
from cellseg.device import count_cores
from cellseg.errors import InputError
from cellseg.files import check_own, display_path, write_json
from cellseg.messages import listed, plural, warn
from cellseg.read.annotate import (
    annotate_coco_image,
    annotate_image,
    annotate_images,
    count_cells,
    find_class_names,
    read_former_images,
    summarise,
    warn_of_images,
    warn_of_lost_images,
    with_former_resolution,
)
from cellseg.read.classes import UnknownClassError, advise_class_names
from cellseg.read.coco import OWN_START, AnnotatedImage, build_coco
from cellseg.read.convention import CONVENTIONS
from cellseg.read.corrected import take_back
from cellseg.read.corrected_store import (
    Corrected,
    add_windows,
    is_corrected,
    join,
    load_store,
    write_store,
)
from cellseg.read.foreign_coco import CocoImage, read_coco_images
from cellseg.read.image_lists import read_test_list
from cellseg.read.layout import CLASS_NAMES, TEST_LIST, TRAIN
from cellseg.read.merge_classes import merge_classes, read_merge
from cellseg.read.names import check_class_names
from cellseg.read.resolution import resolution_text
from cellseg.read.train_files import ImageFiles, list_train_images

DESCRIPTION = """\
Read every training image and its label maps, check them, and write one COCO file with
one RLE mask per cell. Run it once before training.

The data folder holds train/<image>/image.tif (or .png, .jpg, .bmp) and next to it one of
- class1.tif, class2.tif, ... (or .png, .npy): a label map for each class that occurs, of
  any integer or float type, with 0 for background and one value for each cell
- label.tif, ..._masks.png or similar: one label map of all cells, with their classes in
  classes.csv (columns label,class), or of a single class of --class_names
- a .mat file with the label map inst_map and the classes inst_type, as of CoNSeP, Lizard
  and HoVer-Net
- one .geojson (or .geojson.gz) file of outlines from QuPath, or one .xml file from Aperio
  ImageScope (as in MoNuSAC), with the classes of --class_names or those of MoNuSAC
  (Epithelial, Lymphocyte, Neutrophil, Macrophage)
Or train/images/ holds the images, and train/labels/ such files with the same names; or
train/ holds all, label maps as <image>_masks.tif. See the README of nycu-hw3-data.
With --coco, images and cells come from a COCO file of any program.
"""

EXAMPLES = """\
python annotation.py
python annotation.py --data ~/tissue --output annotations.json --skip_bad
python annotation.py --data ~/lymph --class_names lymphocyte other
python annotation.py --merge_classes cell class1 class2 class3 class4
python annotation.py --data ~/tissue --coco ~/tissue/export.json
"""


def get_parser() -> utils.CommandParser:
    """Build the argument parser."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLES)
    utils.add_data(parser)
    utils.add_limits(parser)
    # fmt: off
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE",
        help=f"annotation file to write (default: {utils.ANNOTATIONS} in the data folder)")
    add("--class_names", nargs="+", metavar="NAME",
        help="class names, in the order of class1.tif, class2.tif and so on; the annotation file "
        "then defines the classes (default: class1 class2 class3 class4)")
    add("--merge_classes", nargs="+", action="append", default=[], metavar=("NEW", "OLD"),
        help="merge one or more classes of the files, OLD, into the class NEW; may be given "
        "several times (default: every class stays)")
    add("--coco", type=Path, metavar="FILE",
        help="read images, classes and cells from this COCO file with polygons or RLE, whose "
        "file_name is relative to the data folder (default: read the folder's train/)")
    add("--corrected", nargs="+", type=Path, metavar="DIR",
        help="add what was corrected in the folders of windows that export.py wrote to the data "
        "folder, and say what was changed; or a COCO file in such a folder, from CVAT: see "
        "docs/correct.md")
    add("--mpp", type=utils.micrometres, metavar="MICROMETRES",
        help="micrometres per pixel of all images, except corrected windows that have theirs "
        "(default: as the files or the COCO file say, with --corrected else as in the former "
        "annotation file, else unknown)")
    add("--outlines", choices=CONVENTIONS,
        help="where outlines run: along the pixels' edges, or through their centres (default: "
        "GeoJSON and COCO edges, unless a COCO file's areas fit centres; XML centres)")
    add("--jobs", type=utils.positive_int, default=count_cores(), metavar="N",
        help="images to read in parallel, 1 or more (default: number of CPU cores, %(default)s)")
    add("--skip_bad", action="store_true",
        help="leave out images, and single outlines and COCO annotations, that can't be used, and "
        "list them (default: stop at the first and write nothing, no corrected windows either)")
    # fmt: on
    return parser


def read_coco(args: argparse.Namespace) -> tuple[list[str], list[AnnotatedImage], list[str]]:
    """Read the COCO file: class names, images, and a message for each that can't be used."""
    names, sources, unused = read_coco_images(args.coco, args.data, args.skip_bad, args.outlines)
    merge_classes(names, args.merge_classes)  # a wrong name is said before images are read

    def count(image: CocoImage) -> int:
        return len(image.masks) + image.n_crowds

    images, bad_images = annotate_images(
        sources, annotate_coco_image, count, args.jobs, args.skip_bad
    )
    return names, images, [*unused, *bad_images]


def read_train(
    args: argparse.Namespace, names: Sequence[str]
) -> tuple[list[AnnotatedImage], list[str], dict[str, list[str]]]:
    """Read the data folder's train/, whose classes have these names.

    Returns the images, a message for each that can't be used, and what else isn't used: names of
    files and images by the reason.
    """
    sources, unused = list_train_images(args.data)

    def read(source: ImageFiles) -> AnnotatedImage:
        return annotate_image(source.choose(len(names)), names, args.skip_bad, args.outlines)

    def count(source: ImageFiles) -> int:
        return count_cells(source.choose(len(names)))

    try:
        images, bad_images = annotate_images(sources, read, count, args.jobs, args.skip_bad)
    except UnknownClassError as error:
        given = names if args.class_names or args.corrected else None
        found = find_class_names(sources, len(names), given)
        raise InputError(f"{error}; {advise_class_names(given, found)}") from None
    return images, bad_images, unused


def check_former_merge(args: argparse.Namespace) -> None:
    """Raise InputError if classes are merged in the former annotation file, and now not."""
    try:
        merge = read_merge(args.data)
    except InputError:  # a damaged file is written anew
        return
    if flags := merge.flags:
        if not args.coco and merge.file_names != CLASS_NAMES:
            flags = f"{shlex.join(['--class_names', *merge.file_names])} {flags}"
        path = args.data / utils.ANNOTATIONS
        raise InputError(f"--corrected: classes are merged in {path}; repeat {flags}")


def with_resolution(
    args: argparse.Namespace, images: Sequence[AnnotatedImage], output: Path
) -> list[AnnotatedImage]:
    """Return images with the resolution of --mpp, or with --corrected of the former file.

    Warns of what the former file had and the new one has not.
    """
    keep = bool(args.corrected)
    path = output if output.exists() or not keep else args.data / utils.ANNOTATIONS
    unknown = not args.mpp and any(image.mpp is None for image in images)
    former = read_former_images(path) if keep or unknown else []
    if keep:
        warn_of_lost_images(images, former)
    if not args.mpp:
        return with_former_resolution(images, former, path, keep)
    # Windows may be of another level than the images.
    return [
        image if image.mpp and is_corrected(image.file_name) else replace(image, mpp=args.mpp)
        for image in images
    ]


def check_test_list(args: argparse.Namespace) -> list[str]:
    """Check the test list, if there is one; with --skip_bad, return what is wrong with it."""
    try:
        if (args.data / TEST_LIST).exists():
            read_test_list(args.data)
    except InputError as error:
        if not args.skip_bad:
            raise
        return [str(error)]
    return []


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = get_parser()
    args = parser.parse_args(argv)
    output = args.output or args.data / utils.ANNOTATIONS
    if args.coco and args.class_names:
        parser.error("argument --class_names: the COCO file defines the classes; leave it out")
    utils.check_outputs({"--output": output}, [args.coco] if args.coco else [])
    check_own(output, OWN_START, "annotations")
    check_class_names("--class_names", args.class_names or CLASS_NAMES)
    images: list[AnnotatedImage] = []
    bad_images: list[str] = []
    names = args.class_names
    if args.coco:
        names, images, bad_images = read_coco(args)
    merge = None
    if args.merge_classes:
        merge = merge_classes(names or CLASS_NAMES, args.merge_classes)
        names = merge.names
    elif args.corrected:
        check_former_merge(args)
    corrected: list[Corrected] = []
    if args.corrected:
        names, corrected = take_back(args.corrected, args.data, names, args.skip_bad)
    names = names or list(CLASS_NAMES)
    stored = load_store(args.data, names)
    windows = add_windows(stored, corrected, args.data)
    skipped = check_test_list(args)
    is_train = not args.coco and ((args.data / TRAIN).exists() or not windows)
    unused: dict[str, list[str]] = {}
    if is_train:
        images, bad_images, unused = read_train(args, merge.file_names if merge else names)
    if merge:
        images = [merge.apply(image) for image in images]
    images = join(images, windows, args.data)
    if not images:
        unusable = plural(len(bad_images), "training image")
        raise InputError(
            f"{args.coco or args.data}: none of {unusable} is usable; the first: {bad_images[0]}"
            if bad_images
            else f"{args.data}: no training image, and none of the corrected windows is used; add "
            f"{TRAIN}/, or name a --coco file"
        )
    images = with_resolution(args, images, output)
    coco = build_coco(images, names)
    if merge:
        coco["info"] |= merge.record()
    if corrected:  # all is read
        write_store(args.data, windows, names, stored)
    write_json(output, coco)
    print(summarise(images, names))
    if sizes := [image.mpp for image in images if image.mpp]:
        print(f"micrometres per pixel: {resolution_text(sizes, len(images))}")
    warn_of_images(images)
    for reason, unused_names in unused.items():
        warn(f"{reason}: {len(unused_names)}: {listed(unused_names)}")
    if merge and output.absolute() != (args.data / utils.ANNOTATIONS).absolute():
        warn(
            f"{output}: the merged classes are in this file only, but folders of ground truth "
            f"(--truth DIR) are merged as {args.data / utils.ANNOTATIONS} says; leave out "
            "--output, or pass COCO files"
        )
    for line in [*skipped, *bad_images]:
        warn(f"skipped: {line}")
    print(f"wrote {display_path(output)}")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
