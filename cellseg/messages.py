"""What the commands print: warnings, which are counted, and numbers with their nouns."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence

from cellseg.text import one_line

LOGGERS = ("cellseg", "detectron2", "fvcore")


def warn(message: object) -> None:
    """Warn, in one line, of unusual data or settings that are used nevertheless.

    The message says what, how many and where. The commands print it to stderr, and at their end
    the number of warnings. Elsewhere it is a warning of the logger "cellseg".
    """
    logging.getLogger("cellseg").warning("%s", one_line(message))


class WarningHandler(logging.Handler):
    """Prints warnings to stderr, above a progress bar, and counts them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        if record.exc_info:  # a traceback, for the log file; the command prints one line
            return
        self.count += 1
        sys.stdout.flush()  # what was printed before comes before, in a file too
        tqdm.write(f"warning: {one_line(record.getMessage())}", file=sys.stderr)


HANDLER = WarningHandler()


def print_warnings() -> None:
    """Print and count all warnings of this process from now on."""
    for name in LOGGERS:
        logging.getLogger(name).addHandler(HANDLER)


@contextlib.contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the warnings in the block instead of printing them, also those of other threads."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    former = [(each.handlers, each.propagate) for each in loggers]
    for each in loggers:
        each.handlers, each.propagate = [collector], False
    try:
        yield messages
    finally:
        for each, (handlers, propagate) in zip(loggers, former, strict=True):
            each.handlers, each.propagate = handlers, propagate


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a number with its noun: "1 image", "2 images", or `nouns` if that isn't regular."""
    return f"{count} {noun if count == 1 else nouns or noun + 's'}"


def in_images(names: Sequence[object]) -> str:
    """Return where something is: "in 5 images: " and the first three of their names."""
    return f"in {plural(len(names), 'image')}: {listed(names)}"


def listed(names: Sequence[object]) -> str:
    """Return the first three of several names, and a "…" if there are more."""
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
