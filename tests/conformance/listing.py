"""Print, as JSON, the rewritten test classes of one start method and the tests of each.

Runs as ``python -m phxsuite.listing METHOD`` in the environment that ``copies.py`` makes.
"""

import importlib
import json
import sys
import traceback
import unittest

DRIVER = "ForkCmdLineTest", "SpawnCmdLineTest", "ForkServerCmdLineTest"
MAIN_HANDLING = dict(zip(("fork", "spawn", "forkserver"), DRIVER, strict=True))


def main(method: str) -> None:
    """Import every module of tests, and list what is in it for ``method``."""
    classes, errors = [], {}
    modules = [
        f"phxsuite.test_multiprocessing_{method}.test_{part}"
        for part in ("processes", "manager", "threads", "misc")
    ]
    for name in [*modules, "phxsuite.test_multiprocessing_main_handling"]:
        try:
            module = importlib.import_module(name)
        except BaseException:  # also a SkipTest: a platform that skips all tests nothing
            errors[name] = traceback.format_exc()
            continue
        for key, cls in sorted(vars(module).items()):
            if not (isinstance(cls, type) and issubclass(cls, unittest.TestCase)):
                continue
            if cls.__module__ != name or (key in DRIVER and key != MAIN_HANDLING[method]):
                continue
            if tests := unittest.TestLoader().getTestCaseNames(cls):
                classes.append([name, key, list(tests)])
    json.dump({"classes": classes, "errors": errors}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
