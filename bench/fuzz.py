"""Run the commands on damaged and hostile files, thousands of them.

Every kind of input is mutated: bytes flipped, cut and repeated, values of JSON, YAML, XML, CSV,
TIFF tags and checkpoints replaced by others, archives packed again. Each file is read by a real
command in a process of its own, forked from one that has loaded the libraries. A case fails if the
exit code is neither 0 nor 2, something looks like a traceback, control characters reach the
terminal, it takes over 20 s of a core or 3 GB, or a file changes outside the output folder.

    python bench/fuzz.py --cases 3000
    python bench/fuzz.py --kinds tiff --seed 7 --cases 100000 --hours 8
    python bench/fuzz.py --case image.tif-0-17

Cases depend only on kind, seed and number. Failing files are kept with the command's output.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import forks
from bench.fuzz_corpus import KINDS, OUTPUTS, build_corpus
from bench.mutations import mutate_bytes
from bench.tiny import write_tiny

SECONDS, GIGABYTES = 20, 3.0  # of a core, allowed for a case
PATIENCE = 6  # times as long on a busy machine, before it is asked whether the case goes on

Run = Callable[[Sequence[str], Path], object]
"""Runs a command in a folder."""


# ------------------------------------------------------------------ cases


@dataclass(frozen=True)
class Case:
    """A mutated file, and the command that reads it; equal for equal kind, seed and number.

    The file is not mutated if the number is negative, as a check of the corpus.
    """

    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.seed}-{self.number}"

    def write(self, corpus: Path, folder: Path, run: Run) -> list[str]:
        """Write the corpus with the mutated file into a new folder; return the command.

        `run` runs the prediction that makes the file, if one does.
        """
        rng = random.Random(str(self))
        kind = KINDS[self.kind]
        shutil.copytree(corpus, folder, copy_function=_link_or_copy)
        (folder / "out").mkdir()
        if kind.before:
            run(kind.before.split(), folder)
        content = (folder / kind.file).read_bytes()
        if self.number >= 0:
            try:
                content = kind.mutate(content, rng)
            except Exception:  # noqa: BLE001 (what can't be mutated again)
                content = mutate_bytes(content, rng)
        command = rng.choice(kind.commands)
        (folder / kind.file).unlink()
        (folder / kind.file).write_bytes(content)
        return command.format(sha=hashlib.sha256(content).hexdigest()).split()


@contextlib.contextmanager
def kept_tiles() -> Iterator[None]:
    """Keep the tile stores of predictions in the block."""
    from cellseg.predict.tile_store import TileStore

    with mock.patch.object(TileStore, "remove"):
        yield


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy one that a resumed training appends to."""
    in_run = Path(source).parent.name == "run" and not source.endswith(".pth")
    (shutil.copy2 if in_run else os.link)(source, target)


def snapshot(folder: Path, leave_out: Sequence[str] = OUTPUTS) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file outside the output folders."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] not in leave_out and not path.is_dir():
            stat = path.lstat()
            files[str(name)] = stat.st_size, stat.st_mtime_ns
    return files


def problem(code: int | None, output: str) -> str:
    """Return what is wrong with a command's exit code and output, or ""."""
    if code is None:
        return f"over {SECONDS} s, or stopped"
    if "Traceback (most recent" in output or code == 1:
        found = re.findall(r"^(\w[\w.]*(?:Error|Exception|Warning)\b.*)$", output, re.MULTILINE)
        return "traceback: " + (found[-1] if found else "?")[:100]
    if code not in (0, 2):
        return f"exit code {code}"
    if code == 2 and not re.search(r"^\w+\.py: error: .", output, re.MULTILINE):
        return "exit code 2 without a reason"
    if raw := re.search(r"[^\n\t\r\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f]|[\ud800-\udfff]", output):
        return f"control character {raw[0]!a} in the output"
    if match := re.search(
        r"<[\w.]+ object at 0x|PNG warning|libtiff|OpenCV|\[ WARN|\w+Warning: ", output
    ):
        return f"a library's text: {match[0]}"
    return ""


# ------------------------------------------------------------------ running


@dataclass
class Outcome:
    """What happened to one case."""

    problem: str
    code: int | None
    seconds: float
    gigabytes: float
    output: str


def run_case(case: Case, corpus: Path, folder: Path) -> Outcome:
    """Run a case in a forked process, in a new folder within `folder`."""
    place = folder / "in" / "case"  # so that ../../x is in the folder too
    place.parent.mkdir()
    output = folder.with_name(folder.name + ".txt")
    argv = case.write(corpus, place, lambda argv, place: _run_before(argv, place, output))
    before = snapshot(folder, ()) | {"": (0, 0)}
    kept = {name: state for name, state in before.items() if not _is_output(name)}
    began = time.monotonic()
    pid = forks.start(argv, place, output, 2 * GIGABYTES)  # for the machine's sake
    ready = _ends(pid)
    if not ready:
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime if ready else time.monotonic() - began
    code = os.waitstatus_to_exitcode(status) if ready else None
    text = output.read_text("utf-8", "surrogateescape")
    found = problem(code, text)
    gigabytes = usage.ru_maxrss / 1e6
    after = {n: s for n, s in (snapshot(folder, ()) | {"": (0, 0)}).items() if not _is_output(n)}
    if not found and after != kept:
        changed = {name for name in after.keys() | kept if after.get(name) != kept.get(name)}
        found = f"changed outside the output: {', '.join(sorted(changed)[:3])}"
    if not found and seconds > SECONDS:
        found = f"{seconds:.0f} s"
    if not found and gigabytes > GIGABYTES:
        found = f"{gigabytes:.1f} GB"
    return Outcome(found, code, seconds, gigabytes, text)


