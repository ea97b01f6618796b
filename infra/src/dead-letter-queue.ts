import { Duration } from 'aws-cdk-lib';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';

import { addAlarm, Common, PERIOD, suppressNag } from './common';

/** What a queue of dead letters is for. */
export interface DeadLetterQueueProps {
  readonly common: Common;
  /** What lies in it and how it comes out again: the text of its alarms. */
  readonly description: string;
  /** How long a message that was received stays hidden. @default 30 seconds */
  readonly visibilityTimeout?: Duration;
}

/**
 * A queue for what could not be delivered: it keeps messages for 14 days, the longest that SQS knows, and there is an
 * alarm when something is in it, and others when its oldest message is 3 days old, 11 days before it is lost, and when it
 * has not been empty for as long.
 */
export class DeadLetterQueue extends sqs.Queue {
  constructor(scope: Construct, id: string, { common, description, visibilityTimeout }: DeadLetterQueueProps) {
    super(scope, id, {
      retentionPeriod: Duration.days(14),
      encryption: common.encryptionKey ? sqs.QueueEncryption.KMS : sqs.QueueEncryption.SQS_MANAGED,
      encryptionMasterKey: common.encryptionKey,
      enforceSSL: true,
      removalPolicy: common.removalPolicy,
      visibilityTimeout,
    });
    suppressNag(this, 'AwsSolutions-SQS3', 'It is a dead-letter queue itself.');
    addAlarm(this, 'NotEmpty', common, {
      metric: this.metricApproximateNumberOfMessagesVisible({ period: PERIOD, statistic: 'Maximum' }),
      above: 0,
      description: `${description} Something is in it.`,
    });
    addAlarm(this, 'Old', common, {
      metric: this.metricApproximateAgeOfOldestMessage({ period: PERIOD, statistic: 'Maximum' }),
      above: Duration.days(3).toSeconds(),
      description: `${description} Its oldest message is 3 days old; after 14 days it is lost.`,
    });
    // SQS leaves messages that were received three times out of the age: looking at them would silence that alarm.
    addAlarm(this, 'NotEmptied', common, {
      metric: this.metricApproximateNumberOfMessagesVisible({ period: Duration.hours(1), statistic: 'Maximum' }),
      above: 0,
      periods: 3 * 24,
      description: `${description} It has not been empty for 3 days; after 14 days a message is lost.`,
    });
  }
}
