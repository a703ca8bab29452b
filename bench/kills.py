"""Kill the commands at random moments, send them signals, and compare what they write.

    python bench/kills.py [--kills 100] [--moments 50] [--commands train inference] [--seed 0]

Kills (SIGKILL): annotation, train, inference and export are started again and again, in processes
that have loaded the libraries, and killed at a random moment of their usual duration. After each
kill every file is complete or absent. If it had finished, and else after half of the kills, the
command is run to its end, and what it wrote is equal, byte for byte or tensor for tensor, to that
of a run that was never killed. A training is resumed, a prediction continued.

Signals: SIGINT and SIGTERM at `--moments` from 0 to 2 s after the start of each command. Each ends
in one line and exit code 130, or the command had already finished. Before Python has started the
first line of the script, within the first 0.05 s or so, no program can do that: these cases are
counted as "too early".

The data are synthetic, the network is tiny, and everything runs on one CPU thread.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is loaded
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import forks
from bench.tiny import write_tiny
from cellseg.synthetic import write_dataset

PROJECT = Path(__file__).resolve().parents[1]

SETTINGS = """\
INPUT: {MIN_SIZE_TRAIN: [64], ZOOM: 1.0}
TEST: {TILE: 40, OVERLAP: 12, EVAL_PERIOD: 4}
SOLVER: {OPTIMIZER: AdamW, IMS_PER_BATCH: 2, MAX_ITER: 8, EPOCHS: 0.0, WARMUP_ITERS: 1, EMA: 0.9,
  CHECKPOINT_PERIOD: 2}
"""


@dataclass(frozen=True)
class Command:
    """A command: its words, where it writes, and how that is compared."""

    words: Callable[[Path], list[Any]]  # of the folder for its output
    contents: Callable[[Path], dict[str, Any]]  # the complete files in that folder
    finished: Callable[[Path], bool]  # whether the folder holds all of it


def run(words: list[Any], **keywords: Any) -> subprocess.Popen[str]:
    """Start a command of the checkout."""
    script, *arguments = map(str, words)
    return subprocess.Popen(
        [sys.executable, str(PROJECT / script), *arguments],
        text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen, **keywords,
    )  # fmt: skip


def listen() -> None:
    """Listen to SIGINT, which a job in the background of a script ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def begin(words: list[Any], root: Path) -> int:
    """Start a command in a forked process; return its id."""
    return forks.start(list(map(str, words)), root, root / "output.txt")


def complete(words: list[Any], root: Path) -> float:
    """Run a command to its end; return its seconds."""
    started = time.monotonic()
    if os.waitpid(begin(words, root), 0)[1]:
        raise SystemExit(f"{words}: failed\n{(root / 'output.txt').read_text()}")
    return time.monotonic() - started


def file_contents(folder: Path) -> dict[str, Any]:
    """Return the bytes of all files but hidden ones and those of a tile store."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and ".parts" not in str(path)
    }


def weights(folder: Path) -> dict[str, Any]:
    """Return the contents of the weights of the run in a folder."""
    paths = sorted(folder.glob("*/*/*.pth"))
    return {path.name: torch.load(path, weights_only=True) for path in paths}


def same(one: Any, other: Any) -> bool:
    """Return whether two contents are equal, bit for bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def train_words(config: Path, data: Path, folder: Path) -> list[Any]:
    """Return the command that begins a training or resumes it."""
    device = ["--device", "cpu"]
    if found := list(folder.glob("*/*/config.yaml")):
        return ["train.py", "--resume", found[0].parent, *device]
    new = ["--config_file", config, "--data", data, "--output_dir", folder]
    return ["train.py", *new, "--val_fraction", 0.4, "--engine", "torchvision", *device]


def prepare(root: Path) -> tuple[dict[str, Command], dict[str, list[Any]]]:
    """Make data, a run and results; return the commands to kill, and all for signals."""
    data, config = root / "data", root / "tiny.yaml"
    forks.call(
        write_dataset,
        data,
        n_train=4,
        n_test=4,
        sizes=[(90, 100), (112, 80)],
        cells_per_megapixel=3000,
        scale=0.6,
    )
    write_tiny(config, SETTINGS)
    complete(["annotation.py", "--data", data], root)
    complete(train_words(config, data, root / "trained"), root)
    (trained,) = (root / "trained").glob("*/*")
    predict = ["inference.py", "--checkpoint", trained, "--data", data, "--device", "cpu"]
    predict += ["--score_threshold", 0]
    complete([*predict, "--output", root / "results"], root)
    results = root / "results" / "test-results.json"
    score = [results, "--data", data]
    killed = {
        "annotation": Command(
            lambda folder: ["annotation.py", "--data", data, "--output", folder / "a.json"],
            file_contents,
            lambda folder: (folder / "a.json").is_file(),
        ),
        "train": Command(
            lambda folder: train_words(config, data, folder),
            weights,
            lambda folder: bool(list(folder.glob("*/*/model_final.pth"))),
        ),
        "inference": Command(
            lambda folder: [*predict, "--output", folder],
            file_contents,
            lambda folder: (folder / "test-results.zip").is_file(),
        ),
        "export": Command(
            lambda folder: ["export.py", *score, "--score_threshold", 0, "--output", folder],
            file_contents,
            lambda folder: len(list((folder / "overlay").glob("*.png"))) == 4,
        ),
    }
    out = root / "signals"
    commands: dict[str, list[Any]] = {name: c.words(out / name) for name, c in killed.items()}
    commands |= {
        "evaluate": ["evaluate.py", *score, "--json", out / "scores.json"],
        "report": ["report.py", *score, "--output", out / "report.html"],
        "check_submission": ["check_submission.py", results, "--data", data],
    }
    return killed, commands