def _ends(pid: int) -> bool:
    """Wait for a process; return False if it takes too much of a core, or nothing of one."""
    used = -1.0
    while not forks.has_ended(pid, PATIENCE * SECONDS):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        before, used = used, sum(map(int, stat[11:13])) / os.sysconf("SC_CLK_TCK")
        if used > SECONDS or used - before < 0.1:
            return False
    return True


def _is_output(name: str) -> bool:
    return Path(name).parts[:3] in [("in", "case", output) for output in OUTPUTS]


def _run_before(argv: Sequence[str], place: Path, output: Path) -> None:
    with kept_tiles():
        pid = forks.start(argv, place, output)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit(output.read_text())


SETTINGS = """\
INPUT: {MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 100}
SOLVER: {OPTIMIZER: AdamW, IMS_PER_BATCH: 2, MAX_ITER: 2, EPOCHS: 0.0, WARMUP_ITERS: 1}
"""


def prepare(folder: Path) -> Path:
    """Build the corpus in a forked process."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    config = folder / "tiny.yaml"
    write_tiny(config, SETTINGS)
    with contextlib.redirect_stdout(io.StringIO()):
        forks.call(build_corpus, corpus, config)
    return corpus


def main() -> None:
    """Run the cases and print a table by kind; exit with 1 if any failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--cases", type=int, default=3000, help="cases, spread over the kinds (3000)")
    add("--hours", type=float, default=24.0, help="stop after this time (24)")
    add("--seed", type=int, default=0, help="seed of the mutations (0)")
    add("--kinds", nargs="+", default=list(KINDS), help="only kinds whose names contain one")
    add("--case", help="run one case, KIND-SEED-NUMBER, and show its output; below 0 unmutated")
    add("--keep", type=Path, default=Path("fuzz-failures"), help="folder for failing files")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    forks.load_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = prepare(Path(scratch))
        sys.exit(run_cases(args, corpus, Path(scratch)))


def run_cases(args: argparse.Namespace, corpus: Path, scratch: Path) -> int:
    """Run the requested cases. Return 1 if any failed, else 0."""
    if args.case:
        match = re.fullmatch(r"(.*?)-(\d+)-(-?\d+)", args.case)
        if not match:
            raise SystemExit("--case: expected KIND-SEED-NUMBER")
        cases = [Case(match[1], int(match[2]), int(match[3]))]
    else:
        kinds = [name for name in KINDS if any(word in name for word in args.kinds)]
        cases = [Case(name, args.seed, -n) for name in kinds for n in (1, 2)]
        cases += [
            Case(kinds[n % len(kinds)], args.seed, n // len(kinds)) for n in range(args.cases)
        ]
    untouched = snapshot(corpus, ())
    began, outcomes = time.monotonic(), dict[Case, Outcome]()
    for case in cases:
        if time.monotonic() - began > 3600 * args.hours:
            break
        folder = scratch / "place"
        folder.mkdir()
        outcome = outcomes[case] = run_case(case, corpus, folder)
        if case.number < 0 and outcome.code:
            outcome.problem = "a valid file is refused"
        if outcome.problem:
            print(f"{case}: {outcome.problem}", flush=True)
            kept = args.keep / str(case).replace(" ", "_")
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "in" / "case" / KINDS[case.kind].file, kept)
            (kept / "output.txt").write_text(outcome.output, "utf-8", "backslashreplace")
        if args.case:
            print(outcome.output)
        shutil.rmtree(folder)
        if snapshot(corpus, ()) != untouched:
            raise SystemExit(f"{case} changed its input")
    print(f"{'kind':14} cases     ok refused failed  slowest    memory")
    for name in dict.fromkeys(case.kind for case in outcomes):
        of_kind = [outcome for case, outcome in outcomes.items() if case.kind == name]
        good = [outcome.code for outcome in of_kind if not outcome.problem]
        print(
            f"{name:14} {len(of_kind):5} {good.count(0):6} {good.count(2):7} "
            f"{len(of_kind) - len(good):6} {max(o.seconds for o in of_kind):6.1f} s "
            f"{max(o.gigabytes for o in of_kind):6.2f} GB"
        )
    failed = sum(bool(outcome.problem) for outcome in outcomes.values())
    print(f"{len(outcomes)} cases in {time.monotonic() - began:.0f} s, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    main()
