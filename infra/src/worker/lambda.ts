import { CfnOutput, Duration } from 'aws-cdk-lib';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { S3OnFailureDestination } from 'aws-cdk-lib/aws-lambda-event-sources';
import * as s3 from 'aws-cdk-lib/aws-s3';
import { GraphWidget, IWidget, Metric, MetricOptions } from 'aws-cdk-lib/aws-cloudwatch';
import { Construct } from 'constructs';

import { addAlarm, axis, PERIOD } from '../common';
import { RustCode, RustFunction } from '../rust-function';
import { checkDuration, checkInteger, checkTime, refuse } from '../validate';
import { addLagAlarms, grantWorker, LEAST_RATE, MOST_RATE, ON_DEMAND_SHARDS, Worker, WorkerContext, workerSettings } from './context';

/** A worker as a Lambda function. */
export interface LambdaWorkerProps {
  /**
   * Requests to Amberflo per second that all invocations together may make. Each invocation gets its part: this, divided
   * by `expectedShards` times `parallelizationFactor`. 0 turns the limit off.
   * @default 10
   */
  readonly requestsPerSecond?: number;
  /**
   * How many shards are worked on at once.
   * @default the stream's; for an on-demand stream 4, which is what it begins with
   */
  readonly expectedShards?: number;
  /** Invocations per shard at once; events of one partition key stay in order. From 1 to 10. @default 1 */
  readonly parallelizationFactor?: number;
  /** Records of an invocation, at most: from 1 to 10,000. @default 1000 */
  readonly batchSize?: number;
  /** How long to wait for a batch to fill. @default 1 second */
  readonly maxBatchingWindow?: Duration;
  /** @default 512 MiB */
  readonly memorySize?: number;
  /** How long an invocation may take, from 1 to 15 minutes. @default 2 minutes */
  readonly timeout?: Duration;
  /**
   * Keeps as many invocations of the account's for the worker, and allows no more: a hard limit. It should be no less than
   * the stream has shards. @default none
   */
  readonly reservedConcurrentExecutions?: number;
  /**
   * Where the worker starts in the stream. When you come from WorkerCompute.fargate, give the time that all events before
   * have been delivered: what that worker has delivered is sent again otherwise, and what of that Amberflo does not
   * remember any more is billed twice. It counts when the mapping is made; do not change it afterwards.
   * @default 'trim-horizon', the oldest event
   */
  readonly startAt?: 'trim-horizon' | Date;
  /**
   * Gives up on records after a time or a number of attempts. Such records are not billed; they lie in the bucket.
   * @default nothing is given up: an outage delays
   */
  readonly giveUp?: GiveUp;
  /** A program of your own build. @default the package's */
  readonly code?: RustCode;
}

/** When records are given up, and where they are kept. */
export interface GiveUp {
  /** A bucket, because a queue would get to know where a record lay in the stream, but not the record. */
  readonly bucket: s3.IBucket;
  readonly maxRecordAge?: Duration;
  readonly retryAttempts?: number;
}

