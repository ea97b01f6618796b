#!/usr/bin/env bash
# Installs the pinned schemathesis into target/tools. Quick where it is installed already. Where the installation fails,
# the test that needs it says so and is skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../.ci/tools.sh"

need 'schemathesis' from_pypi "$tools/schemathesis" "$here/requirements.txt"
installed
