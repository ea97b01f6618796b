import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';

import { PACKAGE, skipUnless } from './support';
import { metrics, PROMTOOL, TOOLS } from './support-promql';

const OBSERVABILITY = join(PACKAGE, 'observability');
const PYTHON = join(TOOLS, 'jsonnet', 'bin', 'python');
const TIMEOUT = 300_000;
const hasTools = existsSync(PROMTOOL) && existsSync(PYTHON);
const skip = skipUnless(hasTools, 'infra: rules of Prometheus', 'promtool or jsonnet is missing: run infra/observability/setup.sh');

const path = (...names: string[]) => join(OBSERVABILITY, ...names);
const listed = (directory: string, ending: string) => readdirSync(path(directory)).filter((name) => name.endsWith(ending)).sort();
const testFiles = listed('tests', '.yaml');

interface Rule {
  readonly alert?: string;
  readonly record?: string;
  readonly expr: string;
  readonly labels?: Record<string, string>;
  readonly annotations?: Record<string, string>;
}

interface Mixin {
  readonly rules: Rule[];
  readonly dashboards: Record<string, unknown>;
}

interface Case {
  readonly name: string;
  readonly alert_rule_test?: { alertname: string; exp_alerts?: { exp_labels: Record<string, string>; exp_annotations: unknown }[] }[];
  readonly promql_expr_test: { expr: string; exp_samples: unknown[] }[];
}

