"""Lists read item by item are those of json.load, wherever the pieces end."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellseg.read import json_list
from cellseg.read.json_list import NotAListError, json_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Read pieces of five characters, so that most values are cut."""
    monkeypatch.setattr(json_list, "_CHUNK", 5)


def read(text):
    """Return the items of a text as JSON, since NaN is not NaN, or the error type."""
    try:
        return json.dumps(list(json_items(io.StringIO(text))))
    except NotAListError as error:
        return json.dumps(error.args[0])
    except ValueError:
        return ValueError


def whole(text):
    try:
        return json.dumps(json.loads(text))
    except ValueError:
        return ValueError


@settings(deadline=None)
@given(
    st.lists(VALUES, max_size=6), st.sampled_from([None, 0, 3]), st.sampled_from(["", " \n\t\r "])
)
def test_any_list(values, indent, around):
    text = around + json.dumps(values, indent=indent) + around
    assert read(text) == whole(text) == json.dumps(values)


@settings(deadline=None, max_examples=200)
@given(VALUES, st.data())
@example([1, 2], None)
def test_any_text(value, data):
    """Also if it is cut off, or one character differs."""
    text = json.dumps(value)
    if data:
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.sampled_from(["", ",", "]", "}", " ", "1", '"']))
            + (text[at + 1 :] if data.draw(st.booleans()) else "")
        )
    assert read(text) == whole(text)


@pytest.mark.parametrize(
    "text", ["[1,]", "[,1]", "[1 2]", "[1]]", "[1],", "[", "", " ", "[1,", "[01]"]
)
def test_not_json(text):
    with pytest.raises(ValueError, match="character"):
        list(json_items(io.StringIO(text)))


def test_position_of_an_error():
    with pytest.raises(ValueError, match=r"^Expecting ',' delimiter: character 20$"):
        list(json_items(io.StringIO('[1, {"a": 2}, "abc" 3]')))


def test_errors_are_raised_before_all_is_read():
    file = io.StringIO('[{"a" 2, "b": "' + "x" * 100 + '"}' + ", 1" * 10_000 + "]")
    with pytest.raises(ValueError, match="Expecting ':' delimiter: character 6"):
        list(json_items(file))
    assert file.tell() < 100


def test_items_before_an_error_are_yielded():
    items = json_items(io.StringIO("[1, [2], nonsense"))
    assert [next(items), next(items)] == [1, [2]]
    with pytest.raises(ValueError, match="Expecting value: character 9"):
        next(items)


N_ITEMS = 40_000


def test_memory_does_not_grow_with_the_list(monkeypatch):
    monkeypatch.setattr(json_list, "_CHUNK", 1 << 10)

    class Endless(io.StringIO):
        """A list of `N_ITEMS + 1` items."""

        def __init__(self):
            super().__init__()
            self.left = N_ITEMS

        def read(self, size=-1):
            n = min(size // 10, self.left)
            first = "[0" if self.left == N_ITEMS else ""
            self.left -= n
            return first + ", 12345678" * n + ("" if self.left else "]" * bool(n))

    tracemalloc.start()
    try:
        assert sum(item > 0 for item in json_items(Endless())) == N_ITEMS
        assert tracemalloc.get_traced_memory()[1] < 1 << 15
    finally:
        tracemalloc.stop()
