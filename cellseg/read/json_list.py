"""Read a JSON list item by item, so that files can be larger than the memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 20  # characters
_AFTER = (",", "]", " ", "\t", "\n", "\r")  # characters that can follow an item
_SPACE = re.compile(r"[ \t\n\r]+")
_decode = json.JSONDecoder().raw_decode


class NotAListError(Exception):
    """The JSON file contains no list; the argument is its value."""


def json_items(file: IO[str]) -> Iterator[Any]:
    """Yield the items of the list in a JSON file, holding little more than one of them.

    Raises ValueError, perhaps after some items, if the file isn't JSON, and NotAListError if
    it isn't a list.
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


def _may_continue(error: json.JSONDecodeError) -> bool:
    """Return whether more text could fix an error: the value, or a string in it, is cut off."""
    # Apart from strings, the longest such text is "-Infinity" or an escape sequence.
    return error.msg.startswith("Unterminated string") or len(error.doc) - error.pos < 16


class _Text:
    """The text of a file, read in pieces; white space between values is skipped."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._held, self._at = "", 0
        self._before = 0  # characters that were discarded

    def peek(self) -> str:
        """Return the next character without consuming it, "" at the end."""
        while True:
            space = _SPACE.match(self._held, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._held) or not self._read():
                return self._held[self._at : self._at + 1]

    def take(self) -> None:
        """Consume the character that `peek` returned."""
        self._at += 1

    def value(self) -> Any:
        """Consume a JSON value."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._held, self._at)
            except json.JSONDecodeError as error:
                if _may_continue(error) and self._read():
                    continue
                self._at = error.pos
                raise self.wrong(error.msg) from None
            if self._held[end : end + 1] in _AFTER or not self._read():  # numbers may continue
                self._at = end
                return value

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self.wrong("Extra data")

    def wrong(self, what: str) -> ValueError:
        """Return an error for the current position."""
        return ValueError(f"{what}: character {self._before + self._at}")

    def _read(self) -> bool:
        """Read more if there is more, doubling a long value so that few parses are repeated."""
        new = self._file.read(max(_CHUNK, len(self._held) - self._at))
        if new:
            self._before += self._at
            self._held, self._at = self._held[self._at :] + new, 0
        return bool(new)
