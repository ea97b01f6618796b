import { CfnResource, Duration, RemovalPolicy, Stack } from 'aws-cdk-lib';
import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch';
import { SnsAction } from 'aws-cdk-lib/aws-cloudwatch-actions';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { SqsDestination } from 'aws-cdk-lib/aws-lambda-destinations';
import * as logs from 'aws-cdk-lib/aws-logs';
import * as secretsmanager from 'aws-cdk-lib/aws-secretsmanager';
import * as sns from 'aws-cdk-lib/aws-sns';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct, IConstruct } from 'constructs';

/** What every part of metering is told. */
export interface Common {
  /** Where alarms go. */
  readonly alarmTopic?: sns.ITopic;
  /** How long logs are kept. */
  readonly logRetention: logs.RetentionDays;
  /** What becomes of stream, queues and lease table, which may hold usage that is not billed yet, with the stack. */
  readonly removalPolicy: RemovalPolicy;
  /** Whether functions are traced with X-Ray. */
  readonly tracing: boolean;
  /** The API key. */
  readonly secret: secretsmanager.ISecret;
  /** The key that the secret is encrypted with; Secrets Manager's own when there is none. */
  readonly secretKey?: kms.IKey;
  /** The settings that worker and control API share: where Amberflo is, and how the API key is found. */
  readonly settings: Record<string, string>;
  /** The key of queues and lease table; those of SQS and DynamoDB when there is none. */
  readonly encryptionKey?: kms.IKey;
}

/**
 * Lets `grantee` read the API key. What it needs of the secret's encryption key stands in its own policy: the policy of the
 * key may be of a stack that ours depends on, or of none.
 */
export function grantApiKey(grantee: iam.IGrantable, { secret, secretKey }: Common): void {
  secret.grantRead(grantee);
  secretKey?.grantDecrypt(grantee);
}

/** An alarm and what it means to who is paged. */
export interface AlarmProps {
  readonly metric: cloudwatch.IMetric;
  /** The alarm rings above it, */
  readonly above?: number;
  /** or below it. */
  readonly below?: number;
  /** Whether missing data rings too. @default false */
  readonly whenMissing?: boolean;
  /** For how many periods of the metric in a row. */
  readonly periods?: number;
  /** What it means and what to do. */
  readonly description: string;
}

/** Makes an alarm in `scope` that goes to the topic for alarms, also when it is over. */
export function addAlarm(scope: Construct, id: string, common: Pick<Common, 'alarmTopic'>, props: AlarmProps): cloudwatch.Alarm {
  const threshold = props.above ?? props.below;
  if (threshold === undefined) {
    throw new Error(`${scope.node.path}/${id}: an alarm without a threshold`);
  }
  const { GREATER_THAN_THRESHOLD, LESS_THAN_THRESHOLD } = cloudwatch.ComparisonOperator;
  const { BREACHING, NOT_BREACHING } = cloudwatch.TreatMissingData;
  const alarm = new cloudwatch.Alarm(scope, id, {
    metric: props.metric,
    threshold,
    comparisonOperator: props.above === undefined ? LESS_THAN_THRESHOLD : GREATER_THAN_THRESHOLD,
    evaluationPeriods: props.periods ?? 1,
    treatMissingData: props.whenMissing ? BREACHING : NOT_BREACHING,
    alarmDescription: props.description,
  });
  if (common.alarmTopic) {
    const action = new SnsAction(common.alarmTopic);
    alarm.addAlarmAction(action);
    alarm.addOkAction(action);
  }
  return alarm;
}

/**
 * Has Lambda put the events into `queue` on which asynchronous invocations of `handler` fail for good, and rings when it
 * cannot.
 */
export function keepFailures(scope: Construct, common: Pick<Common, 'alarmTopic'>, handler: lambda.Function, queue: sqs.IQueue, lost: string): void {
  handler.configureAsyncInvoke({
    retryAttempts: 2,
    maxEventAge: Duration.hours(6),
    onFailure: new SqsDestination(queue),
  });
  addAlarm(scope, 'Lost', common, {
    metric: handler.metric('DestinationDeliveryFailures', { statistic: 'Sum', period: PERIOD }),
    above: 0,
    description: `${lost} are lost: their function failed on them, and Lambda could not put them into their queue.`,
  });
}

/** The time over which alarms and dashboard sum up. */
export const PERIOD = Duration.minutes(5);

/** An axis of the dashboard, from 0. */
export function axis(label: string): cloudwatch.YAxisProps {
  return { label, showUnits: false, min: 0 };
}

/** Says why a rule of cdk-nag does not fit a resource, in the form that cdk-nag reads. */
export function suppressNag(construct: IConstruct, id: string, reason: string, appliesTo?: string[]): void {
  const resource = (construct.node.defaultChild ?? construct) as CfnResource;
  const previous = resource.getMetadata('cdk_nag')?.rules_to_suppress ?? [];
  resource.addMetadata('cdk_nag', {
    rules_to_suppress: [...previous, { id, reason, ...(appliesTo && { applies_to: appliesTo }) }],
  });
}

/** Says why a role's policy has wildcards. There is none where roles are made outside of the app (`Role.customizeRoles`). */
export function suppressNagOfPolicy(role: IConstruct, reason: string, wildcards: string[]): void {
  const policy = role.node.tryFindChild('DefaultPolicy');
  if (policy) {
    suppressNag(policy, 'AwsSolutions-IAM5', reason, wildcards);
  }
}

/** Answers cdk-nag for a role that CDK itself has let use a key of yours. */
export function suppressNagOfKey(role: IConstruct, { encryptionKey }: Pick<Common, 'encryptionKey'>): void {
  if (encryptionKey) {
    const wildcards = ['Action::kms:ReEncrypt*', 'Action::kms:GenerateDataKey*'];
    suppressNagOfPolicy(role, "CDK's grants of a key; each is two actions.", wildcards);
  }
}

/** Whether both are of one stack, so that references both ways are possible. */
export function sameStack(one: IConstruct, other: IConstruct): boolean {
  return Stack.of(one) === Stack.of(other);
}
