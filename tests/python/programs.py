"""Programs that tests run in a session of their own, as in a terminal."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tasks import wait_until

GONE = 1.0  # seconds after the end of the parent within which all else is gone

COMMON = """\
import os, signal, sys, threading, time
import phalanx

def say(word="ready"):
    os.write(1, word.encode() + b"\\n")

def long(_=0):
    say()
    time.sleep(600)

def wait():
    while not any(worker.running for worker in pool.stats()):
        time.sleep(0.01)

def slow(_=0):
    say()
    time.sleep(60)

if __name__ == "__main__":
    ctx = phalanx.get_context(sys.argv[1])
"""


class Program:
    """A program in a session of its own, as in a terminal."""

    def __init__(self, tmp_path: Path, method: str, body: str) -> None:
        script = tmp_path / "program.py"
        script.write_text(COMMON + "\n".join(f"    {line}" for line in body.splitlines()))
        self.err = tmp_path / "stderr"
        self.output = ""
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, script, method],
                stdout=subprocess.PIPE,
                stderr=err,
                start_new_session=True,
                # A shell that runs its children in the background has them ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for(self, word: str = "ready") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.decode().strip() == word:
                return
        raise AssertionError(f"it ended: {self.err.read_text()}")

    def ctrl_c(self) -> None:
        os.killpg(self.pid, signal.SIGINT)

    def others(self) -> list[int]:
        """All processes of its session that run still."""
        pids = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.pid and state != "Z":
                pids.append(int(stat.parent.name))
        return pids

    def end(self) -> int:
        """Wait for its end, and for that of all that it has started; its return code."""
        if self.process.stdout:
            self.output += self.process.stdout.read().decode()  # until all who have it have ended
        code = self.process.wait(20)
        wait_until(lambda: not self.others(), f"{self.others()} to go", GONE)
        return code

    def errors(self) -> str:
        return self.err.read_text()