def show_progress(name: str, done: int, of: int) -> None:
    """Print how far a command is; not with tqdm, whose lock the forked processes would share."""
    print(f"\r{name}: {done} of {of}", end="\n" * (done == of), file=sys.stderr, flush=True)


def kill(name: str, command: Command, root: Path, n_kills: int, rng: random.Random) -> str:
    """Kill a command `n_kills` times; return the row of the table."""
    expected_in = root / f"{name} expected"
    duration = complete(command.words(expected_in), root)
    expected = command.contents(expected_in)
    folder = root / f"{name} killed"
    counts: Counter[str] = Counter()
    while counts["kills"] < n_kills:
        folder.mkdir(exist_ok=True)
        pid = begin(command.words(folder), root)
        if not forks.has_ended(pid, rng.uniform(0, duration)):
            os.killpg(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        counts["kills" if code == -signal.SIGKILL else "ended before"] += 1
        show_progress(f"kills of {name}", counts["kills"], n_kills)
        contents = command.contents(folder)  # raises an error for a damaged file
        if name != "train":  # whose files change until the end
            counts["damaged files"] += sum(
                value != expected.get(path) for path, value in contents.items()
            )
        output = (root / "output.txt").read_text()
        if code not in (0, -signal.SIGKILL) or "Traceback" in output:
            counts["failed"] += 1
            print(f"{name}: {output}", file=sys.stderr)
        if command.finished(folder) or rng.random() < 0.5:
            check_result(name, command, folder, expected, counts, root)
    check_result(name, command, folder, expected, counts, root)
    columns = ("kills", "ended before", "compared", "equal", "damaged files", "failed")
    return f"| {name} | " + " | ".join(str(counts[column]) for column in columns) + " |"


def check_result(
    name: str,
    command: Command,
    folder: Path,
    expected: dict[str, Any],
    counts: Counter[str],
    root: Path,
) -> None:
    """Run a command to its end, compare what it wrote, and remove it."""
    complete(command.words(folder), root)
    counts["compared"] += 1
    is_same = same(command.contents(folder), expected)
    counts["equal"] += is_same
    if is_same:
        shutil.rmtree(folder)
    else:
        print(f"{name}: {folder} differs", file=sys.stderr)
        shutil.move(folder, f"{folder} {counts['compared']}")


def is_prepared(pid: int) -> bool:
    """Return whether a process has begun to handle signals, as Python itself leaves SIGTERM."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = (int(mask, 16) for mask in re.findall(r"Sig(?:Cgt|Ign):\s*(\w+)", status))
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


def send_signals(name: str, words: list[Any], n_moments: int, seconds: float = 2.0) -> str:
    """Send signals at moments from 0 to `seconds`; return the row of the table."""
    counts: Counter[str] = Counter()
    for number in (signal.SIGINT, signal.SIGTERM):
        for moment in range(n_moments):
            show_progress(f"{number.name} to {name}", moment + 1, n_moments)
            process = run(words)
            start = time.monotonic()
            time.sleep(seconds * moment / max(1, n_moments - 1))
            waited = time.monotonic() - start
            ready = process.poll() is not None or is_prepared(process.pid)
            if process.poll() is None:
                os.killpg(process.pid, number)
            _, err = process.communicate()
            lines = err.splitlines()
            if process.returncode == 130 and len(lines) == 1:
                counts["one line"] += 1
            elif process.returncode == 0:
                counts["finished"] += 1
            elif not ready and (process.returncode == -number or "KeyboardInterrupt" in err):
                counts["too early"] += 1
            else:
                counts["other"] += 1
                print(
                    f"{name} {number.name} at {waited:.2f} s: {process.returncode}\n{err}",
                    file=sys.stderr,
                )
    columns = ("one line", "finished", "too early", "other")
    return f"| {name} | " + " | ".join(str(counts[column]) for column in columns) + " |"


def main() -> None:
    """Run all kills and signals, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100, help="kills of each command (100)")
    parser.add_argument("--moments", type=int, default=50, help="moments for each signal (50)")
    parser.add_argument("--commands", nargs="+", help="only these commands (all)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments (0)")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    forks.load_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        killed, commands = prepare(root)
        wanted = args.commands or list(commands)
        rows = []
        for name, command in killed.items():
            if name in wanted and args.kills:
                rows.append(kill(name, command, root, args.kills, rng))
                print(rows[-1], flush=True)
        signals = []
        for name, words in commands.items():
            if name in wanted and args.moments:
                signals.append(send_signals(name, words, args.moments))
                print(signals[-1], flush=True)
    if rows:
        print("\n| command | kills | ended before | compared | equal | damaged files | failed |")
        print("|---|---|---|---|---|---|---|", *rows, sep="\n")
    if signals:
        print("\n| command | one line, exit code 130 | finished | too early | other |")
        print("|---|---|---|---|---|", *signals, sep="\n")


if __name__ == "__main__":
    main()
