"""What may be asked for tasks and workers, beside what `multiprocessing` has."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias, TypedDict

    Asked: TypeAlias = tuple[float | None, float | None, int | None, float | None, bool | None]
    Bounds: TypeAlias = tuple[int | None, int | None, float | None, int | None, float]
    Callbacks: TypeAlias = tuple[int, object, object]
    Kinds: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]
    MemoryLimit: TypeAlias = int | tuple[int | None, int | None]

    class Terms(TypedDict, total=False):
        """What a call may ask for its tasks, as a pool does for all; `math.inf` is no timeout."""

        timeout: float | None
        start_timeout: float | None
        retries: int | None
        backoff: float | None
        retry_on: Kinds | None

    class PoolOptions(TypedDict, total=False):
        """What is asked of a `phalanx.pool.Pool`, where it is explained."""

        kill_tree: bool
        timeout: float | None
        start_timeout: float | None
        grace: float
        retries: int
        backoff: float
        retry_on: Kinds
        memory_limit: MemoryLimit | None
        lifetime: float | None
        intensity: int | None
        period: float
        threads_per_worker: int | None
        preload: Iterable[str]


__all__: list[str] = []


def asked_of(
    timeout: float | None = None,
    start_timeout: float | None = None,
    retries: int | None = None,
    backoff: float | None = None,
    retry_on: Kinds | None = None,
) -> Asked:
    """A task's terms, as the engine takes them."""
    if retries is not None and not 0 <= retries < 1 << 32:
        raise ValueError(f"retries must be 0 to {(1 << 32) - 1}, not {retries}")
    if retry_on:
        for kind in retry_on if isinstance(retry_on, tuple) else (retry_on,):
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"retry_on must be a class of exceptions, or a tuple, not {kind!r}")
    return timeout, start_timeout, retries, backoff, None if retry_on is None else bool(retry_on)


def module_names(preload: Iterable[str]) -> tuple[str, ...]:
    """The modules to import."""
    names = (preload,) if isinstance(preload, str) else tuple(preload)
    for name in names:
        if not isinstance(name, str) or not name:
            raise TypeError(f"preload must be names of modules, not {name!r}")
    return names


def bounds_of(
    memory_limit: MemoryLimit | None, lifetime: float | None, intensity: int | None, period: float
) -> Bounds:
    """The bounds of a pool's workers, as the engine takes them."""
    soft, hard = memory_limit if isinstance(memory_limit, tuple) else (None, memory_limit)
    for value in (soft, hard):
        if value is not None and (not isinstance(value, int) or value <= 0):
            raise ValueError(f"memory_limit must be a positive number of bytes, not {value!r}")
    if soft is not None and hard is not None and soft > hard:
        raise ValueError(f"memory_limit is (soft, hard), and {soft} is more than {hard}")
    if intensity is not None and intensity < 0:
        raise ValueError(f"intensity must be 0 or more, not {intensity}")
    return soft, hard, lifetime, intensity, period
