"""The error for problems that the user can fix."""

from cellseg.text import one_line


class InputError(Exception):
    """A file, flag, key or device that can't be used.

    The message is one line with the file or flag, what was found, what was expected and what
    to do; text that would control the terminal is escaped. The commands print it without a
    traceback and exit with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message))
