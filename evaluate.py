"""Score results against annotations."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

from collections.abc import Sequence
from pathlib import Path

import utils
from cellseg.errors import InputError
from cellseg.files import check_own, display_path, write_csv, write_json
from cellseg.read.ground_truth import find_default_ground_truth
from cellseg.read.image_lists import has_list
from cellseg.read.results import MANIFEST, find_newest_results, is_cohort, results_file
from cellseg.score.centroid import RADIUS
from cellseg.score.labelmap import OVERLAP_RULES
from cellseg.score.summary import difference
from cellseg.score.tables import as_json, as_text, difference_as_json, difference_as_text, per_image

DESCRIPTION = """\
Score results against annotations, or compare two results.

AP, AP50, AP75      average precision of masks as COCO defines it, with at most 100
                    detections of each image and class, and with all of them; the latter
                    is first where images have more than 100 cells of a class
PQ = DQ x SQ        panoptic quality, detection times segmentation quality, as in MoNuSAC
                    2020: the mean over images with ground-truth cells of the class;
                    "pooled" counts the cells of all images together
AJI, AJI+           aggregated Jaccard index, the mean over images
F1, precision, recall, counts, and the confusion matrix of the classes: of cells that match with
                    an IoU above 0.5
centroid F1         F_d (of any class) and F_c (of each) of HoVer-Net: of cells that match with
                    centroids at most 12 pixels apart, or --radius; in an image of more than some
                    4,000 cells, part by part

All but AP use label maps, in which a pixel belongs to one cell. Detections of one cell, of any
class, become one with a joint score, and a cell mostly under others of higher scores is left
out; --score_threshold and --overlap then draw the label map. Where annotations overlap, the
smaller cell gets the pixels. Cells without a pixel there are not counted; a warning says how many.
All cells of annotated images without results are false negatives. A class without ground-truth
cells has no score: "–"; one without detections has a precision of 0. Intervals bootstrap the
images: a class that is in one image only has none, and neither has the mean of classes with it.
Of few images they are too narrow: in simulations, those of 2, 3, 5, 10 and 40 images contained
the true share of a class in 51, 81, 87, 89 and 94 % of cases, not in 95 %.
"""

EXAMPLES = """\
python evaluate.py
    the newest run against test_masks in the data folder
python evaluate.py submission.zip --truth annotations.json --json scores.json
python evaluate.py --compare tensorboard/model/run1 tensorboard/model/run2
"""


def get_parser() -> utils.CommandParser:
    """Build the argument parser."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLES)
    utils.add_scoring(
        parser,
        data_use=", with the test list and image ids if TRUTH is a folder",
        ground_truth_default="test_masks in the data folder",
        threshold="not for AP: minimum score of detected cells, 0 to 1",
    )
    # fmt: off
    add = parser.add_argument
    add("--compare", nargs=2, type=Path, metavar=("A", "B"),
        help="compare two results: A, B, and B minus A with 95 %% intervals")
    add("--overlap", choices=OVERLAP_RULES, default="score",
        help="not for AP: which cell gets the pixels where two overlap: higher score, smaller "
        "or larger (default: score)")
    add("--radius", type=utils.positive_float, default=RADIUS, metavar="PX",
        help="largest distance of centroids that match, in pixels (default: 12, as in publications "
        "on images of 0.25 µm per pixel)")
    add("--json", type=Path, metavar="FILE", help="write all scores as JSON")
    add("--csv", type=Path, metavar="FILE",
        help="write one row per image and class as CSV: true, found, hits, misses and false_alarms "
        "are ground-truth cells, detections, true positives, false negatives and false positives; "
        "error is detections minus ground-truth cells; a quality without cells is empty")
    # fmt: on
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Score or compare results. Return the exit code."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.compare and args.results:
        parser.error("--compare takes two results; leave RESULTS out")
    if args.compare and args.csv:
        parser.error("--csv needs one result; leave out --compare or use --json")
    if args.compare and not args.resamples:
        parser.error("--compare needs intervals; leave out --resamples or pass more than 0")
    if args.json and args.csv and args.json.absolute() == args.csv.absolute():
        parser.error(f"--json and --csv: both are {args.json}; choose two files")
    paths = args.compare or [args.results or find_newest_results(utils.RUNS)]
    has_own_ids = args.truth is not None and args.truth.is_file()
    args.data = utils.choose_data(args.data, paths[0], needed=not has_own_ids)
    ground_truth_path = args.truth or find_default_ground_truth(paths, args.data)
    if ground_truth_path is None:
        own = next(filter(has_list, paths))
        raise InputError(f"{own}: results on your own images; pass their annotations with --truth")
    results = [path / MANIFEST if is_cohort(path) else results_file(path) for path in paths]
    inputs = [*results, ground_truth_path]
    utils.check_outputs({"--json": args.json, "--csv": args.csv}, inputs)
    if args.json:
        check_own(args.json, rb'\{\n "(results|a)": ', "scores", "--json")
    if args.csv:
        check_own(args.csv, rb"image_id,file_name,class,", "a table of scores", "--csv")
    _, scores = utils.score_results(
        args, paths, ground_truth_path, overlap=args.overlap, radius=args.radius, with_masks=False
    )
    names = [display_path(path) for path in paths]
    # Files first: nothing may read what is printed.
    if args.compare:
        differences = difference(*scores)
        if args.json:
            write_json(args.json, difference_as_json(names[0], names[1], differences), indent=1)
        print(difference_as_text(names[0], names[1], differences))
        return 0
    ground_truth = display_path(ground_truth_path)
    if args.json:
        report = {"results": names[0], "truth": ground_truth, **as_json(scores[0])}
        write_json(args.json, report, indent=1)
    if args.csv:
        rows = list(per_image(scores[0]))
        write_csv(args.csv, rows[0], rows)
    print(f"{names[0]} against {ground_truth}\n{as_text(scores[0])}")
    return 0


if __name__ == "__main__":
    utils.run_command(main)
