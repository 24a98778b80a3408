"""What pools are given to do.

A worker that does not inherit its parent's modules imports this one, so it imports next to nothing.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def nothing() -> None:
    pass


def identity(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


def own_pid(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def total(array: Any) -> float:
    """Looks at all of it."""
    return float(array.sum())


def first(array: Any) -> float:
    return float(array[0])


def filled(value: float, length: int) -> Any:
    import numpy as np  # noqa: PLC0415

    return np.full(length, value)


def filled_on_loan(value: float, length: int) -> Any:
    import phalanx  # noqa: PLC0415

    array = phalanx.loan(length)
    array[:] = value
    return array
