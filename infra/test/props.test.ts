import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { App, Duration, RemovalPolicy, Stack } from 'aws-cdk-lib';
import { Annotations, Match } from 'aws-cdk-lib/assertions';
import { Role } from 'aws-cdk-lib/aws-iam';
import * as kms from 'aws-cdk-lib/aws-kms';
import { RetentionDays } from 'aws-cdk-lib/aws-logs';
import { Bucket } from 'aws-cdk-lib/aws-s3';
import { Topic } from 'aws-cdk-lib/aws-sns';

import { AmberfloMetering, AmberfloMeteringProps, LambdaWorkerProps, WorkerCompute } from '../src';
import { attribute, FAKE_PROGRAM, meteringProps, newApp, ref, Synthesised } from './support';
import { envOf, permissions } from './support-resources';
import { EventManager } from './support-sbt-main';

const FUNCTION = 'AWS::Lambda::Function';

describe('properties that cannot be are refused in one line', () => {
  const refused: [AmberfloMeteringProps, string][] = [
    [{ retention: Duration.hours(23) }, 'retention: 23 hours; allowed is 24 to 8760 hours, whole'],
    [{ retention: Duration.days(366) }, 'retention: 366 days; allowed is 24 to 8760 hours, whole'],
    [{ partitionKeyPath: 'detail.tenantId' }, 'partitionKeyPath: "detail.tenantId"; allowed is a path such as $.detail.tenantId'],
    [{ partitionKeyPath: '$' }, 'partitionKeyPath: "$"; allowed is a path such as $.detail.tenantId'],
    [{ partitionKeyPath: '$.detail[0]' }, 'partitionKeyPath: "$.detail[0]"; allowed is a path such as $.detail.tenantId'],
    // EventBridge might know it, and the forwarder does not.
    [{ partitionKeyPath: '$.detail.1st' }, 'partitionKeyPath: "$.detail.1st"; allowed is a path such as $.detail.tenantId'],
    [{ partitionKeyPath: '$..tenantId' }, 'partitionKeyPath: "$..tenantId"; allowed is a path such as $.detail.tenantId'],
    [{ amberfloAPIKeySecretName: '' }, 'amberfloAPIKeySecretName: ""; allowed is a secret\'s name, not its ARN'],
    [
      { amberfloAPIKeySecretName: 'arn:aws:secretsmanager:eu-west-1:111122223333:secret:key' },
      'amberfloAPIKeySecretName: "arn:aws:secretsmanager:eu-west-1:111122223333:secret:key"; allowed is a secret\'s name, not its ARN',
    ],
    [{ amberfloAPIKeySecretId: '' }, 'amberfloAPIKeySecretId: ""; allowed is the name of a member of the secret'],
    [{ amberfloBaseUrl: 'app.amberflo.io' }, 'amberfloBaseUrl: "app.amberflo.io"; allowed is https://HOST, without a user name'],
    [{ archive: Duration.hours(12) }, 'archive: 12 hours; allowed is 1 to 2147483647 days, whole'],
    [{ archive: Duration.days(0) }, 'archive: 0 days; allowed is 1 to 2147483647 days, whole'],
    [{ shardCount: 0 }, 'shardCount: 0; allowed is 1 or more, whole'],
    [{ shardCount: 1.5 }, 'shardCount: 1.5; allowed is 1 or more, whole'],
    [
      { settings: { AMBERFLO_API_KEY: 'k' } },
      'settings: AMBERFLO_API_KEY would lie in the template for everybody to read; put it in Secrets Manager',
    ],
  ];
  for (const [props, message] of refused) {
    test(message, () => {
      const stack = new Stack(newApp(), 'Metering');
      assert.throws(() => new AmberfloMetering(stack, 'AmberfloMetering', meteringProps(props)), { message });
    });
  }

  const bucket = (): Bucket => new Bucket(new Stack(newApp(), 'Bucket'), 'Bucket');
  const refusedByLambda: [LambdaWorkerProps, string][] = [
    [{ timeout: Duration.seconds(59) }, 'timeout: 59 seconds; allowed is 60 to 900 seconds, whole'],
    [{ parallelizationFactor: 11 }, 'parallelizationFactor: 11; allowed is 1 to 10, whole'],
    [{ batchSize: 10_001 }, 'batchSize: 10001; allowed is 1 to 10000, whole'],
    [{ maxBatchingWindow: Duration.minutes(6) }, 'maxBatchingWindow: 6 minutes; allowed is 0 to 300 seconds, whole'],
    [{ memorySize: 64 }, 'memorySize: 64; allowed is 128 to 10240, whole'],
    [{ reservedConcurrentExecutions: 0 }, 'reservedConcurrentExecutions: 0; allowed is 1 or more, whole'],
    [{ expectedShards: 0 }, 'expectedShards: 0; allowed is 1 or more, whole'],
    [{ requestsPerSecond: 0.001 }, 'requestsPerSecond: 0.001; allowed is 0 (off), or 0.001 to 1000000 for each of 4 invocations at once'],
    [{ giveUp: { bucket: bucket() } }, 'giveUp: neither maxRecordAge nor retryAttempts is given'],
    [
      { giveUp: { bucket: bucket(), maxRecordAge: Duration.days(8) } },
      'giveUp.maxRecordAge: 8 days; allowed is 60 to 604800 seconds, whole',
    ],
  ];
  for (const [props, message] of refusedByLambda) {
    test(message, () => {
      const stack = new Stack(newApp(), 'Metering');
      const worker = WorkerCompute.lambda({ ...props, code: FAKE_PROGRAM });
      assert.throws(() => new AmberfloMetering(stack, 'AmberfloMetering', meteringProps({ worker })), { message });
    });
  }
});

