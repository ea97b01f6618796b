import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { Aspects, Stack } from 'aws-cdk-lib';
import { Annotations, Match } from 'aws-cdk-lib/assertions';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecr from 'aws-cdk-lib/aws-ecr';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as kms from 'aws-cdk-lib/aws-kms';
import * as cloudmap from 'aws-cdk-lib/aws-servicediscovery';
import { AwsSolutionsChecks } from 'cdk-nag';

import { MetricsScrape } from '../src';
import { attribute, newApp, RECOMMENDED_FLAGS } from './support';
import { container, environment, fargate, FargateApp, tasksGroup } from './support-fargate';
import { permissions } from './support-resources';

const SERVICE = 'AWS::ECS::Service';
const TASK = 'AWS::ECS::TaskDefinition';
const GROUP = 'AWS::EC2::SecurityGroup';
const INGRESS = 'AWS::EC2::SecurityGroupIngress';
const WORKSPACE = 'arn:aws-cn:aps:cn-north-1:111111111111:workspace/ws-1';

describe('MetricsScrape.cloudMap', () => {
  const scraped = new FargateApp((stack, vpc) => ({
    metricsScrape: MetricsScrape.cloudMap({
      namespace: new cloudmap.PrivateDnsNamespace(stack, 'Namespace', { vpc, name: 'internal' }),
      scraper: new ec2.SecurityGroup(stack, 'Prometheus', { vpc, allowAllOutbound: false }),
    }),
    maxTasks: 9,
  }));
  const app = scraped.synth();

  test('lets the scraper in to the metrics, and nobody else to anything', () => {
    const { GroupId, SourceSecurityGroupId, FromPort, ToPort, IpProtocol } = app.one(INGRESS).properties;
    const scraper = app.one(GROUP, ({ path }) => path.startsWith('Prometheus'));
    assert.equal(GroupId, attribute(tasksGroup(app), 'GroupId'));
    assert.equal(SourceSecurityGroupId, attribute(scraper, 'GroupId'));
    assert.deepEqual([IpProtocol, FromPort, ToPort], ['tcp', 9464, 9464]);
    assert.equal(tasksGroup(app).properties.SecurityGroupIngress, undefined);
    assert.equal(environment(app).ADMIN_LISTEN, '0.0.0.0:9464');
  });

  test('registers the tasks under a name', () => {
    const [registry] = app.one(SERVICE).properties.ServiceRegistries;
    const { Name, DnsConfig } = app.referred(registry.RegistryArn).properties;
    assert.equal(Name, 'ingest-worker');
    assert.deepEqual(DnsConfig.DnsRecords, [{ TTL: 15, Type: 'A' }]);
  });

  test('warns when DNS does not give all tasks', () => {
    Annotations.fromStack(scraped.stack).hasWarning('*', Match.stringLikeRegexp('maxTasks is 9, .* 8 addresses'));
  });

  test('refuses a scraper that would be everybody, and a namespace without DNS', () => {
    const stack = new Stack(newApp(), 'Other');
    const namespace = new cloudmap.HttpNamespace(stack, 'Http', { name: 'http' });
    const scraper = new ec2.SecurityGroup(stack, 'Group', { vpc: new ec2.Vpc(stack, 'Vpc') });
    assert.throws(() => MetricsScrape.cloudMap({ namespace, scraper }), /^Error: namespace: HTTP; allowed/);
    assert.throws(() => MetricsScrape.cloudMap({ namespace, scraper: ec2.Peer.anyIpv4() }), /^Error: scraper: .*; allowed/);
  });
});

