"""The tables of README.md and docs/performance.md, written into them from `results.json`.

    make bench-plots

A table stands between ``<!-- table: NAME ... -->`` and ``<!-- end -->``; `TABLES` has their names.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cases import Measure
from goals import FLOORS, RUST_GOALS, is_met

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
BLOCK = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
NANOSECONDS = {"ms": 1e6, "us": 1e3, "ns": 1}
Results = dict[str, Any]


def shown(value: float) -> str:
    """Three significant digits, or a whole number."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def in_unit(bench: dict[str, float], unit: str) -> float:
    """A criterion bench's median."""
    if unit in NANOSECONDS:
        return bench["ns"] / NANOSECONDS[unit]
    if unit == "GB/s":
        return bench["bytes"] / bench["ns"]
    return bench.get("elements", 1) * 1e9 / bench["ns"]


def median(got: list[float | None]) -> float | None:
    there = [value for value in got if value is not None]
    return statistics.median(there) if there else None


def floor(results: Results, measure: str) -> float | None:
    """What the measure cannot go beyond, in its unit, if that was measured."""
    entry, name = results["figures"][measure], FLOORS.get(measure, "")
    if name in entry["libraries"]:
        return median(entry["libraries"][name])
    bench = results["rust"].get(name)
    return in_unit(bench, entry["unit"]) if bench else None


def distance(results: Results, goal: dict[str, Any]) -> tuple[str, str]:
    """The floor, and how many times as far the figure is."""
    at = floor(results, goal["measure"])
    if at is None:
        return "", ""
    more = Measure("", goal["unit"]).more_is_better
    times = at / goal["figure"] if more else goal["figure"] / at
    return shown(at), f"{times:.2g}x"


def goals(results: Results, *numbers: str) -> Iterator[str]:
    """Those with the numbers, or all of Python's."""
    head = ("goal", "", "phalanx", "reference", "ratio (rounds)", "bar", "met", "floor", "from it")
    yield row(*head)
    yield "|---:|---|---|---|---|---|---|---:|---:|"
    for goal in sorted(results["goals"], key=lambda goal: goal["number"]):
        if numbers and str(goal["number"]) not in numbers:
            continue
        reference = goal["reference"]
        spread = f"{shown(goal['low'])}-{shown(goal['high'])}"
        yield row(
            str(goal["number"]),
            f"{goal['measure']} ({goal['unit']})",
            f"{shown(goal['figure'])} ({goal['ours'].removeprefix('phalanx-')})",
            f"{shown(goal['reference_figure'])} ({reference})" if reference else "",
            f"{shown(goal['value'])} ({spread})",
            goal["bar"],
            "yes" if goal["met"] else "**no**",
            *distance(results, goal),
        )


def rust_goals(results: Results) -> Iterator[str]:
    yield row("goal", "", "phalanx", "reference", "ratio", "bar", "met")
    yield "|---:|---|---|---|---|---|---|"
    for goal in RUST_GOALS:
        if not {goal.ours, goal.theirs} <= set(results["rust"]):
            continue
        value = goal.value(results["rust"])
        yield row(
            str(goal.number),
            goal.ours.replace("/phalanx", ""),
            said(results["rust"][goal.ours]),
            f"{said(results['rust'][goal.theirs])} ({goal.theirs.rpartition('/')[2]})",
            shown(value),
            goal.bar,
            "yes" if is_met(goal.bar, value) else "**no**",
        )


def said(bench: dict[str, float]) -> str:
    """A bench's median in a unit that suits it."""
    if "bytes" in bench:
        return f"{shown(in_unit(bench, 'GB/s'))} GB/s"
    if "elements" in bench:
        return f"{shown(in_unit(bench, '/s'))}/s"
    unit = next(unit for unit, size in NANOSECONDS.items() if bench["ns"] >= size or unit == "ns")
    return f"{shown(in_unit(bench, unit))} {unit}"


def rust(results: Results, which: str) -> Iterator[str]:
    """All floors, or all that is not one."""
    yield row("bench", "median", "95 % between")
    yield "|---|---:|---|"
    for name, bench in results["rust"].items():
        if name.startswith("floor") == (which == "floors"):
            ends = [said(bench | {"ns": bench[end]}) for end in ("low", "high")]
            yield row(name.removeprefix("floor, "), said(bench), " - ".join(ends))


def scheduler(results: Results) -> Iterator[str]:
    """The scheduler alone, by the number of simulated workers."""
    yield row("workers", "tasks", "decisions/s", "last end, x ideal")
    yield "|---:|---:|---:|---:|"
    for run in results["scheduler"]:
        speed, balance = run["decisions"] / run["seconds"], run["end"] / run["ideal"]
        yield row(f"{run['workers']:,}", f"{run['tasks']:,}", shown(speed), f"{balance:.4f}")


def peers(results: Results) -> Iterator[str]:
    """Every measure with every library."""
    yield row("", "median of the rounds (least - greatest)", "others' load, at most")
    yield "|---|---|---:|"
    for name, entry in results["figures"].items():
        cells = []
        for library, got in entry["libraries"].items():
            there = [value for value in got if value is not None]
            if there:
                spread = f"{shown(min(there))} - {shown(max(there))}" if there[1:] else "once"
                cells.append(f"{library} **{shown(statistics.median(there))}** ({spread})")
            else:
                cells.append(f"{library} failed")
        yield row(f"{name} ({entry['unit']})", "; ".join(cells), f"{entry['others']:.0%}")


def machine(results: Results) -> Iterator[str]:
    where = results["machine"]
    which = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    commands = [results["command"], *results.get("again", [])]
    others = statistics.median(entry["others"] for entry in results["figures"].values())
    yield (
        f"{where['cores']} cores {where['processor']}, {where['kernel']},"
        f" {results['date'][:16].replace('T', ' ')} UTC; {which}. Could not be installed:"
        f" {', '.join(results['missing']) or 'nothing'}."
    )
    yield (
        f"Measured by `{'`, then `'.join(commands)}`. In the median row others used up to"
        f" {others:.0%} of the machine meanwhile."
    )


TABLES: dict[str, Callable[..., Iterator[str]]] = {
    "goals": goals,
    "rust-goals": rust_goals,
    "rust": rust,
    "scheduler": scheduler,
    "peers": peers,
    "machine": machine,
}


def main() -> None:
    results = json.loads((ROOT / "benches" / "results.json").read_text())

    def filled(block: re.Match[str]) -> str:
        name, *arguments = block[2].split()
        return f"{block[1]}\n{chr(10).join(TABLES[name](results, *arguments))}\n\n{block[3]}"

    for page in PAGES:
        page.write_text(BLOCK.sub(filled, page.read_text()))


if __name__ == "__main__":
    main()
