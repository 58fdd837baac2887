#!/usr/bin/env bash
# Prints the path of a Python 3.11 to 3.13 that can make virtual environments; PYTHON overrides the search.
# On Debian and as root, what is missing is installed with apt; otherwise it says what to run.
set -euo pipefail

usable() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
find_python() {
    local name
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if command -v "$name" >/dev/null && usable "$name"; then
            "$name" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}
need() {  # need PACKAGE...: installs them, or ends with the command that would
    local root=()
    if [ "$(id -u)" != 0 ]; then root=(sudo -n); fi
    if command -v apt-get >/dev/null && { [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; }; then
        echo "installing $*" >&2
        "${root[@]}" apt-get update -qq >&2 || true
        DEBIAN_FRONTEND=noninteractive "${root[@]}" apt-get install -y -qq --no-install-recommends "$@" >&2
    else
        echo "Penstock needs Python 3.11 to 3.13 with venv and pip; run: sudo apt-get install $*" >&2
        exit 1
    fi
}

if ! python="$(find_python)"; then
    if [ -n "${PYTHON:-}" ]; then
        echo "PYTHON=$PYTHON is not a Python 3.11 to 3.13" >&2
        exit 1
    fi
    need python3 python3-venv
    python="$(find_python)" || { echo "Penstock needs Python 3.11 to 3.13; this system's python3 is another" >&2; exit 1; }
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    need python3-venv
fi
echo "$python"
