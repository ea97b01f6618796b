/**
 * What all dashboards share: their variables, annotations and links, and the four kinds of panels.
 *
 * What occurs in queries besides PromQL: `$cluster`, `$instance` and `$job` (regular expressions, `.*` for all),
 * `$__rate_interval` and `$__range` (durations).
 */
import { Builder } from '@grafana/grafana-foundation-sdk/cog';
import * as common from '@grafana/grafana-foundation-sdk/common';
import * as dashboard from '@grafana/grafana-foundation-sdk/dashboard';
import * as heatmap from '@grafana/grafana-foundation-sdk/heatmap';
import { DataqueryBuilder, PromQueryFormat } from '@grafana/grafana-foundation-sdk/prometheus';
import * as stat from '@grafana/grafana-foundation-sdk/stat';
import * as table from '@grafana/grafana-foundation-sdk/table';
import * as timeseries from '@grafana/grafana-foundation-sdk/timeseries';

import { ALERTS, section } from './alerts';

/** Where the runbook is; beside it, `README.md` says how to put an address of one's own here and in the alerts. */
const RUNBOOK = 'infra/observability/RUNBOOK.md';
const TAG = 'metering';
const DATASOURCE: dashboard.DataSourceRef = { type: 'prometheus', uid: '${datasource}' };

/** The label matchers of a query, by what can be chosen on its dashboard. */
export const CLUSTER = 'cluster=~"$cluster"';
export const WORKER = `${CLUSTER}, instance=~"$instance"`;
export const PROCESS = `${CLUSTER}, job=~"$job", instance=~"$instance"`;
/** Both services, whatever their jobs are called: `build_info` is a name that other programs use too. */
const OURS = `service=~"ingest-worker|control-api", ${CLUSTER}`;

/** Seconds within which an event has to be delivered. */
export const OBJECTIVE_SECONDS = 60;
/** The bucket of what was: Prometheus 2 keeps its label as exposed, 3 writes it as a floating-point number. */
export const WITHIN_OBJECTIVE = 'le=~"60|60[.]0"';

export type Color = 'green' | 'yellow' | 'orange' | 'red' | 'blue';

/** What every panel has. */
interface Panel {
  readonly title: string;
  /** What it shows, what good looks like, and what to do otherwise. */
  readonly description: string;
  /** Grafana's id of the unit. */
  readonly unit: string;
  /** PromQL by legend. */
  readonly queries: Record<string, string>;
  /** Of 24. */
  readonly width: number;
  readonly height?: number;
  /** From which value on which colour holds; green below the first. */
  readonly thresholds?: readonly (readonly [number, Color])[];
  /** The alerts that look at this: links to their sections of the runbook. */
  readonly alerts?: readonly (typeof ALERTS)[number][];
  readonly decimals?: number;
}

export interface Graph extends Panel {
  readonly stacked?: boolean;
  readonly max?: number;
}

export interface Stat extends Panel {
  /** What values mean, where a number says nothing. */
  readonly words?: Record<string, readonly [string, Color]>;
  /** The colour below the first threshold. */
  readonly base?: Color;
}

/** A dashboard that panels are added to, from left to right and from top to bottom. */
export class Dashboard {
  private readonly builder: dashboard.DashboardBuilder;
  private panels = 0;

  constructor(uid: string, title: string, description: string, variables: readonly ('instance' | 'job')[]) {
    this.builder = new dashboard.DashboardBuilder(title)
      .uid(uid)
      .description(description)
      .tags([TAG])
      .timezone('browser')
      .tooltip(dashboard.DashboardCursorSync.Crosshair)
      .time({ from: 'now-3h', to: 'now' })
      .refresh('30s')
      .withVariable(new dashboard.DatasourceVariableBuilder('datasource').label('Data source').type('prometheus'))
      .withVariable(query('cluster', 'Cluster', `label_values(build_info{service=~"ingest-worker|control-api"}, cluster)`))
      .withVariable(new dashboard.ConstantVariableBuilder('runbook').value(RUNBOOK))
      .link(new dashboard.DashboardLinkBuilder('Runbook').type(dashboard.DashboardLinkType.Link).icon('doc').url('${runbook}').targetBlank(true))
      .link(new dashboard.DashboardLinkBuilder('Metering').type(dashboard.DashboardLinkType.Dashboards).tags([TAG]).includeVars(true).keepTime(true));
    if (variables.includes('job')) {
      this.builder.withVariable(query('job', 'Job', `label_values(build_info{${OURS}}, job)`));
    }
    if (variables.includes('instance')) {
      const of = variables.includes('job') ? `build_info{${OURS}, job=~"$job"}` : `ingest_ready{${CLUSTER}}`;
      this.builder.withVariable(query('instance', 'Instance', `label_values(${of}, instance)`));
    }
    for (const { name, color, expr, title, text } of ANNOTATIONS) {
      const annotation = new dashboard.AnnotationQueryBuilder().name(name).datasource(DATASOURCE).enable(true).iconColor(color);
      this.builder.annotation(annotation.expr(expr).step('30s').titleFormat(title).textFormat(text));
    }
  }

