import { IASyncFunction, IMetering, ISyncFunction } from '@cdklabs/sbt-aws';
import { Annotations, ArnFormat, Aspects, CfnOutput, Duration, Lazy, RemovalPolicy, Stack } from 'aws-cdk-lib';
import * as events from 'aws-cdk-lib/aws-events';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as logs from 'aws-cdk-lib/aws-logs';
import * as secretsmanager from 'aws-cdk-lib/aws-secretsmanager';
import * as sns from 'aws-cdk-lib/aws-sns';
import { Construct, IConstruct } from 'constructs';

import { addAlarm, Common, PERIOD, sameStack, suppressNag } from './common';
import { ControlApi, Scopes } from './control-api';
import { MeteringDashboard } from './dashboard';
import { DeadLetterQueue } from './dead-letter-queue';
import { addUsageTarget, EventManagerLike, ruleOf, UsageRule, usageRule } from './event-manager';
import { addRuleAlarms, Forwarder, ForwarderProps, StreamTarget } from './forwarder';
import { serveRule } from './rule-permissions';
import { RustCode } from './rust-function';
import { checkSettings } from './settings';
import { checkDuration, checkInteger, checkText } from './validate';
import { WorkerCompute } from './worker/compute';
import { Worker } from './worker/context';

const RETENTION = Duration.days(7);
/** Of each event manager, the accounts of Amberflo that its usage events go to, and which construct brings them there. */
const ACCOUNTS = new WeakMap<EventManagerLike, Map<string, string>>();

/** How metering is set up. Every property has a default. */
export interface AmberfloMeteringProps {
  /** The name of the secret in Secrets Manager with the API key of Amberflo. @default 'AmberfloApiKey' */
  readonly amberfloAPIKeySecretName?: string;
  /** The member of the secret, a JSON object, that is the key. @default 'AmberfloApiKey' */
  readonly amberfloAPIKeySecretId?: string;
  /** Where Amberflo is. @default 'https://app.amberflo.io' */
  readonly amberfloBaseUrl?: string;
  /** The key that the secret is encrypted with, where that is one of your own. @default Secrets Manager's */
  readonly secretEncryptionKey?: kms.IKey;

  /**
   * SBT's event manager: its usage events go to the stream, by a rule in this scope.
   * @default SBT invokes a function that puts them on the stream, or you call `attachTo`
   */
  readonly eventManager?: EventManagerLike;
  /**
   * What of an event decides on its shard. All copies of an event must have the same.
   * @default '$.detail.tenantId'
   */
  readonly partitionKeyPath?: string;
  /** Keeps usage events on the bus for replays, for so long. @default there is no archive */
  readonly archive?: Duration;

  /** A fixed number of shards. @default the stream has as many as it needs */
  readonly shardCount?: number;
  /** How long the stream keeps events: from 1 to 365 days. @default 7 days */
  readonly retention?: Duration;
  /** A key of your own for stream, queues and lease table. @default those of Kinesis, SQS and DynamoDB */
  readonly encryptionKey?: kms.IKey;

  /** Where the worker runs. @default WorkerCompute.lambda() */
  readonly worker?: WorkerCompute;
  /** Settings of worker and control API besides those that this construct makes, by their names. Never secrets. */
  readonly settings?: Record<string, string>;
  /** Scopes that callers of the admin API need. @default any token of SBT's issuer will do */
  readonly scopes?: Scopes;
  /** The control API, built by yourself. @default the package's */
  readonly controlApiCode?: RustCode;
  /** The forwarder, built by yourself: the worker's program. @default the package's */
  readonly forwarderCode?: RustCode;

  /** Where alarms go. @default they show in CloudWatch alone */
  readonly alarmTopic?: sns.ITopic;
  /** @default one month */
  readonly logRetention?: logs.RetentionDays;
  /** Whether X-Ray traces the functions. @default false */
  readonly tracing?: boolean;
  /**
   * What becomes of the stream, the queues and the lease table with the stack. They may hold usage that is not billed yet.
   * @default RemovalPolicy.RETAIN
   */
  readonly removalPolicy?: RemovalPolicy;
}

/**
 * Metering with Amberflo for SBT: `metering` of `ControlPlane`.
 *
 * Usage events go from the bus to a Kinesis stream, and a worker brings them to Amberflo; the admin API is a function.
 * Events reach the stream in one of three ways: by the rule of an `eventManager` given here, by that of one given to
 * {@link attachTo}, or by a function that SBT invokes when `metering` is given to `ControlPlane` and nothing else is said.
 */
