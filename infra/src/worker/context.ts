import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import * as logs from 'aws-cdk-lib/aws-logs';

import { Common, grantApiKey } from '../common';
import { DeadLetterQueue } from '../dead-letter-queue';

/** What a worker works on. */
export interface WorkerContext {
  readonly common: Common;
  readonly stream: kinesis.IStream;
  readonly deadLetters: DeadLetterQueue;
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
