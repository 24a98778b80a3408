"""What we have promised ourselves: a measure, whose figure by whose, and on which side of what.

``theirs`` is one library, several of which the best counts, or none: then the bar is for the figure
itself. Goals keep their numbers, which `docs/performance.md` uses.
"""

from typing import NamedTuple

FORK, SERVER = "phalanx-fork", "phalanx-forkserver"
MP_FORK, MP_SERVER = "mp-fork", "mp-forkserver"
PEERS = ("mp-fork", "ppe-fork", "loky", "joblib", "mpire", "pebble", "ray")
OBJECTS = "there and back"


class Goal(NamedTuple):
    number: int
    measure: str
    bar: str  # ">= 12"
    theirs: tuple[str, ...]
    ours: str

    def is_met_by(self, value: float) -> bool:
        return is_met(self.bar, value)


class RustGoal(NamedTuple):
    """The same for two criterion benches, ``group/function``: a ratio of rates or of times."""

    number: int
    bar: str
    ours: str
    theirs: str

    def value(self, figures: dict[str, dict[str, float]]) -> float:
        ours, theirs = figures[self.ours]["ns"], figures[self.theirs]["ns"]
        return theirs / ours if self.bar.startswith(">=") else ours / theirs


def is_met(bar: str, value: float) -> bool:
    sign, _, limit = bar.partition(" ")
    return value >= float(limit) if sign == ">=" else value <= float(limit)


def _numbered(*goals: tuple[str, str, str | tuple[str, ...], str]) -> list[Goal]:
    return [
        Goal(number, measure, bar, (theirs,) if isinstance(theirs, str) else theirs, ours)
        for number, (measure, bar, theirs, ours) in enumerate(goals, 1)
    ]


GOALS = _numbered(
    ("submit each, then get each", ">= 12", MP_FORK, SERVER),
    ("imap, chunks of 1", ">= 15", MP_FORK, SERVER),
    ("map, chunks of 1", ">= 15", MP_FORK, SERVER),
    ("map, default chunks", ">= 1", "serial", SERVER),
    ("round trip, quiet, p50", "<= 0.2", MP_FORK, SERVER),
    ("round trip, quiet, p99", "<= 0.1", MP_FORK, SERVER),
    ("round trip, busy, p50", "<= 0.6", MP_FORK, SERVER),
    ("round trip, pinned to one core, p50", "<= 0.6", MP_FORK, SERVER),
    ("executor: submit each, then result of each", ">= 15", "ppe-fork", SERVER),
    ("asyncio: gather of 10,000 calls", ">= 15", "ppe-fork", SERVER),
    ("arrays of 8 MiB as arguments", ">= 10", MP_FORK, SERVER),
    ("arrays of 8 MiB as arguments", ">= 2", PEERS, SERVER),
    ("arrays of 64 MiB as arguments", ">= 10", MP_FORK, SERVER),
    ("arrays of 64 MiB as arguments", ">= 2", PEERS, SERVER),
    ("arrays of 8 MiB as results", ">= 12", MP_FORK, SERVER),
    ("arrays of 8 MiB as results", ">= 2", PEERS, SERVER),
    ("arrays of 64 MiB as results", ">= 12", MP_FORK, SERVER),
    ("arrays of 64 MiB as results", ">= 2", PEERS, SERVER),
    ("one array of 64 MiB as an argument of 1,000 tasks", ">= 100", MP_FORK, SERVER),
    (f"`bytes` of 64 MiB, {OBJECTS}", ">= 5", MP_FORK, SERVER),
    (f"`bytearray` of 64 MiB, {OBJECTS}", ">= 5", MP_FORK, SERVER),
    (f"a pandas table of 64 MiB, {OBJECTS}", ">= 5", MP_FORK, SERVER),
    (f"an Arrow table of 64 MiB, {OBJECTS}", ">= 5", MP_FORK, SERVER),
    (f"arrays in dicts and lists of 64 MiB, {OBJECTS}", ">= 5", MP_FORK, SERVER),
    ("`Queue`, items of 1 MiB", ">= 2", ("mp-fork", "faster-fifo"), FORK),
    ("`Queue`, items of 64 MiB", ">= 2", ("mp-fork", "faster-fifo"), FORK),
    ("`send_bytes` of 1 MiB, two-way `Pipe`", ">= 2", MP_FORK, FORK),
    ("`send_bytes` of 1 MiB, one-way `Pipe`", ">= 2", MP_FORK, FORK),
    ("a first pool: open, one task, close", "<= 0.35", MP_SERVER, SERVER),
    ("a second pool", "<= 1.2", MP_FORK, SERVER),
    ("a first pool: open, one task, close", "<= 1", MP_FORK, FORK),
    ("a process: start, join", "<= 2", MP_FORK, SERVER),
    ("skewed work, random order", "<= 1.05", (), SERVER),
    ("skewed work, ascending", "<= 1.05", (), SERVER),
    ("skewed work, descending", "<= 1.05", (), SERVER),
    ("an idle worker's own memory (USS)", "<= 1.7", MP_FORK, SERVER),
    ("import", "<= 1.2", MP_FORK, FORK),
    ("submit with 8 workers", ">= 8.4", MP_FORK, SERVER),
    ("`Queue`, small items", ">= 5", MP_FORK, FORK),
    ("`SimpleQueue`, small items", ">= 5", MP_FORK, FORK),
    ("`SimpleQueue`, items of 1 MiB", ">= 5", MP_FORK, FORK),
    ("`put_many` and `get_many` of 100", ">= 6", "faster-fifo", FORK),
    ("through a `Queue` and back, p50", "<= 0.4", MP_FORK, FORK),
    ("through a `Pipe` and back, p50", "<= 0.5", MP_FORK, FORK),
    ("`Lock`: acquire, release", "<= 1.1", MP_FORK, FORK),
    ("`RLock`: acquire, release", "<= 1.1", MP_FORK, FORK),
    ("`Semaphore`: acquire, release", "<= 1.1", MP_FORK, FORK),
    ("`with` a `Lock`", "<= 0.5", MP_FORK, FORK),
    ("`Event.is_set`", "<= 0.3", MP_FORK, FORK),
    ("`Value.value`", "<= 0.7", MP_FORK, FORK),
    ("`Array[i]`", "<= 0.25", MP_FORK, FORK),
    ("`Array[:]` of 1,000", "<= 0.6", MP_FORK, FORK),
    ("two processes add to one `Value`", ">= 1.5", MP_FORK, FORK),
    ("a manager's start", "<= 1", MP_FORK, FORK),
    ("a managed dict's `d[k] = v`", ">= 5", MP_FORK, FORK),
    ("a managed dict's `d[k]`", ">= 5", MP_FORK, FORK),
    ("a managed list's `append`", ">= 5", MP_FORK, FORK),
)

