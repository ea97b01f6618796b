#!/usr/bin/env bash
# Installs the pinned AWS clients of the bus tests into target/tools: boto3 and the AWS CLI from PyPI, the SDK for
# JavaScript from npm. Quick where they are installed already. Where an installation fails, the tests that need it say
# so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$here/../../.." && pwd)/target/tools
failed=0

# The copy of the list of versions is made last: it says that the installation is complete.
python_clients() {
    cmp -s "$here/requirements.txt" "$tools/python/requirements.txt" && return
    rm -rf "$tools/python" &&
        python3 -m venv "$tools/python" &&
        "$tools/python/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt" &&
        cp "$here/requirements.txt" "$tools/python/requirements.txt"
}

javascript_client() {
    cmp -s "$here/js/package-lock.json" "$tools/js/installed-lock.json" && return
    mkdir -p "$tools/js" &&
        cp "$here/js/package.json" "$here/js/package-lock.json" "$tools/js/" &&
        (cd "$tools/js" && npm ci --silent --ignore-scripts --no-audit --no-fund) &&
        cp "$here/js/package-lock.json" "$tools/js/installed-lock.json"
}

mkdir -p "$tools"
python_clients || { echo "setup: boto3 and the AWS CLI could not be installed in $tools/python" >&2; failed=1; }
javascript_client || { echo "setup: the AWS SDK for JavaScript could not be installed in $tools/js" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
