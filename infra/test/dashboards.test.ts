import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { ALERTS } from '../observability/dashboards/src/alerts';
import { dashboards } from '../observability/dashboards/src/generate';
import { PACKAGE, skipUnless, temporaryDirectory } from './support';
import { metrics, PROMTOOL } from './support-promql';

const OBSERVABILITY = join(PACKAGE, 'observability');
const DIRECTORY = join(OBSERVABILITY, 'dashboards');
const files = readdirSync(DIRECTORY).filter((name) => name.endsWith('.json'));
const read = (...path: string[]) => readFileSync(join(OBSERVABILITY, ...path), 'utf8');

/** Durations and regular expressions that stand for what Grafana puts into a query. */
const VARIABLES: Record<string, string> = { cluster: '.*', instance: '.*', job: '.*', __rate_interval: '5m', __range: '3h' };

interface Query {
  /** The dashboard and the panel, variable or annotation. */
  readonly of: string;
  readonly expr: string;
}

const shown = files.map((name) => ({ name, dashboard: JSON.parse(read('dashboards', name)) }));
const panels = shown.flatMap(({ name, dashboard }) =>
  dashboard.panels.filter(({ type }: any) => type !== 'row').map((panel: any) => ({ of: `${name}: ${panel.title}`, panel })),
);
const targets: Query[] = panels.flatMap(({ of, panel }) => panel.targets.map(({ expr }: any) => ({ of, expr })));
const annotations: Query[] = shown.flatMap(({ name, dashboard }) =>
  dashboard.annotations.list.map((annotation: any) => ({ of: `${name}: ${annotation.name}`, expr: annotation.expr })),
);

test('the committed JSON is what the sources make: `npm run dashboards` writes it', () => {
  const made = dashboards();
  assert.deepEqual(files, Object.keys(made).sort());
  for (const [name, json] of Object.entries(made)) {
    assert.equal(read('dashboards', name), json, name);
  }
});

