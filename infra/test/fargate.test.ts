import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { Duration, RemovalPolicy } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecr from 'aws-cdk-lib/aws-ecr';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as sns from 'aws-cdk-lib/aws-sns';

import { AmberfloMeteringProps } from '../src';
import { attribute, PACKAGE, ref, Resource, Synthesised } from './support';
import { container, environment, fargate, FargateApp, tasksGroup, WorkerProps } from './support-fargate';
import { permissions } from './support-resources';

const SERVICE = 'AWS::ECS::Service';
const TASK = 'AWS::ECS::TaskDefinition';
const INGRESS = 'AWS::EC2::SecurityGroupIngress';
const ALARM = 'AWS::CloudWatch::Alarm';
const TABLE = 'AWS::DynamoDB::Table';

const plain = fargate();

describe('the container', () => {
  const worker = container(plain);

  test('cannot write to its root file system, is not root, and has no capabilities', () => {
    assert.equal(worker.ReadonlyRootFilesystem, true);
    assert.equal(worker.User, '65532:65532');
    assert.deepEqual(worker.LinuxParameters, { Capabilities: { Drop: ['ALL'] } });
    assert.equal(worker.Privileged, undefined);
  });

  test('is healthy while its process runs', () => {
    assert.deepEqual(worker.HealthCheck, {
      Command: ['CMD', '/ingest-worker', 'health'],
      Interval: 15,
      Timeout: 5,
      Retries: 4,
      StartPeriod: 60,
    });
  });

  test('has longer to stop than the worker takes for its drain, and no longer than ECS allows', () => {
    assert.equal(environment(plain).SHUTDOWN_GRACE, '25s');
    assert.equal(worker.StopTimeout, 35);
    const longest = fargate({ shutdownGrace: Duration.seconds(110) });
    assert.equal(environment(longest).SHUTDOWN_GRACE, '110s');
    assert.equal(container(longest).StopTimeout, 120);
  });

  test('logs JSON, without ever waiting for the logs, to a group with a retention', () => {
    const { LogDriver, Options } = worker.LogConfiguration;
    assert.equal(LogDriver, 'awslogs');
    assert.equal(Options.mode, 'non-blocking');
    assert.equal(plain.referred(Options['awslogs-group']).properties.RetentionInDays, 30);
    assert.equal(environment(plain).LOG_FORMAT, 'json');
  });

  test('has the settings of the worker, and serves its metrics inside the task', () => {
    const settings = environment(fargate({ requestsPerSecond: 7.5, failoverTime: Duration.minutes(1), startAt: new Date(0) }));
    assert.equal(settings.STREAM, `kinesis:${attribute(plain.one('AWS::Kinesis::Stream'), 'Arn')}`);
    assert.equal(settings.LEASE_TABLE, ref(plain.one(TABLE)));
    assert.equal(settings.RATE_REQUESTS_PER_SECOND, '7.5');
    assert.equal(settings.FAILOVER_TIME, '60s');
    assert.equal(settings.INITIAL_POSITION, '1970-01-01T00:00:00.000Z');
    assert.equal(settings.ADMIN_LISTEN, '127.0.0.1:9464');
    assert.equal(settings.AWS_REGION, '<AWS::Region>');
    assert.equal(environment(plain).INITIAL_POSITION, 'trim-horizon');
    assert.equal('AMBERFLO_API_KEY' in settings, false);
  });

  test('runs on the architecture and with the size that were asked for', () => {
    const { properties } = fargate({ architecture: ecs.CpuArchitecture.ARM64, cpu: 1024, memory: 8192 }).one(TASK);
    assert.deepEqual(properties.RuntimePlatform, { CpuArchitecture: 'ARM64', OperatingSystemFamily: 'LINUX' });
    assert.deepEqual([properties.Cpu, properties.Memory], ['1024', '8192']);
  });
});