describe('the stream', () => {
  test('by default it grows by itself, is encrypted, and keeps events for 7 days', () => {
    const { app } = synthesise({});
    const { properties, raw } = app.one('AWS::Kinesis::Stream');
    assert.deepEqual(properties, {
      RetentionPeriodHours: 168,
      StreamEncryption: { EncryptionType: 'KMS', KeyId: 'alias/aws/kinesis' },
      StreamModeDetails: { StreamMode: 'ON_DEMAND' },
    });
    assert.deepEqual([raw.DeletionPolicy, raw.UpdateReplacePolicy], ['Retain', 'Retain']);
  });

  test('with a number of shards, which the rate is divided by', () => {
    const { app } = synthesise({ shardCount: 8, retention: Duration.days(30) });
    const { properties } = app.one('AWS::Kinesis::Stream');
    assert.equal(properties.ShardCount, 8);
    assert.equal(properties.RetentionPeriodHours, 720);
    assert.deepEqual(properties.StreamModeDetails, { StreamMode: 'PROVISIONED' });
    assert.equal(envOf(worker(app)).RATE_REQUESTS_PER_SECOND, '1.25');
  });

  test('what partitions it is told EventBridge and the forwarder alike', () => {
    const { app } = synthesise({ partitionKeyPath: '$.detail.uniqueId' });
    const rule = app.one('AWS::Events::Rule');
    assert.equal(rule.properties.Targets[0].KinesisParameters.PartitionKeyPath, '$.detail.uniqueId');
    assert.equal(envOf(app.one(FUNCTION, ({ path }) => path.includes('/Forward/'))).PARTITION_KEY_PATH, '$.detail.uniqueId');
  });
});

