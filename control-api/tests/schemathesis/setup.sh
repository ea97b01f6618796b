#!/usr/bin/env bash
# Installs the pinned schemathesis into target/tools. Quick where it is installed already. Where the installation fails,
# the test that needs it says so and is skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
failed=0
. "$root/.ci/tools.sh"

mkdir -p "$root/target/tools"
from_pypi "$root/target/tools/schemathesis" "$here/requirements.txt" ||
    { echo "setup: schemathesis could not be installed in $root/target/tools/schemathesis" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
