"""Run the programs of the README and the real job, in both languages, and check what they print."""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / "examples" / "python"
RUST = ROOT / "target" / "release" / "examples"
LIMIT = 300  # seconds; a program that takes longer hangs

HELLO = "Worker process started\nHello from the worker process!\nMain process finished\n"
SQUARES = "Results: [1, 4, 9, 16, 25]\n"
LENGTHS = "we share a pipe: [2, 5, 1, 4]\nand no more: [3, 2, 4]\nexit status 0\n"


def prints(title: str, command: list[str | Path], expected: str) -> bool:
    """Does the program print exactly that?"""
    print(f"\n== {title}", flush=True)
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    print(run.stdout + run.stderr, end="", flush=True)
    if run.returncode or (run.stdout, run.stderr) != (expected, ""):
        print(f"FAILED: exit status {run.returncode}, expected was\n{expected}")
        return False
    return True


def succeeds(title: str, command: list[str | Path]) -> bool:
    """Does the program end well? What it prints, progress included, goes to the terminal."""
    print(f"\n== {title}", flush=True)
    status = subprocess.run(command, timeout=LIMIT, check=False).returncode
    if status:
        print(f"FAILED: exit status {status}")
    return status == 0


def main() -> int:
    """Run all of the demo; 0 if all of it went as it should."""
    build = ["cargo", "build", "--quiet", "--release", "--package", "phalanx", "--examples"]
    subprocess.run(build, cwd=ROOT, check=True)
    python, library = sys.executable, sysconfig.get_path("stdlib")
    passed = [
        prints("a process, in Python", [python, PYTHON / "hello.py"], HELLO),
        prints("a pool, in Python", [python, PYTHON / "squares.py"], SQUARES),
        prints("a process, in Rust", [RUST / "hello"], HELLO),
        prints("a pool, in Rust", [RUST / "squares"], SQUARES),
        prints(
            "memory that both share",
            [python, PYTHON / "double_in_rust.py", RUST / "double"],
            "[3.0, 5.0, 7.0]\n",
        ),
        prints(
            "a pipe between both",
            [python, PYTHON / "word_lengths.py", RUST / "word_lengths"],
            LENGTHS,
        ),
        succeeds("a real job, in Python", [python, PYTHON / "count_tokens.py"]),
        succeeds("a real job, in Rust", [RUST / "count_words", library]),
        succeeds(
            "the same with a worker killed half-way, in Python",
            [python, PYTHON / "count_tokens.py", "--kill"],
        ),
        succeeds(
            "the same with a worker killed half-way, in Rust",
            [RUST / "count_words", library, "--kill"],
        ),
    ]
    failed = passed.count(False)
    print(f"\n{failed} of {len(passed)} demos failed" if failed else "\nall demos went well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