describe('MetricsScrape.managedPrometheus', () => {
  const app = fargate({ metricsScrape: MetricsScrape.managedPrometheus({ workspaceArn: WORKSPACE }) });
  const collector = container(app, 'collector');

  test('keeps the metrics inside the task', () => {
    assert.equal(environment(app).ADMIN_LISTEN, '127.0.0.1:9464');
    assert.equal(app.all(INGRESS).length, 0);
  });

  test('never stops the worker, and is as locked up', () => {
    assert.equal(collector.Essential, false);
    assert.equal(collector.RestartPolicy.Enabled, true);
    assert.equal(collector.Memory, 256);
    assert.equal(collector.ReadonlyRootFilesystem, true);
    assert.deepEqual(collector.LinuxParameters, { Capabilities: { Drop: ['ALL'] } });
    assert.match(collector.Image, /aws-otel-collector:v\d+\.\d+\.\d+$/);
    assert.equal(container(app).Essential, true);
  });

  test('reads from the worker and writes to the workspace, signed, with the task as instance', () => {
    const config = JSON.parse(environment(app, 'collector').AOT_CONFIG_CONTENT);
    const [scrape] = config.receivers.prometheus.config.scrape_configs;
    assert.deepEqual(scrape.static_configs, [{ targets: ['127.0.0.1:9464'] }]);
    assert.deepEqual(config.exporters.prometheusremotewrite, {
      endpoint: 'https://aps-workspaces.cn-north-1.<AWS::URLSuffix>/workspaces/ws-1/api/v1/remote_write',
      auth: { authenticator: 'sigv4auth' },
    });
    assert.deepEqual(config.extensions.sigv4auth, { region: 'cn-north-1', service: 'aps' });
    assert.equal(config.processors.resource.attributes[0].from_attribute, 'aws.ecs.task.arn');
    // What a pipeline names must be there, or the collector does not start.
    const { metrics } = config.service.pipelines;
    for (const kind of ['receivers', 'processors', 'exporters']) {
      assert.deepEqual(Object.keys(config[kind]), metrics[kind]);
    }
    assert.deepEqual(Object.keys(config.extensions), config.service.extensions);
  });

  test('may write to this workspace alone', () => {
    const found = permissions(app, app.referred(app.one(TASK).properties.TaskRoleArn));
    assert.deepEqual(found[WORKSPACE], ['aps:RemoteWrite']);
    assert.equal(Object.keys(found).length, 5);
  });

  test('refuses what is no workspace', () => {
    const metricsScrape = MetricsScrape.managedPrometheus({ workspaceArn: 'ws-1' });
    assert.throws(() => new FargateApp({ metricsScrape }), /workspaceArn: "ws-1"; allowed is/);
  });
});

describe('cdk-nag finds nothing', () => {
  const scrapes: Record<string, (stack: Stack, vpc: ec2.IVpc) => MetricsScrape | undefined> = {
    'without metrics': () => undefined,
    'with Cloud Map': (stack, vpc) =>
      MetricsScrape.cloudMap({
        namespace: new cloudmap.PrivateDnsNamespace(stack, 'Namespace', { vpc, name: 'internal' }),
        scraper: new ec2.SecurityGroup(stack, 'Prometheus', { vpc }),
      }),
    'with Managed Prometheus': () => MetricsScrape.managedPrometheus({ workspaceArn: WORKSPACE }),
  };
  for (const [name, metricsScrape] of Object.entries(scrapes)) {
    for (const context of [undefined, RECOMMENDED_FLAGS]) {
      test(`${name}, ${context ? 'with' : 'without'} the flags of new apps`, () => {
        const { stack, metering } = new FargateApp(
          (stack, vpc) => ({
            metricsScrape: metricsScrape(stack, vpc),
            image: ecs.ContainerImage.fromEcrRepository(new ecr.Repository(stack, 'Repository'), '1'),
          }),
          (stack) => ({ encryptionKey: new kms.Key(stack, 'Key', { enableKeyRotation: true }) }),
          context,
        );
        Aspects.of(metering.worker.logGroup.node.scope!).add(new AwsSolutionsChecks({ verbose: true }));
        const found = Annotations.fromStack(stack).findError('*', Match.stringLikeRegexp('AwsSolutions'));
        const warned = Annotations.fromStack(stack).findWarning('*', Match.stringLikeRegexp('AwsSolutions|CdkNag'));
        assert.deepEqual([...found, ...warned].map(({ id, entry }) => `${id}: ${entry.data}`), []);
      });
    }
  }
});
