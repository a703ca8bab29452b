"""Score results against annotations."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellseg.errors import InputError
from cellseg.files import write_json
from cellseg.read.coco import class_names
from cellseg.score.ap import AveragePrecision, mask_ap
from cellseg.score.results import newest_results, read_results
from cellseg.score.truth import read_truth
from utils import DATA, RUNS, run_command, shown

DESCRIPTION = """\
Score results against annotations: average precision (AP) of masks as COCO defines it,
AP50 and AP75, for each class and over the classes, with at most 100 detections of each
image and class (COCO's way) and with all of them.

Images that are annotated but have no result count as missed. Where a class has no
annotation, there is no AP: "–".
"""

EXAMPLES = """\
examples:
  python evaluate.py                                    the newest run, against DATA/test_masks
  python evaluate.py submission.zip --truth annotations.json --json scores.json
"""


def get_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS",
        help="a results file (JSON), a zip with test-results.json in it, or a run folder"
        " (default: the newest run's)",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="TRUTH",
        help="a COCO annotation file, or a folder <image>/class<K>.tif for the images of the"
        " test list (default: test_masks in the data folder)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        metavar="DIR",
        help="the data folder, whose test list gives the images' ids if TRUTH is a folder"
        " (default: nycu-hw3-data beside this script)",
    )
    parser.add_argument(
        "--only-annotated",
        "--only_annotated",
        action="store_true",
        help="leave out the results of images that TRUTH doesn't have (default: an error)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = get_parser().parse_args(argv)
    path = args.results or newest_results(RUNS)
    truth_path = args.truth or args.data / "test_masks"
    if not truth_path.exists():
        raise InputError(
            f"{truth_path}: no such annotations; name a COCO file or a folder of label maps"
            " with --truth"
        )
    truth = read_truth(truth_path, args.data)
    results = read_results(path)
    if args.only_annotated:
        annotated = {image["id"] for image in truth["images"]}
        results = [r for r in results if not isinstance(r, dict) or r.get("image_id") in annotated]
    scores = mask_ap(truth, results, source=shown(path))
    names = class_names(truth)
    print(f"{shown(path)} against {shown(truth_path)}")
    print(
        f"{len(truth['images'])} images, {len(truth['annotations'])} true cells,"
        f" {len(results)} detections\n"
    )
    for cap, of_cap in scores.items():
        print(f"{'at most ' + str(cap) + ' of an image and class' if cap else 'all detections'}")
        for row in _rows(names, of_cap):
            print("  ".join([f"{row[0]:<24}", *(f"{_number(value):>6}" for value in row[1:])]))
        print()
    if args.json:
        write_json(
            args.json, {"ap": {str(cap or "all"): _plain(names, s) for cap, s in scores.items()}}, 1
        )
    return 0


def _rows(names: list[str], scores: AveragePrecision) -> list[tuple[Any, ...]]:
    return [
        ("", "AP", "AP50", "AP75"),
        ("all classes", scores.ap, scores.ap50, scores.ap75),
        *zip(names, scores.class_ap, scores.class_ap50, scores.class_ap75, strict=True),
    ]


def _number(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "–" if math.isnan(value) else f"{value:.4f}"


def _plain(names: list[str], scores: AveragePrecision) -> dict[str, Any]:
    header, *rows = _rows(names, scores)
    return {
        row[0]: {
            key: None if math.isnan(value) else float(value)
            for key, value in zip(header[1:], row[1:], strict=True)
        }
        for row in rows
    }


if __name__ == "__main__":
    run_command(main)
