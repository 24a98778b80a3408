"""Run the tests of a class in a subprocess that can be killed, and tell what became of each."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from copies import Copies

GRACE = 5.0  # seconds that helpers of a finished batch have to end by themselves
TOKEN = "PHXSUITE_TOKEN"  # in the environment of all that a batch starts


@dataclass
class Batch:
    """What one subprocess reported, event by event."""

    left: list[str]
    results: dict[str, dict] = field(default_factory=dict)
    fixture: dict | None = None  # the last failure outside of a test
    running: str | None = None
    done: bool = False
    left_behind: list[str] = field(default_factory=list)  # command lines of processes

    def note(self, event: dict) -> None:
        """Take in one event of ``worker.py``."""
        match event["event"]:
            case "start":
                self.running = event["test"]
            case "end":
                self.finish(event["test"], event["state"], event["text"], event["time"])
            case "fixture":
                self.fixture = {"state": event["state"], "text": event["text"], "time": 0}
            case "done":
                self.done = True

    def finish(self, test: str, state: str, text: str, seconds: float) -> None:
        """Record the outcome of ``test``, which then is no longer left to run."""
        self.results[test] = {"state": state, "text": text, "time": seconds}
        self.running = None
        if test in self.left:
            self.left.remove(test)


def run_batch(copies: Copies, module: str, cls: str, names: list[str], limit: float) -> Batch:
    """Run ``names`` in one subprocess; a test that takes longer than ``limit`` seconds hangs."""
    token = uuid.uuid4().hex
    work = Path(tempfile.mkdtemp(prefix="batch.", dir=copies.root))
    (work / "tmp").mkdir()
    events, log = work / "events", work / "log"
    events.touch()
    command = [copies.python, "-m", "phxsuite.worker", events, module, cls, *names]
    env = copies.env(**{TOKEN: token, "TMPDIR": str(work / "tmp")})
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=env,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    batch = Batch(left=list(names))
    hung = _follow(process, events, batch, limit)
    if not hung:
        deadline = time.monotonic() + GRACE
        while _alive(token, process.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        batch.left_behind = [_command(pid) for pid in _alive(token, process.pid)]
    _kill_all(token, process)
    text = log.read_bytes()[-8000:].decode("utf-8", "replace")
    shutil.rmtree(work, ignore_errors=True)
    _judge(batch, hung, text, process.returncode, limit)
    return batch


def _follow(process: subprocess.Popen, events: Path, batch: Batch, limit: float) -> bool:
    """Read events until the process ends; True if it reported nothing for ``limit`` seconds."""
    last, position = time.monotonic(), 0
    while True:
        ended = process.poll() is not None
        with events.open("rb") as file:
            file.seek(position)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        position += len(data)
        for line in data.splitlines():
            batch.note(json.loads(line))
            last = time.monotonic()
        if ended and not data:
            return False
        if not ended and time.monotonic() - last > limit:
            process.send_signal(signal.SIGQUIT)  # faulthandler: where it hangs, for the log
            time.sleep(0.5)
            return True
        time.sleep(0.05)


def _judge(batch: Batch, hung: bool, log: str, status: int, limit: float) -> None:
    """Blame a hang or a crash on the test that was running, or on a fixture if none was."""
    if hung and batch.running:
        batch.finish(batch.running, "hang", log, limit)
    elif hung:
        batch.fixture = {"state": "hang", "text": log, "time": limit}
    elif not batch.done and batch.running:
        batch.finish(batch.running, "crash", f"exit status {status}\n{log}", 0)
    elif not batch.done and not batch.fixture:
        batch.fixture = {"state": "crash", "text": f"exit status {status}\n{log}", "time": 0}


def _alive(token: str, session: int) -> list[int]:
    """The processes of a batch: those that carry its token, or are in its session."""
    found = []
    mark = f"{TOKEN}={token}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            state, _, _, sid = (
                Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
            )
            environ = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue
        if state not in "ZX" and (int(sid) == session or mark in environ):
            found.append(int(entry))
    return found


def _command(pid: int) -> str:
    """What ``/proc`` says that the process runs."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        line = b"already gone"
    return line.replace(b"\0", b" ").decode("utf-8", "replace").strip()


def _kill_all(token: str, process: subprocess.Popen) -> None:
    """Kill what is left of a batch, and reap the process that we started for it."""
    for _ in range(20):
        alive = _alive(token, process.pid)
        for pid in alive:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not alive:
            break
        time.sleep(0.05)
    process.wait()


def run_class(
    copies: Copies, module: str, cls: str, names: list[str], limit: float
) -> tuple[dict[str, dict], list[str]]:
    """Run ``names``, in as few subprocesses as hangs and crashes allow.

    Returns what became of each test, and the command lines of processes that they left behind.
    """
    results: dict[str, dict] = {}
    left_behind: list[str] = []
    queue = [list(names)]
    while queue:
        batch = run_batch(copies, module, cls, queue.pop(0), limit)
        results |= batch.results
        left_behind += batch.left_behind
        if not batch.left:
            if batch.fixture and batch.fixture["state"] != "skip":
                results["<fixture>"] = batch.fixture
            continue
        if batch.fixture or not batch.results:  # nothing of the class can run
            failure = batch.fixture or {"state": "error", "text": "not run", "time": 0}
            left = [*batch.left, *itertools.chain.from_iterable(queue)]
            results |= dict.fromkeys(left, failure)
            break
        queue = [[name] for name in batch.left]  # each alone, after one that took its process down
    return results, left_behind
