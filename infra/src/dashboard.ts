import { Duration, Stack } from 'aws-cdk-lib';
import { Dashboard, GraphWidget, IWidget, MetricOptions, Row, TextWidget } from 'aws-cdk-lib/aws-cloudwatch';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import { Construct } from 'constructs';

import { axis, PERIOD, sameStack } from './common';
import { ControlApi } from './control-api';
import { DeadLetterQueue } from './dead-letter-queue';
import { UsageRule } from './event-manager';
import { ruleMetric } from './forwarder';
import { Worker } from './worker/context';

const COUNT = axis('count');
const SUM: MetricOptions = { statistic: 'Sum', period: PERIOD };

/** What the dashboard shows. */
export interface MeteringDashboardProps {
  readonly stream: kinesis.Stream;
  readonly worker: Worker;
  readonly deadLetters: DeadLetterQueue;
  readonly controlApi: ControlApi;
  /** The rule for usage events, which is known only when the template is made. */
  readonly rule: () => UsageRule | undefined;
  /** The queue of events that did not reach the stream, which is known as late. */
  readonly undelivered: () => DeadLetterQueue | undefined;
}

/**
 * A dashboard from the bus to Amberflo, top to bottom as the events go. What metering has in another stack than this one's,
 * which may need this one, it names but cannot show.
 */
export class MeteringDashboard extends Dashboard {
  constructor(scope: Construct, id: string, props: MeteringDashboardProps) {
    super(scope, id, { defaultInterval: Duration.hours(12) });
    const { stream, worker, deadLetters, controlApi } = props;
    const here = <T extends Construct>(construct: T | undefined): T | undefined =>
      construct && sameStack(construct, this) ? construct : undefined;
    this.addWidgets(new DeferredRow(() => [guide(props, Stack.of(this))]));
    this.addWidgets(
      new DeferredRow(() => {
        const rule = props.rule();
        return rule && here(rule.rule) ? ruleWidgets(rule) : [];
      }),
    );
    this.addWidgets(...streamWidgets(stream));
    for (const row of worker.widgets) {
      this.addWidgets(...row);
    }
    this.addWidgets(
      new DeferredRow(() => {
        const undelivered = here(props.undelivered());
        return [
          queueWidget('Dead letters: refused, not billed', deadLetters),
          ...(undelivered ? [queueWidget('Undelivered: did not reach the stream', undelivered)] : []),
          queueWidget('Events about tenants that failed', controlApi.failedTenantEvents),
        ];
      }),
    );
    this.addWidgets(...controlApiWidgets(controlApi));
  }
}

/** What good looks like, and where to go when it does not. */
function guide({ stream, worker, deadLetters, controlApi, rule, undelivered }: MeteringDashboardProps, stack: Stack): IWidget {
  const elsewhere = (construct: Construct | undefined, what: string): string[] =>
    construct && Stack.of(construct) !== stack ? [`${what} of the stack \`${Stack.of(construct).stackName}\``] : [];
  const queue = undelivered();
  const isQueueHere = queue !== undefined && Stack.of(queue) === stack;
  const missing = [...elsewhere(rule()?.rule, 'the rule is'), ...elsewhere(queue, 'the queue of undelivered events is')];
  return new TextWidget({
    width: 24,
    height: 9,
    markdown: [
      '# Usage events: bus, stream, worker, Amberflo',
      '**All is well when** what the rule matches is what the stream takes, the iterator age stays near 0, nothing is throttled, ' +
        'nothing fails, and the queues are empty. An outage of Amberflo shows as a growing iterator age: events wait, none is lost, ' +
        'until the retention of the stream ends.',
      '',
      '| when | look at |',
      '|---|---|',
      `| the iterator age grows, or the worker fails | the log group \`${worker.logGroup.logGroupName}\`: it says what Amberflo answers |`,
      `| dead letters | \`GET /dead-letters\` of the admin API tells the reasons, \`POST /dead-letters/redrive\` tries again; the queue is \`${deadLetters.queueName}\` |`,
      ...(isQueueHere ? [`| undelivered events | enable the event source mapping of the output \`RedriveMapping\`; the queue is \`${queue.queueName}\` |`] : []),
      `| failed events about tenants | the queue \`${controlApi.failedTenantEvents.queueName}\`, and the log of the admin API |`,
      `| the admin API fails | the log group \`${controlApi.function.logGroup.logGroupName}\` |`,
      `| the stream throttles | a tenant exceeds 1,000 events/s, or there are too few shards in \`${stream.streamName}\` |`,
      ...(missing.length > 0 ? ['', `Not shown here: ${missing.join(', and ')}.`] : []),
    ].join('\n'),
  });
}