  row(title: string): this {
    this.builder.withRow(new dashboard.RowBuilder(title).id(++this.panels));
    return this;
  }

  graph(graph: Graph): this {
    const panel = new timeseries.PanelBuilder()
      .lineWidth(1)
      .fillOpacity(graph.stacked ? 40 : 8)
      .showPoints(common.VisibilityMode.Never)
      .legend(legend())
      .tooltip(new common.VizTooltipOptionsBuilder().mode(common.TooltipDisplayMode.Multi).sort(common.SortOrder.Descending))
      .min(0);
    if (graph.max !== undefined) {
      panel.max(graph.max);
    }
    if (graph.stacked) {
      panel.stacking(new common.StackingConfigBuilder().mode(common.StackingMode.Normal));
    }
    if (graph.thresholds) {
      panel.thresholdsStyle(new common.GraphThresholdsStyleConfigBuilder().mode(common.GraphThresholdsStyleMode.Dashed));
    }
    return this.add(panel, graph, { height: 8 });
  }

  /** The present alone: the last value of a worker that died an hour ago would look like one of now. */
  stat(stats: Stat): this {
    const panel = new stat.PanelBuilder()
      .colorMode(common.BigValueColorMode.Background)
      .graphMode(common.BigValueGraphMode.None)
      .reduceOptions(new common.ReduceDataOptionsBuilder().calcs(['lastNotNull']))
      .noValue('no data');
    if (stats.words) {
      const options = Object.entries(stats.words).map(([value, [text, color]], index) => [value, { text, color, index }]);
      panel.mappings([{ type: dashboard.MappingType.ValueToText, options: Object.fromEntries(options) }] as dashboard.ValueMapping[]);
    }
    return this.add(panel, stats, { height: 4, instant: true });
  }

  /** `queries` gives the increase of a histogram's buckets, by `le`. */
  heatmap(map: Panel): this {
    const panel = new heatmap.PanelBuilder()
      .calculate(false)
      .color(new heatmap.HeatmapColorOptionsBuilder().mode(heatmap.HeatmapColorMode.Scheme).scheme('Turbo').steps(64))
      .yAxis(new heatmap.YAxisConfigBuilder().unit(map.unit))
      .filterValues(new heatmap.FilterValueRangeBuilder().le(1e-9))
      .cellGap(1);
    return this.add(panel, map, { height: 8, format: PromQueryFormat.Heatmap });
  }

  /** The alerts that fire, each with a link to its section of the runbook. */
  alertTable(list: Omit<Panel, 'unit'>): this {
    const sections = Object.fromEntries(ALERTS.map((name, index) => [name, { text: section(name), index }]));
    const panel = new table.PanelBuilder()
      .noValue('No alert fires (or the rules are not loaded)')
      .sortBy([new common.TableSortByFieldStateBuilder().displayName('Severity')])
      .withTransformation({
        id: 'organize',
        options: {
          excludeByName: { Time: true, Value: true, __name__: true, alertstate: true, job: true },
          indexByName: { severity: 0, cluster: 1, alertname: 2, runbook: 3 },
          renameByName: { severity: 'Severity', cluster: 'Cluster', alertname: 'Alert', runbook: 'Runbook' },
        },
      })
      .overrideByName('Severity', [
        { id: 'mappings', value: [{ type: 'value', options: { page: { text: 'page', color: 'red', index: 0 }, ticket: { text: 'ticket', color: 'orange', index: 1 } } }] },
        { id: 'custom.cellOptions', value: { type: 'color-background' } },
      ])
      .overrideByName('Runbook', [
        { id: 'mappings', value: [{ type: 'value', options: sections }] },
        { id: 'links', value: [{ title: 'What to do', url: '${runbook}#${__value.text}', targetBlank: true }] },
      ]);
    return this.add(panel, { unit: 'none', ...list }, { height: 6, instant: true, format: PromQueryFormat.Table });
  }

