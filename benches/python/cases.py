"""What a case of the bench is. The cases themselves are in `pools`, `arrays` and `objects`."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PHALANX = ("phalanx-fork", "phalanx-forkserver")
CONTEXTS = ("mp-fork", *PHALANX)
POOLS = (*CONTEXTS, "ppe-fork", "loky", "joblib", "mpire", "pebble")


class Measure(NamedTuple):
    """One row of the table. More is better if the unit is so many a second."""

    name: str
    unit: str

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s")


class Case(NamedTuple):
    """What is measured in one interpreter: a function that yields a figure a measure."""

    run: Callable[[str], Iterator[float]]
    libraries: tuple[str, ...]
    measures: tuple[Measure, ...]
    rounds: int


CASES: dict[str, Case] = {}


def case(libraries: tuple[str, ...], *measures: tuple[str, str], rounds: int = 5) -> Any:
    """Enter a function under its name. It gets the name of a library."""

    def enter(run: Callable[[str], Iterator[float]]) -> Callable[[str], Iterator[float]]:
        named = tuple(Measure(*each) for each in measures)
        CASES[run.__name__.rstrip("_")] = Case(run, libraries, named, rounds)
        return run

    return enter


def percentile(values: list[float], percent: int) -> float:
    """The value that so many of a hundred do not exceed."""
    return sorted(values)[len(values) * percent // 100]
