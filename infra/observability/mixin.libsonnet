// The rules and dashboards of this folder as a monitoring mixin, for those who keep theirs in jsonnet:
//
//     (import 'infra/observability/mixin.libsonnet') + { _config+:: { runbookBase: 'https://wiki.example.com/metering' } }
//
// The YAML and JSON files are what is true; here they are only handed on.
{
  _config:: {
    // What stands before the # in every runbook_url.
    runbookBase: 'infra/observability/RUNBOOK.md',
    // The values of the label `job`.
    workerJob: 'ingest-worker',
    controlApiJob: 'control-api',
  },

  local replaced(text) = std.foldl(
    function(text, pair) std.strReplace(text, pair[0], pair[1]),
    [
      ['infra/observability/RUNBOOK.md#', $._config.runbookBase + '#'],
      ['job="ingest-worker"', 'job="%s"' % $._config.workerJob],
      ['job="control-api"', 'job="%s"' % $._config.controlApiJob],
    ],
    text
  ),

  prometheusRules+:: std.parseYaml(replaced(importstr 'rules/recording.yaml')),
  prometheusAlerts+:: std.parseYaml(replaced(importstr 'rules/alerts.yaml')),
  grafanaDashboards+:: {
    'amberflo.json': import 'dashboards/amberflo.json',
    'overview.json': import 'dashboards/overview.json',
    'pipeline.json': import 'dashboards/pipeline.json',
    'services.json': import 'dashboards/services.json',
  },
}
