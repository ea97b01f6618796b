#!/usr/bin/env bash
# Installs the pinned AWS clients of the bus tests into target/tools: boto3 and the AWS CLI from PyPI, the SDK for
# JavaScript from npm. Quick where they are installed already. Where an installation fails, the tests that need it say
# so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../.ci/tools.sh"

need 'boto3 and the AWS CLI' from_pypi "$tools/python" "$here/requirements.txt"
need 'the AWS SDK for JavaScript' from_npm "$tools/js" "$here/js"
installed
