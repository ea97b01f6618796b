import { GetRecordsCommand, GetShardIteratorCommand, KinesisClient, ListShardsCommand } from '@aws-sdk/client-kinesis';
import { DeleteMessageCommand, ReceiveMessageCommand, SQSClient } from '@aws-sdk/client-sqs';

import { Cloud, REGION } from './cloud';
import { RunningFunction } from './function';
import { ResolvedTemplate } from './template';

/**
 * The event source mapping between the stream and the worker, as the template makes it: it reads each shard in order, and
 * where the mapping says so it goes on from the first record that the function names as failed. The emulator has one of
 * its own, which takes every answer for a success.
 */
export class StreamMapping {
  readonly #kinesis: KinesisClient;
  readonly #settings: any;
  readonly #function: RunningFunction;
  readonly #positions = new Map<string, string>();
  /** How many records have been settled. */
  settled = 0;

  constructor(cloud: Cloud, stack: ResolvedTemplate, worker: RunningFunction) {
    const stream = stack.one('AWS::Kinesis::Stream');
    const mapping = stack.all('AWS::Lambda::EventSourceMapping').find(({ properties }) => properties.EventSourceArn === stack.arn(stream.id));
    if (mapping?.properties.FunctionName !== worker.name || mapping.properties.Enabled === false) {
      throw new Error(`no event source mapping leads from the stream to ${worker.name}`);
    }
    this.#kinesis = new KinesisClient(cloud.client);
    this.#settings = mapping.properties;
    this.#function = worker;
  }

  /** Invokes the function once with what each shard has next. Answers how many records that were. */
  async poll(): Promise<number> {
    const { EventSourceArn: StreamARN } = this.#settings;
    const { Shards: shards = [] } = await this.#kinesis.send(new ListShardsCommand({ StreamARN }));
    let read = 0;
    for (const { ShardId } of shards) {
      read += await this.#pollShard(ShardId!);
    }
    return read;
  }

  async #pollShard(shard: string): Promise<number> {
    const { EventSourceArn: StreamARN, BatchSize, FunctionResponseTypes = [], StartingPosition } = this.#settings;
    const after = this.#positions.get(shard);
    const from = after === undefined ? { ShardIteratorType: StartingPosition } : { ShardIteratorType: 'AFTER_SEQUENCE_NUMBER' as const, StartingSequenceNumber: after };
    const { ShardIterator } = await this.#kinesis.send(new GetShardIteratorCommand({ StreamARN, ShardId: shard, ...from }));
    const { Records: records = [] } = await this.#kinesis.send(new GetRecordsCommand({ ShardIterator, Limit: BatchSize }));
    if (records.length === 0) {
      return 0;
    }
    const event = records.map(({ Data, PartitionKey, SequenceNumber, ApproximateArrivalTimestamp }) => ({
      kinesis: {
        kinesisSchemaVersion: '1.0',
        partitionKey: PartitionKey,
        sequenceNumber: SequenceNumber,
        data: Buffer.from(Data!).toString('base64'),
        approximateArrivalTimestamp: ApproximateArrivalTimestamp!.getTime() / 1000,
      },
      eventSource: 'aws:kinesis',
      eventVersion: '1.0',
      eventID: `${shard}:${SequenceNumber}`,
      eventName: 'aws:kinesis:record',
      awsRegion: REGION,
      eventSourceARN: StreamARN,
    }));
    const { ok, answer } = await this.#function.invoke(JSON.stringify({ Records: event }));
    if (!ok) {
      return records.length;
    }
    const failed = FunctionResponseTypes.includes('ReportBatchItemFailures') ? answer?.batchItemFailures?.[0]?.itemIdentifier : undefined;
    const settled = failed === undefined ? records.length : records.findIndex(({ SequenceNumber }) => SequenceNumber === failed);
    if (settled > 0) {
      this.#positions.set(shard, records[settled - 1].SequenceNumber!);
      this.settled += settled;
    }
    return records.length;
  }
}

/** How many records have ever been put on the stream of a stack. */
export async function recordsOnStream(cloud: Cloud, stack: ResolvedTemplate): Promise<number> {
  const kinesis = new KinesisClient(cloud.client);
  const StreamName = stack.one('AWS::Kinesis::Stream').physicalId;
  const { Shards: shards = [] } = await kinesis.send(new ListShardsCommand({ StreamName }));
  let count = 0;
  for (const { ShardId } of shards) {
    const { ShardIterator } = await kinesis.send(new GetShardIteratorCommand({ StreamName, ShardId, ShardIteratorType: 'TRIM_HORIZON' }));
    const { Records = [] } = await kinesis.send(new GetRecordsCommand({ ShardIterator }));
    count += Records.length;
  }
  return count;
}

/** Enables the event source mapping between the queue of undelivered events and the forwarder, once, as an operator does. */
export async function redrive(cloud: Cloud, stack: ResolvedTemplate, forwarder: RunningFunction): Promise<void> {
  const mapping = stack.all('AWS::Lambda::EventSourceMapping').find(({ properties }) => properties.FunctionName === forwarder.name);
  const queue = stack.all('AWS::SQS::Queue').find(({ id }) => stack.arn(id) === mapping?.properties.EventSourceArn);
  if (!mapping || !queue) {
    throw new Error(`no event source mapping leads from a queue to ${forwarder.name}`);
  }
  const sqs = new SQSClient(cloud.client);
  const { Messages: messages = [] } = await sqs.send(
    new ReceiveMessageCommand({ QueueUrl: queue.physicalId, MaxNumberOfMessages: mapping.properties.BatchSize }),
  );
  const records = messages.map(({ MessageId, Body, ReceiptHandle }) => ({
    messageId: MessageId,
    receiptHandle: ReceiptHandle,
    body: Body,
    attributes: {},
    messageAttributes: {},
    eventSource: 'aws:sqs',
    eventSourceARN: mapping.properties.EventSourceArn,
    awsRegion: REGION,
  }));
  const { ok, answer } = await forwarder.invoke(JSON.stringify({ Records: records }));
  const failed: string[] = mapping.properties.FunctionResponseTypes?.includes('ReportBatchItemFailures')
    ? answer.batchItemFailures.map(({ itemIdentifier }: { itemIdentifier: string }) => itemIdentifier)
    : [];
  for (const { MessageId, ReceiptHandle } of ok ? messages : []) {
    if (!failed.includes(MessageId!)) {
      await sqs.send(new DeleteMessageCommand({ QueueUrl: queue.physicalId, ReceiptHandle }));
    }
  }
}