describe('rules', { skip }, () => {
  const { rules, dashboards } = skip ? { rules: [], dashboards: {} } : mixin();
  const alerts = rules.filter(({ alert }) => alert !== undefined);
  const recorded = new Map(rules.filter(({ record }) => record !== undefined).map(({ record, expr }) => [record!, expr]));
  const metricsTable = readFileSync(path('METRICS.md'), 'utf8');

  test('Prometheus reads them, and has nothing to remark', () => {
    const files = listed('rules', '.yaml').map((name) => path('rules', name));
    const said = execFileSync(PROMTOOL, ['check', 'rules', '--lint=all', '--lint-fatal', ...files], { encoding: 'utf8' });
    assert.equal(said.match(/SUCCESS/g)?.length, files.length, said);
  });

  for (const file of testFiles) {
    test(`tests/${file} holds`, { timeout: TIMEOUT }, async () => {
      await promisify(execFile)(PROMTOOL, ['test', 'rules', path('tests', file)]).catch(({ stdout, stderr }) => assert.fail(stdout + stderr));
    });
  }

  test('every alert has a severity, says what is wrong and what that means, and leads to its section of the runbook', () => {
    const anchors = anchorsOf(readFileSync(path('RUNBOOK.md'), 'utf8'));
    assert.ok(alerts.length > 0);
    for (const { alert, labels, annotations } of alerts) {
      assert.match(labels!.severity, /^(page|ticket)$/, alert);
      assert.deepEqual(Object.keys(annotations!).sort(), ['description', 'runbook_url', 'summary'], alert);
      assert.match(annotations!.summary, /^\{\{ with \$labels\.cluster }}\{\{ \. }}: \{\{ end }}.{10,}[^.]$/, alert);
      assert.match(annotations!.description, /.{40,}\.$/, alert);
      const [base, anchor] = annotations!.runbook_url.split('#');
      assert.deepEqual([base, anchor], ['infra/observability/RUNBOOK.md', alert!.toLowerCase()]);
      assert.ok(anchors.has(anchor), `RUNBOOK.md has no section #${anchor}`);
    }
  });

  test('every alert is tested: it fires, with its text; it is silent; what it asks for is absent', () => {
    const cases = testFiles.flatMap((file) => evaluate(`std.parseYaml(importstr '${path('tests', file)}').tests`) as Case[]);
    const asks = ({ promql_expr_test: queries }: Case, alert: string) =>
      queries.filter(({ expr }) => expr.includes('ALERTS{') && (!expr.includes('alertname=') || expr.includes(`alertname="${alert}"`)));
    for (const { alert, labels } of alerts) {
      const named = (kind: string) => {
        const found = cases.filter(({ name }) => name.startsWith(`${alert} ${labels!.severity} ${kind}: `));
        assert.ok(found.length > 0, `${alert} ${labels!.severity} ${kind}`);
        return found;
      };
      const firing = named('firing');
      for (const fires of firing) {
        assert.ok(asks(fires, alert!).some(({ exp_samples: samples }) => samples.length > 0), fires.name);
      }
      const said = firing.flatMap(({ alert_rule_test: of }) => of ?? []).filter(({ alertname }) => alertname === alert);
      const texts = said.flatMap(({ exp_alerts: expected }) => expected ?? []).filter(({ exp_annotations: text }) => text !== undefined);
      assert.ok(texts.some(({ exp_labels: expected }) => expected.severity === labels!.severity), alert);
      // That there is no worker at all is what this one is for.
      const whenAbsent = alert === 'MeteringNoWorker' ? 1 : 0;
      for (const [kind, expected] of [['silent', 0], ['absent', whenAbsent]] as const) {
        for (const other of named(kind)) {
          assert.ok(asks(other, alert!).some(({ exp_samples: samples }) => samples.length === expected), other.name);
        }
      }
    }
  });

  test('ask for metrics and label values that METRICS.md has', () => {
    // Both services have some, with other label values.
    const rows = metricsTable.split('\n').filter((line) => line.startsWith('| `'));
    const rowsOf = (name: string) =>
      rows.filter((row) => [name, name.replace(/_(bucket|sum|count)$/, '')].some((known) => row.startsWith(`| \`${known}\` `)));
    for (const { alert, record, expr } of rules) {
      for (const name of metrics(expr).filter((metric) => metric !== 'up' && !recorded.has(metric))) {
        assert.ok(rowsOf(name).length > 0, `${alert ?? record}: ${name}`);
      }
      for (const [, name, matchers] of expr.matchAll(/(\w+)\{([^}]*)}/g)) {
        for (const [, label, operator, value] of matchers.matchAll(/(\w+)(=~|!=|=)"([^"]*)"/g)) {
          const said = operator === '=~' ? `\`${label}\`` : `\`${value}\``;
          // `job` is Prometheus' own label of what it scrapes.
          const isKnown = ['job', 'le'].includes(label) || rowsOf(name).some((row) => row.includes(said));
          assert.ok(isKnown, `${alert ?? record}: ${label}="${value}"`);
        }
      }
    }
  });

  test('record nothing that neither an alert nor a dashboard uses', () => {
    const used = new Set<string>();
    const waiting = [...alerts.map(({ expr }) => expr), JSON.stringify(dashboards)];
    for (let text = waiting.pop(); text !== undefined; text = waiting.pop()) {
      for (const [name] of text.matchAll(/\w+:\w+:\w+/g)) {
        if (recorded.has(name) && !used.has(name)) {
          used.add(name);
          waiting.push(recorded.get(name)!);
        }
      }
    }
    assert.deepEqual([...recorded.keys()].filter((name) => !used.has(name)), []);
  });

  test('the mixin hands on all files, with the names of its configuration', () => {
    assert.deepEqual(Object.keys(dashboards).sort(), listed('dashboards', '.json'));
    const plain = JSON.stringify(rules);
    const configuration = "runbookBase: 'https://wiki.example.com/x', workerJob: 'metering/worker', controlApiJob: 'metering/api'";
    const configured = JSON.stringify(mixin(`+ { _config+:: { ${configuration} } }`).rules);
    assert.match(plain, /job=\\"ingest-worker\\"/);
    assert.doesNotMatch(configured, /RUNBOOK|job=\\"(ingest-worker|control-api)\\"/);
    const back = configured
      .replaceAll('https://wiki.example.com/x#', 'infra/observability/RUNBOOK.md#')
      .replaceAll('metering/worker', 'ingest-worker')
      .replaceAll('metering/api', 'control-api');
    assert.equal(back, plain);
  });
});

/** What the mixin has, once with what is added to it. */
function mixin(added = ''): Mixin {
  return evaluate(`
    local mixin = (import '${path('mixin.libsonnet')}') ${added};
    {
      rules: std.flatMap(function(group) group.rules, mixin.prometheusRules.groups + mixin.prometheusAlerts.groups),
      dashboards: mixin.grafanaDashboards,
    }`) as Mixin;
}

/** The value of an expression in jsonnet. */
function evaluate(expression: string): unknown {
  const program = 'import sys, _jsonnet; print(_jsonnet.evaluate_snippet("test", sys.stdin.read()))';
  return JSON.parse(execFileSync(PYTHON, ['-c', program], { input: expression, encoding: 'utf8', maxBuffer: 1 << 26 }));
}

/** The anchors of a document's headings, as GitHub makes them. */
function anchorsOf(document: string): Set<string> {
  const anchors = new Set<string>();
  for (const [, heading] of document.replace(/^```.*?^```/gms, '').matchAll(/^#+ (.+)$/gm)) {
    const slug = heading.toLowerCase().replace(/[^\p{L}\p{N}\- _]/gu, '').replaceAll(' ', '-');
    let anchor = slug;
    for (let number = 1; anchors.has(anchor); number++) {
      anchor = `${slug}-${number}`;
    }
    anchors.add(anchor);
  }
  return anchors;
}
