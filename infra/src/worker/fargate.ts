import { CfnOutput, Duration, RemovalPolicy, Size, Stack, Token } from 'aws-cdk-lib';
import * as dynamodb from 'aws-cdk-lib/aws-dynamodb';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';

import { suppressNag, suppressNagOfPolicy } from '../common';
import { checkDuration, checkInteger, checkTime, refuse } from '../validate';
import { grantWorker, LEAST_RATE, MOST_RATE, ON_DEMAND_SHARDS, Worker, WorkerContext, workerSettings } from './context';
import { scaleTasks } from './fargate-scaling';
import { fargateAlarms, fargateMetrics, fargateWidgets } from './fargate-metrics';
import { MetricsScrape, warnOfHiddenTasks } from './metrics-scrape';

/** A worker as a service of Fargate tasks. */
export interface FargateWorkerProps {
  /**
   * The image, whose entrypoint is the worker's program, at `/ingest-worker`. The README says how to build one. It runs as
   * user 65532, without capabilities, and cannot write to its root file system.
   */
  readonly image: ecs.ContainerImage;
  /** Where the tasks run. The cluster's VPC, if there is a `cluster`. */
  readonly vpc: ec2.IVpc;
  /** Subnets with a way to Amberflo and to AWS: tasks have no public address. @default the private ones with egress */
  readonly subnets?: ec2.SubnetSelection;
  /**
   * A security group of your own. It must let the tasks out to Amberflo and to AWS.
   * @default one that lets nothing in, and out only to port 443 and to the ports of Amberflo's URLs
   */
  readonly securityGroup?: ec2.ISecurityGroup;
  /**
   * A cluster of your own. Its Container Insights should be on: the alarm on running tasks is one of its metrics.
   * @default a new one, with Container Insights
   */
  readonly cluster?: ecs.ICluster;

  /**
   * Requests to Amberflo per second that all tasks together may make: a hard limit. Each makes its share of them, which is
   * its share of the shards. 0 turns the limit off.
   * @default 10
   */
  readonly requestsPerSecond?: number;
  /** Tasks that run at least. With two of them, one that dies is replaced by the other after `failoverTime`. @default 2 */
  readonly minTasks?: number;
  /**
   * Tasks that run at most. A task beyond the number of shards has nothing to do.
   * @default as many as the stream has shards; for an on-demand stream 4, which is what it begins with; but never less
   * than minTasks
   */
  readonly maxTasks?: number;
  /** CPU of a task, of which 1024 are one vCPU. @default 512 */
  readonly cpu?: number;
  /** Memory of a task in MiB: what Fargate allows with that CPU. A collector of metrics takes 256 of it. @default 1024 */
  readonly memory?: number;
  /** The image's architecture. @default x86_64 */
  readonly architecture?: ecs.CpuArchitecture;
  /** A worker that has not renewed a lease for so long is taken for dead: from 1 second to 1 hour. @default 10 seconds */
  readonly failoverTime?: Duration;
  /** How long a task that is stopped may take to settle what is in flight: from 1 to 110 seconds. @default 25 seconds */
  readonly shutdownGrace?: Duration;
  /**
   * Where the worker starts in the stream when it has not read any of it. When you come from WorkerCompute.lambda, give the
   * time that all events before have been delivered: what it has delivered is sent again otherwise, and what of that
   * Amberflo does not remember any more is billed twice.
   * @default 'trim-horizon', the oldest event
   */
  readonly startAt?: 'trim-horizon' | 'latest' | Date;
  /** Who reads the workers' metrics. @default nobody: they are served inside the task alone */
  readonly metricsScrape?: MetricsScrape;
}

