"""How objects and exceptions are carried between processes, where plain pickle is not enough.

By reference is the rule: a function is its module and name. What has no name that the other
side can import (lambdas, closures, what a notebook or a REPL defines) goes by value, with
cloudpickle. Exceptions travel in an envelope that can be opened whatever is inside.
"""

from __future__ import annotations

import io
import pickle
import sys
from multiprocessing.reduction import ForkingPickler
from types import BuiltinFunctionType, FunctionType, ModuleType

from . import _phalanx

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__: list[str] = []

_DEPTH = 4  # how deep an object is searched for the part that cannot be pickled


def main_is_importable() -> bool:
    """Can a child find what this program's ``__main__`` defines?

    It can if that is a script or a module; it cannot in a REPL, a notebook or under ``-c``.
    """
    main = sys.modules.get("__main__")
    if main is None or getattr(main, "__spec__", None) is not None:
        return True
    return getattr(main, "__file__", None) is not None and "get_ipython" not in vars(main)


def note(function: object) -> None:
    """Workers to come will need the function's module: let a template import it once."""
    note_module(getattr(function, "__module__", None))


def note_module(module: object) -> None:
    """Workers to come will need this module."""
    forkserver = sys.modules.get("phalanx.forkserver")
    if forkserver is not None and isinstance(module, str):
        forkserver._forkserver.note(module)


def is_by_reference(function: object) -> bool:
    """Is the function's pickle its name, so that workers may keep what it stands for?"""
    if isinstance(function, FunctionType | type):
        return True
    return isinstance(function, BuiltinFunctionType) and isinstance(function.__self__, ModuleType)


class _ByValue:
    """A function that is pickled by value, if it is pickled at all."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __reduce__(self) -> tuple[object, ...]:
        return pickle.loads, (dumps_by_value(self._function, "the function"),)


class Namesake:
    """What is called in the place of a function, and goes by its name."""

    def __init__(self, function: Callable[..., object]) -> None:
        for name in ("__module__", "__qualname__"):
            if hasattr(function, name):
                setattr(self, name, getattr(function, name))


class _Around(Namesake):
    """A function, called in another way."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__(function)
        self.function = function


class Rows(_Around):
    """A function that is called with a row of arguments: by name, if it is a mapping."""

    def __call__(self, row: Any) -> object:
        return self.function(**row) if hasattr(row, "keys") else self.function(*row)


class Retrying(_Around):
    """A function of which some exceptions are worth another try."""

    def __init__(
        self, function: Callable[..., object], kinds: tuple[type[BaseException], ...]
    ) -> None:
        super().__init__(function)
        self.kinds = kinds

    def __call__(self, *args: object, **kwargs: object) -> object:
        try:
            return self.function(*args, **kwargs)
        except self.kinds:
            _phalanx.worth_another_try()
            raise


def portable(function: Callable[..., object] | None) -> Callable[..., object] | None:
    """``function``, or a stand-in for one that has no name that a child can import."""
    if isinstance(function, FunctionType) and (
        "<" in function.__qualname__
        or (function.__module__ == "__main__" and not main_is_importable())
    ):
        return _ByValue(function)
    return function


def dumps_by_value(obj: object, what: str) -> bytes:
    """Pickle ``obj`` with all that belongs to ``__main__`` or has no importable name by value."""
    import cloudpickle  # slow to import, and seldom needed

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = {  # noqa: RUF012
            **cloudpickle.Pickler.dispatch_table,
            **ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        }

    buffer = io.BytesIO()
    try:
        Pickler(buffer, protocol=5).dump(obj)
    except Exception as error:
        raise _explained(error, obj, what) from None
    return buffer.getvalue()


def dumps_again(obj: object, what: str, error: BaseException) -> bytes:
    """Pickle by value what could not be pickled by reference, for the reason ``error``."""
    if not isinstance(error, pickle.PicklingError | AttributeError | TypeError):
        raise error
    try:
        return dumps_by_value(obj, what)
    except Exception:
        raise _explained(error, obj, what) from None


def _explained(error: BaseException, obj: object, what: str) -> BaseException:
    path = _find(obj, what, _DEPTH)
    if path is not None and not getattr(error, "__notes__", None):
        error.add_note(f"phalanx: {path} cannot be sent to another process")
    return error


def _find(obj: object, path: str, depth: int) -> str | None:
    """The path of the innermost part of ``obj`` that cannot be pickled, or None."""
    try:
        ForkingPickler.dumps(obj)
    except Exception:
        for name, part in _parts(obj) if depth else ():
            found = _find(part, path + name, depth - 1)
            if found is not None:
                return found
        return f"{path} (of type {type(obj).__qualname__})"
    return None


def _parts(obj: object) -> list[tuple[str, object]]:
    if isinstance(obj, list | tuple):
        return [(f"[{index}]", part) for index, part in enumerate(obj[:1000])]
    if isinstance(obj, dict):
        return [(f"[{key!r}]", part) for key, part in obj.items()]
    return [(f".{name}", part) for name, part in getattr(obj, "__dict__", {}).items()]


def describe(error: BaseException, by_value: bool) -> bytes:
    """Put an exception into its envelope: ``(pickle or None, type name, message, traceback)``.

    The pickle is there if the exception can be rebuilt from it, which is tried here.
    """
    import traceback

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        message = str(error)
    except Exception:
        message = "<the exception has no text>"
    body: bytes | None
    try:
        body = bytes(ForkingPickler.dumps(error))
        pickle.loads(body)
    except Exception:
        body = None
        if by_value:
            try:
                body = dumps_by_value(error, "the exception")
            except Exception:
                body = None
    return pickle.dumps((body, name.removeprefix("builtins."), message, text), protocol=5)


def describe_result(error: BaseException, result: object) -> bytes:
    """Put into an envelope that ``result`` cannot be pickled because of ``error``."""
    from multiprocessing.pool import MaybeEncodingError  # type: ignore[attr-defined]

    wrapped = MaybeEncodingError(error, result)
    wrapped.__cause__ = error
    return describe(wrapped, False)


def revive(envelope: tuple[bytes | None, str, str, str]) -> BaseException:
    """Take an exception out of its envelope, with the remote traceback as its cause."""
    from .exceptions import RemoteError

    body, name, message, text = envelope
    error: Any = None
    if body is not None:
        try:
            error = pickle.loads(body)
        except Exception:
            error = None
    if not isinstance(error, BaseException):
        error = RemoteError(name, message, text)
    revived: BaseException = error
    revived.__cause__ = remote_traceback(text)
    return revived


def remote_traceback(text: str) -> BaseException:
    """An exception that shows the traceback of another process, to be a cause."""
    from multiprocessing.pool import RemoteTraceback  # type: ignore[attr-defined]

    cause: BaseException = RemoteTraceback(f'\n"""\n{text}"""')
    return cause
