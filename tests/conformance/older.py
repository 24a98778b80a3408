"""``test.support`` with what newer tests of ``concurrent.futures`` ask of it.

They are borrowed for a Python that was installed without its own; see ``copies.py``.
"""

import functools

from test import support

__all__ = ["support"]


def requires_gil_enabled(_message=""):
    """No Python that lacks this runs without the GIL."""
    return lambda test: test


def without_thread(function):
    """``function``, which knows no thread sanitizer: asked for that, it answers for another."""

    @functools.wraps(function)
    def asking(*args, thread=False, **kinds):
        return function(*args, **(kinds or {"address": True}))

    return asking


if not hasattr(support, "requires_gil_enabled"):
    support.requires_gil_enabled = requires_gil_enabled
    for name in ("check_sanitizer", "skip_if_sanitizer"):
        if "thread" not in getattr(support, name).__code__.co_varnames:
            setattr(support, name, without_thread(getattr(support, name)))
