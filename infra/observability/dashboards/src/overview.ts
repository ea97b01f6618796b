/** What to look at first: does it work, is money late or lost, and why. */
import { CLUSTER, OBJECTIVE_SECONDS, Dashboard, WITHIN_OBJECTIVE } from './dashboard';

const latency = (suffix: string, matchers = CLUSTER) => `ingest_delivery_latency_seconds_${suffix}{${matchers}}`;
const late = `(sum(rate(${latency('count')}[$__rate_interval])) - sum(rate(${latency('bucket', `${CLUSTER}, ${WITHIN_OBJECTIVE}`)}[$__rate_interval])))
/ clamp_min(sum(rate(${latency('count')}[$__rate_interval])), 1e-9)`;
/** Recorded, because windows of days are too much to read for every point of a graph. */
const burnt = (window: string) => `max(cluster:ingest_late_deliveries:ratio${window}{${CLUSTER}}) / 0.001`;
/** By process, because each has its own balance; what one lacks must not hide what another has too much. */
const unaccounted = `sum(abs(
  sum by (cluster, job, instance) (ingest_records_read_total{${CLUSTER}})
  - sum by (cluster, job, instance) (ingest_events_total{${CLUSTER}})
  - sum by (cluster, job, instance) (ingest_in_flight_records{${CLUSTER}})
))`;
/** In the chosen time. Of a process that began in it all counts: `increase` lacks what was before the first scrape. */
const since = (counter: string) => `sum(
  (${counter}{${CLUSTER}} unless last_over_time(${counter}{${CLUSTER}}[1d] offset $__range))
  or increase(${counter}{${CLUSTER}}[$__range])
)`;
const lag = `max by (cluster, shard) (ingest_shard_lag_seconds{${CLUSTER}})`;
/** Each worker sees all shards of its cluster. */
const shards = `sum(max by (cluster) (ingest_shards{${CLUSTER}}))`;
const held = `sum(ingest_leases_held{${CLUSTER}})`;

export function overview(): Dashboard {
  const dashboard = new Dashboard(
    'metering-overview',
    'Metering / Overview',
    'Start here: the first line says whether it works, the table what fires. Below: is usage late, is it lost, and why.',
    [],
  );
  working(dashboard);
  lateness(dashboard);
  loss(dashboard);
  why(dashboard);
  return dashboard;
}