function ruleWidgets(rule: UsageRule): IWidget[] {
  const metrics = (...names: string[]) => names.map((name) => ruleMetric(rule, name));
  return [
    new GraphWidget({ title: 'Rule: matched and invoked', width: 12, left: metrics('MatchedEvents', 'Invocations'), leftYAxis: COUNT }),
    new GraphWidget({
      title: 'Rule: failed',
      width: 12,
      left: metrics('FailedInvocations', 'InvocationsSentToDlq', 'InvocationsFailedToBeSentToDlq', 'ThrottledRules'),
      leftYAxis: COUNT,
    }),
  ];
}

function streamWidgets(stream: kinesis.Stream): IWidget[] {
  return [
    new GraphWidget({
      title: 'Stream: records',
      width: 8,
      left: [stream.metricIncomingRecords({ ...SUM, label: 'In' }), stream.metricGetRecords({ ...SUM, label: 'Out' })],
      leftYAxis: COUNT,
    }),
    new GraphWidget({
      title: 'Stream: bytes',
      width: 8,
      left: [stream.metricIncomingBytes({ ...SUM, label: 'In' }), stream.metricGetRecordsBytes({ ...SUM, label: 'Out' })],
      leftYAxis: axis('bytes'),
    }),
    new GraphWidget({
      title: 'Stream: throttled',
      width: 8,
      left: [
        stream.metricWriteProvisionedThroughputExceeded({ ...SUM, label: 'Writes' }),
        stream.metricReadProvisionedThroughputExceeded({ ...SUM, label: 'Reads' }),
      ],
      leftYAxis: COUNT,
    }),
  ];
}

function queueWidget(title: string, queue: DeadLetterQueue): IWidget {
  const most: MetricOptions = { statistic: 'Maximum', period: PERIOD };
  return new GraphWidget({
    title,
    width: 8,
    left: [queue.metricApproximateNumberOfMessagesVisible({ ...most, label: 'Messages' })],
    leftYAxis: COUNT,
    right: [queue.metricApproximateAgeOfOldestMessage({ ...most, label: 'Age of the oldest' })],
    rightYAxis: axis('seconds'),
    rightAnnotations: [{ value: Duration.days(14).toSeconds(), label: 'lost' }],
  });
}

function controlApiWidgets({ function: handler }: ControlApi): IWidget[] {
  return [
    new GraphWidget({
      title: 'Admin API: requests',
      width: 12,
      left: [
        handler.metricInvocations({ ...SUM, label: 'Requests' }),
        handler.metricErrors({ ...SUM, label: 'Errors' }),
        handler.metricThrottles({ ...SUM, label: 'Throttled' }),
      ],
      leftYAxis: COUNT,
    }),
    new GraphWidget({
      title: 'Admin API: duration',
      width: 12,
      left: ['p50', 'p99'].map((statistic) => handler.metricDuration({ statistic, period: PERIOD, label: statistic })),
      leftYAxis: axis('ms'),
    }),
  ];
}

/** A row of widgets that are known only when the template is made. */
class DeferredRow implements IWidget {
  readonly width = 24;
  readonly #widgets: () => IWidget[];
  #row?: Row;

  constructor(widgets: () => IWidget[]) {
    this.#widgets = widgets;
  }

  get height(): number {
    return this.#made.height;
  }

  position(x: number, y: number): void {
    this.#made.position(x, y);
  }

  toJson(): unknown[] {
    return this.#made.toJson();
  }

  get #made(): Row {
    return (this.#row ??= new Row(...this.#widgets()));
  }
}
