#!/usr/bin/env bash
# Installs the browser in which the status page is tested: Chromium, from Debian's packages, where none is on the PATH and
# root asks. Where it cannot be installed, the tests that need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../../.ci/tools.sh"

install() {
    type -P chromium >/dev/null && return
    [ "$(id -u)" = 0 ] || return
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet --quiet && apt-get install --yes --quiet --no-install-recommends chromium fonts-dejavu-core >/dev/null
}

need Chromium install /usr/bin
installed
