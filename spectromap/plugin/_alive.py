"""Objects of Qt that may be gone while Python still knows them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from qtpy.compat import isalive

__all__ = ["is_alive", "while_alive"]


def is_alive(thing: Any) -> bool:
    """Whether Qt has not deleted an object yet."""
    return bool(isalive(thing))  # type: ignore[no-untyped-call]


def while_alive(method: Callable[[Any], None]) -> Callable[[Any], None]:
    """A method of a widget that is called only while the widget is there, and keeps it not.

    Parameters
    ----------
    method : callable
        Bound to the widget.

    Returns
    -------
    callable
    """
    found = weakref.WeakMethod(method)

    def call(value: Any) -> None:
        bound: Any = found()
        if bound is not None and is_alive(bound.__self__):
            bound(value)

    return call
