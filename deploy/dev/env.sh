#!/usr/bin/env bash
# Makes .venv exactly as requirements/dev.lock says, with the project itself installed for editing.
# Does nothing when .venv was made from the same lock and the same packaging part of pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/../.."

lock_key="$(cat requirements/dev.lock deploy/dev/env.sh | sha256sum | cut -c 1-64)"
project_key="$(sed '/^\[tool\.ruff\]/,$d' pyproject.toml | sha256sum | cut -c 1-64)"
made_from="$(cat .venv/made-from 2>/dev/null || true)"
if [ -x .venv/bin/python ] && [ "$made_from" = "$lock_key $project_key" ]; then exit 0; fi

uv="$(deploy/dev/uv.sh)"
export UV_PYTHON_DOWNLOADS=never UV_NO_CONFIG=1
# Machines that keep wheels in a folder say so to pip; uv reads another name.
if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}"; fi

if ! .venv/bin/python -c '' 2>/dev/null; then
    made_from=
    "$uv" venv --quiet --clear --python "$(deploy/dev/python.sh)" .venv
fi
rm -f .venv/made-from
if [ "${made_from% *}" != "$lock_key" ]; then
    echo "making .venv from requirements/dev.lock"
    "$uv" pip sync --quiet --python .venv/bin/python --require-hashes requirements/dev.lock
fi
# hatchling is in the lock, so the build needs no environment of its own.
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --reinstall-package penstock --editable .
"$uv" pip check --quiet --python .venv/bin/python
echo "$lock_key $project_key" > .venv/made-from