/** The worker as a Lambda function that the stream invokes. */
export function lambdaWorker(scope: Construct, context: WorkerContext, props: LambdaWorkerProps): Worker {
  const { common, stream } = context;
  checkProps(props);
  const timeout = props.timeout ?? Duration.minutes(2);
  const parallelizationFactor = props.parallelizationFactor ?? 1;
  const shards = props.expectedShards ?? context.shardCount ?? ON_DEMAND_SHARDS;
  const { requestsPerSecond = 10 } = props;
  const rate = Number((requestsPerSecond / (shards * parallelizationFactor)).toPrecision(3));
  if (requestsPerSecond !== 0 && !(rate >= LEAST_RATE && rate <= MOST_RATE)) {
    refuse('requestsPerSecond', requestsPerSecond, `0 (off), or ${LEAST_RATE} to ${MOST_RATE} for each of ${shards * parallelizationFactor} invocations at once`);
  }
  const { function: worker, logGroup } = new RustFunction(scope, 'Worker', {
    common,
    program: 'ingest-worker',
    code: props.code,
    handler: 'deliver',
    description: 'Brings usage events from the stream to Amberflo.',
    environment: { ...workerSettings(context), RATE_REQUESTS_PER_SECOND: String(rate) },
    timeout,
    memorySize: props.memorySize ?? 512,
    reservedConcurrentExecutions: props.reservedConcurrentExecutions,
  });
  grantWorker(worker, context);
  // What Lambda asks for, to read a stream for a function.
  stream.grant(
    worker,
    'kinesis:DescribeStream',
    'kinesis:DescribeStreamSummary',
    'kinesis:ListShards',
    'kinesis:GetShardIterator',
    'kinesis:GetRecords',
    'kinesis:SubscribeToShard',
  );
  stream.encryptionKey?.grantDecrypt(worker);
  const { giveUp } = props;
  const mapping = new lambda.EventSourceMapping(scope, 'Mapping', {
    target: worker,
    eventSourceArn: stream.streamArn,
    ...(props.startAt instanceof Date
      ? { startingPosition: lambda.StartingPosition.AT_TIMESTAMP, startingPositionTimestamp: props.startAt.getTime() / 1000 }
      : { startingPosition: lambda.StartingPosition.TRIM_HORIZON }),
    batchSize: props.batchSize ?? 1000,
    maxBatchingWindow: props.maxBatchingWindow ?? Duration.seconds(1),
    parallelizationFactor,
    // Without it Lambda takes every answer for a success.
    reportBatchItemFailures: true,
    // The worker isolates a bad record itself.
    bisectBatchOnError: false,
    ...(giveUp && {
      maxRecordAge: giveUp.maxRecordAge,
      retryAttempts: giveUp.retryAttempts,
      onFailure: new S3OnFailureDestination(giveUp.bucket),
    }),
  });
  // Said although it is the default: an update that only leaves a limit out may leave it in force, and records with no
  // destination any more would be lost. CDK has no word for it.
  const { maxRecordAge, retryAttempts } = giveUp ?? {};
  for (const [name, limit] of Object.entries({ MaximumRecordAgeInSeconds: maxRecordAge, MaximumRetryAttempts: retryAttempts })) {
    if (limit === undefined) {
      (mapping.node.defaultChild as lambda.CfnEventSourceMapping).addPropertyOverride(name, -1);
    }
  }
  addLagAlarms(scope, context, worker.metric('IteratorAge', { statistic: 'Maximum', period: PERIOD }));
  addAlarm(scope, 'Throttles', common, {
    metric: worker.metricThrottles({ period: PERIOD }),
    above: 0,
    periods: 3,
    description: 'The worker is not invoked as often as it should be: concurrency is exhausted. Events wait.',
  });
  addAlarm(scope, 'NotRead', common, {
    metric: stream.metricGetRecordsSuccess({ period: Duration.minutes(15), statistic: 'Sum' }),
    below: 1,
    // All other alarms are silent then: Lambda looks into the stream every second, and a worker that is not invoked says
    // nothing.
    whenMissing: true,
    periods: 2,
    description:
      'Nobody reads the stream: the event source mapping of the worker is off, or may not read. Usage events wait, and are lost after ' +
      'its retention. The function of the output WorkerFunction has the mapping, and its state the reason.',
  });
  new CfnOutput(scope, 'WorkerFunction', { value: worker.functionName, description: 'The worker' });
  const metrics = { period: PERIOD };
  return {
    logGroup,
    widgets: [
      [
        new GraphWidget({
          title: 'Worker: how old the events are that it works on',
          width: 8,
          left: [worker.metric('IteratorAge', { ...metrics, statistic: 'Maximum', label: 'Iterator age' })],
          leftYAxis: axis('ms'),
        }),
        new GraphWidget({
          title: 'Worker: invocations',
          width: 8,
          left: [worker.metricInvocations(metrics), worker.metricErrors(metrics), worker.metricThrottles(metrics)],
          leftYAxis: axis('count'),
          right: [worker.metric('ConcurrentExecutions', { ...metrics, statistic: 'Maximum', label: 'At once' })],
          rightYAxis: axis('at once'),
        }),
        new GraphWidget({
          title: 'Worker: duration',
          width: 8,
          left: ['p50', 'p99', 'Maximum'].map((statistic) => worker.metricDuration({ ...metrics, statistic, label: statistic })),
          leftYAxis: axis('ms'),
          leftAnnotations: [{ value: timeout.toMilliseconds(), label: 'timeout' }],
        }),
      ],
      ...deliveryWidgets(worker, common.settings.METRICS_NAMESPACE ?? 'AmberfloMetering'),
    ],
  };
}

