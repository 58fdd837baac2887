#!/usr/bin/env bash
# Installs the Debian packages that are missing for the named purposes: `quickstart`, `test`, or both.
# Does nothing, and asks no package server, when all are there. Starts and configures no service of the machine:
# Debian's Slurm units stay down without /etc/slurm/slurm.conf, and Penstock's clusters bring their own.
set -euo pipefail

packages=()
for purpose in "${@:-quickstart}"; do
    case "$purpose" in
        quickstart) packages+=(slurmctld slurmd slurm-client munge) ;;
        # The newer Slurm of the contract suite and Apptainer live in chroots; MariaDB is slurmdbd's.
        test)
            packages+=(slurmctld slurmd slurm-client munge debootstrap environment-modules)
            packages+=(slurmdbd mariadb-server-core mariadb-client-core)
            ;;
        # The load generator and the replicas of the bench are Go: Python would be the limit.
        bench) packages+=(slurmctld slurmd slurm-client munge golang-go golang-google-grpc-dev) ;;
        *) echo "system-packages.sh knows quickstart, test and bench, not $purpose" >&2; exit 1 ;;
    esac
done

if ! command -v dpkg-query >/dev/null; then
    echo "this is no Debian or Ubuntu: please see to it that these are installed: ${packages[*]}" >&2
    exit 0
fi
missing=()
for package in "${packages[@]}"; do
    state="$(dpkg-query --show --showformat '${db:Status-Abbrev}' "$package" 2>/dev/null || true)"
    if [ "${state:0:2}" != ii ]; then missing+=("$package"); fi
done
if [ "${#missing[@]}" = 0 ]; then exit 0; fi

root=()
if [ "$(id -u)" != 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "these packages are missing; run: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    root=(sudo -n)
fi
echo "installing ${missing[*]}"
install() {
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}
# The package lists may be absent or old: then the first try fails and the second has fresh ones.
install 2>/dev/null || { "${root[@]}" apt-get update -qq && install; }