export class AmberfloMetering extends Construct implements IMetering {
  readonly createMeterFunction: ISyncFunction;
  readonly fetchMeterFunction: ISyncFunction;
  readonly fetchAllMetersFunction: ISyncFunction;
  readonly updateMeterFunction: ISyncFunction;
  readonly deleteMeterFunction: ISyncFunction;
  readonly fetchUsageFunction: ISyncFunction;
  readonly cancelUsageEventsFunction: ISyncFunction;
  readonly createCustomerFunction: IASyncFunction;
  readonly deleteCustomerFunction: IASyncFunction;

  /** The stream of usage events. */
  readonly stream: kinesis.Stream;
  /** What Amberflo or the worker refused. */
  readonly deadLetters: DeadLetterQueue;
  /** The worker. */
  readonly worker: Worker;
  /** The admin API. */
  readonly controlApi: ControlApi;

  readonly #props: AmberfloMeteringProps;
  readonly #common: Common;
  /** How events reach the stream, once that is known. */
  #attached?: 'eventManager' | 'attachTo' | 'forwarder';
  #forwarder?: Forwarder;
  /** The rule for usage events, and what we have added to it. */
  #rule?: UsageRule;
  #rulePart?: Construct;

  constructor(scope: Construct, id: string, props: AmberfloMeteringProps = {}) {
    super(scope, id);
    checkProps(props);
    this.#props = props;
    const common = (this.#common = this.#makeCommon(props));
    this.stream = this.#makeStream(props);
    this.deadLetters = new DeadLetterQueue(this, 'DeadLetters', {
      common,
      description: 'Usage events that Amberflo or the worker refused, and that are not billed. See GET /dead-letters.',
    });
    const worker = props.worker ?? WorkerCompute.lambda();
    this.worker = worker.bind(new Construct(this, 'Ingest'), {
      common,
      stream: this.stream,
      deadLetters: this.deadLetters,
      retention: props.retention ?? RETENTION,
      shardCount: props.shardCount,
    });
    this.controlApi = new ControlApi(this, 'ControlApi', {
      common,
      stream: this.stream,
      deadLetters: this.deadLetters,
      code: props.controlApiCode,
      scopes: props.scopes ?? {},
      usageRule: () => this.#rule,
    });

    const handler = this.controlApi.function;
    const [read, write] = [{ handler, scope: props.scopes?.read }, { handler, scope: props.scopes?.write }];
    this.fetchMeterFunction = this.fetchAllMetersFunction = this.fetchUsageFunction = read;
    this.createMeterFunction = this.updateMeterFunction = this.deleteMeterFunction = this.cancelUsageEventsFunction = write;
    this.createCustomerFunction = this.deleteCustomerFunction = { handler };

    new MeteringDashboard(this, 'Dashboard', {
      stream: this.stream,
      worker: this.worker,
      deadLetters: this.deadLetters,
      controlApi: this.controlApi,
      rule: () => this.#rule,
      undelivered: () => this.#forwarder?.undelivered,
    });
    if (props.eventManager) {
      this.#attach('eventManager', props.eventManager, this);
    }
    Aspects.of(this).add({ visit: (node) => this.#warnWhenDetached(node) });
    new CfnOutput(this, 'StreamName', { value: this.stream.streamName, description: 'The stream of usage events' });
    new CfnOutput(this, 'DeadLetterQueue', { value: this.deadLetters.queueUrl, description: 'The queue of dead letters' });
  }

  /**
   * What SBT invokes for each usage event: a function that puts it on the stream. It is not there when the events come by
   * a rule of ours, for they would come twice.
   */
  get ingestUsageEventFunction(): IASyncFunction {
    if (this.#attached === 'eventManager' || this.#attached === 'attachTo') {
      // SBT makes no target of what is not there, though its types say that it must be.
      return undefined as unknown as IASyncFunction;
    }
    this.#forwarder ??= new Forwarder(this, 'Forwarder', this.#forwarderProps(), (invoker) => this.#onForwarderInvoker(invoker));
    return { handler: this.#forwarder.function };
  }

  /**
   * Has the usage events of SBT's event manager go to the stream, by a rule in the event manager's stack. That may be
   * another stack than this one, which then does not depend on it. Where SBT would invoke a function for each event,
   * because metering was given to `ControlPlane` before, it does so no more.
   *
   * @throws when events reach the stream already: they would be billed twice
   */
  attachTo(eventManager: EventManagerLike): void {
    this.#detachForwarder();
    this.#attach('attachTo', eventManager, Construct.isConstruct(eventManager) ? this.#scopeIn(eventManager) : this);
  }

  #attach(how: 'eventManager' | 'attachTo', eventManager: EventManagerLike, scope: Construct): void {
    this.#checkDetached();
    this.#checkAlone(eventManager);
    this.#attached = how;
    const forwarder = (this.#forwarder = new Forwarder(scope, 'Forwarder', this.#forwarderProps()));
    const target = new StreamTarget({ ...this.#forwarderProps(), undelivered: forwarder.undelivered }, (rule) => this.#onRule(rule));
    addUsageTarget(eventManager, new Construct(scope, 'Usage'), target);
    if (!this.#rule) {
      throw new Error(`${this.node.path}: the event manager made no rule for usage events`);
    }
  }

  /** SBT has made the function a target of its rule. */
  #onForwarderInvoker(invoker: Construct): void {
    const rule = ruleOf(invoker);
    if (!rule) {
      return;
    }
    this.#checkDetached();
    this.#attached = 'forwarder';
    const { function: handler, undelivered } = this.#forwarder!;
    serveRule(rule, handler, undelivered);
    this.#onRule(invoker);
  }

  /** Takes back what SBT and we have made for the forwarder, because a rule of ours takes its place. */
  #detachForwarder(): void {
    if (this.#attached === 'forwarder') {
      this.#checkOnlyTarget();
      remove(this.#rule?.rule.node.scope);
      remove(this.#rulePart);
      this.#attached = this.#rule = undefined;
    }
    if (!this.#attached) {
      remove(this.#forwarder);
      this.#forwarder = undefined;
    }
  }

  /** SBT's rule is removed with all of its targets, and only one of them is ours. */
  #checkOnlyTarget(): void {
    const rule = this.#rule!.rule;
    const { length } = Stack.of(rule).resolve(rule.targets) ?? [];
    if (length > 1) {
      throw new Error(`${rule.node.path}: has ${length} targets; attachTo would remove them all: give the others a rule of their own`);
    }
  }

  /** Two of these on one bus, with one account of Amberflo, bill every event twice. */
  #checkAlone(eventManager: EventManagerLike): void {
    const { AMBERFLO_BASE_URL, API_KEY_SECRET_NAME, API_KEY_SECRET_ID } = this.#common.settings;
    const account = [AMBERFLO_BASE_URL, API_KEY_SECRET_NAME, API_KEY_SECRET_ID].join(' ');
    const accounts = ACCOUNTS.get(eventManager) ?? new Map<string, string>();
    const other = accounts.get(account);
    if (other) {
      throw new Error(`${this.node.path}: ${other} brings the same usage events to the same account of Amberflo: they would be billed twice`);
    }
    ACCOUNTS.set(eventManager, accounts.set(account, this.node.path));
  }

  #checkDetached(): void {
    if (this.#attached) {
      throw new Error(`${this.node.path}: usage events reach the stream already, by ${this.#attached}: they would be billed twice`);
    }
  }

  /** The rule for usage events is there. What refers to it is of its stack, which may refer to ours. */
  #onRule(construct: Construct): void {
    const rule = usageRule(construct);
    if (!rule) {
      throw new Error(`${this.node.path}: the event manager's rule for usage events is none of CloudFormation's`);
    }
    this.#rule = rule;
    const part = (this.#rulePart = new Construct(this.#scopeIn(construct), 'Rule'));
    addRuleAlarms(part, this.#common, rule);
    if (this.#props.archive) {
      new events.CfnArchive(part, 'Archive', {
        sourceArn: rule.busArn,
        eventPattern: Lazy.any({ produce: () => rule.rule.eventPattern }),
        retentionDays: this.#props.archive.toDays(),
        description: 'Usage events, for replays',
      });
    }
  }

  /** A scope in the stack of `construct`: this one, if possible. */
  #scopeIn(construct: IConstruct): Construct {
    if (sameStack(construct, this)) {
      return this;
    }
    const stack = Stack.of(construct);
    const id = `AmberfloMetering${this.node.addr.slice(-8)}`;
    return (stack.node.tryFindChild(id) as Construct | undefined) ?? new Construct(stack, id);
  }

  #forwarderProps(): ForwarderProps {
    return {
      common: this.#common,
      stream: this.stream,
      partitionKeyPath: this.#props.partitionKeyPath ?? '$.detail.tenantId',
      code: this.#props.forwarderCode,
    };
  }

  #warnWhenDetached(node: IConstruct): void {
    if (node === this && !this.#attached) {
      Annotations.of(this).addWarningV2(
        'amberflo-metering:detached',
        'no usage events reach the stream: give this to ControlPlane as metering, give it an eventManager, or call attachTo',
      );
    }
  }

  #makeCommon(props: AmberfloMeteringProps): Common {
    const secretName = props.amberfloAPIKeySecretName ?? 'AmberfloApiKey';
    return {
      alarmTopic: props.alarmTopic,
      logRetention: props.logRetention ?? logs.RetentionDays.ONE_MONTH,
      removalPolicy: props.removalPolicy ?? RemovalPolicy.RETAIN,
      tracing: props.tracing ?? false,
      encryptionKey: props.encryptionKey,
      secret: secretsmanager.Secret.fromSecretAttributes(this, 'ApiKey', {
        secretPartialArn: Stack.of(this).formatArn({
          service: 'secretsmanager',
          resource: 'secret',
          resourceName: secretName,
          arnFormat: ArnFormat.COLON_RESOURCE_NAME,
        }),
      }),
      secretKey: props.secretEncryptionKey,
      settings: {
        ...checkSettings(props.settings ?? {}),
        AMBERFLO_BASE_URL: props.amberfloBaseUrl ?? 'https://app.amberflo.io',
        API_KEY_SECRET_NAME: secretName,
        API_KEY_SECRET_ID: props.amberfloAPIKeySecretId ?? 'AmberfloApiKey',
      },
    };
  }

  #makeStream(props: AmberfloMeteringProps): kinesis.Stream {
    const stream = new kinesis.Stream(this, 'Stream', {
      streamMode: props.shardCount !== undefined ? kinesis.StreamMode.PROVISIONED : kinesis.StreamMode.ON_DEMAND,
      shardCount: props.shardCount,
      retentionPeriod: props.retention ?? RETENTION,
      encryption: props.encryptionKey ? kinesis.StreamEncryption.KMS : kinesis.StreamEncryption.MANAGED,
      encryptionKey: props.encryptionKey,
      removalPolicy: this.#common.removalPolicy,
    });
    if (props.encryptionKey) {
      suppressNag(stream, 'AwsSolutions-KDS3', 'A key of your own is asked for; the default is that of Kinesis.');
    }
    addAlarm(stream, 'WriteThrottles', this.#common, {
      metric: stream.metricWriteProvisionedThroughputExceeded({ period: PERIOD, statistic: 'Sum' }),
      above: 0,
      periods: 3,
      description: 'The stream refuses events, and EventBridge tries again: a tenant exceeds what a shard takes, or there are too few shards.',
    });
    return stream;
  }
}

/** @throws one line about the first property that is not what it may be */
function checkProps(props: AmberfloMeteringProps): void {
  checkText('amberfloAPIKeySecretName', props.amberfloAPIKeySecretName, /^[\w/+=.@-]{1,512}$/, "a secret's name, not its ARN");
  checkText('amberfloAPIKeySecretId', props.amberfloAPIKeySecretId, /./, 'the name of a member of the secret');
  checkText('amberfloBaseUrl', props.amberfloBaseUrl, /^https?:\/\/[^\s/?#@]+(\/[^\s?#@]*)?$/, 'https://HOST, without a user name');
  checkText('partitionKeyPath', props.partitionKeyPath, /^(?=.{1,256}$)\$(\.[A-Za-z_][\w-]*)+$/, 'a path such as $.detail.tenantId');
  checkInteger('shardCount', props.shardCount, 1);
  checkDuration('retention', props.retention, 'hours', 24, 365 * 24);
  checkDuration('archive', props.archive, 'days', 1, 2 ** 31 - 1);
}

function remove(construct: IConstruct | undefined): void {
  construct?.node.scope?.node.tryRemoveChild(construct.node.id);
}
