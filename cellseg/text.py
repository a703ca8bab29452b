"""Text from files and command lines, made fit for messages on a terminal."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from collections.abc import Container
from typing import Any

# Control characters such as newline and escape, undecodable bytes, line and paragraph separators.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")


def is_printable(text: str) -> bool:
    """Return whether a text has no control characters and no undecodable bytes."""
    return text.isprintable() or _escape(text) == text


def printable(text: str) -> str:
    """Return a text with control characters and undecodable bytes escaped, as in Python."""
    return text if is_printable(text) else _escape(text)


def _escape(text: str) -> str:
    return "".join(
        ascii(letter)[1:-1] if unicodedata.category(letter) in _UNPRINTABLE else letter
        for letter in text
    )


def shorten(text: str, length: int) -> str:
    """Return the beginning and the end of a text that is longer than `length`."""
    if len(text) <= length:
        return text
    return f"{text[: length // 2]} … {text[len(text) - length // 2 :]}"


def one_line(message: object) -> str:
    """Return a message as one printable line of at most about 2000 characters."""
    return printable(shorten(" ".join(str(message).split()), 2000))


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def name_of_total(name: str, others: Container[str]) -> str:
    """Return the name of a table's row or column of totals, changed if another one has it."""
    while name in others:
        name += " (total)"
    return name


def show(value: Any) -> str:
    """Return a value from JSON as it is written there, at most about 60 characters."""
    text = ""
    # Piece by piece, and the beginning of a string only, since values can be very long.
    pieces = json.JSONEncoder(ensure_ascii=False, default=str).iterencode(
        value[:80] if isinstance(value, str) else value
    )
    with contextlib.suppress(RecursionError):
        for piece in pieces:
            text += piece
            if len(text) > 60:
                return text[:60] + " …"
    return text


def json_type(value: Any) -> str:
    """Return JSON's name of the type of a value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", dict: "an object", list: "a list"}
    return names.get(type(value), "a number")
