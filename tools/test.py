"""Run every test of the project, and say at the end what ran and how it went.

    python tools/test.py                 everything
    python tools/test.py rust loom       only these steps; see STEPS

Each runner prints as it always does; the closing table repeats its own line of totals. A step that
fails does not keep the others from running, and makes the exit status 1, as does one in which no
test ran at all.
"""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STEP_LIMIT = 30 * 60  # seconds; a runner that takes longer hangs
FEW = 3  # tests that fail and may be run again
LOOM_PREEMPTIONS = "3"  # finds nearly every bug, and keeps a model under a minute
METHODS = ("fork", "spawn", "forkserver")


class Interpreter(NamedTuple):
    """A CPython of this machine, as ``tools/pythons.sh`` prints it."""

    minor: str
    version: str
    path: str

    @property
    def venv(self) -> Path:
        """Where its tests' virtual environment is."""
        return ROOT / f".venv-{self.minor}"


class Outcome(NamedTuple):
    """How one runner ended."""

    what: str
    ok: bool
    seconds: float
    totals: str


def interpreters() -> list[Interpreter]:
    """Every CPython that phalanx supports and that is on this machine, oldest first."""
    listing = subprocess.run(["tools/pythons.sh"], check=True, capture_output=True, text=True)
    return [Interpreter(*line.split("\t")) for line in listing.stdout.splitlines()]


