import { Duration } from 'aws-cdk-lib';
import { MathExpression } from 'aws-cdk-lib/aws-cloudwatch';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';

const MINUTE = Duration.minutes(1);
/** Tasks are added until their CPU is down to this. */
const BUSY_CPU_PERCENT = 60;
/** Below this, one task fewer of two carries the work of both and stays below the target. */
const IDLE_CPU_PERCENT = 25;
/** Reading keeps up when the oldest record read is no older. */
const IDLE_AGE = Duration.seconds(10);

/** The range in which the number of tasks moves. */
export interface TaskRange {
  readonly minTasks: number;
  readonly maxTasks: number;
}

/**
 * Adds tasks while events wait in the stream, or while CPU is high; and takes one away at a time when neither has been so
 * for a quarter of an hour. A shard that changes hands makes its new owner read a dedup window again, so tasks should not
 * come and go.
 *
 * Where Amberflo or `requestsPerSecond` is what holds events up, more tasks do not help and do no harm.
 */
export function scaleTasks(service: ecs.FargateService, stream: kinesis.IStream, { minTasks, maxTasks }: TaskRange): void {
  const tasks = service.autoScaleTaskCount({ minCapacity: minTasks, maxCapacity: maxTasks });
  const age = stream.metricGetRecordsIteratorAgeMilliseconds({ period: MINUTE, statistic: 'Maximum' });
  tasks.scaleOnMetric('Behind', {
    metric: age,
    evaluationPeriods: 2,
    cooldown: Duration.minutes(3),
    scalingSteps: [
      { lower: Duration.minutes(1).toMilliseconds(), change: +1 },
      { lower: Duration.minutes(5).toMilliseconds(), change: +2 },
    ],
  });
  tasks.scaleOnCpuUtilization('Cpu', {
    targetUtilizationPercent: BUSY_CPU_PERCENT,
    // On its own it would take away what the iterator age has added.
    disableScaleIn: true,
    scaleOutCooldown: Duration.minutes(3),
  });
  tasks.scaleOnMetric('Idle', {
    metric: new MathExpression({
      label: 'Busy',
      expression: `IF(age > ${IDLE_AGE.toMilliseconds()} OR cpu > ${IDLE_CPU_PERCENT}, 1, -1)`,
      usingMetrics: { age, cpu: service.metricCpuUtilization({ period: MINUTE }) },
      period: MINUTE,
    }),
    evaluationPeriods: 15,
    cooldown: Duration.minutes(15),
    scalingSteps: [
      { upper: 0, change: -1 },
      { lower: 1, change: 0 },
    ],
  });
}
