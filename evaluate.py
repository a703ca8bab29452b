"""Score results against annotations."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from cellseg.errors import InputError
from cellseg.files import write_atomic, write_json
from cellseg.read.coco import class_names
from cellseg.read.ground_truth import implied_truth, read_scored
from cellseg.read.results import beside, newest_results, side_by_side
from cellseg.score.labelmap import OVERLAP_RULES
from cellseg.score.summary import Scores, difference, score
from cellseg.score.tables import (
    as_json,
    as_text,
    difference_as_json,
    difference_as_text,
    per_image,
)
from utils import DATA, RUNS, CommandParser, run_command, share, shown, whole_number

DESCRIPTION = """\
Score results against annotations, or compare two results.

AP, AP50, AP75      average precision of masks as COCO defines it, with at most 100
                    detections of each image and class, and with all of them
PQ = DQ x SQ        panoptic quality, detection times segmentation quality, as in MoNuSAC
                    2020: of each image with true cells of the class, then their mean;
                    "pooled" is of the cells of all images together
AJI, AJI+           aggregated Jaccard index, the mean over images
F1, precision, recall, counts, and which classes are taken for which

All but AP are of label maps, in which a pixel belongs to one cell: --score_threshold and
--overlap say how detections become one; where annotations overlap, the smaller cell keeps
the pixels. Annotated images that have no result count as missed. A class without true
cells has no score: "–". Intervals are a bootstrap over images, so they need two or more.
"""

EXAMPLES = """\
python evaluate.py
    the newest run against test_masks in the data folder
python evaluate.py submission.zip --truth annotations.json --json scores.json
python evaluate.py --compare tensorboard/model/run1 tensorboard/model/run2
"""


def get_parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser(DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS",
        help="a results file (JSON), a zip with test-results.json in it, or a run folder"
        " (default: the newest run's)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="two results in place of RESULTS: by how much B is better, with an interval",
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="TRUTH",
        help="a COCO annotation file, or a folder <image>/class<K>.tif for the images of the"
        " test list (default: what inference.py left beside RESULTS of annotated images, else"
        " test_masks in the data folder)",
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
    parser.add_argument(
        "--score_threshold",
        "--score-threshold",
        type=share,
        default=0.5,
        metavar="S",
        help="for all but AP: the least score, 0 to 1, of a detection that counts (default: 0.5)",
    )
    parser.add_argument(
        "--overlap",
        choices=OVERLAP_RULES,
        default="score",
        help="for all but AP: which of two detections keeps the pixels that both claim, that"
        " of the higher score, the smaller or the larger one (default: score)",
    )
    parser.add_argument(
        "--resamples",
        type=whole_number,
        default=1000,
        metavar="N",
        help="sets of images drawn for the 95 %% intervals; 0 for none (default: 1000)",
    )
    parser.add_argument(
        "--seed", type=whole_number, default=0, metavar="N", help="of these draws (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all scores as JSON")
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write a row for each image and class as CSV"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.compare and args.results:
        parser.error("--compare takes two results; leave RESULTS out")
    if args.compare and args.csv:
        parser.error("--csv is of one result; leave out --compare, or take --json")
    if args.compare and not args.resamples:
        parser.error("--compare needs an interval; leave --resamples out, or give more than 0")

    paths = args.compare or [args.results or newest_results(RUNS)]
    for path in paths:
        if not args.truth and beside(path, "list").is_file():
            raise InputError(f"{path}: of images of your own; name their annotations with --truth")
    truth_path = args.truth or implied_truth(paths) or args.data / "test_masks"
    if not truth_path.exists():
        raise InputError(
            f"{truth_path}: no such annotations; name a COCO file or a folder of label maps"
            " with --truth"
        )
    truth, all_results = read_scored(
        paths, truth_path, args.data, without_others=args.only_annotated
    )
    scores = [
        score(
            side_by_side(truth, results, path),
            class_names(truth),
            score_threshold=args.score_threshold,
            overlap=args.overlap,
            n_resamples=args.resamples,
            seed=args.seed,
            progress=True,
        )
        for path, results in zip(paths, all_results, strict=True)
    ]
    names = [shown(path) for path in paths]
    if args.compare:
        apart = difference(*scores)
        print(difference_as_text(names[0], names[1], apart))
        if args.json:
            write_json(args.json, difference_as_json(names[0], names[1], apart), indent=1)
        return 0
    print(f"{names[0]} against {shown(truth_path)}")
    print(as_text(scores[0]))
    if args.json:
        told = {"results": names[0], "truth": shown(truth_path), **as_json(scores[0])}
        write_json(args.json, told, indent=1)
    if args.csv:
        _write_csv(args.csv, scores[0])
    return 0


def _write_csv(path: Path, scores: Scores) -> None:
    rows = list(per_image(scores))
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with write_atomic(path, "wb") as file:
        # The bytes of a file's name may be no letters.
        file.write(table.getvalue().encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    run_command(main)
