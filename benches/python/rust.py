"""The Rust benches: runs them, and reads what criterion has written down."""

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