def run(
    what: str,
    command: list[str | Path],
    totals: Callable[[list[str]], str],
    **env: str,
) -> Outcome:
    """Run ``command``, pass its output on, and keep what ``totals`` makes of its lines.

    An empty string from ``totals`` says that nothing was tested, which is a failure.
    """
    print(f"\n== {what}: {' '.join(map(str, command))}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    watchdog = threading.Timer(STEP_LIMIT, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.daemon = True
    watchdog.start()
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    status = process.wait()
    watchdog.cancel()
    summary = totals(lines)
    ok = status == 0 and bool(summary)
    if not ok:
        summary = f"{summary or 'no test ran'} (exit status {status})"
    return Outcome(what, ok, time.monotonic() - started, summary)


def cargo_totals(lines: list[str]) -> str:
    """The sum of all of cargo's ``test result:`` lines."""
    counts: dict[str, int] = {}
    for line in lines:
        if line.startswith("test result:"):
            for number, word in re.findall(r"(\d+) (passed|failed|ignored)", line):
                counts[word] = counts.get(word, 0) + int(number)
    if not counts.get("passed") and not counts.get("failed"):
        return ""
    return ", ".join(f"{number} {word}" for word, number in counts.items())


def pytest_totals(lines: list[str]) -> str:
    """Pytest's closing line, without its frame."""
    closing = [line for line in lines if re.match(r"=+ .*\d+ (passed|failed|error).* =+$", line)]
    return closing[-1].strip("= ") if closing else ""


def conformance_totals(lines: list[str]) -> str:
    """The line in which the conformance runner scores itself."""
    closing = [line for line in lines if line.startswith("score: ")]
    return closing[-1].removeprefix("score: ") if closing else ""


def rust() -> Iterator[Outcome]:
    """Unit tests, integration tests, doctests, and the examples' building."""
    yield run("cargo test", ["cargo", "test", "--package", "phalanx"], cargo_totals)


def loom() -> Iterator[Outcome]:
    """Every interleaving of the protocols, as far as loom's bound goes."""
    yield run(
        "loom",
        ["cargo", "test", "--package", "phalanx", "--release", "--lib", "loom"],
        cargo_totals,
        RUSTFLAGS="--cfg loom",
        CARGO_TARGET_DIR=str(ROOT / "target" / "loom"),
        LOOM_MAX_PREEMPTIONS=os.environ.get("LOOM_MAX_PREEMPTIONS", LOOM_PREEMPTIONS),
    )


@functools.cache
def install_everywhere() -> list[Interpreter]:
    """Build one wheel, install it in an environment of every CPython, and say which these are."""
    found = interpreters()
    print("\n== testing on CPython " + ", ".join(f"{p.version} ({p.path})" for p in found))
    wheels = ROOT / "target" / "wheels"
    for old in wheels.glob("phalanx-*.whl"):
        old.unlink()
    build = [ROOT / ".venv/bin/maturin", "build", "--release", "--quiet", "--out", wheels]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = wheels.glob("phalanx-*.whl")
    for python in found:
        subprocess.run(["tools/venv.sh", python.venv, python.path, "test"], cwd=ROOT, check=True)
        pip = [python.venv / "bin/python", "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, wheel], check=True)
        subprocess.run([*pip, "--force-reinstall", "--no-deps", wheel], check=True)
    return found


def python() -> Iterator[Outcome]:
    """Our own tests of the Python package, on every CPython.

    As CPython's own runner does (``--rerun``), the few that fail are run once more, alone: one that
    passes then has met a busy machine, or a race. It is named in the table, to be mended.
    """
    for each in install_everywhere():
        cache = ROOT / ".pytest_cache" / each.minor
        shutil.rmtree(cache, ignore_errors=True)
        command: list[str | Path] = [each.venv / "bin/python", "-m", "pytest"]
        command += ["-o", f"cache_dir={cache}"]
        first = run(f"pytest on {each.version}", command, pytest_totals)
        noted = cache / "v/cache/lastfailed"
        failed = sorted(json.loads(noted.read_text())) if noted.exists() else []
        if first.ok or not 0 < len(failed) <= FEW:
            yield first
            continue
        second = run(f"{first.what}, again", [*command, *failed], pytest_totals)
        totals = f"{first.totals}; again, alone: {second.totals}: {', '.join(failed)}"
        yield Outcome(first.what, second.ok, first.seconds + second.seconds, totals)


def conformance() -> Iterator[Outcome]:
    """CPython's own tests: all with spawn on the newest CPython, a cut elsewhere.

    Elsewhere is the newest with the other start methods, and each older one with one of them, in
    turn. The whole of it is ``make conformance``.
    """
    *older, newest = install_everywhere()
    runs = [(newest, method) for method in METHODS]
    runs += [(each, METHODS[at % len(METHODS)]) for at, each in enumerate(older)]
    for each, method in runs:
        whole = each == newest and method == "spawn"
        command: list[str | Path] = [each.venv / "bin/python", "tests/conformance/run.py"]
        command += ["--method", method, "--retries", "1", *([] if whole else ["--cut"])]
        what = f"{'all' if whole else 'a cut'} of conformance on {each.version}, {method}"
        yield run(what, command, conformance_totals)
    command = [newest.venv / "bin/python", "tests/conformance/run.py", "--executor"]
    command += ["--method", "forkserver", "--retries", "1"]
    yield run(f"the executor's conformance on {newest.version}", command, conformance_totals)


def soak_totals(lines: list[str]) -> str:
    """The soak's own verdict."""
    closing = [line for line in lines if line.startswith("soak: passed")]
    return closing[-1].removeprefix("soak: ") if closing else ""


def soak() -> Iterator[Outcome]:
    """A minute of work under random deaths; ``make soak`` is ten."""
    newest = install_everywhere()[-1]
    command: list[str | Path] = [newest.venv / "bin/python", "tests/python/soak.py"]
    yield run(f"soak on {newest.version}", [*command, "--seconds", "60"], soak_totals)


STEPS = {"rust": rust, "loom": loom, "python": python, "conformance": conformance, "soak": soak}


def main(names: list[str]) -> int:
    """Run the named steps, or all; 1 if one of their runners failed."""
    if unknown := set(names) - set(STEPS):
        sys.exit(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    outcomes = [outcome for name in names or STEPS for outcome in STEPS[name]()]
    print("\n== totals")
    for each in outcomes:
        verdict = "ok    " if each.ok else "FAILED"
        print(f"{verdict} {each.seconds:6.0f} s  {each.what}: {each.totals}")
    failed = sum(not each.ok for each in outcomes)
    print(f"{failed} of {len(outcomes)} runners failed" if failed else "all runners passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
