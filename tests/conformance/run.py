"""Run CPython's own tests of multiprocessing against phalanx, and score it.

    python tests/conformance/run.py --method fork|spawn|forkserver [--only PATTERN]...

The interpreter that runs this is the one under test, and has phalanx installed. What is required is
in ``required.txt``, see README.md. The exit status is 0 if every required test passes.
"""

import argparse
import concurrent.futures
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from batches import run_batch, run_class
from copies import FUTURES, TESTS, Copies, futures_tests
from required import METHODS, excused, matches, recorded

LIMIT = 120.0  # seconds a test may take; the slowest takes 15 on an idle machine
# What `--cut` leaves out: what takes long and of which phalanx runs little. That is most of
# concurrent.futures' waiting for sleeping tasks, and the threads behind `phalanx.dummy`.
CUT = ("test_threads.*", "*WaitTest.*", "*ProcessPoolExecutorTest.*")
# Classes that take longest, which so are begun first.
SLOW = ("TestProcess", "WaitTest", "TestWait", "ProcessPoolExecutorTest", "TestBarrier", "CmdLine")
VERSION = ".".join(map(str, sys.version_info[:3]))


class Selection(NamedTuple):
    """The tests that the command line asks for."""

    only: Sequence[str]
    left_out: Sequence[str]

    def __contains__(self, test: str) -> bool:
        return matches(test, self.only) and not matches(test, self.left_out)


def measured(method: str, selection: Selection, jobs: int) -> list[str]:
    """The required tests of a version that was not recorded: what passes with the real module."""
    print(f"measuring what {VERSION} itself passes", flush=True)
    origin = Path(importlib.import_module("multiprocessing").__file__ or "")
    with Copies("multiprocessing", origin) as copies:
        results = run_all(copies, method, selection, jobs)
    return [test for test, result in results.items() if result["state"] == "pass"]


def run_all(copies: Copies, method: str, selection: Selection, jobs: int) -> dict[str, dict]:
    """Run every test that is selected: id -> {"state", "text", "time", "where"}."""
    listing = subprocess.run(
        [copies.python, "-m", "phxsuite.listing", method, *(FUTURES if copies.futures else ())],
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
        wanted = [name for name in names if f"{stem}.{name}" in selection]
        if wanted:
            todo.append((stem, module, cls, wanted))
    todo.sort(key=lambda each: (not each[0].endswith(SLOW), -len(each[3])))
    tests = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as executor:
        futures = {
            executor.submit(run_class, copies, module, cls, names, LIMIT): (stem, module, cls)
            for stem, module, cls, names in todo
        }
        for future in concurrent.futures.as_completed(futures):
            stem, *where = futures[future]
            results, left_behind = future.result()
            for command in left_behind:
                print(f"LEFT BEHIND by {stem}: {command}", flush=True)
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
                # What it said at first is how one learns what made it flaky.
                results[test] = again | {"where": result["where"], "text": result["text"]}
                healed.append(test)
                break
    return healed


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--only", action="append", help="fnmatch pattern of test ids, repeatable")
    parser.add_argument("--module", default="phalanx", help="the stand-in for multiprocessing")
    parser.add_argument("--executor", action="store_true", help="test phalanx.ProcessPoolExecutor")
    parser.add_argument("--cut", action="store_true", help="leave out what takes long; see CUT")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--retries", type=int, default=0, help="for what does not pass, alone")
    parser.add_argument("--json", type=Path, help="write all results there")
    parser.add_argument("--verbose", action="store_true", help="print what failing tests say")
    return parser.parse_args()


def required_tests(args: argparse.Namespace, selection: Selection) -> list[str]:
    """The ids that have to pass in this run."""
    tests = recorded(VERSION, args.method)
    if tests is None:
        tests = measured(args.method, selection, args.jobs)
    # Said aloud where it is found out, in `main`.
    unavailable = [] if futures_tests() else ["test_concurrent_futures.*"]
    patterns = excused(args.executor) + unavailable
    return [t for t in tests if t in selection and not matches(t, patterns)]


def report(results: dict[str, dict], healed: list[str], verbose: bool) -> None:
    """Print what did not pass."""
    for test, result in results.items():
        if result["state"] not in ("pass", "skip"):
            text = result["text"].strip()
            last = text.splitlines()[-1] if text else ""
            print(f"{result['state'].upper()} {test}: {text if verbose else last[:200]}")
    for test in healed:
        print(f"passed when run again, alone: {test}")


def main() -> int:
    """Run, report, score; 0 if all that is required passed."""
    args = arguments()
    if not (TESTS / "_test_multiprocessing.py").exists():
        sys.exit(f"CPython {VERSION} has no tests installed beside it ({sys.executable})")
    # Imported from where it is installed, not from the folder we are in.
    spec = importlib.util.find_spec(args.module)
    if spec is None or spec.origin is None:
        sys.exit(f"{sys.executable} cannot import {args.module}")
    only = args.only or ["test_concurrent_futures.*" if args.executor else "*"]
    # What phalanx's executor is not asked to pass may leave one behind that is never shut down.
    left_out = excused(True) if args.executor else []
    selection = Selection(only, [*left_out, *(CUT if args.cut else ())])
    required = required_tests(args, selection)

    started = time.monotonic()
    with Copies(args.module, Path(spec.origin), args.executor) as copies:
        if copies.futures is None:
            print("NOT RUN: no CPython here has test_concurrent_futures installed")
        results = run_all(copies, args.method, selection, args.jobs)
        hangs = sum(result["state"] == "hang" for result in results.values())
        healed = retry(copies, results, args.retries)
    seconds = round(time.monotonic() - started)
    report(results, healed, args.verbose)
    states = {test: results.get(test, {"state": "not run"})["state"] for test in required}
    missing = {test: state for test, state in states.items() if state != "pass"}
    for test, state in missing.items():
        print(f"MISSING {test}: {state}")
    print(
        f"score: {len(required) - len(missing)} of {len(required)} required tests pass on "
        f"CPython {VERSION} with {args.method} "
        f"({len(results)} run, {len(healed)} flaky, {hangs} hung, {seconds} s)"
    )
    if args.json:
        outcome = {
            "python": VERSION,
            "method": args.method,
            "module": args.module,
            "required": len(required),
            "missing": missing,
            "flaky": healed,
            "hangs": hangs,
            "seconds": seconds,
            "tests": {
                test: {"state": result["state"], "time": result["time"], "text": result["text"]}
                for test, result in sorted(results.items())
            },
        }
        args.json.write_text(json.dumps(outcome, indent=1), encoding="utf-8")
    return 1 if missing or not required else 0


if __name__ == "__main__":
    sys.exit(main())
