"""Shared by the commands: default paths, argument parser, common flags, start and exit."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import math
import os
import re
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cellseg import process
from cellseg.errors import InputError
from cellseg.files import display_path
from cellseg.limits import IMAGE_GB, allow_image_gb
from cellseg.messages import HANDLER, plural, print_warnings, warn
from cellseg.text import one_line

if TYPE_CHECKING:
    from cellseg.read.coco import COCO
    from cellseg.score.summary import Scores

PROJECT = Path(__file__).resolve().parent
DATA = PROJECT / "nycu-hw3-data"
RUNS = PROJECT / "tensorboard"
ANNOTATIONS = "train__annot.json"  # in the data folder

print_warnings()

# A config key: with its section, or one of Detectron2's without.
_KEY = re.compile(
    r"(DATA|DATALOADER|DATASETS|INPUT|MODEL|SOLVER|TEST)(\.[A-Z0-9_]+)+"
    r"|CUDNN_BENCHMARK|FLOAT32_PRECISION|OUTPUT_DIR|SEED|VERSION|VIS_PERIOD"
)


class CommandParser(argparse.ArgumentParser):
    """Parser whose errors are one-line InputErrors and whose help ends with `examples`.

    Flags are declared with underscores (`--batch_size`) and accepted with dashes too.
    """

    def __init__(self, description: str, examples: str) -> None:
        super().__init__(
            description=description,
            epilog="examples:\n" + textwrap.indent(examples, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def _add_dashes(self) -> dict[str, argparse.Action]:
        """Accept each long flag with dashes; return the action of each spelling."""
        actions = self._option_string_actions
        for flag in list(actions):
            actions.setdefault(flag.replace("_", "-"), actions[flag])
        return actions

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._add_dashes()
        return super().parse_known_args(args, namespace)

    def parse_with_keys(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line that may end with KEY VALUE pairs: `options`, of nargs REMAINDER.

        A key also ends the values of a flag with any number of them.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        actions = self._add_dashes()
        for index, word in enumerate(words):
            if word == "--":
                break
            flag = actions.get(words[index - 1]) if index else None
            is_value = flag is not None and flag.nargs in (None, "+")  # the flag's first
            if _KEY.fullmatch(word) and not is_value and not Path(word).exists():
                words.insert(index, "--")
                break
        args = self.parse_args(words)
        # Not always the first: a word that is no such key may begin the pairs.
        args.options = [word for word in args.options if word != "--"]
        return args

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


class _AllowImageGB(argparse.Action):
    """Sets the limit at once, as images are read far from the command line."""

    def __call__(self, _parser: Any, args: Any, value: Any, _flag: Any = None) -> None:
        allow_image_gb(value)
        setattr(args, self.dest, value)


# fmt: off
def add_limits(flags: argparse._ActionsContainer) -> None:
    """Add --max_image_gb, for the commands that read images or label maps."""
    flags.add_argument("--max_image_gb", action=_AllowImageGB, type=positive_float, metavar="GB",
        help=f"memory in GB to decode an image as a whole ({IMAGE_GB:g}); more for files you trust")


def add_data(flags: argparse._ActionsContainer, use: str = "", of_results: bool = False) -> None:
    """Add --data; `use` is the part of the help text about the folder's purpose.

    With `of_results`, the default is None, for `choose_data`.
    """
    own = "the one predicted, if known, else " if of_results else ""
    flags.add_argument("--data", type=Path, default=None if of_results else DATA, metavar="DIR",
        help=f"data folder{use} (default: {own}nycu-hw3-data next to this script)")


def add_scoring(
    parser: CommandParser, data_use: str, ground_truth_default: str, threshold: str
) -> None:
    """Add RESULTS and the flags of scoring; the parameters are parts of the help texts."""
    add = parser.add_argument
    add("results", nargs="?", type=Path, metavar="RESULTS",
        help="results file (JSON), zip that contains test-results.json, or folder with results or "
        "of a table of slides (default: the newest run's)")
    add("--truth", type=Path, metavar="TRUTH",
        help="ground truth: COCO annotation file, or folder with <image>/class<K>.tif, with label "
        "maps or outlines named as the images, or as train/ of a data folder, for the images of "
        "the test list or of your own (default: the annotations that inference.py wrote "
        f"next to RESULTS, else {ground_truth_default})")
    add_data(parser, data_use, of_results=True)
    add_limits(parser)
    add("--only_annotated", action="store_true",
        help="ignore results of images that are not in TRUTH (default: error)")
    add("--score_threshold", type=fraction, default=0.5, metavar="S",
        help=f"{threshold} (default: 0.5)")
    add("--resamples", type=non_negative_int, default=1000, metavar="N",
        help="bootstrap resamples for the 95 %% intervals, 0 for none (default: 1000)")
    add("--seed", type=non_negative_int, default=0, metavar="N",
        help="random seed of the bootstrap (default: 0)")


def add_process_flags(group: argparse._ArgumentGroup) -> None:
    """Add the flags of training in several processes and on several machines."""
    add = group.add_argument
    add("--processes", "--num_gpus", type=non_negative_int, metavar="N",
        help="processes on this machine that split the batch, on GPUs one each (1; on a CPU one a "
        "core if the batch allows)")
    add("--num_machines", type=non_negative_int, default=1, metavar="N",
        help="machines that split the batch; run the same command on each (1)")
    add("--machine_rank", type=non_negative_int, default=0, metavar="N",
        help="rank of this machine; machine 0 writes the run (0)")
    add("--dist_url", default="auto", metavar="URL",
        help="address of machine 0, such as tcp://10.0.0.1:29500 (auto: this machine)")
# fmt: on


def choose_data(given: Path | None, source: Path, needed: bool = True) -> Path:
    """Return the data folder for results or annotations: `given`, else their own, else ours.

    Warns if their own is `needed` and not there any more.
    """
    from cellseg.read.results import find_data_folder

    return given or find_data_folder(source, needed) or DATA


def score_results(
    args: argparse.Namespace, paths: Sequence[Path], ground_truth: Path, **how: Any
) -> tuple[COCO, list[Scores]]:
    """Score results files with the flags of `add_scoring`; `how` are more arguments of `score`.

    Return the ground truth of the scored images, and the scores of each of `paths`.
    """
    from tqdm import tqdm

    from cellseg.read.coco import class_names
    from cellseg.read.ground_truth import read_results_with_ground_truth
    from cellseg.score.summary import count_without_pixels, score

    coco, images = read_results_with_ground_truth(
        paths, ground_truth, args.data, only_annotated=args.only_annotated
    )
    how |= {
        "score_threshold": args.score_threshold,
        "n_resamples": args.resamples,
        "seed": args.seed,
    }
    names = class_names(coco)
    bar = {"total": len(coco["images"]), "unit": "image", "leave": False, "disable": None}
    scores = [
        score(tqdm(of_path, "comparing", **bar), names, progress=True, **how) for of_path in images
    ]
    for path, of_path in zip(paths, scores, strict=True):
        n_gt, n_detections = count_without_pixels(of_path)
        counts = [(n_gt, "ground-truth cell"), (n_detections, "detected cell")]
        if some := " and ".join(plural(n, what) for n, what in counts if n):
            warn(
                f"{display_path(path)}: {some} without a pixel in the label maps, as others cover "
                "them: neither detected nor missed in PQ, AJI, F1, counts and confusion matrix"
            )
    return coco, scores


def check_outputs(outputs: dict[str, Path | None], inputs: Sequence[Path]) -> None:
    """Raise InputError if the output of a flag is an input, or a sidecar file of one."""
    from cellseg.read.results import SIDECARS, sidecar_path

    for flag, output in outputs.items():
        for path in inputs:
            sidecars = [] if path.is_dir() else [sidecar_path(path, each) for each in SIDECARS]
            for file in (path, *sidecars):
                if output and output.exists() and file.exists() and output.samefile(file):
                    raise InputError(f"{flag} {output}: is also an input; choose another file")


def check_process_flags(parser: CommandParser, args: argparse.Namespace) -> None:
    """Raise InputError for impossible numbers of processes and machines."""
    if args.processes == 0:
        parser.error("--processes 0: 1 or more is expected; --device cpu works without a GPU")
    if not args.num_machines:
        parser.error("--num_machines 0: 1 or more is expected")
    if args.machine_rank >= args.num_machines:
        parser.error(
            f"--machine_rank {args.machine_rank}: 0 to {args.num_machines - 1} is expected with "
            f"--num_machines {args.num_machines}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error(
            "--num_machines: pass the address of machine 0 with --dist_url tcp://HOST:PORT"
        )


def fraction(text: str) -> float:
    """Parse the value of a flag, a number from 0 to 1."""
    return _number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def positive_float(text: str) -> float:
    """Parse the value of a flag, a finite number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def micrometres(text: str) -> float:
    """Parse the value of a flag, micrometres per pixel."""
    from cellseg.read.resolution import MPP_RANGE, is_plausible

    return _number(text, is_plausible, MPP_RANGE)


