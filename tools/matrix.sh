#!/bin/sh
# One environment of `make test-matrix`: sh tools/matrix.sh <Python> <constraints> <name>
# It is kept in .venv-matrix, and made anew where its constraints or pyproject.toml changed.
set -eu
python=python$1
place=.venv-matrix/$1-$3
if ! "$python" -c 'import venv' 2> /dev/null; then
    echo "skipped: there is no $python here"
    exit 0
fi
if [ ! -f "$place/.ready" ] || [ "$2" -nt "$place/.ready" ] || [ pyproject.toml -nt "$place/.ready" ]; then
    "$python" -m venv "$place"
    "$place/bin/python" -m pip install --quiet --constraint "$2" --editable . \
        'pytest>=8.0' 'pytest-xdist>=3.6' 'pytest-cov>=5.0' 'pydicom>=3.0' 'jsonschema>=4.20'
    touch "$place/.ready"
fi
echo "Python $1, $3 versions"
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$place/bin/python" -m pytest --quiet -m 'not slow' --numprocesses auto \
    --maxprocesses 4 --dist loadfile
