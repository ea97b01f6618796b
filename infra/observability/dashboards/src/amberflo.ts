/** What Amberflo answers, and what keeps us inside its limits. */
import { PROCESS, Dashboard, WORKER } from './dashboard';

export function amberflo(): Dashboard {
  const dashboard = new Dashboard(
    'metering-amberflo',
    'Metering / Amberflo',
    'Requests to Amberflo and their answers, and the limits on what is sent.',
    ['job', 'instance'],
  );
  requests(dashboard);
  limits(dashboard);
  return dashboard;
}

function requests(dashboard: Dashboard): void {
  dashboard
    .row('Requests')
    .graph({
      title: 'Answers',
      description: 'Per second. Good: 2xx. 429: too fast. 5xx, timeout, connect: tried again without end. 4xx is every other answer: on ingest a bad record (which is isolated), or our key or address (which pauses sending). Without probes of the key, where a 4xx is fine.',
      unit: 'reqps',
      width: 8,
      stacked: true,
      queries: { '{{outcome}}': `sum by (outcome) (rate(amberflo_requests_total{operation!="probe", ${PROCESS}}[$__rate_interval]))` },
      alerts: ['MeteringThrottled', 'MeteringSendingPaused'],
    })
    .graph({
      title: 'Requests that did not succeed',
      description: 'Of all, by operation: `ingest` is the workers\' billing records, the others are the control API\'s. Without probes of the key, where a 4xx is fine.',
      unit: 'percentunit',
      width: 8,
      max: 1,
      queries: {
        '{{operation}}': `sum by (operation) (rate(amberflo_requests_total{operation!="probe", outcome!="2xx", ${PROCESS}}[$__rate_interval])) / clamp_min(sum by (operation) (rate(amberflo_requests_total{operation!="probe", ${PROCESS}}[$__rate_interval])), 1e-9)`,
      },
      thresholds: [[0.05, 'red']],
      alerts: ['MeteringSendingPaused'],
    })
    .graph({
      title: 'Duration, p99 by operation',
      description: 'Answered or not. Near REQUEST_TIMEOUT (30 s): timeouts, after which a batch may have been taken all the same and is sent again.',
      unit: 's',
      width: 8,
      queries: {
        '{{operation}}': `histogram_quantile(0.99, sum by (operation, le) (rate(amberflo_request_duration_seconds_bucket{${PROCESS}}[$__rate_interval])))`,
      },
      thresholds: [[30, 'red']],
    })
    .heatmap({
      title: 'Duration of ingest requests',
      description: 'Requests with billing records by how long they took. Two bands: one kind of them waits, for a failover of Amberflo or on the way there.',
      unit: 's',
      width: 16,
      queries: {
        '{{le}}': `sum by (le) (increase(amberflo_request_duration_seconds_bucket{operation="ingest", ${PROCESS}}[$__rate_interval]))`,
      },
    })
    .graph({
      title: 'Counts that do not match',
      description: 'Batches, in the last interval, of which Amberflo twice counted fewer records than were sent. Good: none. The log has their positions.',
      unit: 'short',
      width: 8,
      queries: { '{{cluster}}': `sum by (cluster) (increase(amberflo_count_mismatches_total{${PROCESS}}[$__rate_interval]))` },
      thresholds: [[1, 'red']],
      alerts: ['MeteringCountMismatch'],
    });
}

function limits(dashboard: Dashboard): void {
  dashboard
    .row('Limits of the workers')
    .graph({
      title: 'What holds batches back',
      description: 'Seconds per second, of the worker that waits most. Near 1 is what bounds delivery. `requests`: RATE_REQUESTS_PER_SECOND; `concurrency`: MAX_IN_FLIGHT, or what is left of it after errors; `retry_after`: Amberflo told us when to come back, or sending is paused.',
      unit: 'none',
      width: 8,
      queries: { '{{limit}}': `max by (limit) (rate(ingest_limiter_wait_seconds_total{${WORKER}}[$__rate_interval]))` },
      alerts: ['MeteringThrottled'],
    })
    .graph({
      title: 'Requests in flight, and how many may be',
      description: 'By worker. The limit halves at a 429, loses a tenth at a 5xx or timeout, and grows by one after a clean second in which it was reached. Low for long: Amberflo is slow or throttles.',
      unit: 'short',
      width: 8,
      queries: {
        'limit {{cluster}} {{instance}}': `sum by (cluster, instance) (ingest_concurrency_limit{${WORKER}})`,
        'in flight {{cluster}} {{instance}}': `sum by (cluster, instance) (ingest_in_flight_requests{${WORKER}})`,
      },
    })
    .graph({
      title: 'Ingest requests, and how many may be',
      description: 'Per second, of all workers. At the limit it is RATE_REQUESTS_PER_SECOND that holds delivery up: larger batches or a higher limit. A limit of 0: none is set.',
      unit: 'reqps',
      width: 8,
      queries: {
        limit: `sum(ingest_rate_limit_requests_per_second{${WORKER}})`,
        requests: `sum(rate(amberflo_requests_total{operation="ingest", ${WORKER}}[$__rate_interval]))`,
      },
      alerts: ['MeteringThrottled'],
    })
    .graph({
      title: 'Sending paused',
      description: '1: this worker waits because Amberflo refuses its key or address; every 30 s it tries one batch. Good: 0.',
      unit: 'none',
      width: 8,
      max: 1,
      queries: { '{{cluster}} {{instance}}': `max by (cluster, instance) (ingest_paused{${WORKER}})` },
      thresholds: [[1, 'red']],
      alerts: ['MeteringSendingPaused'],
    })
    .graph({
      title: 'Busiest meter, of its hourly budget',
      description: 'At most: events of each worker\'s busiest meter in this hour, over METER_HOURLY_BUDGET (Amberflo\'s guardrail of a million). Above 80 %: talk to Amberflo, or make it a roll-up meter. Nothing is held back.',
      unit: 'percentunit',
      width: 8,
      queries: { 'all workers {{cluster}}': `sum by (cluster) (ingest_meter_budget_max_ratio{${WORKER}})` },
      thresholds: [[0.8, 'red']],
      alerts: ['MeteringMeterBudget'],
    })
    .graph({
      title: 'Bytes sent',
      description: 'Compressed bodies per second, with what was sent again.',
      unit: 'Bps',
      width: 8,
      queries: { '{{cluster}} {{instance}}': `sum by (cluster, instance) (rate(ingest_batch_compressed_bytes_sum{${WORKER}}[$__rate_interval]))` },
    });
}
