import { CfnOutput, CfnResource, Duration, Fn } from 'aws-cdk-lib';
import { Metric } from 'aws-cdk-lib/aws-cloudwatch';
import * as targets from 'aws-cdk-lib/aws-events-targets';
import { IRule, RuleTargetConfig } from 'aws-cdk-lib/aws-events';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { Construct } from 'constructs';

import { addAlarm, Common, keepFailures, PERIOD, suppressNagOfKey } from './common';
import { DeadLetterQueue } from './dead-letter-queue';
import { UsageRule } from './event-manager';
import { receiveFromRules } from './rule-permissions';
import { OnInvoker, RustCode, RustFunction } from './rust-function';

/** How long a forwarder may take for what it is given. */
const TIMEOUT = Duration.minutes(1);
/** How often, and for how long, EventBridge tries to put an event on the stream: the most that it can. */
const RETRIES = 185;
const RETRIED_FOR = Duration.hours(24);

/** What leads events from the bus to the stream. */
export interface ForwarderProps {
  readonly common: Common;
  readonly stream: kinesis.IStream;
  readonly partitionKeyPath: string;
  readonly code?: RustCode;
}

/**
 * The queue of events that did not reach the stream, and the function that puts events on the stream: those of this queue,
 * when an operator enables the event source mapping between them; and where SBT's rule has the function for its target,
 * every event.
 */
export class Forwarder extends Construct {
  /** Events that did not reach the stream. */
  readonly undelivered: DeadLetterQueue;
  readonly function: lambda.Function;

  constructor(scope: Construct, id: string, props: ForwarderProps, onInvoker?: OnInvoker) {
    super(scope, id);
    const { common, stream } = props;
    this.undelivered = new DeadLetterQueue(this, 'Undelivered', {
      common,
      description: 'Usage events that did not reach the stream, and are not billed. Redrive them with the event source mapping of the output RedriveMapping.',
      // Six times the function's, as Lambda asks for.
      visibilityTimeout: Duration.seconds(6 * TIMEOUT.toSeconds()),
    });
    const forwarder = new RustFunction(
      this,
      'Forward',
      {
        common,
        program: 'ingest-worker',
        code: props.code,
        handler: 'forward',
        description: 'Puts usage events on the stream of metering.',
        environment: { STREAM: `kinesis:${stream.streamArn}`, PARTITION_KEY_PATH: props.partitionKeyPath },
        timeout: TIMEOUT,
        memorySize: 256,
      },
      onInvoker,
    );
    this.function = forwarder.function;
    stream.grant(this.function, 'kinesis:PutRecord', 'kinesis:PutRecords');
    stream.encryptionKey?.grant(this.function, 'kms:GenerateDataKey');
    keepFailures(this, common, this.function, this.undelivered, 'Usage events');
    const redrive = new lambda.EventSourceMapping(this, 'Redrive', {
      target: this.function,
      eventSourceArn: this.undelivered.queueArn,
      batchSize: 10,
      reportBatchItemFailures: true,
      enabled: false,
    });
    this.undelivered.grantConsumeMessages(this.function);
    suppressNagOfKey(forwarder.role, common);
    new CfnOutput(this, 'RedriveMapping', {
      value: redrive.eventSourceMappingId,
      description: 'Enable it to redrive the events that did not reach the stream',
    });
    new CfnOutput(this, 'UndeliveredQueue', {
      value: this.undelivered.queueUrl,
      description: 'The queue of events that did not reach the stream',
    });
  }
}

/**
 * The stream as a rule's target. In contrast to the library's, what EventBridge gives up really lies in the queue
 * afterwards: without leave to send to it, EventBridge drops the event.
 */
export class StreamTarget extends targets.KinesisStream {
  readonly #common: Common;
  readonly #undelivered: DeadLetterQueue;
  readonly #onRule: (rule: Construct) => void;

  constructor(props: ForwarderProps & { undelivered: DeadLetterQueue }, onRule: (rule: Construct) => void) {
    super(props.stream, {
      partitionKeyPath: props.partitionKeyPath,
      deadLetterQueue: props.undelivered,
      retryAttempts: RETRIES,
      maxEventAge: RETRIED_FOR,
    });
    this.#common = props.common;
    this.#undelivered = props.undelivered;
    this.#onRule = onRule;
  }

  public override bind(rule: IRule, id?: string): RuleTargetConfig {
    const queuePolicy = receiveFromRules(this.#undelivered);
    this.#onRule(rule as IRule & Construct);
    const config = super.bind(rule, id);
    const role = config.role as iam.Role;
    suppressNagOfKey(role, this.#common);
    // EventBridge does not try again what it is not permitted to do: whatever permits it is there before the rule is.
    const needed = [queuePolicy, role.node.tryFindChild('DefaultPolicy')?.node.defaultChild];
    for (const resource of needed.filter(CfnResource.isCfnResource)) {
      rule.node.defaultChild?.node.addDependency(resource);
    }
    return config;
  }
}

/** Rings when EventBridge gives up bringing a usage event to its target, and when such an event is lost. */
export function addRuleAlarms(scope: Construct, common: Common, rule: UsageRule): void {
  addAlarm(scope, 'FailedInvocations', common, {
    metric: ruleMetric(rule, 'FailedInvocations'),
    above: 0,
    description: 'EventBridge gave up bringing usage events to their target; they lie in the queue of undelivered events.',
  });
  addAlarm(scope, 'LostEvents', common, {
    metric: ruleMetric(rule, 'InvocationsFailedToBeSentToDlq'),
    above: 0,
    description: 'Usage events are lost: EventBridge could bring them neither to their target nor to the queue of undelivered events.',
  });
}

/** A metric of the rule: those of buses other than the default one are also told apart by bus. */
export function ruleMetric({ rule, busName }: UsageRule, metricName: string): Metric {
  const isDefault = busName === 'default';
  // From the ARN, because what `Ref` answers has the bus in it. rule/NAME, or rule/BUS/NAME.
  const ruleName = Fn.select(isDefault ? 1 : 2, Fn.split('/', rule.attrArn));
  return new Metric({
    namespace: 'AWS/Events',
    metricName,
    dimensionsMap: isDefault ? { RuleName: ruleName } : { EventBusName: busName, RuleName: ruleName },
    statistic: 'Sum',
    period: PERIOD,
  });
}