describe('the service', () => {
  const { properties, raw } = plain.one(SERVICE);

  test('takes no worker away before there is another, and takes a failed deployment back', () => {
    const { MinimumHealthyPercent, MaximumPercent, DeploymentCircuitBreaker } = properties.DeploymentConfiguration;
    assert.deepEqual([MinimumHealthyPercent, MaximumPercent], [100, 200]);
    assert.deepEqual(DeploymentCircuitBreaker, { Enable: true, Rollback: true });
  });

  test('leaves the number of tasks to the scaling, also in a deployment', () => {
    assert.equal(properties.DesiredCount, undefined);
  });

  test('has no public address, and private subnets', () => {
    const { AssignPublicIp, Subnets } = properties.NetworkConfiguration.AwsvpcConfiguration;
    assert.equal(AssignPublicIp, 'DISABLED');
    assert.equal(Subnets.length, 2);
    assert.ok(Subnets.every((subnet: string) => plain.referred(subnet).path.startsWith('Vpc/PrivateSubnet')));
    assert.equal(properties.PlatformVersion, 'LATEST');
  });

  test('starts no task before the role may do what the worker needs', () => {
    const policy = plain.one('AWS::IAM::Policy', ({ path }) => path.includes('/TaskRole/'));
    assert.ok(raw.DependsOn.includes(policy.logicalId));
  });

  test('can be of a cluster, in subnets and with a security group of the user', () => {
    const app = fargate((stack, vpc) => ({
      cluster: new ecs.Cluster(stack, 'Own', { vpc }),
      subnets: { subnetType: ec2.SubnetType.PUBLIC },
      securityGroup: new ec2.SecurityGroup(stack, 'OwnGroup', { vpc }),
    }));
    const service = app.one(SERVICE).properties;
    assert.equal(service.Cluster, ref(app.one('AWS::ECS::Cluster')));
    assert.equal(app.referred(service.Cluster).path, 'Own/Resource');
    assert.equal(tasksGroup(app).path, 'OwnGroup/Resource');
  });
});

describe('the security group', () => {
  test('lets nothing in, and out to port 443 alone', () => {
    const group = tasksGroup(plain);
    assert.equal(group.properties.SecurityGroupIngress, undefined);
    assert.equal(plain.all(INGRESS).length, 0);
    assert.deepEqual(
      group.properties.SecurityGroupEgress.map(({ IpProtocol, FromPort, ToPort }: any) => [IpProtocol, FromPort, ToPort]),
      [['tcp', 443, 443]],
    );
  });

  test('lets out to the ports of the URLs of Amberflo', () => {
    const settings = { AMBERFLO_INGEST_URL: 'http://ingest.example.com' };
    const group = tasksGroup(fargate({}, { amberfloBaseUrl: 'https://amberflo.example.com:8443/v1', settings }));
    assert.deepEqual(group.properties.SecurityGroupEgress.map(({ FromPort }: any) => FromPort).sort(), [443, 80, 8443]);
  });
});

describe('the lease table', () => {
  test('has the key of the worker, and is protected as the events are', () => {
    const { properties, raw } = plain.one(TABLE);
    const source = readFileSync(join(PACKAGE, '..', 'shared', 'src', 'backend', 'dynamodb', 'row.rs'), 'utf8');
    const [, key] = /LEASE_KEY: &str = "(\w+)"/.exec(source) ?? [];
    assert.deepEqual(properties.KeySchema, [{ AttributeName: key, KeyType: 'HASH' }]);
    assert.deepEqual(properties.AttributeDefinitions, [{ AttributeName: key, AttributeType: 'S' }]);
    assert.equal(properties.BillingMode, 'PAY_PER_REQUEST');
    assert.deepEqual(properties.PointInTimeRecoverySpecification, { PointInTimeRecoveryEnabled: true });
    assert.equal(properties.DeletionProtectionEnabled, true);
    assert.deepEqual([raw.DeletionPolicy, raw.UpdateReplacePolicy], ['Retain', 'Retain']);
  });

  test('goes with the stack where that is wanted', () => {
    const { properties, raw } = fargate({}, { removalPolicy: RemovalPolicy.DESTROY }).one(TABLE);
    assert.equal(properties.DeletionProtectionEnabled, false);
    assert.equal(raw.DeletionPolicy, 'Delete');
  });

  test('goes when the first deployment fails, where that is wanted, and stays otherwise', () => {
    const { properties, raw } = fargate({}, { removalPolicy: RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE }).one(TABLE);
    assert.equal(properties.DeletionProtectionEnabled, false);
    assert.deepEqual([raw.DeletionPolicy, raw.UpdateReplacePolicy], ['RetainExceptOnCreate', 'Retain']);
  });
});

