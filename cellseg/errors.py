"""The error for problems that the user can fix."""


class InputError(Exception):
    """A file, flag, key or device that can't be used.

    The message is one line with the file or flag, what was found, what was expected and what
    to do. The commands print it without a traceback and exit with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
