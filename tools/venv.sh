#!/bin/sh
# Make the virtual environment DIR of PYTHON hold dependency group GROUP of pyproject.toml.
#
#     tools/venv.sh DIR PYTHON GROUP
#
# Nothing is done when that was done before with the same three and the same pyproject.toml;
# DIR/ready says so. A half-made environment has no such file and is made again.
set -eu

dir=$1 python=$2 group=$3
want="$python $group $(cksum <pyproject.toml)"
if [ "$(cat "$dir/ready" 2>/dev/null)" = "$want" ]; then exit 0; fi

echo "== making $dir with $python"
rm -rf "$dir"
"$python" -m venv "$dir"
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --group "$group"
echo "$want" >"$dir/ready"
