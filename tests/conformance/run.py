"""Run CPython's own tests of multiprocessing against phalanx, and score it.

    python tests/conformance/run.py --method fork|spawn|forkserver [--only PATTERN]...

The interpreter that runs this is the one under test, and has phalanx installed. What is required is
in ``required.txt``, see README.md. The exit status is 0 if every required test passes.
"""

import argparse
import concurrent.futures
import fnmatch
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from batches import run_batch, run_class
from copies import TESTS, Copies

HERE = Path(__file__).parent
METHODS = ("fork", "spawn", "forkserver")
LIMIT = 120.0  # seconds a test may take; the slowest takes 15 on an idle machine
# The part of CPython's suite that phalanx has set itself so far.
PATTERNS = (
    "*TestProcess*",
    "*TestSubclassingProcess*",
    "*TestPool*",
    "*TestStartMethod*",
    "*main_handling*",
)
VERSION = ".".join(map(str, sys.version_info[:3]))


def matches(test: str, patterns: list[str]) -> bool:
    """Is the id ``test`` among those that ``patterns`` ask for?"""
    return any(fnmatch.fnmatchcase(test, pattern) for pattern in patterns)


def lines_of(name: str) -> list[str]:
    """The lines of one of our text files, without comments and blanks."""
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def recorded(method: str) -> list[str] | None:
    """The required tests of this very version, if they were recorded; see README.md."""
    versions, *rows = lines_of("required.txt")
    if VERSION not in versions.split()[1:]:
        return None
    minor = VERSION.rpartition(".")[0]
    tests = []
    for row in rows:
        test, *places = row.split()
        if not places or minor in places or f"{minor}-{method}" in places or method in places:
            tests.append(test)
    return tests


def measured(method: str, patterns: list[str], jobs: int) -> list[str]:
    """The required tests of a version that was not recorded: what passes with the real module."""
    print(f"measuring what {VERSION} itself passes", flush=True)
    origin = Path(importlib.import_module("multiprocessing").__file__ or "")
    with Copies("multiprocessing", origin) as copies:
        results = run_all(copies, method, patterns, jobs)
    return [test for test, result in results.items() if result["state"] == "pass"]


def run_all(copies: Copies, method: str, patterns: list[str], jobs: int) -> dict[str, dict]:
    """Run every test whose id matches: id -> {"state", "text", "time", "where"}."""
    listing = subprocess.run(
        [copies.python, "-m", "phxsuite.listing", method],
        env=copies.env(),
        cwd=copies.root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if listing.returncode:
        sys.exit(f"the tests cannot be listed:\n{listing.stdout}{listing.stderr}")
    loaded = json.loads(listing.stdout)
    for module, why in loaded["errors"].items():
        print(f"NOT LOADED {module}\n{why}", flush=True)
    prefix = f"test_multiprocessing_{method}."
    todo = []
    for module, cls, names in loaded["classes"]:
        stem = f"{module.removeprefix('phxsuite.').removeprefix(prefix)}.{cls}"
        wanted = [name for name in names if matches(f"{stem}.{name}", patterns)]
        if wanted:
            todo.append((stem, module, cls, wanted))
    todo.sort(key=lambda each: -len(each[3]))
    tests = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        futures = {
            executor.submit(run_class, copies, module, cls, names, LIMIT): (stem, module, cls)
            for stem, module, cls, names in todo
        }
        for future in concurrent.futures.as_completed(futures):
            stem, *where = futures[future]
            results = future.result()
            counts = Counter(result["state"] for result in results.values())
            said = ", ".join(f"{number} {state}" for state, number in counts.items())
            print(f"  {stem}: {said}", flush=True)
            for name, result in results.items():
                tests[f"{stem}.{name}"] = result | {"where": where}
    return tests


def retry(copies: Copies, results: dict[str, dict], times: int) -> list[str]:
    """Run what did not pass again, alone; the ids of those that then did."""
    healed = []
    for test, result in results.items():
        name = test.rpartition(".")[2]
        if result["state"] in ("pass", "skip") or name == "<fixture>":
            continue
        for _ in range(times):
            again = run_batch(copies, *result["where"], [name], LIMIT).results.get(name)
            if again and again["state"] == "pass":
                results[test] = again | {"where": result["where"]}
                healed.append(test)
                break
    return healed


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--only", action="append", help="fnmatch pattern of test ids, repeatable")
    parser.add_argument("--module", default="phalanx", help="the stand-in for multiprocessing")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--retries", type=int, default=0, help="for what does not pass, alone")
    parser.add_argument("--verbose", action="store_true", help="print what failing tests say")
    return parser.parse_args()


def main() -> int:
    """Run, report, score; 0 if all that is required passed."""
    args = arguments()
    if not (TESTS / "_test_multiprocessing.py").exists():
        sys.exit(f"CPython {VERSION} has no tests installed beside it ({sys.executable})")
    # Imported from where it is installed, not from the folder we are in.
    spec = importlib.util.find_spec(args.module)
    if spec is None or spec.origin is None:
        sys.exit(f"{sys.executable} cannot import {args.module}")
    patterns = args.only or list(PATTERNS)
    excused = [line.split()[0] for line in lines_of("excused.txt")]
    required = recorded(args.method)
    if required is None:
        required = measured(args.method, patterns, args.jobs)
    required = [t for t in required if matches(t, patterns) and not matches(t, excused)]

    started = time.monotonic()
    with Copies(args.module, Path(spec.origin)) as copies:
        results = run_all(copies, args.method, patterns, args.jobs)
        healed = retry(copies, results, args.retries)
    for test, result in results.items():
        if result["state"] not in ("pass", "skip"):
            text = result["text"].strip()
            last = text.splitlines()[-1] if text else ""
            print(f"{result['state'].upper()} {test}: {text if args.verbose else last[:200]}")
    for test in healed:
        print(f"passed when run again, alone: {test}")
    missing = {t: results.get(t, {"state": "not run"})["state"] for t in required}
    missing = {test: state for test, state in missing.items() if state != "pass"}
    for test, state in missing.items():
        print(f"MISSING {test}: {state}")
    print(
        f"score: {len(required) - len(missing)} of {len(required)} required tests pass on "
        f"CPython {VERSION} with {args.method} ({len(results)} run, "
        f"{time.monotonic() - started:.0f} s)"
    )
    return 1 if missing or not required else 0


if __name__ == "__main__":
    sys.exit(main())
