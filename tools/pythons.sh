#!/bin/sh
# Every CPython >= 3.11 of this machine, one a minor version, oldest first:
#
#     3.11<TAB>3.11.7<TAB>/path/to/python3.11
#
# Looked at are `python3` and `python3.N` on PATH, and the versions that pyenv and uv keep. What is
# printed is the interpreter itself, never a shim or a virtual environment. Of several with the same
# minor version the one that can run the most wins: with the standard library's own tests installed,
# then the latest. Builds without the GIL cannot load a stable-ABI extension, and are left out.
set -eu

probe='
import importlib.util as find, os, sys, sysconfig
missing = [name for name in ("venv", "ensurepip") if not find.find_spec(name)]
if (
    sys.implementation.name == "cpython"
    and sys.version_info >= (3, 11)
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
    and not missing
):
    tests = find.find_spec("test") is not None and find.find_spec("test._test_multiprocessing")
    minor, full = "%d.%d" % sys.version_info[:2], "%d.%d.%d" % sys.version_info[:3]
    path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    print(minor, 1 if tests else 0, full, path, sep="\t")
'

{
    echo "$PATH" | tr ':' '\n' | while read -r dir; do
        for python in "$dir"/python3 "$dir"/python3.[0-9][0-9]; do echo "$python"; done
    done
    for python in \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3 \
        "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/*/bin/python3; do
        echo "$python"
    done
} | while read -r python; do
    # A shim of a version that is not chosen here fails; that is an answer too.
    if [ -x "$python" ]; then "$python" -I -c "$probe" 2>/dev/null || true; fi
done | sort -t "$(printf '\t')" -k1,1V -k2,2nr -k3,3Vr |
    awk -F '\t' -v OFS='\t' '!seen[$1]++ { print $1, $3, $4 }'
