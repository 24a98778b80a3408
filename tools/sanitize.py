"""Run the engine's tests under AddressSanitizer and ThreadSanitizer, with a nightly toolchain.

    python tools/sanitize.py              both
    python tools/sanitize.py thread       only this one

| tests | address | thread |
| --- | --- | --- |
| ``--lib``: unit tests, deaths in real processes and a short fuzz among them | yes | yes |
| ``--test it``: integration tests, whose workers are the same binary | but ``ABOUT_TIME`` | no |
| doctests: programs for readers, which are built one by one | no | no |

ThreadSanitizer does not have the integration tests because it runs a thread of its own in each
process, which they take for one that was left behind.

The standard library is instrumented, too: its locks and channels are what orders our threads, and
ThreadSanitizer has to see that. For this its sources are needed (``rustup component add rust-src
--toolchain nightly``); where the nightly toolchain does not have them, another one is fetched into
``target/rustup``, which has.

What is reported and is no fault is in ``tools/lsan.txt``, with its reason.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from test import ROOT, cargo_totals, run

TARGET = f"{platform.machine()}-unknown-linux-gnu"


class Sanitizer(NamedTuple):
    """What is special about one of them."""

    name: str
    binaries: dict[str, list[str]]
    options: dict[str, str]


def no_fault(name: str) -> str:
    """The option that names a file of what is no fault."""
    return f"suppressions={ROOT / 'tools' / name}:print_suppressions=0"


UNIT = {"unit tests": ["--lib"]}
# These are about time: how long and short tasks share a worker, a million of them in a minute; and
# what a worker tells in a second of where it is, which takes instrumented code several.
ABOUT_TIME = (
    "long_and_short_items_balance",
    "a_million_tasks_in_flight_take_no_descriptor",
    "a_task_whose_time_is_over_is_ended_alone",
    "who_is_ended_says_where_it_was",
    "workers_tell_what_they_are_doing_and_go_on",
    "a_crash_says_where",
)
SKIPPED = [word for name in ABOUT_TIME for word in ("--skip", name)]
INTEGRATION = {"integration tests": ["--test", "it", "--", *SKIPPED]}
# Signals stay as they are: tests look at how processes end by them.
AS_THEY_ARE = ":".join(
    f"handle_{each}=0" for each in ("segv", "sigbus", "abort", "sigill", "sigfpe")
)
SANITIZERS = {
    "address": Sanitizer(
        "AddressSanitizer",
        UNIT | INTEGRATION,
        {"ASAN_OPTIONS": AS_THEY_ARE, "LSAN_OPTIONS": no_fault("lsan.txt")},
    ),
    "thread": Sanitizer("ThreadSanitizer", UNIT, {"TSAN_OPTIONS": AS_THEY_ARE}),
}


def has_sources(home: dict[str, str]) -> bool:
    """Is there a nightly toolchain, with the standard library's sources?"""
    command = ["rustc", "+nightly", "--print", "sysroot"]
    asked = subprocess.run(
        command, env=os.environ | home, capture_output=True, text=True, check=False
    )
    sources = Path(asked.stdout.strip()) / "lib/rustlib/src/rust/library/std"
    return asked.returncode == 0 and sources.exists()


def toolchain() -> dict[str, str]:
    """The environment in which there is such a toolchain, fetched if need be."""
    own = {"RUSTUP_HOME": str(ROOT / "target" / "rustup")}
    for home in ({}, own):
        if has_sources(home):
            return home
    fetch = ["rustup", "toolchain", "install", "nightly", "--profile", "minimal"]
    fetch += ["--component", "rust-src", "--no-self-update"]
    subprocess.run(fetch, env=os.environ | own, check=True)
    return own


def main(names: list[str]) -> int:
    """Run the named ones, or all; 1 if a test failed or something was reported."""
    if unknown := set(names) - set(SANITIZERS):
        sys.exit(f"no such sanitizer: {', '.join(unknown)}; there are {', '.join(SANITIZERS)}")
    try:
        home = toolchain()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"sanitizers need nightly Rust with its sources, which could not be fetched: {error}")
        return 1
    outcomes = []
    for name in names or SANITIZERS:
        each = SANITIZERS[name]
        command = ["cargo", "+nightly", "test", "--package", "phalanx", "--target", TARGET]
        command.append("-Zbuild-std")
        environment = home | {
            "CARGO_TARGET_DIR": str(ROOT / "target" / name),
            "RUSTFLAGS": f"-Zsanitizer={name}",
            "PHALANX_PROMPT": "2000",  # milliseconds, instead of 100: see sync/toll.rs
            **each.options,
        }
        for what, binary in each.binaries.items():
            title = f"{each.name}, {what}"
            outcomes.append(run(title, [*command, *binary], cargo_totals, **environment))
    print("\n== totals")
    for outcome in outcomes:
        verdict = "ok    " if outcome.ok else "FAILED"
        print(f"{verdict} {outcome.seconds:6.0f} s  {outcome.what}: {outcome.totals}")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
