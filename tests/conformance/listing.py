"""Print, as JSON, the rewritten test classes of one start method and the tests of each.

Runs as ``python -m phxsuite.listing METHOD PART...`` in the environment that ``copies.py`` makes.
"""

import importlib
import json
import sys
import traceback
import unittest

COMMAND_LINE = {
    "fork": "ForkCmdLineTest",
    "spawn": "SpawnCmdLineTest",
    "forkserver": "ForkServerCmdLineTest",
}


def is_for(method: str, case: type[unittest.TestCase]) -> bool:
    """Is this class, of a module that has classes for all start methods, one for ``method``?"""
    if case.__name__ in COMMAND_LINE.values():
        return case.__name__ == COMMAND_LINE[method]
    if case.__module__.startswith("phxsuite.test_concurrent_futures"):
        return getattr(case, "ctx", None) == method
    return True


def main(method: str, *futures: str) -> None:
    """Import every module of tests, and list what is in it for ``method``."""
    classes, errors = [], {}
    modules = [
        f"phxsuite.test_multiprocessing_{method}.test_{part}"
        for part in ("processes", "manager", "threads", "misc")
    ]
    modules.append("phxsuite.test_multiprocessing_main_handling")
    modules += [f"phxsuite.test_concurrent_futures.test_{part}" for part in futures]
    for name in modules:
        try:
            module = importlib.import_module(name)
        except BaseException:  # also a SkipTest: a platform that skips all tests nothing
            errors[name] = traceback.format_exc()
            continue
        for key, cls in sorted(vars(module).items()):
            if not (isinstance(cls, type) and issubclass(cls, unittest.TestCase)):
                continue
            if cls.__module__ != name or not is_for(method, cls):
                continue
            if tests := unittest.TestLoader().getTestCaseNames(cls):
                classes.append([name, key, list(tests)])
    json.dump({"classes": classes, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
