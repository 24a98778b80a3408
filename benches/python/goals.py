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
        sign, _, limit = self.bar.partition(" ")
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