describe('dashboards', () => {
  test('have addresses of their own, which stay', () => {
    assert.deepEqual(shown.map(({ dashboard }) => dashboard.uid).sort(), ['metering-amberflo', 'metering-overview', 'metering-pipeline', 'metering-services']);
    assert.equal(new Set(shown.map(({ dashboard }) => dashboard.title)).size, shown.length);
  });

  test('let choose the data source, and clusters, of which there may be none', () => {
    for (const { name, dashboard } of shown) {
      const [datasource, cluster] = dashboard.templating.list;
      assert.deepEqual([datasource.name, datasource.type, datasource.query], ['datasource', 'datasource', 'prometheus'], name);
      assert.equal(cluster.name, 'cluster');
      const chosen = dashboard.templating.list.filter(({ type }: any) => type === 'query');
      for (const variable of chosen) {
        assert.deepEqual([variable.multi, variable.includeAll, variable.allValue], [true, true, '.*'], `${name}: ${variable.name}`);
        assert.equal(variable.datasource.uid, '${datasource}');
      }
    }
  });

  test('use only the variables that they have', () => {
    for (const { name, dashboard } of shown) {
      const has = new Set([...dashboard.templating.list.map((variable: any) => variable.name), '__rate_interval', '__range', '__value', '__all']);
      const used = [...JSON.stringify(dashboard).matchAll(/\$\{?([a-zA-Z_]\w*)/g)].map(([, variable]) => variable);
      assert.deepEqual(used.filter((variable) => !has.has(variable)), [], name);
      const unused = dashboard.templating.list.filter((variable: any) => !used.includes(variable.name));
      assert.deepEqual(unused.map((variable: any) => variable.name), [], name);
    }
  });

  test('do not lay one panel over another, and leave no hole', () => {
    for (const { name, dashboard } of shown) {
      const taken = new Map<string, string>();
      for (const { title, gridPos } of dashboard.panels) {
        assert.ok(gridPos.w > 0 && gridPos.h > 0 && gridPos.x + gridPos.w <= 24, `${name}: ${title}`);
        for (let y = gridPos.y; y < gridPos.y + gridPos.h; y++) {
          for (let x = gridPos.x; x < gridPos.x + gridPos.w; x++) {
            assert.equal(taken.get(`${x},${y}`), undefined, `${name}: ${title} lies over another`);
            taken.set(`${x},${y}`, title);
          }
        }
      }
      const bottom = Math.max(...dashboard.panels.map(({ gridPos }: any) => gridPos.y + gridPos.h));
      assert.equal(taken.size, 24 * bottom, `${name} is a full rectangle`);
    }
  });

  test('are not edited where they are shown without the sources being so: their ids are counted', () => {
    for (const { name, dashboard } of shown) {
      assert.deepEqual(dashboard.panels.map(({ id }: any) => id), dashboard.panels.map((_: any, index: number) => index + 1), name);
    }
  });
});

describe('panels', () => {
  const documented = new Set(read('METRICS.md').match(/(?<=^\| `)\w+/gm));

  test('say what they show, in what unit, and from where', () => {
    assert.ok(panels.length >= 50, `${panels.length}`);
    for (const { of, panel } of panels) {
      assert.match(panel.title, /^\w/, of);
      assert.match(panel.description, /^[\w`].{20,}[.)]$/s, of);
      assert.match(panel.fieldConfig.defaults.unit, /^\w+$/, of);
      assert.deepEqual(panel.datasource, { type: 'prometheus', uid: '${datasource}' }, of);
      assert.ok(panel.targets.length > 0, of);
      for (const target of panel.targets) {
        assert.match(target.legendFormat, /\w/, of);
        assert.notEqual(target.instant, target.range, of);
      }
    }
    for (const { name, dashboard } of shown) {
      const titles = dashboard.panels.map(({ title }: any) => title);
      assert.equal(new Set(titles).size, titles.length, name);
    }
  });

  test('lead from every alert, and only from alerts, to its section of the runbook', () => {
    const linked = new Set(panels.flatMap(({ panel }) => panel.links.map(({ url }: any) => url)));
    assert.deepEqual([...linked].sort(), ALERTS.map((name) => `\${runbook}#${name.toLowerCase()}`).sort());
    const headings = new Set(read('RUNBOOK.md').match(/(?<=^#+ )\w+$/gm));
    assert.deepEqual(ALERTS.filter((name) => !headings.has(name)), []);
  });

  test('are of what the services expose, or the rules record', () => {
    const recorded = new Set(read('rules', 'recording.yaml').match(/(?<=record: )\S+/g));
    const suffixes = /_(bucket|sum|count)$/;
    for (const { of, expr } of [...targets, ...annotations]) {
      const names = metrics(expr);
      assert.ok(names.length > 0, of);
      for (const name of names.filter((metric) => metric !== 'ALERTS')) {
        assert.ok(documented.has(name) || documented.has(name.replace(suffixes, '')) || recorded.has(name), `${of}: ${name}`);
      }
    }
  });

  test('leave out no metric of ours', () => {
    const used = new Set(targets.flatMap(({ expr }) => metrics(expr)).map((name) => name.replace(/_(bucket|sum|count)$/, '')));
    assert.deepEqual([...documented].filter((name) => !name.startsWith('process_') && !used.has(name)), []);
  });

  test('ask for rates over what Grafana finds right, and for what is chosen', () => {
    for (const { of, expr } of targets) {
      for (const [call] of expr.replace(/"[^"]*"/g, '""').matchAll(/\b(i?rate|i?delta|deriv)\([^[]*\[[^\]]*\]/g)) {
        assert.match(call, /\[\$__rate_interval\]$/, `${of}: ${call}`);
      }
      for (const [, metric, matchers] of expr.matchAll(/(?<![\w:])((?:\w+:)*(?:ingest|amberflo|control_api|process|tokio)_[\w:]+|build_info|ALERTS)(\{[^}]*\})?/g)) {
        assert.match(matchers ?? '', /cluster=~"\$cluster"/, `${of}: ${metric}`);
      }
    }
  });
});

test('the alerts of dashboards are those of the rules', () => {
  const alerts = new Set(read('rules', 'alerts.yaml').match(/(?<=alert: )\w+/g));
  assert.deepEqual([...ALERTS].sort(), [...alerts].sort());
});

describe('Prometheus reads', { skip: skipUnless(existsSync(PROMTOOL), 'infra: queries of dashboards', 'promtool is not installed: run infra/observability/setup.sh') }, () => {
  const check = (...args: string[]) => execFileSync(PROMTOOL, ['check', ...args], { encoding: 'utf8', stdio: 'pipe' });

  test('every query', () => {
    const queries = [...targets, ...annotations];
    const rules = queries.map(({ of, expr }, index) => ({ record: `query:${index}`, expr: substituted(expr), labels: { of } }));
    const file = join(temporaryDirectory(), 'queries.yaml');
    // JSON is YAML.
    writeFileSync(file, JSON.stringify({ groups: [{ name: 'queries', rules }] }));
    assert.match(check('rules', file), new RegExp(`SUCCESS: ${queries.length} rules found`));
  });

  test('the configuration that compose gives it', () => {
    assert.match(check('config', '--syntax-only', join(OBSERVABILITY, 'compose', 'prometheus.yaml')), /SUCCESS/);
  });
});

function substituted(expr: string): string {
  return expr.replace(/\$(\w+)/g, (text, name) => VARIABLES[name] ?? text);
}
