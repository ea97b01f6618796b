/** The path of a record through the workers: flow, lag, batches, state, dead letters. */
import { OBJECTIVE_SECONDS, Dashboard, WORKER } from './dashboard';

const rate = (metric: string, by = '') => `sum${by && ` by (${by})`} (rate(${metric}{${WORKER}}[$__rate_interval]))`;
const quantiles = (histogram: string, ...wanted: number[]) =>
  Object.fromEntries(wanted.map((q) => [`p${q * 100}`, `histogram_quantile(${q}, ${rate(`${histogram}_bucket`, 'le')})`]));
const mean = (histogram: string) => `${rate(`${histogram}_sum`)} / ${rate(`${histogram}_count`)}`;

export function pipeline(): Dashboard {
  const dashboard = new Dashboard(
    'metering-pipeline',
    'Metering / Pipeline',
    'What happens to records between the stream and Amberflo, by shard and by worker.',
    ['instance'],
  );
  flow(dashboard);
  lag(dashboard);
  batching(dashboard);
  state(dashboard);
  deadLetters(dashboard);
  return dashboard;
}

function flow(dashboard: Dashboard): void {
  dashboard
    .row('Flow')
    .graph({
      title: 'Records read, by worker',
      description: 'Per second, without those read again to rebuild dedup windows. Good: in proportion to the shards that each worker holds.',
      unit: 'cps',
      width: 8,
      stacked: true,
      queries: { '{{cluster}} {{instance}}': rate('ingest_records_read_total', 'cluster, instance') },
      alerts: ['MeteringLeasesUneven'],
    })
    .graph({
      title: 'What became of records',
      description: 'Per second. delivered: Amberflo took them; duplicate: a copy of one that it took; dead_lettered: stored with a reason; released: given back to the stream unsettled.',
      unit: 'cps',
      width: 8,
      stacked: true,
      queries: { '{{outcome}}': rate('ingest_events_total', 'outcome') },
    })
    .graph({
      title: 'Duplicates, of what is settled',
      description: 'Copies caught in the dedup window. A jump: a producer repeats what succeeded, or a worker reads again after a crash. They are not billed.',
      unit: 'percentunit',
      width: 8,
      max: 1,
      queries: {
        duplicates: `sum(rate(ingest_events_total{outcome="duplicate", ${WORKER}}[$__rate_interval])) / clamp_min(sum(rate(ingest_events_total{outcome!="released", ${WORKER}}[$__rate_interval])), 1e-9)`,
      },
      alerts: ['MeteringDuplicatesJump'],
    });
}

function lag(dashboard: Dashboard): void {
  dashboard
    .row('Lag')
    .graph({
      title: 'Lag by shard',
      description: 'How far the reader of each shard lies behind the newest record, or the age of the oldest unsettled, whichever is more. Good: seconds.',
      unit: 's',
      width: 12,
      queries: { '{{cluster}} {{shard}}': `max by (cluster, shard) (ingest_shard_lag_seconds{${WORKER}})` },
      thresholds: [[OBJECTIVE_SECONDS, 'red']],
      alerts: ['MeteringLagRising'],
    })
    .graph({
      title: 'Oldest unsettled by shard',
      description: 'Age of the oldest record that was read and is not settled. As high as the lag: sending holds it up; much lower: reading does (the shard\'s 2 MB/s, or a rebuild).',
      unit: 's',
      width: 12,
      queries: { '{{cluster}} {{shard}}': `max by (cluster, shard) (ingest_oldest_unsettled_seconds{${WORKER}})` },
      thresholds: [[OBJECTIVE_SECONDS, 'red']],
      alerts: ['MeteringLagRising', 'MeteringRetentionAtRisk'],
    });
}

function batching(dashboard: Dashboard): void {
  dashboard
    .row('Batches')
    .graph({
      title: 'Records in a batch',
      description: 'Under load near BATCH_MAX_EVENTS (1000): fuller batches are fewer requests. Small ones are right when little comes in, because of BATCH_LINGER.',
      unit: 'short',
      width: 6,
      queries: { ...quantiles('ingest_batch_events', 0.5, 0.95), mean: mean('ingest_batch_events') },
    })
    .graph({
      title: 'Bytes of a batch',
      description: 'Before compression, and of the bodies as sent. At BATCH_MAX_BYTES (1 MiB) batches are full by size.',
      unit: 'bytes',
      width: 6,
      queries: { 'p95': quantiles('ingest_batch_bytes', 0.95).p95, mean: mean('ingest_batch_bytes'), 'mean as sent': mean('ingest_batch_compressed_bytes') },
    })
    .graph({
      title: 'Compression',
      description: 'Bytes of batches over bytes of bodies. Usually about 8. Below 1 more bodies are sent than batches made: retries, and batches split to find a bad record.',
      unit: 'none',
      width: 6,
      decimals: 1,
      queries: { ratio: `${rate('ingest_batch_bytes_sum')} / ${rate('ingest_batch_compressed_bytes_sum')}` },
    })
    .graph({
      title: 'What makes batches due',
      description: 'Batches per second. `linger` when little comes in, `count` or `bytes` under load, `drain` when a shard is given up.',
      unit: 'cps',
      width: 6,
      stacked: true,
      queries: { '{{trigger}}': rate('ingest_batches_total', 'trigger') },
    })
    .heatmap({
      title: 'Sizes of batches',
      description: 'Batches by their number of records. Two bands are two kinds of shards: busy ones, and idle ones whose batches linger.',
      unit: 'short',
      width: 12,
      queries: { '{{le}}': `sum by (le) (increase(ingest_batch_events_bucket{${WORKER}}[$__rate_interval]))` },
    })
    .heatmap({
      title: 'Latency from arrival to delivery',
      description: 'Events by how long they took. A band that climbs is a backlog; one high above the others is a slow shard.',
      unit: 's',
      width: 12,
      queries: { '{{le}}': `sum by (le) (increase(ingest_delivery_latency_seconds_bucket{${WORKER}}[$__rate_interval]))` },
      alerts: ['MeteringLatencyBudgetBurn'],
    });
}

