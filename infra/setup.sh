#!/usr/bin/env bash
# Installs what the tests of this package need: the locked npm packages here, and cfn-lint from PyPI in target/tools. Quick
# where they are installed already. Where an installation fails, that is said and the tests that need it are skipped; with
# CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../.ci/tools.sh"

# in_place DIRECTORY: the packages of its own package-lock.json.
in_place() {
    local copy=$1/node_modules/.installed-lock.json
    cmp -s "$1/package-lock.json" "$copy" && return
    (cd "$1" && npm ci --silent --ignore-scripts --no-audit --no-fund) && cp "$1/package-lock.json" "$copy"
}

need 'the npm packages of infra' in_place "$here"
need 'cfn-lint' from_pypi "$tools/cfn-lint" "$here/test/cfn-lint/requirements.txt"
installed
