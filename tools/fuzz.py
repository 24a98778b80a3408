"""Feed every decoder of what another process wrote with inputs that nobody would have written.

    python tools/fuzz.py                          ten million cases and more
    python tools/fuzz.py --seed 7                 others
    python tools/fuzz.py --cases 1000 queue       a few, for tests with this in their name

The decoders and their cases are in the modules ``fuzz`` of the engine, of which
``crates/phalanx/src/fuzz.rs`` says how they work, and in ``tests/python/test_fuzz.py``. The
engine's run in release, with what would be silent there - an overflow, a debug assertion - as a
panic. A case that fails is printed as a line ``PHALANX_FUZZ_BYTES=...`` that gives it again: set
it, and run the test that is named.
"""

import argparse
import re
import sys
import tempfile
import time
from pathlib import Path

from test import cargo_totals, pytest_totals, run

CASES = 2_000_000  # for a decoder that makes no system call; others get fewer
PYTHON_CASES = 20_000
REQUIRED = 10_000_000  # cases in all
NOTES = "/dev/shm"  # where a note for each case takes no time


def total(lines: list[str]) -> int:
    """How many cases the decoders say that they were given."""
    found = (re.match(r"fuzz: .*: (\d+) cases, seed", line) for line in lines)
    return sum(int(match[1]) for match in found if match)


def show_last_cases(notes: Path) -> None:
    """Print the last case of each decoder: one of these has ended the process without a word."""
    for note in notes.iterdir():
        noted = note.read_bytes()
        length = int.from_bytes(noted[:8], "little")
        print(f"fuzz: {note.name}: last PHALANX_FUZZ_BYTES={noted[8 : 8 + length].hex()}")


def main() -> int:
    """Run them all; 1 if a case failed, or there were too few."""
    arguments = argparse.ArgumentParser(description="Fuzz the decoders.")
    arguments.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000_007)
    arguments.add_argument("--cases", type=int, default=CASES)
    arguments.add_argument("name", nargs="?", default="", help="part of a test's name")
    given = arguments.parse_args()

    with tempfile.TemporaryDirectory(prefix="phalanx-fuzz-", dir=NOTES) as notes:
        return fuzz(given, Path(notes))


def fuzz(given: argparse.Namespace, notes: Path) -> int:
    """As `main`, with a folder for the last case of each decoder."""
    environment = {
        "PHALANX_FUZZ_CASES": str(given.cases),
        "PHALANX_FUZZ_SEED": str(given.seed),
        "PHALANX_FUZZ_NOTES": str(notes),
        "RUST_BACKTRACE": "0",
    }
    build = ["cargo", "test", "--profile", "fuzz", "--package", "phalanx", "--lib"]
    tests = [*build, "fuzz::", "--", "--nocapture", "--test-threads", "2"]
    if given.name:
        tests = [*build, given.name, "--", "--nocapture"]
    seen: list[str] = []

    def totals(lines: list[str]) -> str:
        seen.extend(lines)
        return cargo_totals(lines)

    outcomes = [run("the engine's decoders", [*tests], totals, **environment)]
    if not outcomes[0].ok and not any("PHALANX_FUZZ_BYTES" in line for line in seen):
        show_last_cases(notes)
    if not given.name:
        environment["PHALANX_FUZZ_CASES"] = str(min(PYTHON_CASES, given.cases))
        command = [sys.executable, "-m", "pytest", "-s", "tests/python/test_fuzz.py"]

        def python_totals(lines: list[str]) -> str:
            seen.extend(lines)
            return pytest_totals(lines)

        outcomes.append(run("the package's decoders", [*command], python_totals, **environment))

    cases, needed = total(seen), 0 if given.name or given.cases != CASES else REQUIRED
    print("\n== totals")
    for each in outcomes:
        verdict = "ok    " if each.ok else "FAILED"
        print(f"{verdict} {each.seconds:6.0f} s  {each.what}: {each.totals}")
    print(f"{cases:,} cases, seed {given.seed}")
    if cases < needed:
        print(f"FAILED: too few cases: {needed:,} are needed")
    return 0 if all(each.ok for each in outcomes) and cases >= needed else 1


if __name__ == "__main__":
    sys.exit(main())
