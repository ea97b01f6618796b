#!/usr/bin/env bash
# Installs what the tests of rules and dashboards need into target/tools: Prometheus with promtool, from Debian's package or
# the PATH, and jsonnet from PyPI, because Debian's has a parseYaml that cannot read rules. Quick where they are installed
# already. Where an installation fails, the tests that need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../.ci/tools.sh"

need 'Prometheus' from_debian "$tools/prometheus" prometheus prometheus promtool
need 'jsonnet' from_pypi "$tools/jsonnet" "$here/requirements.txt"
installed
