"""What goes wrong for a reason that the user can fix."""


class InputError(Exception):
    """Input that can't be used: a file, a flag, a key, a device.

    The message is one line that names the file (or flag), what was found, what was
    expected and what to do. The commands print it without a traceback and exit with 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))
