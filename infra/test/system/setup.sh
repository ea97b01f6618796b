#!/usr/bin/env bash
# Installs the pinned emulator of CloudFormation into target/tools, from PyPI. Quick where it is installed already. Where
# the installation fails, the tests that need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
tools=$root/target/tools
failed=0
. "$root/.ci/tools.sh"

mkdir -p "$tools"
from_pypi "$tools/ministack" "$here/requirements.txt" ||
    { echo "setup: ministack could not be installed in $tools/ministack" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
