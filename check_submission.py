"""Check a submission before it is sent, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import utils
from cellseg.errors import InputError
from cellseg.read.coco import load_coco
from cellseg.read.images import list_entry, read_image_list
from cellseg.read.layout import CLASS_NAMES, TEST_LIST
from cellseg.write.submission import check_submission


def main(argv: Sequence[str] | None = None) -> int:
    """Check; return the exit code."""
    parser = utils.CommandParser(
        "Check a submission as the course's server would take it: the name in the zip, every\n"
        "image id, class, score and box, and that each mask is an RLE of its image's size.",
        "python check_submission.py tensorboard/demo/20250401-120000/test-results.zip",
    )
    parser.add_argument("submission", type=Path, metavar="FILE", help="the zip, or the JSON alone")
    utils.add_data(parser, " with the test list")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE",
        help=f"file that names the classes (default: {utils.ANNOTATIONS} in the data folder; "
        f"without it, {len(CLASS_NAMES)} classes)",
    )  # fmt: skip
    args = parser.parse_args(argv)

    annotations = args.annotations or args.data / utils.ANNOTATIONS
    if args.annotations or annotations.exists():
        category_ids = sorted(category["id"] for category in load_coco(annotations)["categories"])
    else:
        category_ids = list(range(1, len(CLASS_NAMES) + 1))
    listed = read_image_list(args.data / TEST_LIST, "take it as the data was handed out")
    images = [list_entry(image) for image in listed]
    count, empty = check_submission(args.submission, images, category_ids)
    if not count:
        raise InputError(
            f"{args.submission}: without a cell, but the server can't score an empty list; predict "
            "again with a lower inference.py --score_threshold"
        )
    print(
        f"{args.submission}: good, {count} cells in {len(images)} images"
        + (
            f", {len(empty)} of them without any (ids {', '.join(map(str, empty[:5]))}"
            f"{'…' * (len(empty) > 5)})"
            if empty
            else ""
        )
    )
    return 0


if __name__ == "__main__":
    utils.run_command(main)