describe('a key of your own', () => {
  test('encrypts stream and queues, and EventBridge may use it', () => {
    const { app } = synthesise((stack) => ({ encryptionKey: new kms.Key(stack, 'Key') }));
    const key = app.one('AWS::KMS::Key');
    assert.equal(app.one('AWS::Kinesis::Stream').properties.StreamEncryption.KeyId, attribute(key, 'Arn'));
    const queues = app.all('AWS::SQS::Queue');
    assert.equal(queues.length, 3);
    for (const queue of queues) {
      assert.equal(queue.properties.KmsMasterKeyId, attribute(key, 'Arn'));
    }
    const statements = key.properties.KeyPolicy.Statement.filter(({ Principal }: any) => Principal.Service === 'events.amazonaws.com');
    assert.equal(statements.length, 1);
    for (const action of ['kms:Decrypt', 'kms:GenerateDataKey*']) {
      assert.ok(statements[0].Action.includes(action));
    }
  });

  test('imported: its policy is yours, and that is said', () => {
    const arn = 'arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab';
    const { stack } = synthesise((stack) => ({ encryptionKey: kms.Key.fromKeyArn(stack, 'Key', arn) }));
    Annotations.fromStack(stack).hasWarning('*', Match.stringLikeRegexp('let events.amazonaws.com use kms:Decrypt'));
  });

  test('of the secret: the functions may decrypt with it, whoever has made it', () => {
    const imported = 'arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab';
    const keys: ((stack: Stack) => kms.IKey)[] = [
      (stack) => new kms.Key(stack, 'Key'),
      (stack) => new kms.Key(new Stack(stack.node.root as App, 'Keys'), 'Key'),
      (stack) => kms.Key.fromKeyArn(stack, 'Key', imported),
    ];
    for (const make of keys) {
      // As the key of stream and queues too: the stacks must not need each other.
      for (const alsoOfStream of [false, true]) {
        const { app } = synthesise((stack) => {
          const key = make(stack);
          return { secretEncryptionKey: key, encryptionKey: alsoOfStream ? key : undefined };
        });
        const arn = app.all('AWS::KMS::Key').map((key) => attribute(key, 'Arn'))[0] ?? imported;
        for (const name of ['Ingest/Worker/Role', 'ControlApi/Admin/Role']) {
          const role = app.one('AWS::IAM::Role', ({ path }) => path.includes(name));
          assert.ok(permissions(app, role)[arn]?.includes('kms:Decrypt'), name);
        }
      }
    }
  });
});

describe('what becomes of it with the stack', () => {
  test('what may hold usage stays, unless you say otherwise', () => {
    for (const [removalPolicy, expected] of [[undefined, 'Retain'], [RemovalPolicy.DESTROY, 'Delete']] as const) {
      const { app } = synthesise({ removalPolicy });
      for (const type of ['AWS::Kinesis::Stream', 'AWS::SQS::Queue']) {
        for (const { raw, path } of app.all(type)) {
          assert.deepEqual([raw.DeletionPolicy, raw.UpdateReplacePolicy], [expected, expected], path);
        }
      }
    }
  });

  test('logs are kept for a month, or as long as you say', () => {
    for (const [logRetention, days] of [[undefined, 30], [RetentionDays.ONE_WEEK, 7]] as const) {
      const { app } = synthesise({ logRetention });
      const groups = app.all('AWS::Logs::LogGroup');
      assert.equal(groups.length, app.all(FUNCTION).length);
      for (const { properties } of groups) {
        assert.equal(properties.RetentionInDays, days);
      }
    }
  });
});

