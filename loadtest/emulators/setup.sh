#!/usr/bin/env bash
# Installs the pinned emulators of AWS services into target/tools: moto from PyPI, kinesis-local from npm; and libfaketime
# from Debian, which moves the clocks of a chaos run. Quick where they are installed already. Where an installation fails,
# the tests that need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../.ci/tools.sh"

need 'moto' from_pypi "$tools/moto" "$here/requirements.txt"
need 'kinesis-local' from_npm "$tools/kinesis" "$here/js"
need 'libfaketime' library_from_debian "$tools/faketime" libfaketime libfaketimeMT.so.1
installed
