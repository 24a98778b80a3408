"""phalanx against its peers, in one interleaved run: prints tables, writes JSON.

    make bench
    python benches/python/bench.py --only submit,roundtrip --rounds 3 --out some.json

Every case is run in a fresh interpreter for each library and each round, and the libraries take
turns (A B C A B C ...), so that what else the machine does meets all alike. A ratio is the median
of the ratios of the rounds; its spread is from the least to the greatest of them. Pools have two
workers.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import arrays  # noqa: F401
import libraries
import objects  # noqa: F401
import pools  # noqa: F401
import rust
from cases import CASES, Case, Measure
from goals import GOALS, Goal

HERE = Path(__file__).parent
LIMIT = 90  # seconds for one interpreter
# Those that no goal but "the best of all" refers to have fewer turns, so that all ends in time.
ROUNDS = {"ray": 1, "loky": 2, "joblib": 2, "mpire": 2, "pebble": 2}
PACKAGES = (
    *("phalanx", "faster-fifo", "joblib", "loky", "mpire", "numpy"),
    *("pandas", "pebble", "pyarrow", "ray"),
)

Figures = dict[str, list[float | None]]  # of a measure: by library, a figure a round


def ticks() -> tuple[int, int]:
    """What all processors have worked, and worked and idled, since the system started."""
    with Path("/proc/stat").open() as file:
        times = [int(each) for each in file.readline().split()[1:9]]
    return sum(times) - times[3] - times[4], sum(times)


def in_fresh_interpreter(name: str, case: Case, library: str) -> tuple[list[float] | None, float]:
    """The figures, or None if it failed; and the share of the machine that others used."""
    command = [sys.executable, str(HERE / "measure.py"), case.run.__module__, name, library]
    busy, total = ticks()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        output, errors = "", f"took more than {LIMIT} s"
    finally:
        with suppress(ProcessLookupError):  # helpers that some libraries leave
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    now_busy, now_total = ticks()
    others = now_busy - busy - own * os.sysconf("SC_CLK_TCK")
    try:
        return json.loads(output.splitlines()[-1]), max(0, others) / max(1, now_total - total)
    except (IndexError, ValueError):
        print(f"{name} with {library} failed: {errors[-500:]}", file=sys.stderr)
        return None, 0.0


def run(
    name: str, case: Case, rounds: int, there: set[str]
) -> Iterator[tuple[Measure, Figures, float]]:
    """Each measure with its figures, and the greatest share of the machine that others used."""
    figures: dict[str, list[list[float] | None]] = {}
    most = 0.0
    for turn in range(rounds):
        for library in case.libraries:
            if library in there and turn < ROUNDS.get(library, rounds):
                got, others = in_fresh_interpreter(name, case, library)
                figures.setdefault(library, []).append(got)
                most = max(most, others)
    for i, measure in enumerate(case.measures):
        columns = {
            library: [each[i] if each else None for each in got] for library, got in figures.items()
        }
        yield measure, columns, most


def median(values: list[float | None]) -> float | None:
    """Of those that there are."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def shown(value: float | None) -> str:
    """Three significant digits, or a whole number."""
    if value is None:
        return "failed"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def judged(results: dict[str, Any], goal: Goal) -> dict[str, Any] | None:
    """How a goal stands: its ratio (or figure) of each round, or None if something is missing."""
    if goal.measure not in results["figures"]:
        return None
    entry = results["figures"][goal.measure]
    measure, figures = Measure(goal.measure, entry["unit"]), entry["libraries"]
    ours = figures.get(goal.ours, [])
    theirs = [library for library in goal.theirs if figures.get(library)]
    if median(ours) is None or (goal.theirs and not theirs):
        return None
    if not goal.theirs:
        reference, values = None, [each for each in ours if each is not None]
    else:
        pick = max if measure.more_is_better else min
        reference = pick(theirs, key=lambda library: median(figures[library]) or 0)
        pairs = zip(ours, figures[reference], strict=False)
        values = [us / them for us, them in pairs if us is not None and them is not None]
    if not values:
        return None
    value = statistics.median(values)
    return {
        "number": goal.number,
        "measure": goal.measure,
        "unit": measure.unit,
        "ours": goal.ours,
        "figure": median(ours),
        "reference": reference,
        "reference_figure": median(figures[reference]) if reference else None,
        "value": value,
        "low": min(values),
        "high": max(values),
        "bar": goal.bar,
        "met": goal.is_met_by(value),
    }


def said(goal: dict[str, Any]) -> str:
    """A row of the goals' table."""
    reference = goal["reference"]
    cells = [
        str(goal["number"]),
        f"{goal['measure']} ({goal['unit']})",
        f"{shown(goal['figure'])} ({goal['ours'].removeprefix('phalanx-')})",
        f"{shown(goal['reference_figure'])} ({reference})" if reference else "",
        f"{goal['value']:.3g} ({goal['low']:.3g}-{goal['high']:.3g})",
        goal["bar"],
        "yes" if goal["met"] else "**no**",
    ]
    return f"| {' | '.join(cells)} |"


def processor() -> str:
    """The name of the processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """Of all that takes part, as far as it is there."""
    found = {"CPython": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def main() -> int:
    """Measure, print, write; 1 if a case could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=0, help="instead of each case's own")
    parser.add_argument("--only", help=f"some of {','.join(CASES)}")
    parser.add_argument("--libraries", help="some of them, as in the tables")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results.json")
    parser.add_argument("--rust", action="store_true", help="the Rust benches and floors, too")
    parser.add_argument("--again", action="store_true", help="replace these cases in --out")
    args = parser.parse_args()

    everyone = {library for case in CASES.values() for library in case.libraries}
    there = {library for library in everyone if libraries.is_there(library)}
    wanted = set(args.libraries.split(",")) if args.libraries else everyone
    results: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["bench.py", *(each for each in sys.argv[1:] if "/" not in each)]),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
            "load": os.getloadavg()[0],
        },
        "versions": versions(),
        "missing": sorted(everyone - there),
        "figures": {},
        "goals": [],
        "rust": {},
        "scheduler": [],
    }
    if args.again:
        earlier = json.loads(args.out.read_text())
        again = [*earlier.get("again", []), results["command"]]
        results = earlier | {"date": results["date"], "again": again}
    if args.rust:
        results["rust"], results["scheduler"] = rust.figures(), rust.scheduler()
    failed = False
    for name in args.only.split(",") if args.only else CASES:
        case = CASES[name]
        for measure, figures, others in run(name, case, args.rounds or case.rounds, there & wanted):
            earlier = results["figures"].get(measure.name, {}).get("libraries", {})
            results["figures"][measure.name] = {
                "unit": measure.unit,
                "others": round(others, 2),
                "libraries": earlier | figures,
            }
            each = (f"{library} {shown(median(got))}" for library, got in figures.items())
            print(f"{measure.name} ({measure.unit}): {', '.join(each)}", flush=True)
            failed |= any(None in got for got in figures.values())
        results["goals"] = [goal for goal in map(partial(judged, results), GOALS) if goal]
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{results['machine']}, {results['versions']}; missing: {results['missing'] or 'none'}")
    print("\n| goal | | phalanx | reference | ratio | bar | met |\n|---:|---|---|---|---|---|---|")
    for goal in sorted(results["goals"], key=lambda goal: goal["number"]):
        print(said(goal))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
