#!/usr/bin/env bash
# Installs the pinned emulators of AWS services into target/tools: moto from PyPI, kinesis-local from npm. Quick where
# they are installed already. Where an installation fails, the tests that need it say so and are skipped; with CI=true
# that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$here/../.." && pwd)/target/tools
failed=0

# The copy of the list of versions is made last: it says that the installation is complete.
moto() {
    cmp -s "$here/requirements.txt" "$tools/moto/requirements.txt" && return
    rm -rf "$tools/moto" &&
        python3 -m venv "$tools/moto" &&
        "$tools/moto/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" &&
        cp "$here/requirements.txt" "$tools/moto/requirements.txt"
}

kinesis_local() {
    cmp -s "$here/js/package-lock.json" "$tools/kinesis/installed-lock.json" && return
    mkdir -p "$tools/kinesis" &&
        cp "$here/js/package.json" "$here/js/package-lock.json" "$tools/kinesis/" &&
        (cd "$tools/kinesis" && npm ci --silent --ignore-scripts --no-audit --no-fund) &&
        cp "$here/js/package-lock.json" "$tools/kinesis/installed-lock.json"
}

mkdir -p "$tools"
moto || { echo "setup: moto could not be installed in $tools/moto" >&2; failed=1; }
kinesis_local || { echo "setup: kinesis-local could not be installed in $tools/kinesis" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
