"""What a process holds on to, so that a test can ask what it left behind.

A ``Holdings`` counts child processes, threads, descriptors and shared memory, each by a name that
survives being made anew: a pipe that is closed and another that is opened are no leak, a second
pipe is. Everything that was started below us is our child, however deep and however orphaned, once
``adopt_orphans`` was called.
"""

import ctypes
import gc
import os
import signal
import stat
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>

Pids = dict[int, str]


def adopt_orphans() -> None:
    """Make orphans among our descendants children of ours, and not of ``init``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot become the reaper of orphans")


def _read(path: str) -> bytes:
    """What a small file has; a test is too short to be read about at leisure."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def descendants() -> Pids:
    """Our children and theirs: process id to command line, without zombies."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = _read(f"/proc/{entry}/stat").rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            if state not in b"ZX":  # which have no children, and may be many
                children[int(parent)].append(int(entry))
    found, todo = {}, [os.getpid()]
    while todo:
        below = children[todo.pop()]
        found.update((pid, _command(pid)) for pid in below)
        todo += below
    return found


def reap_orphans(helpers: frozenset[int] = frozenset()) -> None:
    """Let go of the children that have ended; ``helpers`` are somebody's, who will."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in helpers:
            try:
                os.waitpid(int(entry), os.WNOHANG)
            except ChildProcessError:
                continue  # not ours


def _command(pid: int) -> str:
    try:
        words = _read(f"/proc/{pid}/cmdline").split(b"\0")
    except OSError:
        return "?"
    return b" ".join(words).decode("utf-8", "replace").strip()


def _descriptors() -> Counter[str]:
    """What is open, by kind: ``socket``, ``pipe``, ``anon_inode:[pidfd]``, a path."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
        kind = target.partition(":[")[0] if target.endswith("]") else target
        found[target if kind == "anon_inode" else kind] += 1
    return found


def tasks() -> list[str]:
    """The ids of this process's threads.

    The kernel's listing goes from thread to thread, and stops short where the one that it is at
    ends meanwhile: those after it seem not to be there. It is believed when it is twice the same.
    """
    listing: list[str] = []
    while listing != (listing := os.listdir("/proc/self/task")):
        pass
    return listing


def _threads() -> Counter[str]:
    """Python's threads by name, and all threads of the process by the name the kernel has."""
    found = Counter(f"Python thread {thread.name}" for thread in threading.enumerate())
    for task in tasks():
        try:
            name = _read(f"/proc/self/task/{task}/comm").decode().strip()
        except OSError:
            continue
        found[f"thread {name}"] += 1
    return found


def _shared_memory() -> Counter[str]:
    """Our user's files in ``/dev/shm``: shared memory, and POSIX semaphores as ``sem.*``."""
    found: Counter[str] = Counter()
    for entry in os.scandir("/dev/shm"):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid():
            found[f"/dev/shm/{entry.name}"] += 1
    return found


def _is_in_use_elsewhere(path: str) -> bool:
    """Does a process that is not below us have the file mapped? Then it is that one's."""
    ours = {os.getpid(), *descendants()}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in ours:
            try:
                maps = Path(f"/proc/{entry}/maps").read_text()
            except OSError:
                continue
            if path in maps:
                return True
    return False


@dataclass
class Holdings:
    """What this process holds at one moment."""

    processes: Pids = field(default_factory=descendants)
    threads: Counter[str] = field(default_factory=_threads)
    descriptors: Counter[str] = field(default_factory=_descriptors)
    shared_memory: Counter[str] = field(default_factory=_shared_memory)

    def since(self, before: "Holdings", helpers: frozenset[int] = frozenset()) -> list[str]:
        """What is held now and was not ``before``, in words; ``helpers`` are processes to allow."""
        leaked = [
            f"process {pid}: {command}"
            for pid, command in self.processes.items()
            if pid not in before.processes and pid not in helpers
        ]
        for what in ("threads", "descriptors", "shared_memory"):
            new: Counter[str] = getattr(self, what) - getattr(before, what)
            kind = "descriptor " if what == "descriptors" else ""
            leaked += [
                f"{kind}{name} (+{number})"
                for name, number in new.items()
                if not (what == "shared_memory" and _is_in_use_elsewhere(name))
            ]
        return leaked


def leaked_since(
    before: Holdings, within: float, helpers: frozenset[int] = frozenset()
) -> list[str]:
    """What is still held after ``within`` seconds that was not before; empty as soon as it is."""
    deadline = time.monotonic() + within
    gc.collect()  # a traceback's cycle is the test's, not the library's
    while leaked := Holdings().since(before, helpers):
        if time.monotonic() > deadline:
            return leaked
        time.sleep(0.01)
    return []


def kill_since(before: Holdings, helpers: frozenset[int] = frozenset()) -> None:
    """Kill the processes that were started since, so that the next test has none of them."""
    for pid in descendants():
        if pid not in before.processes and pid not in helpers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
