#!/usr/bin/env bash
# Installs the pinned AWS clients of the bus tests into target/tools: boto3 and the AWS CLI from PyPI, the SDK for
# JavaScript from npm. Quick where they are installed already. Where an installation fails, the tests that need it say
# so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
tools=$root/target/tools
failed=0
. "$root/.ci/tools.sh"

mkdir -p "$tools"
from_pypi "$tools/python" "$here/requirements.txt" ||
    { echo "setup: boto3 and the AWS CLI could not be installed in $tools/python" >&2; failed=1; }
from_npm "$tools/js" "$here/js" ||
    { echo "setup: the AWS SDK for JavaScript could not be installed in $tools/js" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
