/** The control API, and what the processes of both services use. */
import { PROCESS, Dashboard } from './dashboard';

const API = PROCESS;
const each = '{{cluster}} {{job}} {{instance}}';
const by = 'by (cluster, job, instance)';

export function services(): Dashboard {
  const dashboard = new Dashboard(
    'metering-services',
    'Metering / Control API and processes',
    'Requests to the control API, and the CPU, memory, files and runtime of both services.',
    ['job', 'instance'],
  );
  controlApi(dashboard);
  saturation(dashboard);
  return dashboard;
}

function controlApi(dashboard: Dashboard): void {
  dashboard
    .row('Control API')
    .stat({
      title: 'Ready',
      description: 'Control APIs that reach what they need. Good: all of them.',
      unit: 'none',
      width: 4,
      height: 8,
      // Without any control API there is no series, and that is none ready.
      queries: { ready: `sum(control_api_ready{${API}}) or vector(0)` },
      base: 'red',
      thresholds: [[1, 'green']],
      alerts: ['MeteringControlApiDown'],
    })
    .graph({
      title: 'Requests by route',
      description: 'Per second. `none` is what is no route of ours.',
      unit: 'reqps',
      width: 10,
      queries: { '{{method}} {{route}}': `sum by (method, route) (rate(control_api_requests_total{${API}}[$__rate_interval]))` },
    })
    .graph({
      title: 'Requests by status',
      description: 'Per second. 4xx is the callers\' doing; 5xx is ours, 502 and 504 are Amberflo\'s.',
      unit: 'reqps',
      width: 10,
      stacked: true,
      queries: { '{{status}}': `sum by (status) (rate(control_api_requests_total{${API}}[$__rate_interval]))` },
      alerts: ['MeteringControlApiErrors'],
    })
    .graph({
      title: 'Share of requests with an error of ours',
      description: '5xx, of all requests. Good: 0.',
      unit: 'percentunit',
      width: 8,
      max: 1,
      // No series has a status of 5xx before the first error: then it is none of all.
      queries: {
        errors: `(sum(rate(control_api_requests_total{status=~"5..", ${API}}[$__rate_interval])) or 0 * sum(control_api_ready{${API}}))
/ clamp_min(sum(rate(control_api_requests_total{${API}}[$__rate_interval])) or 0 * sum(control_api_ready{${API}}), 1e-9)`,
      },
      thresholds: [[0.05, 'red']],
      alerts: ['MeteringControlApiErrors'],
    })
    .graph({
      title: 'Latency, p99 by route',
      description: 'With the time that Amberflo takes. Good: that time and a millisecond.',
      unit: 's',
      width: 8,
      queries: {
        '{{method}} {{route}}': `histogram_quantile(0.99, sum by (method, route, le) (rate(control_api_request_duration_seconds_bucket{${API}}[$__rate_interval])))`,
      },
    })
    .heatmap({
      title: 'Latency',
      description: 'Requests of all routes by how long they took.',
      unit: 's',
      width: 8,
      queries: { '{{le}}': `sum by (le) (increase(control_api_request_duration_seconds_bucket{${API}}[$__rate_interval]))` },
    });
}

function saturation(dashboard: Dashboard): void {
  dashboard
    .row('Processes')
    .graph({
      title: 'CPU',
      description: 'Cores used, from whole seconds: look at minutes. A worker parses, deduplicates and compresses about 400,000 events per CPU-second; at its limit, lag rises while nothing else waits.',
      unit: 'none',
      width: 8,
      decimals: 2,
      queries: { [each]: `sum ${by} (rate(process_cpu_seconds_total{${PROCESS}}[$__rate_interval]))` },
    })
    .graph({
      title: 'Memory',
      description: 'Resident. A worker takes 39 bytes a dedup key, and up to BUFFER_MAX_BYTES for records that are not settled. What keeps rising is a leak.',
      unit: 'bytes',
      width: 8,
      queries: { [each]: `sum ${by} (process_resident_memory_bytes{${PROCESS}})` },
    })
    .graph({
      title: 'Open files, of those allowed',
      description: 'Sockets too. Good: far below 80 %.',
      unit: 'percentunit',
      width: 8,
      max: 1,
      queries: { [each]: `sum ${by} (process_open_fds{${PROCESS}}) / sum ${by} (process_max_fds{${PROCESS}})` },
      thresholds: [[0.8, 'red']],
    })
    .graph({
      title: 'Runtime threads that are busy',
      description: 'Of those that run tasks. Near 100 %: more CPU, or something blocks them.',
      unit: 'percentunit',
      width: 8,
      max: 1,
      queries: { [each]: `sum ${by} (rate(tokio_worker_busy_seconds_total{${PROCESS}}[$__rate_interval])) / sum ${by} (tokio_workers{${PROCESS}})` },
      thresholds: [[0.9, 'red']],
    })
    .graph({
      title: 'Tasks waiting for a thread',
      description: 'In the queue that all threads share. Good: near 0. What stays is a runtime that does not keep up.',
      unit: 'short',
      width: 8,
      queries: { [each]: `sum ${by} (tokio_global_queue_depth{${PROCESS}})` },
    })
    .graph({
      title: 'Tasks alive',
      description: 'Spawned and not ended. It follows shards and connections; what keeps rising is a leak.',
      unit: 'short',
      width: 8,
      queries: { [each]: `sum ${by} (tokio_alive_tasks{${PROCESS}})` },
    })
    .graph({
      title: 'Records in flight',
      description: 'What each worker buffers: read and not settled, at most BUFFER_MAX_BYTES (64 MiB) of them. High and flat: the buffer is full, and reading waits for sending.',
      unit: 'short',
      width: 8,
      queries: { '{{cluster}} {{instance}}': `sum by (cluster, instance) (ingest_in_flight_records{${PROCESS}})` },
      alerts: ['MeteringFlowImbalance'],
    })
    .graph({
      title: 'Up since',
      description: 'How long each process has run. A saw-tooth is a crash loop.',
      unit: 's',
      width: 8,
      queries: { [each]: `time() - max ${by} (process_start_time_seconds{${PROCESS}})` },
      alerts: ['MeteringNoWorker', 'MeteringControlApiDown'],
    })
    .graph({
      title: 'Versions',
      description: 'Processes by version. Two at a time: a deployment is under way, or stuck.',
      unit: 'none',
      width: 8,
      stacked: true,
      queries: { '{{service}} {{version}}': `count by (service, version) (build_info{service=~"ingest-worker|control-api", ${PROCESS}})` },
    });
}
