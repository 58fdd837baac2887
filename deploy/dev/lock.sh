#!/usr/bin/env bash
# Writes requirements/*.lock from pyproject.toml, or (with --check) says whether they are in step with it.
#
# The locks hold versions and hashes for Python 3.11 to 3.13 and name no registry, so a mirror works as well as
# the usual one (docs/decisions/0002-locked-environment.md). Their first line is the hash of what they were made
# from, which lets the check run in milliseconds and without a network.
set -euo pipefail
cd "$(dirname "$0")/../.."

# One line that changes when, and only when, the requirements in pyproject.toml or this script do.
fingerprint() {
    "$(deploy/dev/python.sh)" - <<'PY'
import hashlib, json, pathlib, tomllib
pyproject = tomllib.loads(pathlib.Path("pyproject.toml").read_text())
project = pyproject["project"]
wanted = [pyproject["build-system"]["requires"]] + [
    project[key] for key in ("requires-python", "dependencies", "optional-dependencies")
]
script = pathlib.Path("deploy/dev/lock.sh").read_text()
print("# made from " + hashlib.sha256(json.dumps([wanted, script], sort_keys=True).encode()).hexdigest())
PY
}

want="$(fingerprint)"

if [ "${1:-}" = "--check" ]; then
    for lock in requirements/{job,server,dev}.lock; do
        if [ ! -e "$lock" ] || [ "$(head -n 1 "$lock")" != "$want" ]; then
            echo "$lock is not in step with pyproject.toml: run \`make lock\` and commit the result" >&2
            exit 1
        fi
    done
    exit 0
fi

uv="$(deploy/dev/uv.sh)"
# compile NAME [ARGUMENT...]: the current pins are kept unless pyproject.toml forbids them or UPGRADE=1.
compile() {
    local lock="requirements/$1.lock" made
    shift
    made="$(mktemp)"
    # shellcheck disable=SC2064
    trap "rm -f '$made'" RETURN
    if [ "${UPGRADE:-0}" != 1 ] && [ -e "$lock" ]; then cp "$lock" "$made"; fi
    "$uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
        --output-file "$made" "$@" pyproject.toml
    { echo "$want"; echo "# by \`make lock\`; do not edit"; cat "$made"; } > "$lock.new"
    chmod 644 "$lock.new"
    mv "$lock.new" "$lock"
}
compile dev --extra dev
# The smaller sets take their versions from the largest, so that a job runs what was tested.
compile server --extra server --constraint requirements/dev.lock
compile job --constraint requirements/dev.lock