/** What the worker says of itself, where it does: it prints its metrics in the embedded metric format. */
function deliveryWidgets(worker: lambda.IFunction, namespace: string): IWidget[][] {
  if (namespace === '') {
    return [];
  }
  const metric = (metricName: string, dimensions: Record<string, string>, options: MetricOptions): Metric =>
    new Metric({ namespace, metricName, dimensionsMap: { FunctionName: worker.functionName, ...dimensions }, period: PERIOD, ...options });
  const counts = (metricName: string, dimension: string, values: string[], others = {}): Metric[] =>
    values.map((value) => metric(metricName, { ...others, [dimension]: value }, { statistic: 'Sum', label: value }));
  return [
    [
      new GraphWidget({
        title: 'Worker: what became of events',
        width: 8,
        left: counts('ingest_events_total', 'outcome', ['delivered', 'duplicate', 'dead_lettered', 'released']),
        leftYAxis: axis('events'),
      }),
      new GraphWidget({
        title: 'Worker: from the stream to Amberflo',
        width: 8,
        left: ['p50', 'p99', 'Maximum'].map((statistic) => metric('ingest_delivery_latency_seconds', {}, { statistic, label: statistic })),
        leftYAxis: axis('s'),
      }),
      new GraphWidget({
        title: 'Amberflo: its answers',
        width: 8,
        left: counts('amberflo_requests_total', 'outcome', ['2xx', '4xx', '429', '5xx', 'timeout', 'connect'], { operation: 'ingest' }),
        leftYAxis: axis('requests'),
        right: [metric('ingest_paused', {}, { statistic: 'Maximum', label: 'refuses us' })],
        rightYAxis: { min: 0, max: 1 },
      }),
    ],
  ];
}

/** @throws one line about the first property that is not what Lambda takes */
function checkProps({ giveUp, ...props }: LambdaWorkerProps): void {
  checkInteger('expectedShards', props.expectedShards, 1);
  checkInteger('parallelizationFactor', props.parallelizationFactor, 1, 10);
  checkInteger('batchSize', props.batchSize, 1, 10_000);
  checkDuration('maxBatchingWindow', props.maxBatchingWindow, 'seconds', 0, 300);
  checkInteger('memorySize', props.memorySize, 128, 10_240);
  checkDuration('timeout', props.timeout, 'seconds', 60, 900);
  checkInteger('reservedConcurrentExecutions', props.reservedConcurrentExecutions, 1);
  checkTime('startAt', props.startAt, "'trim-horizon', or a time");
  if (giveUp && giveUp.maxRecordAge === undefined && giveUp.retryAttempts === undefined) {
    throw new Error('giveUp: neither maxRecordAge nor retryAttempts is given');
  }
  checkDuration('giveUp.maxRecordAge', giveUp?.maxRecordAge, 'seconds', 60, 7 * 24 * 60 * 60);
  checkInteger('giveUp.retryAttempts', giveUp?.retryAttempts, 0, 10_000);
}
