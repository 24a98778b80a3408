"""Which public names of ``multiprocessing`` are phalanx's own, and which it shares.

Shared is where other libraries meet the standard library's: exceptions that they catch, registries
that they write to, classes that they ask for with ``isinstance``. All else is to be our own.
"""

import pytest
from names import MODULES, module_of, public_names

# On the left a module of `names.MODULES`; what it does not list of its public names is own.
SHARED = {
    # The exceptions, and what there is one of in a process.
    "": """AuthenticationError BufferTooShort ProcessError TimeoutError SUBDEBUG SUBWARNING
        active_children allow_connection_pickling cpu_count current_process get_logger
        log_to_stderr parent_process reducer""",
    "connection": "AuthenticationError BufferTooShort",
    "context": """AuthenticationError BufferTooShort ProcessError TimeoutError assert_spawning
        get_spawning_popen reduction set_spawning_popen""",
    # Threads: nothing of it starts a process.
    "dummy": "*",
    "dummy.connection": "*",
    # Pickled by name on the wire between managers.
    "managers": "RemoteError Token",
    "pool": "ExceptionWithTraceback MaybeEncodingError RemoteTraceback ThreadPool",
    "process": "*",
    "reduction": "*",
    "resource_sharer": "*",
    "resource_tracker": "*",
    # About the running interpreter, which is one.
    "spawn": "get_executable import_main_path set_executable",
    "util": "*",
}

# Has no counterpart: the standard library's protocol with its fork server.
ABSENT = {"forkserver.connect_to_new_process"}


def is_own(module: str, name: str) -> bool:
    """Is what phalanx has as ``name`` defined by phalanx?"""
    ours = getattr(module_of("phalanx", module), name)
    standards = getattr(module_of("multiprocessing", module), name)
    ours, standards = (getattr(each, "__func__", each) for each in (ours, standards))
    defined_in = str(getattr(ours, "__module__", None) or type(ours).__module__)
    return ours is not standards and not defined_in.startswith("multiprocessing")


def places(table: dict[str, str]) -> set[str]:
    """The names of a table, with their modules."""
    return {
        f"{module}.{name}".strip(".")
        for module, names in table.items()
        for name in names.split()
        if name != "*"
    }


def is_to_be_shared(module: str, name: str) -> bool:
    """Does the table say so?"""
    return name in SHARED.get(module, "").split() or SHARED.get(module) == "*"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module or "package")
def test_a_name_is_own_or_shared_as_the_table_says(module):
    for name in public_names(module):
        place = f"{module}.{name}".strip(".")
        if place in ABSENT:
            assert not hasattr(module_of("phalanx", module), name), f"{place} is there now"
        elif is_to_be_shared(module, name):
            assert not is_own(module, name), f"{place} is own, and the table says shared"
        else:
            assert is_own(module, name), f"{place} is the standard library's"


def test_the_tables_name_what_there_is_and_do_not_overlap():
    for place in places(SHARED) | ABSENT:
        module, _, name = place.rpartition(".")
        assert hasattr(module_of("multiprocessing", module), name), place
    assert not places(SHARED) & ABSENT