  /** The dashboard as Grafana imports it. */
  json(): string {
    // The builders put links and annotations into a menu of the newest Grafana, where nobody looks for them at night.
    return `${JSON.stringify(this.builder.build(), (key, value) => (key === 'placement' && value === 'inControlsMenu' ? undefined : value), 2)}\n`;
  }

  private add(panel: AnyPanel, given: Panel & { base?: Color }, kind: Kind): this {
    const [base, steps] = [given.base ?? 'green', given.thresholds ?? []];
    panel
      .id(++this.panels)
      .title(given.title)
      .description(given.description)
      .datasource(DATASOURCE)
      .unit(given.unit)
      .span(given.width)
      .height(given.height ?? kind.height)
      .thresholds(
        new dashboard.ThresholdsConfigBuilder()
          .mode(dashboard.ThresholdsMode.Absolute)
          .steps([{ value: null, color: base }, ...steps.map(([value, color]) => ({ value, color }))]),
      )
      .links((given.alerts ?? []).map((name) => new dashboard.DashboardLinkBuilder(name).url(`\${runbook}#${section(name)}`).targetBlank(true)));
    if (given.decimals !== undefined) {
      panel.decimals(given.decimals);
    }
    Object.entries(given.queries).forEach(([legend, expr], index) => {
      const target = new DataqueryBuilder().refId(String.fromCharCode(65 + index)).expr(expr).legendFormat(legend);
      target.format(kind.format ?? PromQueryFormat.TimeSeries);
      panel.withTarget(kind.instant ? target.instant() : target.range());
    });
    this.builder.withPanel(panel as Builder<dashboard.Panel>);
    return this;
  }
}

/** What depends on the kind of a panel. */
interface Kind {
  readonly height: number;
  readonly instant?: boolean;
  readonly format?: PromQueryFormat;
}

type AnyPanel = timeseries.PanelBuilder | stat.PanelBuilder | heatmap.PanelBuilder | table.PanelBuilder;

/** Series with the value 1 where there is something to mark. */
const ANNOTATIONS = [
  {
    name: 'Alerts',
    color: 'red',
    expr: `ALERTS{alertname=~"Metering.*", alertstate="firing", ${CLUSTER}}`,
    title: '{{alertname}}',
    text: '{{severity}} {{cluster}}',
  },
  {
    name: 'Starts',
    color: 'purple',
    // Not by what changes: in a container a process that starts again is often a new instance.
    expr: `group by (cluster, job, instance) ((time() - process_start_time_seconds{${CLUSTER}} < 120) and on (cluster, job, instance) build_info{${OURS}})`,
    title: '{{job}} has started',
    text: '{{instance}} {{cluster}}',
  },
  {
    name: 'Versions',
    color: 'blue',
    expr: `group by (cluster, service, version) (build_info{${OURS}}) unless group by (cluster, service, version) (build_info{${OURS}} offset 5m)`,
    title: '{{service}} {{version}} is new',
    text: '{{cluster}}',
  },
] as const;

/** A variable of several values; all of them, which is also what holds where the label is absent, at first. */
function query(name: string, label: string, values: string): dashboard.QueryVariableBuilder {
  return new dashboard.QueryVariableBuilder(name)
    .label(label)
    .datasource(DATASOURCE)
    .query({ qryType: 5, query: values, refId: name })
    .definition(values)
    .refresh(dashboard.VariableRefresh.OnTimeRangeChanged)
    .sort(dashboard.VariableSort.NaturalAsc)
    .multi(true)
    .includeAll(true)
    .allValue('.*')
    .current({ selected: true, text: ['All'], value: ['$__all'] });
}

function legend(): common.VizLegendOptionsBuilder {
  return new common.VizLegendOptionsBuilder()
    .showLegend(true)
    .displayMode(common.LegendDisplayMode.Table)
    .placement(common.LegendPlacement.Bottom)
    .calcs(['lastNotNull', 'max']);
}
