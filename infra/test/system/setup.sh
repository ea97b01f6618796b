#!/usr/bin/env bash
# Installs what the system tests need into target/tools: the pinned emulator of CloudFormation, from PyPI, and what the
# example emitters need, from their own lists. Quick where it is installed already. Where an installation fails, the tests
# that need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../.ci/tools.sh"

need 'ministack' from_pypi "$tools/ministack" "$here/requirements.txt"
need 'the client of infra/examples/emit/node' from_npm "$tools/emit-node" "$root/infra/examples/emit/node"
need 'the client of infra/examples/emit/python' from_pypi "$tools/emit-python" "$root/infra/examples/emit/python/requirements.txt"
installed
