"""AP50 and seconds an image for each way of looking with one trained network, in one run.

    python bench/views.py --checkpoint RUN --data DIR

DIR has test images with masks in `test_masks/`; RUN was trained at a fixed zoom. The first
row looks as the usual recipe does: at the whole image, its short side enlarged to 1000
pixels or its long side to 1333.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import evaluate
import inference
from cellseg.files import read_json
from cellseg.read.layout import read_test_list

NO_TILES = ["TEST.TILE", "100000"]
USUAL = ["INPUT.ZOOM", "0", "INPUT.MIN_SIZE_TEST", "1000", "INPUT.MAX_SIZE_TEST", "1333"]

# Row -> flags and KEY VALUE pairs of inference.py.
ROWS: dict[str, tuple[list[str], list[str]]] = {
    "whole, 1000/1333": ([], USUAL),
    "whole, fixed zoom": ([], NO_TILES),
    "tiles": ([], []),
    "tiles, flips": (["--tta", "flips"], []),
    "tiles, scales": (["--tta", "scales"], []),
    "tiles, flips, turns": (["--tta", "flips", "turns"], []),
    "tiles, flips, scales": (["--tta", "flips", "scales"], []),
    "tiles, all": (["--tta", "flips", "turns", "scales"], []),
}


def main() -> None:
    """Predict and score in each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="some of the rows")
    args = parser.parse_args()
    n_images = len(read_test_list(args.data))
    print(f"{'way of looking':24}{'AP50@100':>9}{'interval':>17}{'AP50@all':>9}{'s/image':>9}")
    for name, (flags, keys) in ROWS.items():
        if args.only and name not in args.only:
            continue
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
            results, scores = Path(folder) / "test-results.json", Path(folder) / "scores.json"
            words = ["--checkpoint", args.checkpoint, "--data", str(args.data), "--device", "cpu"]
            began = time.perf_counter()
            inference.main([*words, "--output", str(results), *flags, *keys])
            seconds = (time.perf_counter() - began) / n_images
            evaluate.main([str(results), "--data", str(args.data), "--json", str(scores)])
            metrics = read_json(scores, "scores", "")["metrics"]
        at_100 = metrics["AP50@100"]["mean of classes"]
        everything = metrics["AP50@all"]["mean of classes"]["value"]
        low, high = at_100["low"], at_100["high"]
        print(
            f"{name:24}{at_100['value']:9.3f}   [{low:.3f}, {high:.3f}]{everything:9.3f}"
            f"{seconds:9.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
