"""The public names of ``multiprocessing``, module by module.

Public is what ``__all__`` has, and what is documented or widely used without being there.
"""

import importlib
from types import ModuleType

MODULES = (
    "",  # the package itself
    *("connection", "context", "dummy", "dummy.connection", "forkserver", "heap", "managers"),
    *("pool", "popen_fork", "popen_forkserver", "popen_spawn_posix", "process", "queues"),
    *("reduction", "resource_sharer", "resource_tracker", "shared_memory", "sharedctypes"),
    *("spawn", "synchronize", "util"),
)

# What `__all__` leaves out.
UNLISTED = {
    "": "SUBDEBUG SUBWARNING",
    "connection": """Connection AuthenticationError BufferTooShort answer_challenge
        deliver_challenge""",
    "context": """AuthenticationError BaseContext BufferTooShort DefaultContext ForkContext
        ForkProcess ForkServerContext ForkServerProcess Process ProcessError SpawnContext
        SpawnProcess TimeoutError assert_spawning get_spawning_popen reduction
        set_spawning_popen""",
    "dummy": "Array Namespace Value dict list shutdown",
    "forkserver": "ForkServer",
    "heap": "Arena Heap",
    "managers": """AcquirerProxy Array ArrayProxy AutoProxy BarrierProxy BaseListProxy
        BasePoolProxy ConditionProxy DictProxy EventProxy IteratorProxy ListProxy MakeProxyType
        Namespace NamespaceProxy PoolProxy RemoteError Server SharedMemoryServer Value
        ValueProxy""",
    "pool": """ApplyResult AsyncResult ExceptionWithTraceback IMapIterator
        IMapUnorderedIterator MapResult MaybeEncodingError RemoteTraceback""",
    "process": "AuthenticationString ORIGINAL_DIR",
    "reduction": "AbstractReducer HAVE_SEND_HANDLE",
    "resource_tracker": "ResourceTracker",
    "sharedctypes": """Synchronized SynchronizedArray SynchronizedBase SynchronizedString""",
    "spawn": "is_forking prepare spawn_main",
    "synchronize": "Barrier SemLock",
    "util": "close_fds spawnv_passfds",
}


def module_of(package: str, name: str) -> ModuleType:
    """The module ``name``, as in `MODULES`, of ``package``."""
    return importlib.import_module(f"{package}.{name}" if name else package)


def public_names(module: str) -> list[str]:
    """The public names of ``multiprocessing``'s module ``module`` on this Python."""
    standard = module_of("multiprocessing", module)
    listed = getattr(standard, "__all__", ())
    unlisted = [name for name in UNLISTED.get(module, "").split() if hasattr(standard, name)]
    return sorted({*listed, *unlisted})
