"""The standard library's ``multiprocessing`` made to be this package, for the whole program.

What other code holds of ``multiprocessing`` at any time is a module, a context, or a name copied
from one of them. Each is reached where it is, so that it does not matter who imported what when:

The package itself
    has no functions of its own, only names: they are overwritten in place.

Its submodules
    become *fronts*: the module object changes its class, and from then on shows our module's names
    where we have them, to attribute access and ``from ... import`` alike. Its dictionary stays as
    it is, so the standard library's own functions, on which ours are built in part, still find
    what they were written for. A name is shown if our module of that name has it, and theirs has
    it too or our ``__all__`` says that it is public. What is set on a front is set where it is
    read. Submodules that are imported later are found by a finder at the head of
    ``sys.meta_path``: once the outermost such import is complete, ours is imported and the front
    goes up, so that no import ever sees a module that is half one and half the other.

The contexts
    that exist change their class to ours, and the default context also shares its attributes with
    ours. So the functions of the package, which are methods of the default context, are ours even
    where they were copied before: ``from multiprocessing import Pool, set_start_method``.

``concurrent.futures``
    gives out our `ProcessPoolExecutor`, a subclass of its own, from there and from ``.process``:
    those who make executors, ask ``isinstance`` of them or derive from the class see nothing else.

What this hides must still be found by pickle, which looks for functions and classes by name: it
says from now on that its module is ``phalanx._standard.NAME``, where the finder has it.

Children: a fork has all this, other children are told in their preparation data, before anything
of the program is imported in them. Programs that are started otherwise, by ``subprocess``, are
not installed.

Out of reach are classes and functions copied from a *submodule* before (``from
multiprocessing.pool import Pool``), or from ``concurrent.futures``. They stay the standard
library's, but their processes, and what their contexts make for them, are ours.

This module is imported to be installed and for nothing else.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import threading
from multiprocessing import context as _context
from types import FunctionType, ModuleType

import phalanx
from phalanx import context

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

__all__ = ["install"]

_THEIRS = "multiprocessing."
_OURS = "phalanx."
_HIDDEN = "phalanx._standard."
_EXECUTORS = "concurrent.futures.process"

#: Not shown though we have them: anybody's context is to be an instance of this one.
_KEPT = {"context": {"BaseContext"}}

_standard: Any = _context
_package: Any = multiprocessing
_installed = False


class _Imports(threading.local):
    """The imports that this thread is in the middle of."""

    depth = 0

    def __init__(self) -> None:
        self.waiting: list[str] = []


_imports = _Imports()


def install() -> None:
    """Make ``multiprocessing`` be this package; again, it does nothing."""
    global _installed  # noqa: PLW0603
    if _installed:
        return
    _installed = True
    _adopt_contexts()
    _fill_package()
    sys.meta_path.insert(0, _Finder)
    loaded = [name for name in sys.modules if name.startswith(_THEIRS)]
    _imports.waiting += [name.removeprefix(_THEIRS) for name in loaded]
    _imports.waiting += [_EXECUTORS] if _EXECUTORS in sys.modules else []
    _put_up_fronts()


def _adopt_contexts() -> None:
    ours: dict[str, Any] = context._concrete_contexts
    default: Any = context._default_context
    for method, theirs in _standard._concrete_contexts.items():
        if method in ours:
            theirs.__class__ = type(ours[method])
        else:
            ours[method] = theirs  # somebody has added one
    their_default = _standard._default_context
    chosen = their_default._actual_context
    if chosen is not None and default._actual_context is None:
        default._actual_context = ours.get(chosen._name, chosen)
    their_default.__class__ = type(default)
    their_default.__dict__ = default.__dict__


def _fill_package() -> None:
    ours = vars(phalanx)
    _package.__dict__.update((name, ours[name]) for name in phalanx.__all__ if name in ours)

    def __getattr__(name: str) -> Any:
        if name in phalanx.__all__:
            return getattr(phalanx, name)
        raise AttributeError(f"module 'multiprocessing' has no attribute {name!r}")

    _package.__getattr__ = __getattr__


class _Finder:
    """Finds what the finders behind it find, and hears when a module of the two has loaded."""

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.startswith(_HIDDEN):
            return _hidden_spec(name)
        if not name.startswith((_THEIRS, _OURS)) and name != _EXECUTORS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            if finder is cls or find is None:
                continue
            spec: ModuleSpec | None = find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """A loader that says when it has loaded a module."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        assert spec is not None
        module.__loader__ = spec.loader = self._loader
        _imports.depth += 1
        try:
            self._loader.exec_module(module)
        finally:
            _imports.depth -= 1
        if spec.name.startswith(_THEIRS) or spec.name == _EXECUTORS:
            _imports.waiting.append(spec.name.removeprefix(_THEIRS))
        if not _imports.depth:
            _put_up_fronts()