function working(dashboard: Dashboard): void {
  dashboard
    .row('Does it work?')
    .stat({
      title: 'Workers ready',
      description: 'Workers that read their leases and whose key Amberflo accepts. None: nothing is billed at present; the stream keeps it.',
      unit: 'none',
      width: 4,
      // Without any worker there is no series, and that is none ready.
      queries: { ready: `sum(ingest_ready{${CLUSTER}}) or vector(0)` },
      base: 'red',
      thresholds: [[1, 'green']],
      alerts: ['MeteringNoWorker'],
    })
    .stat({
      title: 'Sending',
      description: 'Paused: Amberflo refuses our requests (401, 403, 404 or a redirect), so the key or the address is wrong. Nothing is lost while the stream keeps it.',
      unit: 'none',
      width: 4,
      queries: { paused: `max(ingest_paused{${CLUSTER}})` },
      words: { 0: ['sending', 'green'], 1: ['PAUSED', 'red'] },
      thresholds: [[1, 'red']],
      alerts: ['MeteringSendingPaused'],
    })
    .stat({
      title: 'Shards without a worker',
      description: 'Nobody reads them, and nobody measures their lag. Good: 0, but for seconds when a worker goes.',
      unit: 'none',
      width: 4,
      queries: { shards: `${shards} - ${held}` },
      thresholds: [[1, 'red']],
      alerts: ['MeteringShardsUnowned'],
    })
    .stat({
      title: 'Lag of the worst shard',
      description: `How long its oldest record has waited. Good: seconds. From ${OBJECTIVE_SECONDS} s on it is late.`,
      unit: 's',
      width: 4,
      queries: { lag: `max(ingest_shard_lag_seconds{${CLUSTER}})` },
      thresholds: [[OBJECTIVE_SECONDS / 2, 'yellow'], [OBJECTIVE_SECONDS, 'orange'], [600, 'red']],
      alerts: ['MeteringLagRising', 'MeteringRetentionAtRisk'],
    })
    .stat({
      title: 'Budget left, 30 d',
      description: 'What is left of the 0.1 % of events that may take longer than 60 s from arrival to delivery in 30 days, of the worst cluster. Below 0 the service level is missed.',
      unit: 'percentunit',
      width: 4,
      decimals: 1,
      // All of it while nothing was ever delivered: then there is no share.
      queries: { left: `min(cluster:ingest_error_budget:remaining30d{${CLUSTER}}) or (sum(${latency('count')}) == bool 0) == 1` },
      base: 'red',
      thresholds: [[0, 'orange'], [0.25, 'yellow'], [0.5, 'green']],
      alerts: ['MeteringLatencyBudgetBurn'],
    })
    .stat({
      title: 'Control APIs ready',
      description: 'Control APIs whose key Amberflo accepts. None: meters, usage and redrives cannot be managed; usage flows all the same.',
      unit: 'none',
      width: 4,
      // Without any control API there is no series, and that is none ready.
      queries: { ready: `sum(control_api_ready{${CLUSTER}}) or vector(0)` },
      base: 'red',
      thresholds: [[1, 'green']],
      alerts: ['MeteringControlApiDown'],
    })
    .stat({
      title: 'Records not accounted for',
      description: 'Read, but neither delivered, duplicate, dead-lettered, released nor in flight. Good: 0. What stays is a bug: usage may be lost.',
      unit: 'none',
      width: 6,
      queries: { records: unaccounted },
      thresholds: [[1, 'red']],
      alerts: ['MeteringFlowImbalance'],
    })
    .stat({
      title: 'Records lost',
      description: 'In the chosen time: reads that found their records forgotten by the stream, and shards that were forgotten before all of them was read. Good: 0. Otherwise usage is gone, unless an archive or the producer has it.',
      unit: 'none',
      width: 6,
      decimals: 0,
      queries: { lost: `ceil(${since('ingest_trimmed_reads_total')} + ${since('ingest_shards_gone_total')})` },
      thresholds: [[1, 'red']],
      alerts: ['MeteringRecordsLost'],
    })
    .stat({
      title: 'Dead letters stored',
      description: 'Events that Amberflo or we refused, at present. Not lost, not billed: somebody has to redrive or purge them.',
      unit: 'none',
      width: 6,
      queries: { stored: `sum(max by (cluster) (ingest_dead_letter_queue_messages{${CLUSTER}}))` },
      thresholds: [[1, 'orange']],
      alerts: ['MeteringDeadLetters'],
    })
    .stat({
      title: 'Dead letters without payload',
      description: 'In the chosen time. Too large to be stored whole: only the stream has what they say. Redrive them before it forgets. Good: 0.',
      unit: 'none',
      width: 6,
      decimals: 0,
      queries: { omitted: `ceil(${since('ingest_dead_letters_omitted_total')})` },
      thresholds: [[1, 'red']],
      alerts: ['MeteringPayloadOmitted'],
    })
    .alertTable({
      title: 'Alerts that fire',
      description: 'Pages first. The last column leads to what to do. Needs the rules beside the dashboards in the same Prometheus.',
      width: 24,
      queries: {
        alert: `label_join(ALERTS{alertname=~"Metering.*", alertstate="firing", ${CLUSTER}}, "runbook", "", "alertname")`,
      },
    });
}

function lateness(dashboard: Dashboard): void {
  dashboard
    .row('Is usage late?')
    .graph({
      title: 'Lag by shard',
      description: 'How long the oldest record of each shard has waited since it arrived. Good: a few seconds. One shard rising: its batch or its worker; all of them: Amberflo or a limit.',
      unit: 's',
      width: 12,
      queries: { '{{cluster}} {{shard}}': lag },
      thresholds: [[OBJECTIVE_SECONDS, 'red']],
      alerts: ['MeteringLagRising'],
    })
    .graph({
      title: 'From arrival to delivery',
      description: 'Of the events delivered, how long it took from the stream to the 2xx. Good: p99.9 below the line.',
      unit: 's',
      width: 12,
      queries: Object.fromEntries(
        [0.5, 0.99, 0.999].map((q) => [`p${q * 100}`, `histogram_quantile(${q}, sum by (le) (rate(${latency('bucket')}[$__rate_interval])))`]),
      ),
      thresholds: [[OBJECTIVE_SECONDS, 'red']],
      alerts: ['MeteringLatencyBudgetBurn'],
    })
    .graph({
      title: 'Share of events delivered late',
      description: 'Events that took longer than 60 s, of those delivered. Good: below 0.1 %, the line. An outage shows when it ends: then what waited is delivered late.',
      unit: 'percentunit',
      width: 8,
      queries: { late },
      thresholds: [[0.001, 'red']],
      alerts: ['MeteringLatencyBudgetBurn'],
    })
    .graph({
      title: 'Burn rate of the budget',
      description: 'How many times faster than allowed the 30 days\' budget is spent. At 1 it just lasts; from 6 (over 6 h) or 14.4 (over 1 h) on somebody is paged. Of the worst cluster; no line while nothing is delivered.',
      unit: 'none',
      width: 8,
      queries: { '1 h': burnt('1h'), '6 h': burnt('6h'), '3 d': burnt('3d') },
      thresholds: [[1, 'yellow'], [6, 'orange'], [14.4, 'red']],
      alerts: ['MeteringLatencyBudgetBurn'],
    })
    .graph({
      title: 'Lag, of what the stream keeps',
      description: 'At 100 % the stream forgets records that were never billed. 0 where the stream keeps what is unsettled (a local one). From half on somebody is paged: raise the retention first, then look for the cause.',
      unit: 'percentunit',
      width: 8,
      max: 1,
      // A local stream has no retention: nothing of it is at risk.
      queries: {
        '{{cluster}} {{shard}}': `${lag} / on (cluster) group_left max by (cluster) (ingest_stream_retention_seconds{${CLUSTER}}) or 0 * ${lag}`,
      },
      thresholds: [[0.5, 'red']],
      alerts: ['MeteringRetentionAtRisk'],
    });
}

