import { Names } from 'aws-cdk-lib';
import { GraphWidget, IWidget, Metric } from 'aws-cdk-lib/aws-cloudwatch';
import * as dynamodb from 'aws-cdk-lib/aws-dynamodb';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';

import { addAlarm, axis, PERIOD } from '../common';
import { addLagAlarms, WorkerContext } from './context';

/** After so many attempts in a row, which take two minutes or more, it is an outage. The worker logs powers of two. */
const OUTAGE_ATTEMPTS = 16;

/** What CloudWatch knows of the workers without Prometheus. */
export interface FargateMetrics {
  readonly iteratorAge: Metric;
  readonly tasks: Metric;
  readonly cpu: Metric;
  readonly memory: Metric;
  readonly leaseReads: Metric;
  readonly leaseWrites: Metric;
  readonly leaseThrottles: Metric;
  readonly errors: Metric;
  readonly outages: Metric;
}

/** Where the metrics come from. */
export interface FargateMetricsProps {
  readonly stream: kinesis.IStream;
  readonly service: ecs.FargateService;
  readonly leases: dynamodb.ITable;
  readonly logGroup: logs.LogGroup;
}

/**
 * The workers' metrics. Two are counted from their logs: workers read ahead, as far as their memory allows, so that the
 * iterator age stays low for a while although nothing is delivered.
 */
export function fargateMetrics(scope: Construct, { stream, service, leases, logGroup }: FargateMetricsProps): FargateMetrics {
  const metricNamespace = `AmberfloMetering/${Names.uniqueResourceName(scope, { maxLength: 100 })}`;
  const logged = (id: string, label: string, filterPattern: logs.IFilterPattern): Metric =>
    new logs.MetricFilter(scope, id, { logGroup, filterPattern, metricNamespace, metricName: id, defaultValue: 0 }).metric({
      label,
      statistic: 'Sum',
      period: PERIOD,
    });
  const { FilterPattern } = logs;
  return {
    iteratorAge: stream.metricGetRecordsIteratorAgeMilliseconds({ statistic: 'Maximum', period: PERIOD, label: 'Iterator age' }),
    tasks: new Metric({
      namespace: 'ECS/ContainerInsights',
      metricName: 'RunningTaskCount',
      dimensionsMap: { ClusterName: service.cluster.clusterName, ServiceName: service.serviceName },
      // One that is replaced is missing for a moment, and that is no matter.
      statistic: 'Maximum',
      period: PERIOD,
      label: 'Running tasks',
    }),
    cpu: service.metricCpuUtilization({ period: PERIOD, label: 'CPU' }),
    memory: service.metricMemoryUtilization({ statistic: 'Maximum', period: PERIOD, label: 'Memory, of the fullest task' }),
    leaseReads: leases.metricConsumedReadCapacityUnits({ period: PERIOD, label: 'Read units' }),
    leaseWrites: leases.metricConsumedWriteCapacityUnits({ period: PERIOD, label: 'Write units' }),
    leaseThrottles: leases.metric('WriteThrottleEvents', { statistic: 'Sum', period: PERIOD, label: 'Throttled writes' }),
    errors: logged('Errors', 'Errors in the log', FilterPattern.stringValue('$.level', '=', 'ERROR')),
    outages: logged(
      'Outages',
      'Batches that fail for minutes',
      FilterPattern.all(
        FilterPattern.stringValue('$.message', '=', 'Amberflo fails*'),
        FilterPattern.numberValue('$.failures', '>=', OUTAGE_ATTEMPTS),
      ),
    ),
  };
}

/** Rings when events wait, when they are not delivered, and when workers are missing. */
export function fargateAlarms(scope: Construct, context: WorkerContext, metrics: FargateMetrics, minTasks: number): void {
  const { common } = context;
  addLagAlarms(scope, context, metrics.iteratorAge);
  addAlarm(scope, 'OutageAlarm', common, {
    metric: metrics.outages,
    above: 0,
    description: 'Amberflo has failed or has not answered for minutes. Nothing is lost, it is tried again; the log says with what.',
  });
  addAlarm(scope, 'ErrorAlarm', common, {
    metric: metrics.errors,
    above: 0,
    description:
      'A worker logs an error: Amberflo refuses our key, dead letters cannot be stored, a shard is gone, or records were counted short. The log says which.',
  });
  addAlarm(scope, 'NoWorker', common, {
    metric: metrics.leaseWrites,
    below: 1,
    // DynamoDB says nothing of a table that nobody uses.
    whenMissing: true,
    periods: 2,
    description: 'No worker renews a lease: none runs, or none reaches the lease table. Usage events wait in the stream.',
  });
  addAlarm(scope, 'TooFewTasks', common, {
    metric: metrics.tasks,
    below: minTasks,
    periods: 2,
    description: `Fewer than ${minTasks} workers run: tasks do not start, or end again. Look at the events of the service.`,
  });
  addAlarm(scope, 'Memory', common, {
    metric: metrics.memory,
    above: 90,
    periods: 3,
    description: 'A worker is nearly out of memory. One that is killed for it loses nothing; give tasks more, or lower DEDUP_MAX_KEYS or BUFFER_MAX_BYTES.',
  });
}

/** Rows of the dashboard. */
export function fargateWidgets(metrics: FargateMetrics): IWidget[][] {
  const { iteratorAge, tasks, cpu, memory, leaseReads, leaseWrites, leaseThrottles, errors, outages } = metrics;
  return [
    [
      new GraphWidget({ title: 'Workers: how old the events are that they read', width: 8, left: [iteratorAge], leftYAxis: axis('ms') }),
      new GraphWidget({ title: 'Workers: failures in their log', width: 8, left: [errors, outages], leftYAxis: axis('count') }),
      new GraphWidget({
        title: 'Workers: tasks',
        width: 8,
        left: [cpu, memory],
        leftYAxis: { ...axis('%'), max: 100 },
        right: [tasks],
        rightYAxis: axis('tasks'),
      }),
    ],
    [
      new GraphWidget({
        title: 'Lease table: consumed capacity',
        width: 24,
        left: [leaseReads, leaseWrites],
        leftYAxis: axis('units'),
        right: [leaseThrottles],
        rightYAxis: axis('count'),
      }),
    ],
  ];
}
