#!/usr/bin/env bash
# Installs what `loadtest bench-peers` compares with into target/tools/peers, pinned, from PyPI. Quick where it is
# installed already. Where the installation fails, the benchmark leaves those peers out and says so, and the tests that
# need them are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../.ci/tools.sh"

need 'the peers of the benchmark' from_pypi "$tools/peers" "$here/requirements.txt"
installed