function state(dashboard: Dashboard): void {
  dashboard
    .row('Leases, checkpoints, dedup window')
    .graph({
      title: 'Leases by worker',
      description: 'Good: equal but for one. One worker with all of them: the others cannot reach the lease table, or have just begun.',
      unit: 'short',
      width: 8,
      stacked: true,
      queries: { '{{cluster}} {{instance}}': `sum by (cluster, instance) (ingest_leases_held{${WORKER}})` },
      alerts: ['MeteringLeasesUneven', 'MeteringShardsUnowned'],
    })
    .graph({
      title: 'Lease events',
      description: 'In the last interval. `taken`: nobody held it; `stolen`: to share evenly; `lost`: another worker took it or it could not be renewed; `released`: given up in order. Good: none but at deployments.',
      unit: 'short',
      width: 8,
      queries: { '{{event}}': `sum by (event) (increase(ingest_lease_events_total{${WORKER}}[$__rate_interval]))` },
      alerts: ['MeteringLeasesUneven'],
    })
    .graph({
      title: 'Writes of leases and checkpoints',
      description: 'Per second, by result. Good: ok. Errors: the lease table is unreachable or throttles; after FAILOVER_TIME the worker loses its leases.',
      unit: 'wps',
      width: 8,
      queries: { '{{result}}': rate('ingest_checkpoints_total', 'result') },
      alerts: ['MeteringShardsUnowned'],
    })
    .graph({
      title: 'Keys in dedup windows',
      description: 'By worker. At DEDUP_MAX_KEYS (5 million) the oldest leave before DEDUP_WINDOW is over.',
      unit: 'short',
      width: 8,
      queries: { '{{cluster}} {{instance}}': `sum by (cluster, instance) (ingest_dedup_keys{${WORKER}})` },
      alerts: ['MeteringDedupKeysEvicted'],
    })
    .graph({
      title: 'Keys evicted, records read again',
      description: 'Per second. Evicted keys leave copies to Amberflo\'s own deduplication: raise DEDUP_MAX_KEYS. Records are read again to rebuild the window of a shard that was taken over.',
      unit: 'cps',
      width: 8,
      queries: { evicted: rate('ingest_dedup_evicted_total'), 'read again': rate('ingest_dedup_rebuild_records_total') },
      alerts: ['MeteringDedupKeysEvicted'],
    })
    .graph({
      title: 'Time to rebuild a dedup window',
      description: 'After a shard was taken over nothing of it is sent until its window is rebuilt. Long: a smaller DEDUP_WINDOW, or smaller shards. No line while none is rebuilt.',
      unit: 's',
      width: 8,
      queries: quantiles('ingest_dedup_rebuild_seconds', 0.5, 0.95),
      thresholds: [[OBJECTIVE_SECONDS, 'red']],
    });
}

function deadLetters(dashboard: Dashboard): void {
  dashboard
    .row('Dead letters and lost records')
    .graph({
      title: 'Dead letters by reason',
      description: 'In the last interval. What each reason means and whether a redrive helps is in the worker\'s README.',
      unit: 'short',
      width: 8,
      stacked: true,
      queries: { '{{reason}}': `sum by (reason) (increase(ingest_dead_letters_total{${WORKER}}[$__rate_interval]))` },
      alerts: ['MeteringDeadLetters'],
    })
    .graph({
      title: 'Dead letters stored',
      description: 'At present. Good: 0. It falls by a redrive or a purge, and on SQS when they expire after 14 days: then they are lost.',
      unit: 'short',
      width: 8,
      queries: { '{{cluster}}': `max by (cluster) (ingest_dead_letter_queue_messages{${WORKER}})` },
      thresholds: [[1, 'orange']],
      alerts: ['MeteringDeadLetters'],
    })
    .graph({
      title: 'What must not happen',
      description: 'In the last interval. omitted: dead letters too large to be stored with their payload, to redrive before the stream forgets them. trimmed, gone: reads and shards that the stream had forgotten: lost. not stored: attempts to store dead letters that failed; their shard waits. failed: tasks of shards that an error of the program ended. Good: none.',
      unit: 'short',
      width: 8,
      queries: {
        omitted: `sum(increase(ingest_dead_letters_omitted_total{${WORKER}}[$__rate_interval]))`,
        'trimmed reads': `sum(increase(ingest_trimmed_reads_total{${WORKER}}[$__rate_interval]))`,
        'shards gone': `sum(increase(ingest_shards_gone_total{${WORKER}}[$__rate_interval]))`,
        'letters not stored': `sum(increase(ingest_dead_letter_store_failures_total{${WORKER}}[$__rate_interval]))`,
        'tasks failed': `sum(increase(ingest_shard_failures_total{${WORKER}}[$__rate_interval]))`,
      },
      alerts: ['MeteringPayloadOmitted', 'MeteringRecordsLost', 'MeteringCrashLoop'],
    });
}
