#!/usr/bin/env bash
# Prints the path of a usable uv, installing the pinned one into .cache/uv when none is on PATH.
set -euo pipefail
cd "$(dirname "$0")/../.."

if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
    command -v uv
    exit 0
fi
uv="$PWD/.cache/uv/bin/uv"
if [ ! -x "$uv" ] || ! cmp -s requirements/uv.lock .cache/uv/made-from; then
    python="$(deploy/dev/python.sh)"
    rm -rf .cache/uv
    echo "installing uv into .cache/uv" >&2
    "$python" -m venv .cache/uv
    .cache/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.lock >&2
    cp requirements/uv.lock .cache/uv/made-from
fi
echo "$uv"