def _number(text: str, is_valid: Callable[[float], bool], expected: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_valid(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def non_negative_int(text: str, minimum: int = 0) -> int:
    """Parse the value of a flag, a whole number of `minimum` or more."""
    if not text.isdecimal() or int(text) < minimum:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {minimum} or more")
    return int(text)


def positive_int(text: str) -> int:
    """Parse the value of a flag, a whole number of 1 or more."""
    return non_negative_int(text, 1)


def run_command(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a command's `main` and exit with its exit code.

    InputError is one line on stderr and exit code 2; Ctrl-C and SIGTERM are one line and 130
    (`cellseg.process`). Other exceptions are bugs and keep their traceback. Before it ends, it says
    how many warnings there were.
    """
    process.prepare()
    command = process.command_name()
    HANDLER.count = 0
    try:
        try:
            code = main(None)
        finally:
            sys.stdout.flush()  # after --help too
            if HANDLER.count:
                print(f"{plural(HANDLER.count, 'warning')} (see above)", file=sys.stderr)
    except InputError as error:
        _print_error(f"{command}: error: {error}")
        code = 2
    except KeyboardInterrupt:
        process.say(process.stopped_message())
        code = process.STOPPED
    except OSError as error:
        _print_error(f"{command}: error: {one_line(_os_error_message(error))}")
        code = 2
    for number in process.SIGNALS:  # all is done
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # else Python looks for garbage in all of torch, up to a second, before it ends
    sys.exit(code)


def _print_error(line: str) -> None:
    with contextlib.suppress(InputError, OSError):  # nobody can be told
        print(line, file=sys.stderr)


def _os_error_message(error: OSError) -> str:
    """Return the message for a full disk or an unusable path; raise other errors."""
    where = f"{error.filename}: " if error.filename else ""
    reason = os.strerror(error.errno or 0).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):  # raised in libraries
        advice = "make room, then run it again (a training goes on with --resume)"
        return f"{where}writing failed ({reason}); {advice}"
    path_errors = "ENAMETOOLONG EACCES EPERM EROFS ELOOP EIO ESTALE"
    if where and errno.errorcode.get(error.errno or 0) in path_errors.split():
        return f"{where}can't be used ({reason}); check the path and its permissions"
    raise error


def quiet_libraries() -> None:
    """Silence warnings of libraries about their internals."""
    from tqdm import tqdm

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    # In float16 the first steps may be skipped, until the gradient scale fits.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    # tqdm's default lock is a semaphore, which Python reports as leaked by killed processes.
    tqdm.set_lock(threading.RLock())
    threading.excepthook = _show_thread_error


_show_any_thread_error = threading.excepthook


def _show_thread_error(error: threading.ExceptHookArgs) -> None:
    """Show an error of a thread, but not of TensorBoard's, which the main thread raises again."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        _show_any_thread_error(error)
