#!/usr/bin/env bash
# Installs the pinned emulators of AWS services into target/tools: moto from PyPI, kinesis-local from npm. Quick where
# they are installed already. Where an installation fails, the tests that need it say so and are skipped; with CI=true
# that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
tools=$root/target/tools
failed=0
. "$root/.ci/tools.sh"

mkdir -p "$tools"
from_pypi "$tools/moto" "$here/requirements.txt" ||
    { echo "setup: moto could not be installed in $tools/moto" >&2; failed=1; }
from_npm "$tools/kinesis" "$here/js" ||
    { echo "setup: kinesis-local could not be installed in $tools/kinesis" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