/** The user `nonroot` of distroless images; a number needs no /etc/passwd. */
const USER = '65532:65532';
/** What ECS waits for the process after SIGTERM, beyond the time that the worker itself allows for its drain. */
const STOP_MARGIN = Duration.seconds(10);
/** ECS kills a task that is stopped after that time at most. */
const MAX_STOP = Duration.seconds(120);
/** Memory in MiB that Fargate allows with a CPU: from, to, in steps of. Source: "Task size" of the developer guide of ECS. */
const TASK_SIZES: Record<number, [from: number, to: number, step: number] | undefined> = {
  256: [512, 2048, 512],
  512: [1024, 4096, 1024],
  1024: [2048, 8192, 1024],
  2048: [4096, 16384, 1024],
  4096: [8192, 30720, 1024],
  8192: [16384, 61440, 4096],
  16384: [32768, 122880, 8192],
};

/**
 * The worker as a service of Fargate tasks.
 *
 * In a deployment the new tasks start before the old ones end. They ask the old ones for leases; an old one that is stopped
 * settles what is in flight and gives its leases up, and nothing is sent twice.
 */
export function fargateWorker(scope: Construct, context: WorkerContext, props: FargateWorkerProps): Worker {
  const { common } = context;
  const size = checked(props, context);
  const leases = leaseTable(scope, context);
  const logGroup = new logs.LogGroup(scope, 'Logs', {
    retention: common.logRetention,
    removalPolicy: RemovalPolicy.DESTROY,
  });
  const logging = ecs.LogDriver.awsLogs({
    logGroup,
    streamPrefix: 'worker',
    // Logs that cannot be delivered must not hold up usage events.
    mode: ecs.AwsLogDriverMode.NON_BLOCKING,
    maxBufferSize: Size.mebibytes(8),
  });
  const service = fargateService(scope, props, taskDefinition(scope, { context, props, size, leases, logging }), context);
  const scrape = props.metricsScrape;
  scrape?.bind(service, logging);
  const { minTasks, maxTasks } = size;
  warnOfHiddenTasks(service, maxTasks);
  scaleTasks(service, context.stream, { minTasks, maxTasks });

  const metrics = fargateMetrics(scope, { stream: context.stream, service, leases, logGroup });
  fargateAlarms(scope, context, metrics, minTasks);
  new CfnOutput(scope, 'WorkerService', { value: service.serviceArn, description: 'The worker' });
  new CfnOutput(scope, 'LeaseTable', { value: leases.tableName, description: 'The table of leases and checkpoints' });
  return { widgets: fargateWidgets(metrics), logGroup };
}

/** What the props come to, with defaults. */
interface TaskSize {
  readonly minTasks: number;
  readonly maxTasks: number;
  readonly cpu: number;
  readonly memory: number;
  readonly requestsPerSecond: number;
  readonly failoverTime: Duration;
  readonly shutdownGrace: Duration;
}

function checked(props: FargateWorkerProps, { shardCount }: WorkerContext): TaskSize {
  const minTasks = props.minTasks ?? 2;
  checkInteger('minTasks', minTasks, 1);
  const useful = Math.max(minTasks, shardCount ?? ON_DEMAND_SHARDS);
  const maxTasks = props.maxTasks ?? useful;
  if (shardCount === undefined) {
    checkInteger('maxTasks', maxTasks, minTasks);
  } else {
    checkInteger('maxTasks', maxTasks, minTasks, useful);
  }
  const cpu = props.cpu ?? 512;
  const memory = props.memory ?? 1024;
  const sizes = TASK_SIZES[cpu] ?? refuse('cpu', cpu, `one of ${Object.keys(TASK_SIZES).join(', ')}`);
  const [from, to, step] = sizes;
  if (!(memory >= from && memory <= to && memory % step === 0)) {
    refuse('memory', memory, `${from} to ${to} MiB in steps of ${step}, with a cpu of ${cpu}`);
  }
  checkTime('startAt', props.startAt, "'trim-horizon', 'latest', or a time");
  const requestsPerSecond = props.requestsPerSecond ?? 10;
  const isRate = requestsPerSecond === 0 || (requestsPerSecond >= LEAST_RATE && requestsPerSecond <= MOST_RATE);
  if (!Token.isUnresolved(requestsPerSecond) && !isRate) {
    refuse('requestsPerSecond', requestsPerSecond, `0 (off), or ${LEAST_RATE} to ${MOST_RATE}`);
  }
  const failoverTime = props.failoverTime ?? Duration.seconds(10);
  checkDuration('failoverTime', failoverTime, 'seconds', 1, 3600);
  const shutdownGrace = props.shutdownGrace ?? Duration.seconds(25);
  checkDuration('shutdownGrace', shutdownGrace, 'seconds', 1, MAX_STOP.minus(STOP_MARGIN).toSeconds());
  return { minTasks, maxTasks, cpu, memory, requestsPerSecond, failoverTime, shutdownGrace };
}