describe('permissions', () => {
  const role = (app: Synthesised, name: string): Resource => app.referred(app.one(TASK).properties[name]);
  const secret = 'arn:<AWS::Partition>:secretsmanager:<AWS::Region>:<AWS::AccountId>:secret:AmberfloApiKey-??????';
  const needed = (app: Synthesised): Record<string, string[]> => ({
    [attribute(app.one('AWS::Kinesis::Stream'), 'Arn')]: [
      'kinesis:DescribeStreamSummary',
      'kinesis:GetRecords',
      'kinesis:GetShardIterator',
      'kinesis:ListShards',
    ],
    [attribute(app.one(TABLE), 'Arn')]: [
      'dynamodb:DeleteItem',
      'dynamodb:DescribeTable',
      'dynamodb:PutItem',
      'dynamodb:Scan',
      'dynamodb:UpdateItem',
    ],
    [attribute(deadLetters(app), 'Arn')]: ['sqs:GetQueueAttributes', 'sqs:SendMessage'],
    [secret]: ['secretsmanager:DescribeSecret', 'secretsmanager:GetSecretValue'],
  });
  const deadLetters = (app: Synthesised): Resource => app.referred(environment(app).DEAD_LETTER_QUEUE);

  test('of the worker are those that it needs', () => {
    assert.deepEqual(permissions(plain, role(plain, 'TaskRoleArn')), needed(plain));
  });

  test('of the worker with a key of the user are those, and the key, without wildcards', () => {
    const app = fargate({}, (stack) => ({ encryptionKey: new kms.Key(stack, 'Key') }));
    const key = app.one('AWS::KMS::Key');
    assert.deepEqual(permissions(app, role(app, 'TaskRoleArn')), {
      ...needed(app),
      [attribute(key, 'Arn')]: [
        'kms:Decrypt',
        'kms:DescribeKey',
        'kms:Encrypt',
        'kms:GenerateDataKey',
        'kms:ReEncryptFrom',
        'kms:ReEncryptTo',
      ],
    });
    assert.equal(app.one(TABLE).properties.SSESpecification.KMSMasterKeyId, attribute(key, 'Arn'));
  });

  test('of ECS are to write the logs, and for an image in ECR to pull that', () => {
    const logs = (app: Synthesised): Record<string, string[]> => ({
      [attribute(app.referred(container(app).LogConfiguration.Options['awslogs-group']), 'Arn')]: [
        'logs:CreateLogStream',
        'logs:PutLogEvents',
      ],
    });
    assert.deepEqual(permissions(plain, role(plain, 'ExecutionRoleArn')), logs(plain));
    const inEcr = fargate((stack) => ({ image: ecs.ContainerImage.fromEcrRepository(new ecr.Repository(stack, 'Repository'), '1') }));
    assert.deepEqual(permissions(inEcr, role(inEcr, 'ExecutionRoleArn')), {
      ...logs(inEcr),
      [attribute(inEcr.one('AWS::ECR::Repository'), 'Arn')]: [
        'ecr:BatchCheckLayerAvailability',
        'ecr:BatchGetImage',
        'ecr:GetDownloadUrlForLayer',
      ],
      '*': ['ecr:GetAuthorizationToken'],
    });
  });
});