def _put_up_fronts() -> None:
    """Make fronts of all modules that wait for it, and of those that this brings in."""
    _imports.depth += 1
    try:
        while _imports.waiting:
            name = _imports.waiting.pop(0)
            _give_out_our_executor() if name == _EXECUTORS else _put_up_front(name)
    finally:
        _imports.depth -= 1


def _give_out_our_executor() -> None:
    from phalanx.futures import ProcessPoolExecutor

    # The package has the name only if somebody has asked for it.
    for module in (_EXECUTORS, "concurrent.futures"):
        if "ProcessPoolExecutor" in vars(sys.modules[module]):
            sys.modules[module].ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[attr-defined]


def _put_up_front(name: str) -> None:
    try:
        ours = importlib.import_module(_OURS + name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith(_OURS):
            return  # one that we do not have
        raise
    theirs = sys.modules.get(_THEIRS + name)
    if theirs is None or theirs is ours or type(theirs) is not ModuleType:
        return
    shown = _shown(name, vars(theirs), vars(ours))
    if not shown:
        return
    for each in shown:
        hidden = vars(theirs).get(each)
        if isinstance(hidden, type | FunctionType) and hidden.__module__ == theirs.__name__:
            hidden.__module__ = _HIDDEN + name
    theirs.__class__ = _front(ours, shown)


def _shown(module: str, theirs: dict[str, Any], ours: dict[str, Any]) -> frozenset[str]:
    public = ours.get("__all__", ())
    return frozenset(
        name
        for name, value in ours.items()
        if (name in theirs or name in public)
        and not name.startswith("__")
        and not isinstance(value, ModuleType)
        and theirs.get(name, theirs) is not value
        and name not in _KEPT.get(module, ())
    )


def _front(ours: ModuleType, shown: frozenset[str]) -> type[ModuleType]:
    """The class of a module that shows the names ``shown`` of ``ours``, and its own others."""

    class Front(ModuleType):
        def __getattribute__(self, name: str) -> Any:
            if name in shown and name in vars(ours):
                return getattr(ours, name)
            if name == "__dict__":  # `vars`, and who patches and restores by it
                own = super().__getattribute__(name)
                return own | {each: getattr(ours, each) for each in shown & vars(ours).keys()}
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name in shown:
                setattr(ours, name, value)
            else:
                super().__setattr__(name, value)

        def __delattr__(self, name: str) -> None:
            if name in shown:
                delattr(ours, name)
            else:
                super().__delattr__(name)

        def __dir__(self) -> list[str]:
            return sorted(vars(self))

    return Front


def _hidden_spec(name: str) -> ModuleSpec | None:
    from importlib.machinery import ModuleSpec

    theirs = importlib.import_module(_THEIRS + name.removeprefix(_HIDDEN))
    own: dict[str, Any] = ModuleType.__getattribute__(theirs, "__dict__")
    return ModuleSpec(name, _Hidden(own))  # type: ignore[arg-type]


class _Hidden:
    """Loads a module that has what a front hides."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update((k, v) for k, v in self._names.items() if not k.startswith("__"))