/**
 * The table of leases and checkpoints, in the worker's layout. Without it the stream is read from its beginning again, and
 * what Amberflo does not remember any more is billed twice: it is protected as the events themselves are.
 */
function leaseTable(scope: Construct, { common }: WorkerContext): dynamodb.Table {
  return new dynamodb.Table(scope, 'Leases', {
    partitionKey: { name: 'leaseKey', type: dynamodb.AttributeType.STRING },
    billingMode: dynamodb.BillingMode.PAY_PER_REQUEST,
    pointInTimeRecoverySpecification: { pointInTimeRecoveryEnabled: true },
    encryption: common.encryptionKey ? dynamodb.TableEncryption.CUSTOMER_MANAGED : dynamodb.TableEncryption.DEFAULT,
    encryptionKey: common.encryptionKey,
    // With RETAIN_ON_UPDATE_OR_DELETE, CloudFormation has to delete it when the first deployment fails.
    deletionProtection: common.removalPolicy === RemovalPolicy.RETAIN,
    removalPolicy: common.removalPolicy,
  });
}

interface TaskParts {
  readonly context: WorkerContext;
  readonly props: FargateWorkerProps;
  readonly size: TaskSize;
  readonly leases: dynamodb.Table;
  readonly logging: ecs.LogDriver;
}

function taskDefinition(scope: Construct, { context, props, size, leases, logging }: TaskParts): ecs.FargateTaskDefinition {
  const task = new ecs.FargateTaskDefinition(scope, 'Task', {
    cpu: size.cpu,
    memoryLimitMiB: size.memory,
    runtimePlatform: {
      operatingSystemFamily: ecs.OperatingSystemFamily.LINUX,
      cpuArchitecture: props.architecture ?? ecs.CpuArchitecture.X86_64,
    },
    taskRole: taskRole(scope, context, leases),
  });
  suppressNag(task, 'AwsSolutions-ECS2', 'They are settings; the API key is read from Secrets Manager, and refused as a setting.');
  const linuxParameters = new ecs.LinuxParameters(task, 'Linux');
  linuxParameters.dropCapabilities(ecs.Capability.ALL);
  task.addContainer('Worker', {
    containerName: 'ingest-worker',
    image: props.image,
    logging,
    linuxParameters,
    user: USER,
    readonlyRootFilesystem: true,
    environment: {
      ...workerSettings(context),
      AWS_REGION: Stack.of(scope).region,
      LEASE_TABLE: leases.tableName,
      RATE_REQUESTS_PER_SECOND: String(size.requestsPerSecond),
      FAILOVER_TIME: `${size.failoverTime.toSeconds()}s`,
      SHUTDOWN_GRACE: `${size.shutdownGrace.toSeconds()}s`,
      INITIAL_POSITION: props.startAt instanceof Date ? props.startAt.toISOString() : (props.startAt ?? 'trim-horizon'),
      ADMIN_LISTEN: props.metricsScrape?.adminListen ?? '127.0.0.1:9464',
      LOG_FORMAT: 'json',
    },
    stopTimeout: size.shutdownGrace.plus(STOP_MARGIN),
    // Whether the process runs, not whether Amberflo answers: an outage is no reason to replace tasks.
    healthCheck: {
      command: ['CMD', '/ingest-worker', 'health'],
      interval: Duration.seconds(15),
      timeout: Duration.seconds(5),
      retries: 4,
      startPeriod: Duration.seconds(60),
    },
  });
  suppressNagOfPolicy(task.obtainExecutionRole(), 'A token for ECR is for no repository in particular.', ['Resource::*']);
  return task;
}

