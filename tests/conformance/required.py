"""What has to pass: ``required.txt``, read and written.

    python tests/conformance/required.py RESULTS.json...    # records; see README.md

A class is a line, its tests follow, indented. ``{Method}`` in a class's name stands for ``Fork``,
``Spawn`` or ``Forkserver`` (``ForkServer``, in those of the command line). Where a test passes not
with every version and start method, those with which it does follow it: ``3.13`` or ``fork`` or
``3.13-fork``.
"""

import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
METHODS = ("fork", "spawn", "forkserver")
HEAD = """\
# The tests that pass with the real multiprocessing, and so have to with phalanx. `required.py`
# wrote this, and says how to read it. On a version that is not in the next line the real module
# is run first.
"""


def lines_of(name: str) -> list[str]:
    """The lines of one of our text files, without comments and blanks."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]


def excused(executor: bool = False) -> list[str]:
    """The patterns of ids that are not required, of phalanx's executor or else."""
    name = "excused-executor.txt" if executor else "excused.txt"
    return [line.split()[0] for line in lines_of(name)]


def matches(test: str, patterns: Sequence[str]) -> bool:
    """Is the id ``test`` among those that ``patterns`` ask for?"""
    return any(fnmatch.fnmatchcase(test, pattern) for pattern in patterns)


def word_for(method: str, stem: str) -> str:
    """What ``{Method}`` stands for in the class ``stem``."""
    if method == "forkserver" and "CmdLine" in stem:
        return "ForkServer"
    return method.capitalize()


def recorded(version: str, method: str) -> list[str] | None:
    """The required tests of this very version, or None if it was not recorded."""
    versions, *lines = lines_of("required.txt")
    if version not in versions.split()[1:]:
        return None
    minor = version.rpartition(".")[0]
    here = {minor, method, f"{minor}-{method}"}
    tests, stem = [], ""
    for line in lines:
        name, *places = line.split()
        if not line.startswith(" "):
            stem = name.replace("{Method}", word_for(method, name))
        elif not places or here & set(places):
            tests.append(f"{stem}.{name}")
    return tests


def places_of(runs: set[tuple[str, str]], every: set[tuple[str, str]]) -> str:
    """The shortest way to say ``runs``, of (minor, method), with the words of ``required.txt``."""
    words = []
    for axis in (0, 1):
        for value in sorted({run[axis] for run in every}):
            whole = {run for run in every if run[axis] == value}
            if whole <= runs and runs != every:
                words.append(value)
    said = {run for run in runs if run[0] in words or run[1] in words}
    rest = [] if runs == every else sorted("-".join(run) for run in runs - said)
    return "".join(f" {word}" for word in [*words, *rest])


def record(files: list[str]) -> str:
    """The text of ``required.txt`` that the results of runs of the real module make."""
    passing: dict[tuple[str, str], set[tuple[str, str]]] = {}
    versions, every = set(), set()
    for file in files:
        run = json.loads(Path(file).read_text(encoding="utf-8"))
        versions.add(run["python"])
        place = (run["python"].rpartition(".")[0], run["method"])
        every.add(place)
        for test, result in run["tests"].items():
            if result["state"] == "pass" and not matches(test, excused()):
                stem, _, name = test.rpartition(".")
                if "CmdLine" in stem or stem.startswith("test_concurrent_futures"):
                    stem = stem.replace(word_for(run["method"], stem), "{Method}")
                passing.setdefault((stem, name), set()).add(place)
    text, last = [HEAD, "recorded ", " ".join(sorted(versions)), "\n"], ""
    for (stem, name), places in sorted(passing.items()):
        if stem != last:
            text.append(f"\n{stem}\n")
            last = stem
        text.append(f"  {name}{places_of(places, every)}\n")
    return "".join(text)


if __name__ == "__main__":
    (HERE / "required.txt").write_text(record(sys.argv[1:]), encoding="utf-8")
