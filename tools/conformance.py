"""CPython's own tests on every CPython with every start method, and one table of how they went.

    python tools/conformance.py          everything; what does not pass is run again, alone
    python tools/conformance.py 3.13     only these versions

`make test` has a cut of this; see tests/conformance/README.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

from test import METHODS, ROOT, conformance_totals, install_everywhere, run

COLUMNS = ("python", "method", "required", "passed", "missing", "flaky", "hung", "seconds")
RESULTS = ROOT / "target" / "conformance"


def row_of(results: Path, version: str, method: str) -> list[Any]:
    """One row of the table; a run that never came to its end has written no results."""
    if not results.exists():
        return [version, method, *("no result",) * 6]
    run = json.loads(results.read_text(encoding="utf-8"))
    required, missing = run["required"], len(run["missing"])
    passed, flaky = required - missing, len(run["flaky"])
    return [version, method, required, passed, missing, flaky, run["hangs"], run["seconds"]]


def main(minors: list[str]) -> int:
    """Run it all; 1 if something that is required did not pass anywhere."""
    rows, ok = [], True
    RESULTS.mkdir(parents=True, exist_ok=True)
    for each in install_everywhere():
        if minors and each.minor not in minors:
            continue
        runs = [(method, options) for options in ((), ("--executor",)) for method in METHODS]
        for method, options in runs:
            name = f"{method}{'-executor' if options else ''}"
            results = RESULTS / f"{each.version}-{name}.json"
            results.unlink(missing_ok=True)
            command: list[str | Path] = [each.venv / "bin/python", "tests/conformance/run.py"]
            command += ["--method", method, *options, "--retries", "1", "--json", results]
            outcome = run(f"conformance on {each.version}, {name}", command, conformance_totals)
            ok = ok and outcome.ok
            rows.append(row_of(results, each.version, name))
    print(f"\nAll results, with what failing tests said, are in {RESULTS.relative_to(ROOT)}.\n")
    for row in [COLUMNS, *rows]:
        print("".join(f"{cell!s:<20}" for cell in row).rstrip())
    return 0 if ok and rows else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
