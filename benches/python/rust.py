"""What is measured in Rust: the benches, as criterion writes them down, and the scheduler alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "target" / "peers"


def figures() -> dict[str, dict[str, float]]:
    """By ``group/function``: the median time of an iteration, and between what it is, in ns.

    If a bench says how many bytes or elements an iteration moves, ``bytes`` or ``elements``.
    """
    manifest = ROOT / "benches" / "rust" / "Cargo.toml"
    command = ["cargo", "bench", "--quiet", "--manifest-path", str(manifest)]
    # By the environment, since criterion asks there where its own results are to go.
    environment = os.environ | {"CARGO_TARGET_DIR": str(TARGET)}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
    found = {}
    for file in sorted(TARGET.glob("criterion/**/new/benchmark.json")):
        bench = json.loads(file.read_text())
        estimate = json.loads((file.parent / "estimates.json").read_text())["median"]
        interval = estimate["confidence_interval"]
        moved = bench["throughput"] or {}
        found[bench["full_id"]] = {
            "ns": estimate["point_estimate"],
            "low": interval["lower_bound"],
            "high": interval["upper_bound"],
            **{unit.lower(): float(number) for unit, number in moved.items()},
        }
    return found


def scheduler() -> list[dict[str, float]]:
    """For each number of simulated workers, what it took to deal ten million tasks out to them.

    ``decisions`` were made in ``seconds``. The last task ended at ``end`` of the simulated clock,
    and at ``ideal``, in seconds, it would have if no worker had ever waited.
    """
    command = ["cargo", "test", "--release", "--quiet", "--package", "phalanx", "--lib"]
    command += ["scheduler::simulation", "--", "--ignored", "--nocapture"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