describe('scaling', () => {
  const policy = (name: string): any =>
    plain.one('AWS::ApplicationAutoScaling::ScalingPolicy', ({ path }) => path.includes(name)).properties;
  const alarm = (name: string): any =>
    plain.one(ALARM, ({ path }) => path.includes(`/TaskCount/Target/${name}`)).properties;

  test('has a range that is of use', () => {
    const range = (worker: WorkerProps, metering: AmberfloMeteringProps = {}): number[] => {
      const { MinCapacity, MaxCapacity } = fargate(worker, metering).one('AWS::ApplicationAutoScaling::ScalableTarget').properties;
      return [MinCapacity, MaxCapacity];
    };
    assert.deepEqual(range({}), [2, 4]);
    assert.deepEqual(range({ maxTasks: 30 }), [2, 30]);
    assert.deepEqual(range({ minTasks: 6 }), [6, 6]);
    assert.deepEqual(range({}, { shardCount: 16 }), [2, 16]);
    assert.deepEqual(range({}, { shardCount: 1 }), [2, 2], 'the second one stands by');
  });

  test('adds tasks when events wait for a minute, more when they wait for five', () => {
    const { Namespace, MetricName, Dimensions, Statistic, Threshold, EvaluationPeriods, Period } = alarm('Behind');
    assert.deepEqual([Namespace, MetricName, Statistic], ['AWS/Kinesis', 'GetRecords.IteratorAgeMilliseconds', 'Maximum']);
    assert.deepEqual(Dimensions, [{ Name: 'StreamName', Value: ref(plain.one('AWS::Kinesis::Stream')) }]);
    assert.deepEqual([Threshold, EvaluationPeriods, Period], [60_000, 2, 60]);
    const { Cooldown, StepAdjustments } = policy('Behind').StepScalingPolicyConfiguration;
    assert.equal(Cooldown, 180);
    assert.deepEqual(StepAdjustments, [
      { MetricIntervalLowerBound: 0, MetricIntervalUpperBound: 240_000, ScalingAdjustment: 1 },
      { MetricIntervalLowerBound: 240_000, ScalingAdjustment: 2 },
    ]);
  });

  test('adds tasks when their CPU is high, and takes none away for it', () => {
    const { DisableScaleIn, TargetValue, PredefinedMetricSpecification } = policy('Cpu').TargetTrackingScalingPolicyConfiguration;
    assert.deepEqual([DisableScaleIn, TargetValue], [true, 60]);
    assert.equal(PredefinedMetricSpecification.PredefinedMetricType, 'ECSServiceAverageCPUUtilization');
  });

  test('takes one task away when for a quarter of an hour nothing waits and CPU is low, and no other before another quarter', () => {
    const { Metrics, EvaluationPeriods, Threshold, ComparisonOperator } = alarm('Idle');
    assert.equal(Metrics.find(({ ReturnData }: any) => ReturnData).Expression, 'IF(age > 10000 OR cpu > 25, 1, -1)');
    assert.deepEqual([EvaluationPeriods, Threshold, ComparisonOperator], [15, 0, 'LessThanOrEqualToThreshold']);
    assert.ok(Metrics.filter(({ MetricStat }: any) => MetricStat).every(({ MetricStat }: any) => MetricStat.Period === 60));
    const { Cooldown, StepAdjustments } = policy('Idle').StepScalingPolicyConfiguration;
    assert.equal(Cooldown, 900);
    assert.deepEqual(StepAdjustments, [{ MetricIntervalUpperBound: 0, ScalingAdjustment: -1 }]);
  });
});

