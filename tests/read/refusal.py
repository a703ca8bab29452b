"""The message with which a call fails."""

from __future__ import annotations

import pytest

from cellseg.errors import InputError


def refusal(function, *arguments, **keywords):
    """Return the message, one line, of the InputError that a call raises."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)
