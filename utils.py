"""What every command of the project shares: how it starts, how it fails, where things are."""

from __future__ import annotations

import argparse
import errno
import io
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

from cellseg.errors import InputError
from cellseg.files import display_path as display_path

if TYPE_CHECKING:
    from cellseg.read.coco import COCO
    from cellseg.score.summary import Scores

PROJECT = Path(__file__).resolve().parent
DATA = PROJECT / "nycu-hw3-data"
RUNS = PROJECT / "tensorboard"
ANNOTATIONS = "train__annot.json"  # in the data folder


# A key of the config in one of its sections.
_KEY = re.compile(r"(DATA|DATALOADER|DATASETS|INPUT|MODEL|SOLVER|TEST)(\.[A-Z0-9_]+)+")


class CommandParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other error of the project.

    `description` says what the command does, the lines of `examples` show it at work. Flags
    are declared and shown with underscores (`--batch_size`), and taken with dashes too.
    """

    def __init__(self, description: str, examples: str) -> None:
        super().__init__(
            description=description,
            epilog="examples:\n" + textwrap.indent(examples, "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def _add_spellings(self) -> dict[str, argparse.Action]:
        """Let each long flag be written with dashes; return what each spelling means."""
        actions = self._option_string_actions
        for flag in list(actions):
            actions.setdefault(flag.replace("_", "-"), actions[flag])
        return actions

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._add_spellings()
        return super().parse_known_args(args, namespace)

    def parse_with_keys(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse a command line that KEY VALUE pairs may end: `options`, an argument of REMAINDER.

        A key ends the values of a flag that takes any number of them.
        """
        words = list(sys.argv[1:] if argv is None else argv)
        actions = self._add_spellings()
        for place, word in enumerate(words):
            before = actions.get(words[place - 1]) if place else None
            wanted = before is not None and before.nargs in (None, "+")  # the flag's first value
            if word == "--":
                break
            if _KEY.fullmatch(word) and not wanted and not Path(word).exists():
                words.insert(place, "--")
                break
        args = self.parse_args(words)
        if args.options[:1] == ["--"]:
            del args.options[0]
        return args

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help explains every flag)")


def add_data(flags: argparse._ActionsContainer, use: str = "") -> None:
    """Add --data; `use` says what the command takes from the folder."""
    flags.add_argument(
        "--data", type=Path, default=DATA, metavar="DIR",
        help=f"the data folder{use} (default: nycu-hw3-data beside this script)",
    )  # fmt: skip


def add_scoring(
    parser: CommandParser, data_use: str, ground_truth_default: str, threshold: str
) -> None:
    """Add RESULTS and how they are scored; what differs by command are parts of help texts."""
    parser.add_argument(
        "results", nargs="?", type=Path, metavar="RESULTS",
        help="a results file (JSON), a zip with test-results.json in it, or a run folder "
        "(default: the newest run's)",
    )  # fmt: skip
    parser.add_argument(
        "--truth", type=Path, metavar="TRUTH",
        help="a COCO annotation file, or a folder <image>/class<K>.tif for the images of the "
        "test list (default: what inference.py left beside RESULTS of annotated images, else "
        f"{ground_truth_default})",
    )  # fmt: skip
    add_data(parser, data_use)
    parser.add_argument(
        "--only_annotated", action="store_true",
        help="leave out the results of images that TRUTH doesn't have (default: an error)",
    )  # fmt: skip
    parser.add_argument(
        "--score_threshold", type=fraction, default=0.5, metavar="S",
        help=f"{threshold} (default: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--resamples", type=non_negative_int, default=1000, metavar="N",
        help="sets of images drawn for the 95 %% intervals; 0 for none (default: 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of these draws (default: 0)"
    )


def check_annotations(path: Path, how: str = "") -> None:
    """Raise InputError for annotations that aren't there; `how` says how to name others."""
    if not path.exists():
        raise InputError(
            f"{path}: no such annotations; name a COCO file or a folder of label maps{how}"
        )


