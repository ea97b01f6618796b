import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { GetRecordsCommand, GetShardIteratorCommand, KinesisClient, PutRecordCommand } from '@aws-sdk/client-kinesis';
import { ReceiveMessageCommand, SendMessageCommand, SQSClient } from '@aws-sdk/client-sqs';
import { Duration } from 'aws-cdk-lib';
import { Topic } from 'aws-cdk-lib/aws-sns';

import { AmberfloMetering, AmberfloMeteringProps, WorkerCompute } from '../../src';
import { Cloud, noCloud } from './support/cloud';
import {
  assertAlarms,
  assertDashboard,
  assertFunctions,
  assertLogGroups,
  assertMappings,
  assertQueues,
  assertRule,
  assertStream,
  expected,
  inventory,
} from './support/inventory';
import { eventManager, Generation } from './support/sbt';
import { deploy, destroy, outputs, synthesise } from './support/stack';
import { ResolvedTemplate } from './support/template';

const NAME = 'Metering';
/** Two different ways to set metering up. None with an archive: the emulator's CloudFormation knows none. */
const SETUPS: { title: string; generation: Generation; props: (alarmTopic: Topic) => AmberfloMeteringProps }[] = [
  { title: 'as it is by default', generation: 'npm', props: () => ({}) },
  {
    title: 'with a fixed number of shards, an alarm topic, and tracing',
    generation: 'main',
    props: (alarmTopic) => ({ shardCount: 2, retention: Duration.days(2), alarmTopic, tracing: true }),
  },
];

for (const { title, generation, props } of SETUPS) {
  describe(`metering deployed ${title}`, { skip: noCloud('infra: deployed to emulated CloudFormation'), timeout: 120_000 }, () => {
    let cloud: Cloud;
    let stack: ResolvedTemplate;

    before(async () => {
      cloud = await Cloud.start();
      const synthesised = synthesise(NAME, (scope, code) => {
        const manager = eventManager(scope, generation);
        const codes = { controlApiCode: code, forwarderCode: code, worker: WorkerCompute.lambda({ code }) };
        new AmberfloMetering(scope, 'Metering', { eventManager: manager, ...codes, ...props(new Topic(scope, 'Alarms')) });
      });
      stack = await deploy(cloud, synthesised);
    });

    after(() => cloud?.stop());

    test('what exists is what the template has, and no more', async () => {
      assert.deepEqual(await inventory(cloud), expected(stack));
    });
    test('the stream', () => assertStream(cloud, stack));
    test('the queues and their policies', () => assertQueues(cloud, stack));
    test('the rule, its target and its dead-letter queue', () => assertRule(cloud, stack));
    test('the functions, their environment, and what becomes of failed events', () => assertFunctions(cloud, stack));
    test('the event source mappings', () => assertMappings(cloud, stack));
    test('the alarms', () => assertAlarms(cloud, stack));
    test('the dashboard', () => assertDashboard(cloud, stack));
    test('the log groups', () => assertLogGroups(cloud, stack));

    test('the outputs name what an operator needs', async () => {
      const values = Object.values(await outputs(cloud, NAME));
      const named = [...expected(stack).streams, ...expected(stack).queues];
      assert.deepEqual(named.filter((name) => !values.includes(name)), []);
      const said = Object.values(stack.template.Outputs ?? {}).map(({ Value }) => stack.resolve(Value));
      assert.deepEqual(values.sort(), said.sort());
    });

    test('what may hold unbilled usage outlives the stack, and nothing else does', async () => {
      const [[StreamName], queues] = [expected(stack).streams, expected(stack).queues];
      const [kinesis, sqs] = [new KinesisClient(cloud.client), new SQSClient(cloud.client)];
      for (const QueueUrl of queues) {
        await sqs.send(new SendMessageCommand({ QueueUrl, MessageBody: 'not yet billed' }));
      }
      await destroy(cloud, NAME);
      const none = { functions: [], mappings: [], alarms: [], logGroups: [] };
      assert.deepEqual(await inventory(cloud), { streams: [StreamName], queues, ...none });
      await assert.rejects(assertDashboard(cloud, stack), /does not exist/);
      for (const QueueUrl of queues) {
        const { Messages } = await sqs.send(new ReceiveMessageCommand({ QueueUrl }));
        assert.equal(Messages?.[0].Body, 'not yet billed', QueueUrl);
      }
      // The stream is still one that takes and gives records.
      const { ShardId } = await kinesis.send(new PutRecordCommand({ StreamName, PartitionKey: 'acme', Data: Buffer.from('{}') }));
      const { ShardIterator } = await kinesis.send(new GetShardIteratorCommand({ StreamName, ShardId, ShardIteratorType: 'TRIM_HORIZON' }));
      const { Records } = await kinesis.send(new GetRecordsCommand({ ShardIterator }));
      assert.equal(Records?.length, 1);
    });
  });
}
