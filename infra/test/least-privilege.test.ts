import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { Stack } from 'aws-cdk-lib';
import * as kms from 'aws-cdk-lib/aws-kms';

import { AmberfloMeteringProps } from '../src';
import { Synthesised } from './support';
import { describeLayout, Layout, LayoutApp, layouts, synthesise } from './support-layouts';
import { isOurs, permissions } from './support-resources';

const LOGS = ['logs:CreateLogStream', 'logs:PutLogEvents'];
const READ_SECRET = ['secretsmanager:DescribeSecret', 'secretsmanager:GetSecretValue'];
const SEND = ['sqs:GetQueueAttributes', 'sqs:GetQueueUrl', 'sqs:SendMessage'];
const WRITE_LETTERS = ['sqs:GetQueueAttributes', 'sqs:SendMessage'];
const PUT = ['kinesis:PutRecord', 'kinesis:PutRecords'];

const CONTROL_API = {
  'ControlApi/Admin/Logs': LOGS,
  'ControlApi/FailedTenantEvents': SEND,
  DeadLetters: ['sqs:ChangeMessageVisibility', 'sqs:DeleteMessage', 'sqs:GetQueueAttributes', 'sqs:ReceiveMessage'],
  Stream: ['kinesis:DescribeStreamSummary', 'kinesis:GetRecords', 'kinesis:GetShardIterator', 'kinesis:ListShards', 'kinesis:PutRecords'],
  secret: READ_SECRET,
};
const FORWARDER = {
  'Forwarder/Forward/Logs': LOGS,
  'Forwarder/Undelivered': ['sqs:ChangeMessageVisibility', 'sqs:DeleteMessage', 'sqs:GetQueueAttributes', 'sqs:GetQueueUrl', 'sqs:ReceiveMessage', 'sqs:SendMessage'],
  Stream: PUT,
};
// Lambda wants all of these of a role before it reads a stream for it.
const LAMBDA_READS = [
  'kinesis:DescribeStream', 'kinesis:DescribeStreamSummary', 'kinesis:GetRecords', 'kinesis:GetShardIterator', 'kinesis:ListShards',
  'kinesis:SubscribeToShard',
];
const EVENT_BRIDGE = { Stream: ['kinesis:ListShards', ...PUT] };
const INGEST = { bus: ['events:PutEvents'] };

const WORKERS: Record<Layout['compute'], Record<string, Record<string, string[]>>> = {
  lambda: {
    'Ingest/Worker/Role': { 'Ingest/Worker/Logs': LOGS, DeadLetters: WRITE_LETTERS, Stream: LAMBDA_READS, secret: READ_SECRET },
  },
  fargate: {
    'Ingest/TaskRole': {
      'Ingest/Leases': ['dynamodb:DeleteItem', 'dynamodb:DescribeTable', 'dynamodb:PutItem', 'dynamodb:Scan', 'dynamodb:UpdateItem'],
      DeadLetters: WRITE_LETTERS,
      Stream: ['kinesis:DescribeStreamSummary', 'kinesis:GetRecords', 'kinesis:GetShardIterator', 'kinesis:ListShards'],
      secret: READ_SECRET,
    },
    'Ingest/Task/ExecutionRole': { 'Ingest/Logs': LOGS },
  },
};

describe('what each role may do', () => {
  for (const compute of ['lambda', 'fargate'] as const) {
    test(`one stack, ${compute}`, () => {
      const app = synthesise({ sbt: 'main', way: 'eventManager', stacks: 'one stack', compute });
      assert.deepEqual(roles(app), {
        ...WORKERS[compute],
        'ControlApi/Admin/Role': { ...CONTROL_API, ...INGEST },
        'Forwarder/Forward/Role': FORWARDER,
        'Stream/EventsRole': EVENT_BRIDGE,
      });
    });

    test(`two stacks, ${compute}: only the function of POST /ingest may use the bus`, () => {
      const app = synthesise({ sbt: 'main', way: 'attachTo', stacks: 'two stacks', compute });
      assert.deepEqual(roles(app), {
        ...WORKERS[compute],
        'ControlApi/Admin/Role': CONTROL_API,
        'Forwarder/Forward/Role': FORWARDER,
        'Stream/EventsRole': EVENT_BRIDGE,
        'POST ingest/Role': { 'POST ingest/Logs': LOGS, secret: READ_SECRET, ...INGEST },
      });
    });
  }

  test('forwarder: EventBridge may only invoke it', () => {
    const app = synthesise({ sbt: 'main', way: 'forwarder', stacks: 'one stack', compute: 'lambda' });
    assert.deepEqual(roles(app), {
      ...WORKERS.lambda,
      'ControlApi/Admin/Role': { ...CONTROL_API, ...INGEST },
      'Forwarder/Forward/Role': FORWARDER,
    });
  });
});

test('nobody may do anything to everything, encrypted with a key of your own or not', () => {
  const withKey = (stack: Stack): AmberfloMeteringProps => {
    const key = new kms.Key(stack, 'Key');
    return { encryptionKey: key, secretEncryptionKey: key };
  };
  for (const layout of layouts(['main'])) {
    for (const encrypted of [false, true]) {
      // The stack has to be there before its key.
      const app = new LayoutApp(layout, encrypted ? withKey : {}).synth();
      for (const { path, properties } of app.all('AWS::IAM::Policy').filter(isOurs)) {
        for (const { Action, Resource } of properties.PolicyDocument.Statement) {
          const where = `${describeLayout(layout)}: ${path}: ${JSON.stringify(Action)} of ${JSON.stringify(Resource)}`;
          assert.ok([Resource].flat().every((each) => typeof each === 'string' && !each.includes('*')), where);
          assert.ok([Action].flat().every((each: string) => !each.includes('*') || /^kms:(ReEncrypt|GenerateDataKey)\*$/.test(each)), where);
        }
      }
    }
  }
});

/** What each role of ours may do, with short names for roles and resources. */
function roles(app: Synthesised): Record<string, Record<string, string[]>> {
  const ours = app.all('AWS::IAM::Role').filter(isOurs);
  return Object.fromEntries(
    ours.map((role) => [
      short(role.path),
      Object.fromEntries(Object.entries(permissions(app, role)).map(([resource, actions]) => [nameOf(app, resource), actions])),
    ]),
  );
}

function nameOf(app: Synthesised, resource: string): string {
  const prefix = 'arn:<AWS::Partition>:';
  if (resource === `${prefix}secretsmanager:<AWS::Region>:<AWS::AccountId>:secret:AmberfloApiKey-??????`) {
    return 'secret';
  }
  if (resource === `${prefix}events:<AWS::Region>:<AWS::AccountId>:event-bus/<ControlPlane/${app.one('AWS::Events::EventBus').logicalId}>`) {
    return 'bus';
  }
  const referred = app.referred(resource);
  assert.equal(resource, `<${referred.stack}/${referred.logicalId}.Arn>`);
  return short(referred.path);
}

/** A path without what is there only to tell several of ours in a stack apart. */
function short(path: string): string {
  return path
    .replace(/^AmberfloMeteringIngest[0-9a-f]{8}/, 'POST ingest')
    .replace(/^AmberfloMetering([0-9a-f]{8})?\//, '')
    .replace(/\/Resource$/, '');
}