describe('the functions', () => {
  test('each has a log group of its own, and none is traced', () => {
    const { app } = synthesise({});
    const groups = app.all(FUNCTION).map(({ properties }) => properties.LoggingConfig.LogGroup);
    assert.equal(new Set(groups).size, groups.length);
    for (const { properties, path } of app.all(FUNCTION)) {
      assert.equal(properties.TracingConfig, undefined, path);
      assert.deepEqual([properties.Runtime, properties.Architectures], ['provided.al2023', ['x86_64']], path);
    }
  });

  test('are all traced where you say so', () => {
    const { app } = synthesise({ tracing: true });
    for (const { properties, path } of app.all(FUNCTION)) {
      assert.deepEqual(properties.TracingConfig, { Mode: 'Active' }, path);
    }
  });

  test('settings that do not exist, or are not for the user to make, are refused with those that are', () => {
    for (const name of ['STREAM', 'AMBERFLO_API_KEY_FILE', 'WORKER_ID', 'AWS_REGION', 'LOG_LEVEL', 'log']) {
      assert.throws(
        () => new AmberfloMetering(new Stack(newApp(), 'Metering'), 'AmberfloMetering', meteringProps({ settings: { [name]: 'x' } })),
        new RegExp(`^Error: settings: ${name}; allowed are ALLOW_AFLO_DIMENSIONS, .*, REQUEST_TIMEOUT, and those of the AWS SDK`),
      );
    }
  });

  test('settings reach worker and control API, and the secret only by name', () => {
    const { app } = synthesise({
      settings: { LOG: 'debug', AWS_MAX_ATTEMPTS: '5' },
      amberfloAPIKeySecretName: 'prod/amberflo',
      amberfloAPIKeySecretId: 'key',
      amberfloBaseUrl: 'https://eu.amberflo.io',
    });
    for (const handler of [worker(app), app.one(FUNCTION, ({ path }) => path.includes('ControlApi/Admin'))]) {
      const { LOG, API_KEY_SECRET_NAME, API_KEY_SECRET_ID, AMBERFLO_BASE_URL } = envOf(handler);
      assert.deepEqual(
        [LOG, API_KEY_SECRET_NAME, API_KEY_SECRET_ID, AMBERFLO_BASE_URL],
        ['debug', 'prod/amberflo', 'key', 'https://eu.amberflo.io'],
      );
    }
    assert.ok(!JSON.stringify(app.templates).includes('{{resolve:'));
  });

  test('scopes are asked of the routes, and told the control API', () => {
    const { metering, app } = synthesise({ scopes: { read: 'meters/read', write: 'meters/write' } });
    assert.equal(metering.fetchUsageFunction.scope, 'meters/read');
    assert.equal(metering.createMeterFunction.scope, 'meters/write');
    const environment = envOf(app.one(FUNCTION, ({ path }) => path.includes('ControlApi/Admin')));
    assert.deepEqual([environment.SCOPE_READ, environment.SCOPE_WRITE], ['meters/read', 'meters/write']);
  });

  test('records are given up into a bucket, where that is asked for', () => {
    const { app } = synthesise((stack) => ({
      worker: WorkerCompute.lambda({
        code: FAKE_PROGRAM,
        giveUp: { bucket: new Bucket(stack, 'GivenUp'), maxRecordAge: Duration.days(2) },
      }),
    }));
    const mapping = app.one('AWS::Lambda::EventSourceMapping', ({ path }) => path.includes('Ingest/Mapping'));
    assert.equal(mapping.properties.MaximumRecordAgeInSeconds, 172800);
    assert.equal(mapping.properties.DestinationConfig.OnFailure.Destination, attribute(app.one('AWS::S3::Bucket'), 'Arn'));
  });
});

test('every alarm goes to the topic, when it rings and when it is over', () => {
  const { app } = synthesise((stack) => ({ alarmTopic: new Topic(stack, 'Topic') }));
  const topic = ref(app.one('AWS::SNS::Topic'));
  const alarms = app.all('AWS::CloudWatch::Alarm');
  const metrics = new Set(alarms.map(({ properties }) => properties.MetricName));
  for (const metric of [
    'IteratorAge', 'Errors', 'Throttles', 'ApproximateNumberOfMessagesVisible', 'ApproximateAgeOfOldestMessage',
    'FailedInvocations', 'InvocationsFailedToBeSentToDlq', 'WriteProvisionedThroughputExceeded', 'DestinationDeliveryFailures',
  ]) {
    assert.ok(metrics.has(metric), `no alarm on ${metric}`);
  }
  for (const { properties, path } of alarms) {
    assert.deepEqual([properties.AlarmActions, properties.OKActions], [[topic], [topic]], path);
    assert.ok(properties.AlarmDescription, path);
    assert.equal(properties.TreatMissingData, path.endsWith('/NotRead/Resource') ? 'breaching' : 'notBreaching', path);
  }
});

test('the outputs that an operator needs', () => {
  const { app } = synthesise({});
  const outputs = Object.keys(app.templates.Metering.Outputs).map((name) => name.replace(/[0-9A-F]{8}$/, ''));
  for (const name of [
    'StreamName', 'DeadLetterQueue', 'IngestWorkerFunction', 'ControlApiFunctionName', 'ControlApiFailedTenantEventsQueue',
    'ForwarderUndeliveredQueue', 'ForwarderRedriveMapping',
  ]) {
    assert.ok(outputs.includes(`AmberfloMetering${name}`), `${name} is not among ${outputs}`);
  }
});

