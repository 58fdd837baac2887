#!/usr/bin/env bash
# Makes .venv exactly as requirements/dev.lock says, with the project itself installed for editing.
# Does nothing when .venv was made from the same lock and the same pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/../.."

key="$(cat requirements/dev.lock pyproject.toml deploy/dev/env.sh | sha256sum | cut -c 1-64)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/made-from 2>/dev/null)" = "$key" ]; then exit 0; fi

uv="$(deploy/dev/uv.sh)"
python="$(deploy/dev/python.sh)"
export UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1
# Machines that keep wheels in a folder say so to pip; uv reads another name.
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}"; fi

echo "making .venv from requirements/dev.lock"
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
    "$uv" venv --quiet --clear --python "$python" .venv
fi
rm -f .venv/made-from
"$uv" pip sync --quiet --python .venv/bin/python --require-hashes requirements/dev.lock
# hatchling is in the lock, so the build needs no environment of its own.
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
"$uv" pip check --quiet --python .venv/bin/python
echo "$key" > .venv/made-from