/** What the worker may do, and no more: see "Permissions" of its README. */
function taskRole(scope: Construct, context: WorkerContext, leases: dynamodb.Table): iam.Role {
  const { common, stream } = context;
  const role = new iam.Role(scope, 'TaskRole', {
    assumedBy: new iam.ServicePrincipal('ecs-tasks.amazonaws.com'),
    description: 'The worker that brings usage events to Amberflo',
  });
  stream.grant(role, 'kinesis:DescribeStreamSummary', 'kinesis:ListShards', 'kinesis:GetShardIterator', 'kinesis:GetRecords');
  stream.encryptionKey?.grant(role, 'kms:Decrypt');
  leases.grant(role, 'dynamodb:DescribeTable', 'dynamodb:Scan', 'dynamodb:PutItem', 'dynamodb:UpdateItem', 'dynamodb:DeleteItem');
  // DynamoDB uses the key in the name of its caller.
  common.encryptionKey?.grant(
    role,
    'kms:DescribeKey',
    'kms:Encrypt',
    'kms:Decrypt',
    'kms:ReEncryptFrom',
    'kms:ReEncryptTo',
    'kms:GenerateDataKey',
  );
  grantWorker(role, context);
  return role;
}

function fargateService(
  scope: Construct,
  props: FargateWorkerProps,
  task: ecs.FargateTaskDefinition,
  { common }: WorkerContext,
): ecs.FargateService {
  const cluster =
    props.cluster ?? new ecs.Cluster(scope, 'Cluster', { vpc: props.vpc, containerInsightsV2: ecs.ContainerInsights.ENABLED });
  return new ecs.FargateService(scope, 'Service', {
    cluster,
    taskDefinition: task,
    platformVersion: ecs.FargatePlatformVersion.LATEST,
    vpcSubnets: props.subnets ?? { subnetType: ec2.SubnetType.PRIVATE_WITH_EGRESS },
    securityGroups: [props.securityGroup ?? securityGroup(scope, cluster.vpc, common.settings)],
    assignPublicIp: false,
    // A deployment never takes a worker away before there is another.
    minHealthyPercent: 100,
    maxHealthyPercent: 200,
    circuitBreaker: { enable: true, rollback: true },
    availabilityZoneRebalancing: ecs.AvailabilityZoneRebalancing.ENABLED,
    propagateTags: ecs.PropagatedTagSource.SERVICE,
    enableECSManagedTags: true,
  });
}

/** Security groups do not hold back questions to the VPC's own DNS server, so that needs no rule. */
function securityGroup(scope: Construct, vpc: ec2.IVpc, settings: Record<string, string>): ec2.SecurityGroup {
  const group = new ec2.SecurityGroup(scope, 'SecurityGroup', {
    vpc,
    description: 'The worker that brings usage events to Amberflo',
    allowAllOutbound: false,
  });
  for (const port of new Set([443, ...portsOf(settings.AMBERFLO_BASE_URL), ...portsOf(settings.AMBERFLO_INGEST_URL)])) {
    group.addEgressRule(ec2.Peer.anyIpv4(), ec2.Port.tcp(port), 'Amberflo and AWS');
  }
  return group;
}

function portsOf(url: string | undefined): number[] {
  if (url === undefined || Token.isUnresolved(url) || !URL.canParse(url)) {
    return [];
  }
  const { port, protocol } = new URL(url);
  return [port ? Number(port) : protocol === 'http:' ? 80 : 443];
}