def score_results(
    args: argparse.Namespace, paths: Sequence[Path], ground_truth: Path, **how: Any
) -> tuple[COCO, list[Scores]]:
    """Score results as the flags of `add_scoring` say, and `how`, more of what `score` takes.

    Returns the ground truth of the images that are scored, and the scores of each of `paths`.
    """
    from cellseg.read.coco import class_names
    from cellseg.read.ground_truth import read_results_with_ground_truth
    from cellseg.read.results import pair_by_image
    from cellseg.score.summary import score

    check_annotations(ground_truth, " with --truth")
    coco, detections = read_results_with_ground_truth(
        paths, ground_truth, args.data, only_annotated=args.only_annotated
    )
    how |= {
        "score_threshold": args.score_threshold,
        "n_resamples": args.resamples,
        "seed": args.seed,
    }
    return coco, [
        score(pair_by_image(coco, of_path, path), class_names(coco), progress=True, **how)
        for path, of_path in zip(paths, detections, strict=True)
    ]


def add_process_flags(group: argparse._ArgumentGroup, work: str, result: str) -> None:
    """Add the flags that say how many processes on how many machines share some work."""
    group.add_argument(
        "--num_gpus", type=non_negative_int, default=1, metavar="N",
        help=f"processes on this machine, a GPU each, that share the {work} (1)",
    )  # fmt: skip
    group.add_argument(
        "--num_machines", type=non_negative_int, default=1, metavar="N",
        help=f"machines that share the {work}; run the same command on each (1)",
    )  # fmt: skip
    group.add_argument(
        "--machine_rank", type=non_negative_int, default=0, metavar="N",
        help=f"this machine's number; machine 0 writes the {result} (0)",
    )  # fmt: skip
    group.add_argument(
        "--dist_url", default="auto", metavar="URL",
        help="where machine 0 is to be found, such as tcp://10.0.0.1:29500 (auto: on this machine)",
    )  # fmt: skip


def check_process_flags(parser: CommandParser, args: argparse.Namespace) -> None:
    """Raise InputError for numbers of processes and machines that make no sense."""
    if not args.num_gpus:
        parser.error("--num_gpus 0: 1 or more is expected; --device cpu works without a GPU")
    if not args.num_machines:
        parser.error("--num_machines 0: 1 or more is expected")
    if args.machine_rank >= args.num_machines:
        parser.error(
            f"--machine_rank {args.machine_rank}: 0 to {args.num_machines - 1} is expected with "
            f"--num_machines {args.num_machines}"
        )
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--num_machines: say with --dist_url tcp://HOST:PORT where machine 0 is")


def fraction(text: str) -> float:
    """Read a flag's value from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def non_negative_int(text: str) -> int:
    """Read a flag's value that counts something, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive_number(text: str) -> int:
    """Read a flag's value that counts something, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


# What the system says of a path, whatever is asked of it: too long a name, no rights, …
_PATH_ERRORS = (
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ELOOP,
    errno.EIO,
    errno.ESTALE,
)


def run_command(main: Callable[[Sequence[str] | None], int]) -> None:
    """Run a command's `main` and leave with its exit code.

    What the user can fix (`InputError`) is one line on stderr and exit code 2; Ctrl-C and
    SIGTERM are one line and 130. Anything else is a bug and keeps its traceback.
    """
    command = Path(sys.argv[0]).name
    # Else a process that is ended from outside would leave its unfinished files.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _make_output_safe()
    try:
        code = main(None)
        sys.stdout.flush()
    except InputError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"\n{command}: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # The reader of our output went away (`… | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = os.strerror(error.errno).lower() if error.errno else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            # Event files and logs are written by libraries.
            advice = "make room, then run it again (a training goes on with --resume)"
            problem = f"writing failed ({reason}); {advice}"
        elif where and error.errno in _PATH_ERRORS:
            problem = f"can't be used ({reason}); check the name and its rights, or name another"
        else:
            raise
        print(f"{command}: error: {where}{problem}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _make_output_safe() -> None:
    """Let nothing fail for want of a place to print to, or of a letter in its encoding."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: `… >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def quiet_libraries() -> None:
    """Silence the remarks that libraries make about their own insides."""
    from tqdm import tqdm

    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    # In float16 the first steps may be left out, until the gradients' scale suits.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    # Its own lock is a semaphore of the system, of which Python remarks that it is left over
    # when a process is killed.
    tqdm.set_lock(threading.RLock())