function worker(app: Synthesised) {
  return app.one(FUNCTION, ({ path }) => path.includes('Ingest/Worker'));
}

/** Metering attached to an event manager, in a stack without a control plane. */
function synthesise(props: AmberfloMeteringProps | ((stack: Stack) => AmberfloMeteringProps)): {
  app: Synthesised;
  stack: Stack;
  metering: AmberfloMetering;
} {
  const stack = new Stack(newApp(), 'Metering');
  const eventManager = new EventManager(stack, 'EventManager');
  const given = typeof props === 'function' ? props(stack) : props;
  const metering = new AmberfloMetering(stack, 'AmberfloMetering', meteringProps({ eventManager, ...given }));
  return { app: new Synthesised(stack.node.root as App), stack, metering };
}

test('roles may be made outside of the app', () => {
  const app = newApp();
  const stack = new Stack(app, 'Metering');
  const names = ['Stream/EventsRole', 'Ingest/Worker/Role', 'ControlApi/Admin/Role', 'Forwarder/Forward/Role'];
  const usePrecreatedRoles = Object.fromEntries(names.map((name) => [`Metering/AmberfloMetering/${name}`, name.replace(/\W/g, '-')]));
  Role.customizeRoles(stack, { preventSynthesis: true, usePrecreatedRoles });
  const encryptionKey = kms.Key.fromKeyArn(stack, 'Key', 'arn:aws:kms:eu-west-1:111122223333:key/k');
  const eventManager = new EventManager(stack, 'EventManager');
  new AmberfloMetering(stack, 'AmberfloMetering', meteringProps({ eventManager, encryptionKey, tracing: true }));
  assert.deepEqual(new Synthesised(app).all('AWS::IAM::Role'), []);
});

describe('alarms on what other alarms do not see', () => {
  const { app } = synthesise({});
  const alarm = (path: string): any => app.one('AWS::CloudWatch::Alarm', (resource) => resource.path.endsWith(`${path}/Resource`)).properties;

  test('a worker that is not invoked reports nothing', () => {
    const { Namespace, MetricName, Dimensions, Statistic, Threshold, ComparisonOperator, TreatMissingData } = alarm('Ingest/NotRead');
    assert.deepEqual([Namespace, MetricName, Statistic], ['AWS/Kinesis', 'GetRecords.Success', 'Sum']);
    assert.deepEqual(Dimensions, [{ Name: 'StreamName', Value: ref(app.one('AWS::Kinesis::Stream')) }]);
    assert.deepEqual([Threshold, ComparisonOperator, TreatMissingData], [1, 'LessThanThreshold', 'breaching']);
  });

  test('messages that were received three times have no age', () => {
    for (const queue of ['DeadLetters', 'Forwarder/Undelivered', 'ControlApi/FailedTenantEvents']) {
      const { MetricName, Period, EvaluationPeriods, Statistic } = alarm(`${queue}/NotEmptied`);
      assert.deepEqual([MetricName, Statistic], ['ApproximateNumberOfMessagesVisible', 'Maximum']);
      assert.equal(Period * EvaluationPeriods, 3 * 24 * 60 * 60);
      // CloudWatch allows more than a day only with periods of an hour or more, and 7 days at most.
      assert.ok(Period >= 3600);
    }
  });

  test('an event that Lambda can put into no queue', () => {
    for (const [path, name] of [['Forwarder/Lost', '/Forward/'], ['ControlApi/Lost', 'ControlApi/Admin/']]) {
      const { MetricName, Dimensions, Statistic, Threshold } = alarm(path);
      const handler = app.one('AWS::Lambda::Function', (resource) => resource.path.includes(name));
      assert.deepEqual([MetricName, Dimensions[0].Value, Statistic, Threshold], ['DestinationDeliveryFailures', ref(handler), 'Sum', 0]);
    }
  });
});
