"""A JSON list, item by item, so that a file larger than the memory can be read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 20  # characters
_SPACE = (" ", "\t", "\n", "\r")
_AFTER = (",", "]", *_SPACE)  # what may follow an item
_decode = json.JSONDecoder().raw_decode


class NotAListError(Exception):
    """The file is JSON, but no list; holds what it is."""


def json_items(file: IO[str]) -> Iterator[Any]:
    """Return the items of the list in a JSON file; little more than one of them is held.

    Raises
    ------
    ValueError
        If the file isn't JSON, which may be found out after some of the items.
    NotAListError
        If it isn't a list.
    """
    text = _Text(file)
    if text.peek() != "[":
        value = text.value()
        text.end()
        raise NotAListError(value)
    text.take()
    if text.peek() != "]":
        yield text.value()
        while text.peek() == ",":
            text.take()
            yield text.value()
    if text.peek() != "]":
        raise text.wrong("Expecting ',' delimiter")
    text.take()
    text.end()


def _may_go_on(error: json.JSONDecodeError) -> bool:
    """Whether more text may fix it: the value, or a string in it, was cut off."""
    # What is cut off and no string is "-Infinity" or an escape sequence at most.
    return error.msg.startswith("Unterminated string") or len(error.doc) - error.pos < 16


class _Text:
    """The text of a file, taken piece by piece; white space between pieces is skipped."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._held, self._at = "", 0
        self._before = 0  # characters that are held no more

    def peek(self) -> str:
        """Return the next character without taking it; "" at the end."""
        while True:
            while self._held[self._at : self._at + 1] in _SPACE:
                self._at += 1
            if self._at < len(self._held) or not self._read():
                return self._held[self._at : self._at + 1]

    def take(self) -> None:
        """Take the character that `peek` gave."""
        self._at += 1

    def value(self) -> Any:
        """Take a JSON value."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if _may_go_on(error) and self._read():
                    continue
                self._at = error.pos
                raise self.wrong(error.msg) from None
            if self._held[end : end + 1] in _AFTER or not self._read():  # a number may go on
                self._at = end
                return value

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self.wrong("Extra data")

    def wrong(self, what: str) -> ValueError:
        """Make the error that says what is wrong here."""
        return ValueError(f"{what}: character {self._before + self._at}")

    def _read(self) -> bool:
        """Hold more if there is more; as much again, so that a long value isn't begun too often."""
        new = self._file.read(max(_CHUNK, len(self._held) - self._at))
        if new:
            self._before += self._at
            self._held, self._at = self._held[self._at :] + new, 0
        return bool(new)
