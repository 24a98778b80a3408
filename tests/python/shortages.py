"""Shortages that a program of a test brings about in itself, and a look at what comes of them.

Whatever is limited here is limited for the program and its children alone.
"""

import ctypes
import errno
import gc
import os
import platform
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

FORBIDDEN = 77  # the exit code of a program that may not do what it is about

PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 4, 8, 22  # <linux/prctl.h>
PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 38, 47, 2
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # <linux/capability.h>
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # <linux/sched.h>
MS_RDONLY, MS_BIND, MS_REC, MS_PRIVATE = 1, 0x1000, 0x4000, 0x40000  # <linux/mount.h>


def _check(result: int, what: str) -> None:
    if result != 0:
        print(f"{what}: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(FORBIDDEN)


# -- what becomes of a call


@contextmanager
def refused(number: int | None, *words: str, kind: type[BaseException] = OSError) -> Iterator[None]:
    """Within it, the system's error ``number`` is raised, and its text has all ``words``."""
    caught: BaseException | None = None
    try:
        yield
    except kind as error:
        caught = error
    assert caught is not None, f"nothing was refused: {words}"
    assert number is None or getattr(caught, "errno", None) == number, caught
    missing = [word for word in words if word not in str(caught)]
    assert not missing, f"{missing} in {caught}"


def become(what: Callable[[], bool], name: str, within: float = 5.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + within
    while not what():
        assert time.monotonic() < end, f"waited for {name}"
        time.sleep(0.01)


# -- descriptors


def descriptors() -> int:
    """How many are open, of what is in use still."""
    gc.collect()  # a traceback's cycle is the test's
    return len(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    """The children of this process that run, by pid."""
    found: set[str] = set()
    for thread in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.update(thread.read_text().split())
    return found


def is_there(pid: int) -> bool:
    """Whether the process runs, or its end was not looked at yet; asked without a descriptor."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Within it, so many more can be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + free + 8, limits[1]))
    held = []
    try:
        while True:
            held.append(os.dup(1))
    except OSError:
        pass
    for _ in range(free):
        os.close(held.pop())
    try:
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# -- processes


def become_somebody() -> None:
    """Be a user that has no other processes, and may read what root may. Only root can."""
    if os.getuid() != 0:
        print("only root can become another user", file=sys.stderr)
        sys.exit(FORBIDDEN)
    uid = 1_000_000 + os.getpid()
    _libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresuid(uid, uid, uid)
    keep = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH
    version_3 = struct.pack("Ii", 0x20080522, 0)
    _check(_libc.capset(version_3, struct.pack("6I", keep, keep, keep, 0, 0, 0)), "capset")
    for each in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):  # through exec, too
        raised = _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, each, 0, 0)
        _check(raised, "an ambient capability")
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self is root's


def threads() -> int:
    """How many threads this user has, in all processes."""
    found = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == os.getuid():
                found += len(os.listdir(process / "task"))
        except OSError:
            continue
    return found


@contextmanager
def few_processes(more: int) -> Iterator[None]:
    """Within it, this user can have so many more processes and threads."""
    limits = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (threads() + more, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NPROC, limits)


# -- memory


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """Within it, this process can have so many more bytes of address space."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


# -- file systems


def mounts_of_our_own() -> None:
    """From now on, what is mounted is seen by this process and its children alone."""
    flags = CLONE_NEWNS if os.getuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
    _check(_libc.unshare(flags), "unshare")
    _check(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")


def mount(path: str, options: str = "", flags: int = 0) -> None:
    """Mount an empty tmpfs over a directory."""
    _check(_libc.mount(b"none", path.encode(), b"tmpfs", flags, options.encode()), "mount")


def without_shm() -> None:
    """Have a ``/dev`` with ``null`` and nothing else."""
    null = os.open("/dev/null", os.O_RDWR)
    mount("/dev")
    Path("/dev/null").touch()
    bound = _libc.mount(f"/proc/self/fd/{null}".encode(), b"/dev/null", None, MS_BIND, None)
    _check(bound, "mount")
    os.close(null)


# -- system calls

CALLS = {
    "pidfd_open": 434,
    "clone3": 435,
    "memfd_create": {"x86_64": 319, "aarch64": 279}.get(platform.machine(), 0),
}


def forbid(call: str, number: int = errno.ENOSYS) -> None:
    """From now on, a system call fails with the error ``number``, here and in all children."""
    known = CALLS[call]
    if not known:
        print("no number of that call is known", file=sys.stderr)
        sys.exit(FORBIDDEN)
    program = [
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 1, known),  # if it is that one ...
        (0x06, 0, 0, 0x00050000 | number),  # ... return the error,
        (0x06, 0, 0, 0x7FFF0000),  # else allow it
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    filters = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    _check(_libc.prctl(PR_SET_SECCOMP, 2, filters, 0, 0), "seccomp")
