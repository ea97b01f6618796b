#!/usr/bin/env bash
# Installs what the tests of rules and dashboards need into target/tools: Prometheus with promtool, and jsonnet, from
# Debian's packages or from the PATH. Quick where they are installed already. Where an installation fails, the tests that
# need it say so and are skipped; with CI=true that is an error.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../.ci/tools.sh"

need 'Prometheus' from_debian "$tools/prometheus" prometheus prometheus promtool
need 'jsonnet' from_debian "$tools/jsonnet" jsonnet jsonnet
installed
