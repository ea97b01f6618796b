#!/usr/bin/env bash
# Installs what the tests of this package need: the locked npm packages here, and cfn-lint from PyPI in target/tools. Quick
# where they are installed already. Where an installation fails, that is said and the tests that need it are skipped; with
# CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
tools=$root/target/tools
failed=0
. "$root/.ci/tools.sh"

mkdir -p "$tools"
installed=$here/node_modules/.installed-lock.json
cmp -s "$here/package-lock.json" "$installed" ||
    { (cd "$here" && npm ci --silent --ignore-scripts --no-audit --no-fund) && cp "$here/package-lock.json" "$installed"; } ||
    { echo "setup: the npm packages of infra could not be installed in $here" >&2; failed=1; }
from_pypi "$tools/cfn-lint" "$here/test/cfn-lint/requirements.txt" ||
    { echo "setup: cfn-lint could not be installed in $tools/cfn-lint" >&2; failed=1; }
[ "${CI:-}" != true ] || exit $failed
