import assert from 'node:assert/strict';

import { CloudWatchClient, DescribeAlarmsCommand, GetDashboardCommand } from '@aws-sdk/client-cloudwatch';
import { CloudWatchLogsClient, DescribeLogGroupsCommand } from '@aws-sdk/client-cloudwatch-logs';
import { DescribeRuleCommand, EventBridgeClient, ListRulesCommand, ListTargetsByRuleCommand } from '@aws-sdk/client-eventbridge';
import { DescribeStreamSummaryCommand, KinesisClient, ListStreamsCommand } from '@aws-sdk/client-kinesis';
import {
  GetEventSourceMappingCommand,
  GetFunctionConfigurationCommand,
  GetFunctionEventInvokeConfigCommand,
  LambdaClient,
  ListEventSourceMappingsCommand,
  ListFunctionsCommand,
} from '@aws-sdk/client-lambda';
import { GetQueueAttributesCommand, ListQueuesCommand, SQSClient } from '@aws-sdk/client-sqs';

import { Cloud } from './cloud';
import { ResolvedTemplate } from './template';

/**
 * What is there of each kind that metering makes, by the names that services list. Dashboards are not among them: the SDK
 * cannot read the times in the emulator's list of them.
 */
export interface Inventory {
  readonly streams: string[];
  readonly queues: string[];
  readonly functions: string[];
  readonly mappings: string[];
  readonly alarms: string[];
  readonly logGroups: string[];
}

/** Lists what is there. */
export async function inventory({ client }: Cloud): Promise<Inventory> {
  const [streams, queues, functions, mappings, alarms, logGroups] = await Promise.all([
    new KinesisClient(client).send(new ListStreamsCommand({})),
    new SQSClient(client).send(new ListQueuesCommand({})),
    new LambdaClient(client).send(new ListFunctionsCommand({})),
    new LambdaClient(client).send(new ListEventSourceMappingsCommand({})),
    new CloudWatchClient(client).send(new DescribeAlarmsCommand({ MaxRecords: 100 })),
    new CloudWatchLogsClient(client).send(new DescribeLogGroupsCommand({})),
  ]);
  const names = <T>(list: T[] | undefined, name: (element: T) => string | undefined): string[] => (list ?? []).map((each) => name(each)!).sort();
  return {
    streams: names(streams.StreamNames, (name) => name),
    queues: names(queues.QueueUrls, (url) => url),
    functions: names(functions.Functions, ({ FunctionName }) => FunctionName),
    mappings: names(mappings.EventSourceMappings, ({ UUID }) => UUID),
    alarms: names(alarms.MetricAlarms, ({ AlarmName }) => AlarmName),
    logGroups: names(logGroups.logGroups, ({ logGroupName }) => logGroupName),
  };
}

/** What a template says that there is. */
export function expected(stack: ResolvedTemplate): Inventory {
  const of = (type: string): string[] => stack.all(type).map(({ physicalId }) => physicalId).sort();
  return {
    streams: of('AWS::Kinesis::Stream'),
    queues: of('AWS::SQS::Queue'),
    functions: of('AWS::Lambda::Function'),
    mappings: of('AWS::Lambda::EventSourceMapping'),
    alarms: of('AWS::CloudWatch::Alarm'),
    logGroups: of('AWS::Logs::LogGroup'),
  };
}

