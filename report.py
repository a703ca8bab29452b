"""Write one HTML page to look at results, with or without truth, or at annotations."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cellseg.errors import InputError
from cellseg.images import ImageCells, Scene
from cellseg.look.report import Content, write_report
from cellseg.read.cells import is_annotations, read_predicted_cells
from cellseg.read.coco import class_names
from cellseg.read.ground_truth import implied_truth, read_scored, read_truth
from cellseg.read.layout import TEST
from cellseg.read.results import beside, newest_results, side_by_side
from cellseg.rle import decode
from cellseg.score.summary import score
from utils import DATA, RUNS, CommandParser, run_command, share, shown, whole_number

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


def get_parser() -> CommandParser:
    """Describe the command line."""
    parser = CommandParser(DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "results",
        nargs="?",
        type=Path,
        metavar="RESULTS",
        help="a results file (JSON), a zip with test-results.json in it, or a run folder "
        "(default: the newest run's)",
    )
    parser.add_argument(
        "--compare", type=Path, metavar="B", help="other results, to compare: RESULTS are A then"
    )
    parser.add_argument(
        "--truth",
        type=Path,
        metavar="TRUTH",
        help="a COCO annotation file, or a folder <image>/class<K>.tif for the images of the "
        "test list (default: what inference.py left beside RESULTS of annotated images, else "
        "test_masks in the data folder, or no truth where it isn't there)",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="TRUTH",
        help="annotations to look at, without results; a file or folder as for --truth",
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        metavar="DIR",
        help="the data folder, where the images are (default: nycu-hw3-data beside this script)",
    )
    parser.add_argument(
        "--only_annotated",
        "--only-annotated",
        action="store_true",
        help="leave out the results of images that TRUTH doesn't have (default: an error)",
    )
    parser.add_argument(
        "--score_threshold",
        "--score-threshold",
        type=share,
        default=0.5,
        metavar="S",
        help="the least score, 0 to 1, at which the page begins; its slider changes that, the "
        "plots stay (default: 0.5)",
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
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.html",
        help="the page (default: report.html beside the results or annotations)",
    )
    return parser


def find_image(data: Path, name: str) -> Path:
    """Find an image that annotations name: in the data folder, or in its test folder.

    Raises
    ------
    InputError
        If it is in neither.
    """
    for folder in (data, *(data / test for test in TEST)):
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"{data / name}: no such image, but the annotations name it; give the folder that it is in "
        "with --data"
    )


def of_annotations(args: argparse.Namespace) -> Content:
    """Collect what a page of annotations alone needs."""
    truth = read_truth(args.annotations, args.data)
    return Content(
        title=f"Annotations {args.annotations.name}",
        sources=[("annotations", shown(args.annotations))],
        classes=class_names(truth),
        images=_with_paths(args.data, [side_by_side(truth, [])]),
        runs=[],
        has_truth=True,
    )


def _with_paths(data: Path, runs: list[list[Scene]]) -> list[list[Scene]]:
    """Find the images of one or two runs, and put those of one image together."""
    return [
        [replace(scene, path=find_image(data, scene.file_name)) for scene in scenes]
        for scenes in zip(*runs, strict=True)
    ]


def of_results(args: argparse.Namespace, paths: list[Path], truth_path: Path) -> Content:
    """Collect what a page of one or two results with truth needs."""
    truth, all_results = read_scored(
        paths, truth_path, args.data, without_others=args.only_annotated
    )
    scores = [
        score(
            side_by_side(truth, results, path),
            class_names(truth),
            score_threshold=args.score_threshold,
            n_resamples=args.resamples,
            seed=args.seed,
            progress=True,
        )
        for path, results in zip(paths, all_results, strict=True)
    ]
    return Content(
        **_common(args, paths),
        classes=class_names(truth),
        images=_with_paths(args.data, [one.scenes for one in scores]),
        has_truth=True,
        scores=scores,
    )


def of_results_alone(args: argparse.Namespace, paths: list[Path]) -> Content:
    """Collect what a page of one or two results without truth needs."""
    names, cells = read_predicted_cells(paths[0], args.data)
    runs = [cells]
    for path in paths[1:]:
        other_names, others = read_predicted_cells(path, args.data)
        if other_names != names or [(c.name, c.size) for c in others] != [
            (c.name, c.size) for c in cells
        ]:
            raise InputError(
                f"{path}: its images or classes are not those of {paths[0]}; compare results of "
                "the same images"
            )
        runs.append(others)
    images = [[_scene(one) for one in each] for each in zip(*runs, strict=True)]
    return Content(**_common(args, paths), classes=names, images=images, has_truth=False)


def _scene(cells: ImageCells) -> Scene:
    assert cells.scores is not None
    none = np.zeros(0, np.int64)
    return Scene(
        id=cells.id,
        file_name=cells.file_name,
        path=cells.path,
        size=cells.size,
        level=cells.level,
        name=cells.name,
        truth_masks=[],
        truth_runs=decode([], cells.size),
        truth_classes=none,
        crowd=np.zeros(0, bool),
        masks=cells.masks,
        runs=decode(cells.masks, cells.size),
        classes=cells.classes,
        scores=cells.scores,
        entries=np.arange(len(cells.masks)),
    )


def _common(args: argparse.Namespace, paths: list[Path]) -> dict[str, Any]:
    folder = paths[-1] if paths[-1].is_dir() else paths[-1].parent
    names = [shown(path) for path in paths]
    sources = list(zip(["A", "B"] if len(names) > 1 else ["results"], names, strict=False))
    if args.truth:
        sources.append(("truth", shown(args.truth)))
    return {
        "title": "Cells found: " + " and ".join(path.resolve().name for path in paths),
        "sources": sources,
        "runs": names,
        "threshold": args.score_threshold,
        "metrics": folder / "metrics.json",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    args = get_parser().parse_args(argv)
    if args.annotations:
        for flag in ("results", "compare", "truth"):
            if getattr(args, flag) is not None:
                name = "RESULTS" if flag == "results" else f"--{flag}"
                raise InputError(f"--annotations: shows annotations alone; leave out {name}")
        source = args.annotations
        if not source.exists():
            raise InputError(
                f"{source}: no such annotations; name a COCO file or a folder of label maps"
            )
        content = of_annotations(args)
    else:
        source = args.results or newest_results(RUNS)
        for path in (source, args.compare):
            if path is not None and is_annotations(path):
                raise InputError(
                    f"{path}: annotations, expected results; look at annotations alone with "
                    f"--annotations {path}, give them as truth with --truth {path}"
                )
        paths = [source, *([args.compare] if args.compare else [])]
        args.truth = args.truth or implied_truth(paths)
        default = args.data / "test_masks"
        own_images = any(beside(path, "list").is_file() for path in paths)
        if args.truth is None and default.is_dir() and not own_images:
            args.truth = default
        if args.truth is None:
            content = of_results_alone(args, paths)
        elif not args.truth.exists():
            raise InputError(
                f"{args.truth}: no such annotations; name a COCO file or a folder of label maps "
                "with --truth, or leave it out"
            )
        else:
            content = of_results(args, paths, args.truth)
    output = args.output or (source if source.is_dir() else source.parent) / "report.html"
    n_reduced = write_report(output, content)
    note = f", {n_reduced} of them in fewer pixels than they have" if n_reduced else ""
    size = output.stat().st_size / 1e6
    print(f"{len(content.images)} images{note}, {size:.1f} MB: open {shown(output)} in a browser")
    return 0


if __name__ == "__main__":
    run_command(main)
