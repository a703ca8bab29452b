"""Write one HTML page to look at results, with or without ground truth, or at annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import utils
from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.look import content
from cellseg.look.report import ReportContent, write_report
from cellseg.read.cells import is_annotations
from cellseg.read.ground_truth import find_default_ground_truth
from cellseg.read.results import find_newest_results

DESCRIPTION = """\
Write one HTML file to look at: scores, training curves, precision and recall, and every image
with the outlines of its true and found cells, hits, misses, false alarms and misnamed cells.
It opens from disk in any browser, without network or server; press ? there for its keys.

  results with truth     the worst images first, numbers as of evaluate.py
  results without truth  the cells found, the least sure first
  two results            --compare B: side by side, what B lost or gained first
  annotations alone      --annotations FILE: examples and sizes of each class, odd cells first
"""

EXAMPLES = """\
python report.py
python report.py tensorboard/model/run1 --compare tensorboard/model/run2 --output both.html
python report.py --annotations nycu-hw3-data/train__annot.json"""


def get_parser() -> utils.CommandParser:
    """Describe the command line."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLES)
    utils.add_scoring(
        parser,
        data_use=", where the images are",
        ground_truth_default="test_masks in the data folder, or no truth where it isn't there",
        threshold="the least score, 0 to 1, at which the page begins; its slider changes that, "
        "the plots stay",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="B", help="other results, to compare: RESULTS are A then"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="TRUTH",
        help="annotations to look at, without results; a file or folder as for --truth",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE.html",
        help="the page (default: report.html beside the results or annotations)",
    )  # fmt: skip
    return parser


def collect_annotations(args: argparse.Namespace) -> ReportContent:
    """Collect what a page of annotations alone shows."""
    for flag, name in {"results": "RESULTS", "compare": "--compare", "truth": "--truth"}.items():
        if getattr(args, flag) is not None:
            raise InputError(f"--annotations: shows annotations alone; leave out {name}")
    utils.check_annotations(args.annotations)
    return content.annotations_content(args.annotations, args.data)


def collect_results(args: argparse.Namespace, paths: Sequence[Path]) -> ReportContent:
    """Collect what a page of one or two results shows, with their truth if it can be told."""
    for path in paths:
        if is_annotations(path):
            raise InputError(
                f"{path}: annotations, expected results; look at annotations alone with "
                f"--annotations {path}, give them as truth with --truth {path}"
            )
    if args.truth:
        utils.check_annotations(args.truth, " with --truth, or leave it out")
    ground_truth_path = args.truth or find_default_ground_truth(paths, args.data)
    if ground_truth_path is None or not (args.truth or ground_truth_path.exists()):
        return content.results_content(paths, args.data, args.score_threshold)
    ground_truth, scores = utils.score_results(args, paths, ground_truth_path)
    return content.scores_content(
        paths, ground_truth_path, args.data, args.score_threshold, ground_truth, scores
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = get_parser().parse_args(argv)
    if args.annotations:
        source = args.annotations
        page = collect_annotations(args)
    else:
        source = args.results or find_newest_results(utils.RUNS)
        page = collect_results(args, [source, *([args.compare] if args.compare else [])])
    output = args.output or (source if source.is_dir() else source.parent) / "report.html"
    n_reduced = write_report(output, page)
    note = f", {n_reduced} of them in fewer pixels than they have" if n_reduced else ""
    size = output.stat().st_size / 1e6
    print(
        f"{len(page.images)} images{note}, {size:.1f} MB: open {display_path(output)} in a browser"
    )
    return 0


if __name__ == "__main__":
    utils.run_command(main)