describe('alarms', () => {
  const app = fargate({ minTasks: 3 }, (stack) => ({ alarmTopic: new sns.Topic(stack, 'Topic') }));
  const alarm = (id: string): any => app.one(ALARM, ({ path }) => path.endsWith(`/Ingest/${id}/Resource`)).properties;
  const metric = (id: string): any => alarm(id).Metrics[0].MetricStat.Metric;

  test('go to the topic, also when they are over, and say what they mean', () => {
    const ours = app.all(ALARM).filter(({ path }) => /\/Ingest\/[^/]+\/Resource$/.test(path));
    assert.deepEqual(
      ours.map(({ path }) => path.split('/').at(-2)).sort(),
      ['ErrorAlarm', 'Expiring', 'Late', 'Memory', 'NoWorker', 'OutageAlarm', 'TooFewTasks'],
    );
    const topic = [ref(app.one('AWS::SNS::Topic'))];
    for (const { properties } of ours) {
      assert.deepEqual([properties.AlarmActions, properties.OKActions], [topic, topic]);
      assert.match(properties.AlarmDescription, /\w+ .*\./);
    }
  });

  test('ring when events are old', () => {
    assert.equal(metric('Late').MetricName, 'GetRecords.IteratorAgeMilliseconds');
    assert.equal(alarm('Late').Threshold, 900_000);
  });

  test('ring when fewer tasks run than should', () => {
    assert.deepEqual([metric('TooFewTasks').Namespace, metric('TooFewTasks').MetricName], ['ECS/ContainerInsights', 'RunningTaskCount']);
    assert.deepEqual([alarm('TooFewTasks').Threshold, alarm('TooFewTasks').ComparisonOperator], [3, 'LessThanThreshold']);
    assert.deepEqual(app.one('AWS::ECS::Cluster').properties.ClusterSettings, [{ Name: 'containerInsights', Value: 'enabled' }]);
  });

  test('ring when nobody renews leases, which shows as no data', () => {
    assert.equal(metric('NoWorker').MetricName, 'ConsumedWriteCapacityUnits');
    assert.deepEqual(metric('NoWorker').Dimensions, [{ Name: 'TableName', Value: ref(app.one(TABLE)) }]);
    assert.deepEqual([alarm('NoWorker').ComparisonOperator, alarm('NoWorker').Threshold], ['LessThanThreshold', 1]);
    assert.equal(alarm('NoWorker').TreatMissingData, 'breaching');
  });

  test('ring for what the worker logs, in the words in which it logs it', () => {
    const filters = app.all('AWS::Logs::MetricFilter').map(({ properties }) => properties);
    const patterns = Object.fromEntries(filters.map((filter) => [filter.MetricTransformations[0].MetricName, filter.FilterPattern]));
    assert.deepEqual(patterns, {
      Errors: '{ $.level = "ERROR" }',
      Outages: '{ ($.message = "Amberflo fails*") && ($.failures >= 16) }',
    });
    for (const [id, name] of [['ErrorAlarm', 'Errors'], ['OutageAlarm', 'Outages']]) {
      const [transformation] = filters.find((filter) => filter.MetricTransformations[0].MetricName === name)!.MetricTransformations;
      assert.deepEqual([metric(id).Namespace, metric(id).MetricName], [transformation.MetricNamespace, name]);
    }
    const source = readFileSync(join(PACKAGE, '..', 'ingest-worker', 'src', 'submit.rs'), 'utf8');
    assert.match(source, /failures, "Amberflo fails/);
    const service = readFileSync(join(PACKAGE, '..', 'shared', 'src', 'service', 'logs.rs'), 'utf8');
    assert.match(service, /json\(\)\.flatten_event\(true\)/, 'message and failures are at the top level');
  });
});

describe('what cannot work is refused in one line', () => {
  const refused: [string, WorkerProps, AmberfloMeteringProps, RegExp][] = [
    ['no tasks', { minTasks: 0 }, {}, /^minTasks: 0; allowed is 1 or more, whole$/],
    ['half tasks', { minTasks: 1.5 }, {}, /^minTasks: 1.5; /],
    ['fewer tasks at most than at least', { maxTasks: 1 }, {}, /^maxTasks: 1; allowed is 2 or more, whole$/],
    ['more tasks than shards', { maxTasks: 9 }, { shardCount: 8 }, /^maxTasks: 9; allowed is 2 to 8, whole$/],
    ['a CPU that Fargate does not have', { cpu: 300 }, {}, /^cpu: 300; allowed is one of 256, 512, 1024, /],
    ['memory that the CPU does not go with', { cpu: 256, memory: 4096 }, {}, /^memory: 4096; allowed is 512 to 2048 MiB /],
    ['memory between two steps', { cpu: 512, memory: 1500 }, {}, /^memory: 1500; /],
    ['a negative rate', { requestsPerSecond: -1 }, {}, /^requestsPerSecond: -1; allowed is 0 \(off\), or /],
    ['a rate that is none', { requestsPerSecond: NaN }, {}, /^requestsPerSecond: /],
    ['a start at no time', { startAt: new Date('yesterday') }, {}, /^startAt: "Invalid Date"; allowed is 'trim-horizon', 'latest', or a time$/],
    ['a failover in no time', { failoverTime: Duration.millis(500) }, {}, /^failoverTime: .*; allowed is 1 to 3600 seconds, whole$/],
    ['a drain that ECS cuts off', { shutdownGrace: Duration.minutes(2) }, {}, /^shutdownGrace: 2 minutes; allowed is 1 to 110 seconds/],
  ];
  for (const [name, worker, metering, message] of refused) {
    test(name, () => assert.throws(() => new FargateApp(worker, metering), { message }));
  }
});

test('no file of src has a literal partition, region or account', () => {
  for (const name of readdirSync(join(PACKAGE, 'src', 'worker'))) {
    const source = readFileSync(join(PACKAGE, 'src', 'worker', name), 'utf8');
    assert.doesNotMatch(source, /arn:aws|\b(us|eu|ap)-[a-z]+-\d\b|\b\d{12}\b/, name);
  }
});
