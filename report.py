"""Write one HTML page that shows results, with or without ground truth, or annotations."""

from __future__ import annotations

if __name__ in ("__main__", "__mp_main__"):  # before imports that take seconds
    from cellseg import process

    process.prepare()

import argparse
from collections.abc import Sequence
from pathlib import Path

import utils
from cellseg.errors import InputError
from cellseg.files import check_own, display_path
from cellseg.look import content
from cellseg.look.parts import ReportContent
from cellseg.look.report import OWN, write_report
from cellseg.messages import plural
from cellseg.read.cells import is_annotations
from cellseg.read.ground_truth import check_annotations, find_default_ground_truth
from cellseg.read.image_lists import warn_of_changed_images
from cellseg.read.results import find_newest_results

DESCRIPTION = """\
Write one HTML page with scores, training curves, precision and recall, and every image with the
outlines of ground truth and detections: true positives, false positives, false negatives and
misclassified cells. It opens in any browser, without network or server; press ? for its keys.

  results with ground truth     lowest F1 first, numbers as in evaluate.py
  results without ground truth  lowest mean score first
  two results                   --compare B: switch between A and B, largest F1 drop first
  annotations only              --annotations FILE: examples and sizes of each class, unusual
                                cells first
"""

EXAMPLES = """\
python report.py
python report.py tensorboard/model/run1 --compare tensorboard/model/run2 --output both.html
python report.py --annotations nycu-hw3-data/train__annot.json"""


def get_parser() -> utils.CommandParser:
    """Build the argument parser."""
    parser = utils.CommandParser(DESCRIPTION, EXAMPLES)
    utils.add_scoring(
        parser,
        data_use=" with the images",
        ground_truth_default="test_masks in the data folder, if it exists",
        threshold="minimum score of cells, 0 to 1, which the page's slider changes, but not in the "
        "plots",
    )
    # fmt: off
    add = parser.add_argument
    add("--compare", type=Path, metavar="B", help="second results to compare with RESULTS, A")
    add("--annotations", type=Path, metavar="TRUTH",
        help="show annotations without results; a file or folder as for --truth")
    add("--output", type=Path, metavar="FILE.html",
        help="the page (default: report.html next to the results or annotations)")
    # fmt: on
    return parser


def collect_annotations(args: argparse.Namespace) -> ReportContent:
    """Return the content of a page of annotations."""
    for flag, name in {"results": "RESULTS", "compare": "--compare", "truth": "--truth"}.items():
        if getattr(args, flag) is not None:
            raise InputError(f"--annotations: can't be combined with {name}; leave out {name}")
    check_annotations(args.annotations)
    return content.annotations_content(args.annotations, args.data)


def collect_results(args: argparse.Namespace, paths: Sequence[Path]) -> ReportContent:
    """Return the content of a page of one or two results, with ground truth if available."""
    for path in paths:
        if is_annotations(path):
            raise InputError(
                f"{path}: annotations, expected results; show annotations with --annotations "
                f"{path}, or use them as ground truth with --truth {path}"
            )
    for path in paths:
        warn_of_changed_images(path)
    if args.truth:
        check_annotations(args.truth, " with --truth, or leave it out")
    ground_truth_path = args.truth or find_default_ground_truth(paths, args.data)
    if ground_truth_path is None or not (args.truth or ground_truth_path.exists()):
        return content.results_content(paths, args.data, args.score_threshold)
    ground_truth, scores = utils.score_results(args, paths, ground_truth_path)
    return content.scores_content(
        paths, ground_truth_path, args.data, args.score_threshold, ground_truth, scores
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page. Return the exit code."""
    args = get_parser().parse_args(argv)
    source = args.annotations or args.results or find_newest_results(utils.RUNS)
    args.data = utils.choose_data(args.data, source)
    output = args.output or (source if source.is_dir() else source.parent) / "report.html"
    inputs = [path for path in (source, args.compare) if path and not path.is_dir()]
    utils.check_outputs({"--output": output}, [*inputs, args.truth or source])
    check_own(output, OWN, "a report")
    if args.annotations:
        page = collect_annotations(args)
    else:
        page = collect_results(args, [source, *([args.compare] if args.compare else [])])
    written = write_report(output, page)
    note = f", {written.n_reduced} of them at reduced resolution" if written.n_reduced else ""
    size = f"{output.stat().st_size / 1e6:.1f} MB"
    if written.tiles:
        n_bytes = sum(file.stat().st_size for file in written.tiles.rglob("*.js"))
        slides = plural(written.n_slides, "slide")
        size += f" and {n_bytes / 1e6:.0f} MB in {display_path(written.tiles.parent)}/ for {slides}"
    print(
        f"{display_path(source)}: {plural(len(page.images), 'image')}{note}, {size}: "
        f"open {display_path(output)} in a browser"
    )
    return 0


if __name__ == "__main__":
    utils.run_command(main)