_POOL, _TASKS, _CHANNEL = "pool, ", "pool, tasks/", "channel, "
_COPY = "floor, copy of {} MiB/into mapped shared memory"

RUST_GOALS = [
    RustGoal(number, *goal)
    for number, goal in enumerate(
        (
            (">= 25", f"{_TASKS}phalanx, 64 in flight", f"{_TASKS}procspawn, 64 in flight"),
            ("<= 0.1", f"{_POOL}round trip p50/phalanx", f"{_POOL}round trip p50/procspawn"),
            *(
                (bar, f"{_POOL}{way}/phalanx", to)
                for mib in (1, 64)
                for way in (f"{mib} MiB there", f"{mib} MiB back")
                for bar, to in (
                    (">= 10", f"{_POOL}{way}/procspawn"),
                    (">= 0.6", _COPY.format(mib)),
                )
            ),
            (">= 2", f"{_CHANNEL}one way/phalanx", f"{_CHANNEL}one way/ipc-channel"),
            (
                "<= 0.3",
                f"{_CHANNEL}there and back p50/phalanx",
                f"{_CHANNEL}there and back p50/ipc-channel",
            ),
            (">= 1", f"{_CHANNEL}1 MiB/phalanx", f"{_CHANNEL}1 MiB/ipc-channel, bytes"),
            ("<= 2", f"{_POOL}a death told/phalanx", f"{_POOL}a death told/procspawn"),
            (
                "<= 0.7",
                f"{_POOL}new and two results/phalanx",
                f"{_POOL}new and two results/procspawn",
            ),
            (">= 1", f"{_POOL}tasks of 5 us/phalanx", f"{_POOL}tasks of 5 us/one thread"),
        ),
        len(GOALS) + 1,
    )
]

#: What a measure cannot go beyond: a bench of `floors.rs`, or a library that only does the part
#: that nobody can leave out.
_TRIP, _STEP = "floor, round trip p50/", "floor, a step/"
_CHILD, _STREAM = "floor, a process to its end, p50/", "floor, stream of 1 MiB messages/socket pair"
FLOORS = {
    "submit each, then get each": "pickle",
    "imap, chunks of 1": "pickle",
    "map, chunks of 1": "pickle",
    "map, default chunks": "serial",
    "round trip, quiet, p50": f"{_TRIP}futex, two cores",
    "round trip, busy, p50": f"{_TRIP}futex, one core",
    "round trip, pinned to one core, p50": f"{_TRIP}futex, one core",
    "executor: submit each, then result of each": "nothing",
    "asyncio: gather of 10,000 calls": "nothing",
    "arrays of 8 MiB as arguments": _COPY.format(8),
    "arrays of 8 MiB as results": _COPY.format(8),
    "arrays of 64 MiB as arguments": _COPY.format(64),
    "arrays of 64 MiB as results": _COPY.format(64),
    "`Queue`, items of 1 MiB": _COPY.format(1),
    "`Queue`, items of 64 MiB": _COPY.format(64),
    "`SimpleQueue`, items of 1 MiB": _COPY.format(1),
    "`send_bytes` of 1 MiB, two-way `Pipe`": _STREAM,
    "`send_bytes` of 1 MiB, one-way `Pipe`": _STREAM,
    "through a `Queue` and back, p50": f"{_TRIP}futex, two cores",
    "through a `Pipe` and back, p50": f"{_TRIP}socket pair",
    "a first pool: open, one task, close": "interpreter",
    "a second pool": f"{_CHILD}fork",
    "a process: start, join": f"{_CHILD}fork",
    "`Lock`: acquire, release": f"{_STEP}lock and unlock a word",
    "`RLock`: acquire, release": f"{_STEP}lock and unlock a word",
    "`Semaphore`: acquire, release": f"{_STEP}lock and unlock a word",
    "`with` a `Lock`": f"{_STEP}lock and unlock a word",
    **{
        f"{kind} of 64 MiB, {OBJECTS}": _COPY.format(64)
        for kind in (
            *("`bytes`", "`bytearray`", "a pandas table", "an Arrow table"),
            "arrays in dicts and lists",
        )
    },
}