/** Asserts that the stream is as the template says. */
export async function assertStream({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const { physicalId, properties, id } = stack.one('AWS::Kinesis::Stream');
  const { StreamDescriptionSummary: stream } = await new KinesisClient(client).send(new DescribeStreamSummaryCommand({ StreamName: physicalId }));
  assert.equal(stream?.StreamARN, stack.arn(id));
  assert.equal(stream?.StreamStatus, 'ACTIVE');
  assert.equal(stream?.RetentionPeriodHours, properties.RetentionPeriodHours);
  assert.equal(stream?.StreamModeDetails?.StreamMode, properties.StreamModeDetails?.StreamMode ?? 'PROVISIONED');
  // A new on-demand stream has 4.
  assert.equal(stream?.OpenShardCount, properties.ShardCount ?? 4);
  assert.deepEqual(properties.StreamEncryption, { EncryptionType: 'KMS', KeyId: 'alias/aws/kinesis' });
  // The emulator makes nothing of the template's encryption.
  assert.equal(stream?.EncryptionType, 'NONE', 'the emulator knows encryption now: compare it with the template');
}

/** Asserts that the queues and their policies are as the template says. */
export async function assertQueues({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const policies = stack.all('AWS::SQS::QueuePolicy');
  for (const { id, physicalId, properties } of stack.all('AWS::SQS::Queue')) {
    const { Attributes: queue = {} } = await new SQSClient(client).send(
      new GetQueueAttributesCommand({ QueueUrl: physicalId, AttributeNames: ['All'] }),
    );
    assert.equal(queue.QueueArn, stack.arn(id));
    assert.equal(queue.MessageRetentionPeriod, String(properties.MessageRetentionPeriod));
    assert.equal(queue.VisibilityTimeout, String(properties.VisibilityTimeout ?? 30));
    assert.equal(queue.SqsManagedSseEnabled, String(properties.SqsManagedSseEnabled));
    const policy = policies.find(({ properties: { Queues } }) => Queues.includes(physicalId));
    assert.deepEqual(JSON.parse(queue.Policy ?? '{}'), policy?.properties.PolicyDocument, id);
  }
}

/** Asserts that the rule and its targets are as the template says. */
export async function assertRule({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const { id, physicalId: Name, properties } = stack.one('AWS::Events::Rule');
  const { EventBusName, Targets } = properties;
  const events = new EventBridgeClient(client);
  const { Rules: rules } = await events.send(new ListRulesCommand({ EventBusName }));
  assert.deepEqual(rules?.map((rule) => rule.Name), [Name], 'it is the only one of its bus');
  const rule = await events.send(new DescribeRuleCommand({ Name, EventBusName }));
  assert.equal(rule.Arn, stack.arn(id));
  assert.equal(rule.State, properties.State);
  assert.deepEqual(JSON.parse(rule.EventPattern!), properties.EventPattern);
  const { Targets: targets } = await events.send(new ListTargetsByRuleCommand({ Rule: Name, EventBusName }));
  assert.deepEqual(targets, Targets);
}

/** Asserts that the functions are as the template says, and what becomes of their failed events. */
export async function assertFunctions({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const lambda = new LambdaClient(client);
  for (const { id, physicalId: FunctionName, properties } of stack.all('AWS::Lambda::Function')) {
    const { FunctionArn, TracingConfig, ...found } = await lambda.send(new GetFunctionConfigurationCommand({ FunctionName }));
    assert.equal(FunctionArn, stack.arn(id));
    for (const name of ['Handler', 'Runtime', 'Timeout', 'MemorySize', 'Role', 'Architectures', 'Description'] as const) {
      assert.deepEqual(found[name], properties[name], `${id}.${name}`);
    }
    assert.deepEqual(found.Environment?.Variables, properties.Environment.Variables, id);
    assert.equal(found.LoggingConfig?.LogGroup, properties.LoggingConfig.LogGroup, id);
    assert.equal(TracingConfig?.Mode, properties.TracingConfig?.Mode ?? 'PassThrough', id);
  }
  for (const { properties } of stack.all('AWS::Lambda::EventInvokeConfig')) {
    const { FunctionName, Qualifier, DestinationConfig, ...rest } = properties;
    const found = await lambda.send(new GetFunctionEventInvokeConfigCommand({ FunctionName, Qualifier }));
    assert.equal(found.DestinationConfig?.OnFailure?.Destination, DestinationConfig.OnFailure.Destination);
    assert.deepEqual({ MaximumEventAgeInSeconds: found.MaximumEventAgeInSeconds, MaximumRetryAttempts: found.MaximumRetryAttempts }, rest);
  }
}

/** Asserts that the event source mappings are as the template says. */
export async function assertMappings({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  for (const { id, physicalId: UUID, properties } of stack.all('AWS::Lambda::EventSourceMapping')) {
    const { FunctionName, Enabled, ...settings } = properties;
    const found: Record<string, unknown> = { ...(await new LambdaClient(client).send(new GetEventSourceMappingCommand({ UUID }))) };
    assert.match(String(found.FunctionArn), new RegExp(`:function:${FunctionName}$`), id);
    for (const [name, value] of Object.entries(settings)) {
      assert.deepEqual(found[name], value, `${id}.${name}`);
    }
    // Nothing is discarded: both are unlimited unless they are given.
    assert.equal(found.MaximumRetryAttempts ?? -1, properties.MaximumRetryAttempts ?? -1, id);
    assert.equal(found.MaximumRecordAgeInSeconds ?? -1, properties.MaximumRecordAgeInSeconds ?? -1, id);
    // The emulator calls each mapping enabled that a template makes, one that is not as well.
    assert.equal(found.State, 'Enabled', `${id}: the emulator knows mappings that are not enabled: compare it with ${Enabled}`);
  }
}

/** Asserts that the alarms are as the template says. */
export async function assertAlarms({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const { MetricAlarms: alarms = [] } = await new CloudWatchClient(client).send(new DescribeAlarmsCommand({ MaxRecords: 100 }));
  for (const { id, physicalId, properties } of stack.all('AWS::CloudWatch::Alarm')) {
    const found: Record<string, unknown> = { ...alarms.find(({ AlarmName }) => AlarmName === physicalId) };
    for (const [name, value] of Object.entries(properties)) {
      assert.deepEqual(found[name], value, `${id}.${name}`);
    }
  }
}

/** Asserts that the dashboard has what the template says. */
export async function assertDashboard({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const { physicalId: DashboardName, properties } = stack.one('AWS::CloudWatch::Dashboard');
  const { DashboardBody } = await new CloudWatchClient(client).send(new GetDashboardCommand({ DashboardName }));
  const body = JSON.parse(DashboardBody!);
  assert.deepEqual(body, JSON.parse(properties.DashboardBody));
  assert.ok(body.widgets.length > 0);
}

/** Asserts that the log groups keep logs for as long as the template says. */
export async function assertLogGroups({ client }: Cloud, stack: ResolvedTemplate): Promise<void> {
  const { logGroups = [] } = await new CloudWatchLogsClient(client).send(new DescribeLogGroupsCommand({}));
  for (const { id, physicalId, properties } of stack.all('AWS::Logs::LogGroup')) {
    const found = logGroups.find(({ logGroupName }) => logGroupName === physicalId);
    assert.equal(found?.retentionInDays, properties.RetentionInDays, id);
  }
}
