"""The charts of the README, as SVG, from what the bench has written.

    make bench-plots

Every colour can be read on white and on black, and nothing is behind them: a page that is switched
to dark does not tell its images. Bars are medians; the thin lines go from the least round to the
greatest.
"""

import json
import statistics
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OURS, THEIRS, TEXT = "#3b82c4", "#8d96a0", "#737b85"
WIDTH, LEFT, RIGHT = 760, 190, 110
ROW, BAR, GAP = 22, 14, 46

NAMES = {
    "phalanx-fork": "phalanx, fork",
    "phalanx-forkserver": "phalanx, forkserver",
    "mp-fork": "multiprocessing, fork",
    "mp-forkserver": "multiprocessing, forkserver",
    "ppe-fork": "ProcessPoolExecutor",
    "serial": "no pool",
    "pickle": "no pool, but pickling",
    "interpreter": "starting Python",
}

CHARTS = {
    "tasks": ("submit each, then get each", "map, default chunks", "round trip, quiet, p50"),
    "arrays": (
        "arrays of 64 MiB as arguments",
        "arrays of 64 MiB as results",
        "one array of 64 MiB as an argument of 1,000 tasks",
    ),
    "starts": ("a first pool: open, one task, close", "a second pool", "a process: start, join"),
    "objects": (
        "`Queue`, small items",
        "`Queue`, items of 1 MiB",
        "through a `Queue` and back, p50",
        "a managed dict's `d[k]`",
    ),
}


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    style = f'text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def panel(measure: str, entry: dict[str, Any], top: float) -> tuple[list[str], float]:
    """The bars of one measure, the best first unless they have an order, and where they end."""
    rounds = {name: [v for v in got if v is not None] for name, got in entry["libraries"].items()}
    rounds = {name: got for name, got in rounds.items() if got}
    more = entry["unit"].endswith("/s")
    order = list(rounds)
    if not entry.get("in_order"):
        order.sort(key=lambda name: statistics.median(rounds[name]), reverse=more)
    highest = [max(got) for got in rounds.values()]
    # One that is far behind shall not make all others look alike.
    most = max(highest) if more else min(max(highest), 4 * statistics.median(highest))
    scale = (WIDTH - LEFT - RIGHT) / most
    note = f"{entry['unit']}, {'more' if more else 'less'} is better"
    parts = [
        text(0, top, measure.replace("`", ""), weight="bold"),
        text(WIDTH, top, note, anchor="end"),
    ]
    y = top + 10
    for name in order:
        middle, low, high = statistics.median(rounds[name]), min(rounds[name]), max(rounds[name])
        colour = OURS if entry.get("in_order") or name.startswith("phalanx") else THEIRS
        cut = "" if middle <= most else " (cut)"
        middle, low, high = (min(value, most) for value in (middle, low, high))
        end, line = LEFT + high * scale, y + BAR / 2
        parts += [
            text(LEFT - 8, y + BAR - 3, NAMES.get(name, name), anchor="end"),
            f'<rect x="{LEFT}" y="{y}" width="{middle * scale:.1f}" height="{BAR}" rx="2"'
            f' fill="{colour}"/>',
            f'<line x1="{LEFT + low * scale:.1f}" x2="{end:.1f}" y1="{line}" y2="{line}"'
            f' stroke="{TEXT}"/>',
            text(end + 6, y + BAR - 3, shown(statistics.median(rounds[name])) + cut),
        ]
        y += ROW
    return parts, y


def scheduler(results: dict[str, Any]) -> dict[str, Any]:
    """The simulation's figures, as those of a case."""
    runs = {f"{run['workers']:,} workers": run for run in results["scheduler"]}
    speed = {name: [run["decisions"] / run["seconds"]] for name, run in runs.items()}
    balance = {name: [run["end"] / run["ideal"]] for name, run in runs.items()}
    return {
        "decisions": {"unit": "decisions/s", "libraries": speed, "in_order": True},
        "last end": {"unit": "x ideal", "libraries": balance, "in_order": True},
    }


def chart(figures: dict[str, Any], results: dict[str, Any]) -> str:
    """One SVG with a panel for each measure."""
    parts: list[str] = []
    y = 18.0
    for measure, entry in figures.items():
        drawn, y = panel(measure, entry, y)
        parts += drawn
        y += GAP - ROW
    machine = results["machine"]
    where = f"{machine['cores']} x {machine['processor']}, {machine['kernel']}"
    version = results["versions"]["CPython"]
    parts.append(text(0, y, f"{where}, CPython {version}; {results['date'][:10]}; two workers"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8:.0f}"'
        f' width="{WIDTH}" font-family="sans-serif" font-size="12" fill="{TEXT}">'
    )
    return "\n".join([head, *parts, "</svg>", ""])


def main() -> None:
    results = json.loads((ROOT / "benches" / "results.json").read_text())
    charts = ROOT / "docs" / "charts"
    charts.mkdir(exist_ok=True)
    for name, measures in CHARTS.items():
        figures = {measure: results["figures"][measure] for measure in measures}
        (charts / f"{name}.svg").write_text(chart(figures, results))
    (charts / "scheduler.svg").write_text(chart(scheduler(results), results))


if __name__ == "__main__":
    main()
