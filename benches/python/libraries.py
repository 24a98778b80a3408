"""The libraries that are compared, each behind the same few calls.

A name is that of a library and, where there is a choice, of a start method: ``mp-fork``. What a
library is asked to do is what its own documentation would have its user write.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

WORKERS = 2

#: What is imported for a library.
MODULES = {
    "phalanx": "phalanx",
    "mp": "multiprocessing",
    "ppe": "concurrent.futures.process",
    "faster-fifo": "faster_fifo",
}
Task = Callable[[Any], Any]


def module(library: str) -> str:
    """The name of the module that is imported for it."""
    name = library.partition("-")[0] if library != "faster-fifo" else library
    return MODULES.get(name, name)


def is_there(library: str) -> bool:
    """Can it be imported here?"""
    if library in ("serial", "pickle", "nothing", "interpreter"):
        return True
    try:
        importlib.import_module(module(library))
    except ImportError:
        return False
    return True


def context(library: str) -> Any:
    """The context of ``mp-METHOD`` or ``phalanx-METHOD``."""
    return importlib.import_module(module(library)).get_context(library.rpartition("-")[2])


def executor(library: str) -> Any:
    """An executor that follows `concurrent.futures`."""
    if library == "nothing":
        return Nothing()
    kind = importlib.import_module(module(library)).ProcessPoolExecutor
    if library == "loky":
        return kind(WORKERS)
    of = "phalanx" if library.startswith("phalanx") else "mp"
    return kind(WORKERS, context(f"{of}-{library.rpartition('-')[2]}"))


class Nothing:
    """An executor that takes no time: the futures have their results at once."""

    def submit(self, task: Task, *arguments: Any) -> Any:
        from concurrent.futures import Future  # noqa: PLC0415

        future: Future[Any] = Future()
        future.set_result(task(*arguments))
        return future

    def map(self, task: Task, items: Iterable[Any], chunksize: int = 1) -> Any:
        return map(task, items)

    def shutdown(self) -> None:
        pass


class Pool:
    """multiprocessing's pool, and phalanx's."""

    def __init__(self, library: str) -> None:
        self.pool = context(library).Pool(WORKERS)

    def apply(self, task: Task, argument: Any) -> Any:
        return self.pool.apply(task, (argument,))

    def submit(self, task: Task, arguments: Iterable[Any]) -> list[Any]:
        """One call each, and then each result."""
        results = [self.pool.apply_async(task, (argument,)) for argument in arguments]
        return [result.get() for result in results]

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        return self.pool.map(task, items, chunksize)

    def imap(self, task: Task, items: Any) -> Iterable[Any]:
        """Results in order, items sent one by one."""
        return self.pool.imap(task, items, 1)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Executor(Pool):
    def __init__(self, library: str) -> None:
        self.pool = executor(library)

    def apply(self, task: Task, argument: Any) -> Any:
        return self.pool.submit(task, argument).result()

    def submit(self, task: Task, arguments: Iterable[Any]) -> list[Any]:
        futures = [self.pool.submit(task, argument) for argument in arguments]
        return [future.result() for future in futures]

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        return list(self.pool.map(task, items, chunksize=chunksize or 1))

    def imap(self, task: Task, items: Any) -> Iterable[Any]:
        return self.pool.map(task, items)

    def close(self) -> None:
        self.pool.shutdown()


class Joblib(Pool):
    def __init__(self, library: str) -> None:
        import joblib  # noqa: PLC0415

        self.delayed = joblib.delayed
        self.parallel = joblib.Parallel
        self.pool = self.parallel(WORKERS)
        self.pool.__enter__()

    def apply(self, task: Task, argument: Any) -> Any:
        return self.pool([self.delayed(task)(argument)])[0]

    def submit(self, task: Task, arguments: Iterable[Any]) -> list[Any]:
        return self.map(task, arguments, 1)

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        pool = self.parallel(WORKERS, batch_size=chunksize) if chunksize else self.pool
        return pool(self.delayed(task)(item) for item in items)

    def imap(self, task: Task, items: Any) -> Iterable[Any]:
        pool = self.parallel(WORKERS, batch_size=1, return_as="generator")
        return pool(self.delayed(task)(item) for item in items)

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415

        self.pool.__exit__(None, None, None)
        get_reusable_executor().shutdown()


class Mpire(Pool):
    def __init__(self, library: str) -> None:
        import mpire  # noqa: PLC0415

        self.pool = mpire.WorkerPool(WORKERS, start_method="fork", keep_alive=True)

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        options = {"iterable_len": len(items), "concatenate_numpy_output": False}
        return self.pool.map(task, items, chunk_size=chunksize, **options)

    def imap(self, task: Task, items: Any) -> Iterable[Any]:
        return self.pool.imap(task, items, iterable_len=len(items), chunk_size=1)

    def close(self) -> None:
        self.pool.stop_and_join()


class Pebble(Executor):
    def __init__(self, library: str) -> None:
        import pebble  # noqa: PLC0415

        self.pool = pebble.ProcessPool(WORKERS, context=context("mp-fork"))

    def apply(self, task: Task, argument: Any) -> Any:
        return self.pool.schedule(task, (argument,)).result()

    def submit(self, task: Task, arguments: Iterable[Any]) -> list[Any]:
        futures = [self.pool.schedule(task, (argument,)) for argument in arguments]
        return [future.result() for future in futures]

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        return list(self.pool.map(task, items, chunksize=chunksize or 1).result())

    def imap(self, task: Task, items: Any) -> Iterable[Any]:
        results: Iterator[Any] = self.pool.map(task, items, chunksize=1).result()
        return results

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Ray(Pool):
    def __init__(self, library: str) -> None:
        import ray  # noqa: PLC0415

        self.ray = ray
        ray.init(
            address="local",
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="critical",
            object_store_memory=3 << 30,
        )

    def apply(self, task: Task, argument: Any) -> Any:
        return self.map(task, [argument])[0]

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        remote = self.ray.remote(lambda item: task(item))  # noqa: PLW0108 (a partial is refused)
        return self.ray.get([remote.remote(item) for item in items])

    def close(self) -> None:
        self.ray.shutdown()


class Serial(Pool):
    """No pool at all: a loop in this process."""

    def __init__(self, library: str) -> None:
        pass

    def apply(self, task: Task, argument: Any) -> Any:
        return task(argument)

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        return list(map(task, items))

    def close(self) -> None:
        pass


class Pickle(Serial):
    """What every pool has to do: each argument and each result is pickled and made anew."""

    def apply(self, task: Task, argument: Any) -> Any:
        from pickle import dumps, loads  # noqa: PLC0415

        return loads(dumps(task(loads(dumps(argument, 5))), 5))

    def submit(self, task: Task, arguments: Iterable[Any]) -> list[Any]:
        return [self.apply(task, argument) for argument in arguments]

    def map(self, task: Task, items: Any, chunksize: int | None = None) -> Any:
        return self.submit(task, items)

    def imap(self, task: Task, items: Any) -> Iterable[Any]:
        return (self.apply(task, item) for item in items)


KINDS: dict[str, type[Pool]] = {
    "ppe": Executor,
    "loky": Executor,
    "joblib": Joblib,
    "mpire": Mpire,
    "pebble": Pebble,
    "ray": Ray,
    "serial": Serial,
    "pickle": Pickle,
}


def pool(library: str) -> Pool:
    """A new pool of two workers."""
    return KINDS.get(library.partition("-")[0], Pool)(library)
