#!/usr/bin/env bash
# Installs what the system tests need into target/tools: the pinned emulator of CloudFormation, from PyPI, and what the
# example emitters need, from their own lists. Quick where it is installed already. Where an installation fails, the tests
# that need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
tools=$root/target/tools
failed=0
. "$root/.ci/tools.sh"

mkdir -p "$tools"
from_pypi "$tools/ministack" "$here/requirements.txt" ||
    { echo "setup: ministack could not be installed in $tools/ministack" >&2; failed=1; }
from_npm "$tools/emit-node" "$root/infra/examples/emit/node" ||
    { echo "setup: the client of infra/examples/emit/node could not be installed in $tools/emit-node" >&2; failed=1; }
from_pypi "$tools/emit-python" "$root/infra/examples/emit/python/requirements.txt" ||
    { echo "setup: the client of infra/examples/emit/python could not be installed in $tools/emit-python" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
