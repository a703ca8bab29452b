"""AP50 and seconds per image for tiles and TTA views with one trained network, in one run.

    python bench/views.py --checkpoint RUN --data DIR [--json FILE]

DIR has test images with masks in `test_masks/`; RUN was trained at a fixed scale. The first row
is Detectron2's default: the whole image, resized to a short side of 1000 or a long side of 1333.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import inference
from bench.learning import score
from cellseg import runs
from cellseg.files import write_json
from cellseg.read.image_lists import read_test_list

NO_TILES = ["TEST.TILE", "100000"]
DETECTRON2 = ["INPUT.ZOOM", "0", "INPUT.MIN_SIZE_TEST", "1000", "INPUT.MAX_SIZE_TEST", "1333"]

# Row -> flags and KEY VALUE pairs of inference.py.
ROWS: dict[str, tuple[list[str], list[str]]] = {
    "whole, 1000/1333": ([], DETECTRON2),
    "whole, fixed scale": ([], NO_TILES),
    "tiles": ([], []),
    "tiles, mirror": (["--tta", "mirror"], []),
    "tiles, flips": (["--tta", "flips"], []),
    "tiles, scales": (["--tta", "scales"], []),
    "tiles, flips, turns": (["--tta", "flips", "turns"], []),
    "tiles, flips, scales": (["--tta", "flips", "scales"], []),
    "tiles, all": (["--tta", "flips", "turns", "scales"], []),
}


def count_views(run: Path, words: list[str]) -> int:
    """Return the number of views per tile."""
    args = inference.parse(["--device", "cpu", *words])
    test = inference.configure(args, runs.resolve_run_folder(run)).TEST
    return int(test.SYMMETRIES * len(test.SCALES))


def main() -> None:
    """Predict and score each row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="some of the rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON too")
    args = parser.parse_args()
    n_images = len(read_test_list(args.data))
    print(f"{'tiles':24}{'views':>6}{'AP50@100':>9}{'interval':>17}{'AP50@all':>9}{'s/image':>9}")
    rows = []
    for name, (flags, keys) in ROWS.items():
        if args.only and name not in args.only:
            continue
        with contextlib.redirect_stdout(sys.stderr):
            metrics, seconds = score(args.checkpoint, args.data, [*flags, *keys])
        at_100 = metrics["AP50@100"]["mean of classes"]
        row = {
            "way of looking": name,
            "views": count_views(args.checkpoint, [*flags, *keys]),
            "AP50@100": at_100["value"],
            "low": at_100["low"],
            "high": at_100["high"],
            "AP50@all": metrics["AP50@all"]["mean of classes"]["value"],
            "seconds an image": seconds / n_images,
        }
        print(
            f"{name:24}{row['views']:6}{row['AP50@100']:9.3f}   [{row['low']:.3f}, "
            f"{row['high']:.3f}]{row['AP50@all']:9.3f}{row['seconds an image']:9.2f}",
            flush=True,
        )
        rows.append(row)
        if args.json:  # after each row, since all of them take long
            write_json(args.json, rows, indent=1)


if __name__ == "__main__":
    main()