function loss(dashboard: Dashboard): void {
  dashboard
    .row('Is usage lost, or billed twice?')
    .graph({
      title: 'Flow',
      description: 'Records read, and what became of them, per second. Good: delivered follows read. Released ones go back to the stream and are read again.',
      unit: 'cps',
      width: 12,
      queries: {
        read: `sum(rate(ingest_records_read_total{${CLUSTER}}[$__rate_interval]))`,
        '{{outcome}}': `sum by (outcome) (rate(ingest_events_total{${CLUSTER}}[$__rate_interval]))`,
      },
      alerts: ['MeteringFlowImbalance', 'MeteringDuplicatesJump'],
    })
    .graph({
      title: 'Balance',
      description: 'Records in flight, and those that no counter accounts for. Good: the latter 0, but for single scrapes.',
      unit: 'short',
      width: 6,
      queries: { 'in flight': `sum(ingest_in_flight_records{${CLUSTER}})`, 'not accounted for': unaccounted },
      alerts: ['MeteringFlowImbalance'],
    })
    .graph({
      title: 'Dead letters by reason',
      description: 'Events stored instead of billed, per second. Good: none. `rejected` and `unconfirmed` are about Amberflo, the others about what the application emits.',
      unit: 'cps',
      width: 6,
      stacked: true,
      queries: { '{{reason}}': `sum by (reason) (rate(ingest_dead_letters_total{${CLUSTER}}[$__rate_interval]))` },
      alerts: ['MeteringDeadLetters'],
    });
}

function why(dashboard: Dashboard): void {
  dashboard
    .row('Why?')
    .graph({
      title: 'Answers to billing records',
      description: 'Of Amberflo, per second. Good: 2xx. 4xx: a bad record, or our key or address (then sending is paused); 429: too fast; 5xx, timeout, connect: Amberflo or the way there.',
      unit: 'reqps',
      width: 8,
      stacked: true,
      queries: { '{{outcome}}': `sum by (outcome) (rate(amberflo_requests_total{operation="ingest", ${CLUSTER}}[$__rate_interval]))` },
      alerts: ['MeteringSendingPaused', 'MeteringThrottled'],
    })
    .graph({
      title: 'What holds batches back',
      description: 'Seconds per second, of the worker that waits most. Near 1 is what bounds delivery: `requests` is RATE_REQUESTS_PER_SECOND, `concurrency` is MAX_IN_FLIGHT or what slow answers left of it, `retry_after` is Amberflo\'s wish, or a pause.',
      unit: 'none',
      width: 8,
      queries: { '{{limit}}': `max by (limit) (rate(ingest_limiter_wait_seconds_total{${CLUSTER}}[$__rate_interval]))` },
      alerts: ['MeteringThrottled'],
    })
    .graph({
      title: 'Shards and who reads them',
      description: 'Leases held by all workers, and shards that have to be read. Good: equal. Fewer held: those shards wait, for a worker or for the lease of a dead one to expire.',
      unit: 'short',
      width: 8,
      queries: {
        shards,
        'leases held': held,
        'workers ready': `sum(ingest_ready{${CLUSTER}})`,
      },
      alerts: ['MeteringShardsUnowned', 'MeteringNoWorker'],
    });
}
