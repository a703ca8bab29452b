"""Check a submission of any program before it is uploaded."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

from collections.abc import Sequence
from pathlib import Path

import utils
from cellseg.errors import InputError
from cellseg.messages import plural
from cellseg.read.coco import data_categories
from cellseg.read.image_lists import list_entry, read_test_list
from cellseg.read.layout import CLASS_NAMES
from cellseg.write.submission import check_submission


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = utils.CommandParser(
        "Check a submission by the rules of the course server and of pycocotools' COCO.loadRes:\n"
        "name in the zip, every image id, class, score and box, that each mask is an RLE of its\n"
        "image's size, and that boxes (x, y, width, height) and masks (column by column) agree.",
        "python check_submission.py tensorboard/demo/20250401-120000/test-results.zip",
    )
    # fmt: off
    add = parser.add_argument
    add("submission", type=Path, metavar="FILE", help="the zip or the JSON file")
    utils.add_data(parser, " with the test list")
    add("--annotations", type=Path, metavar="FILE",
        help=f"annotation file that defines the classes (default: {utils.ANNOTATIONS} in --data; "
        f"without it, {len(CLASS_NAMES)} classes)")
    # fmt: on
    args = parser.parse_args(argv)

    category_ids = [c["id"] for c in data_categories(args.data, args.annotations)]
    images = [list_entry(image) for image in read_test_list(args.data, with_files=False)]
    count, empty = check_submission(args.submission, images, category_ids)
    if not count:
        raise InputError(
            f"{args.submission}: no detections, and the server can't score an empty list; predict "
            "again with a lower inference.py --score_threshold"
        )
    ids = ", ".join(map(str, empty[:5])) + "…" * (len(empty) > 5)
    note = f", {len(empty)} of them without detections (ids {ids})" if empty else ""
    print(
        f"{args.submission}: valid, {plural(count, 'detection')} in "
        f"{plural(len(images), 'image')}{note}"
    )
    return 0


if __name__ == "__main__":
    utils.run_command(main)
