import { Duration } from 'aws-cdk-lib';
import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';

import { addAlarm, Common, grantApiKey } from '../common';
import { DeadLetterQueue } from '../dead-letter-queue';

/** A new on-demand stream has as many shards. */
export const ON_DEMAND_SHARDS = 4;
/** The worker's limits for RATE_REQUESTS_PER_SECOND. */
export const LEAST_RATE = 0.001;
export const MOST_RATE = 1e6;

/** What a worker works on. */
export interface WorkerContext {
  readonly common: Common;
  readonly stream: kinesis.IStream;
  readonly deadLetters: DeadLetterQueue;
  /** How long the stream keeps events. */
  readonly retention: Duration;
  /** Shards of the stream where their number is fixed; undefined for an on-demand stream. */
  readonly shardCount?: number;
}

/** What a worker is seen as from outside. */
export interface Worker {
  /** Rows of the dashboard. */
  readonly widgets: cloudwatch.IWidget[][];
  /** Where it logs. */
  readonly logGroup: logs.ILogGroup;
}

/** The settings of every worker: what it reads, where dead letters go, where Amberflo is. */
export function workerSettings({ common, stream, deadLetters }: WorkerContext): Record<string, string> {
  return { ...common.settings, STREAM: `kinesis:${stream.streamArn}`, DEAD_LETTER_QUEUE: deadLetters.queueUrl };
}

/** Lets a worker of either kind write dead letters and read the API key. */
export function grantWorker(grantee: iam.IGrantable, { common, deadLetters }: WorkerContext): void {
  deadLetters.grant(grantee, 'sqs:GetQueueAttributes', 'sqs:SendMessage');
  deadLetters.encryptionMasterKey?.grant(grantee, 'kms:Decrypt', 'kms:GenerateDataKey');
  grantApiKey(grantee, common);
}

/** Rings when events wait for long, and again, with other words, when the stream is about to forget them. */
export function addLagAlarms(scope: Construct, { common, retention }: WorkerContext, age: cloudwatch.IMetric): void {
  addAlarm(scope, 'Late', common, {
    metric: age,
    above: Duration.minutes(15).toMilliseconds(),
    periods: 2,
    description: 'Usage events wait for a quarter of an hour: Amberflo is down or refuses our key, its secret cannot be read, or traffic exceeds the limits. The log of the worker says which.',
  });
  addAlarm(scope, 'Expiring', common, {
    metric: age,
    above: retention.toMilliseconds() / 2,
    // A single old record that somebody reads is no lag.
    periods: 2,
    description: 'Usage events have waited for half of the time that the stream keeps them, and are lost after all of it. Extend its retention.',
  });
}
