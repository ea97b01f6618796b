import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { App, Stack } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import { Construct } from 'constructs';

import { AmberfloMetering, AmberfloMeteringProps, WorkerCompute } from '../src';
import { meteringProps, newApp, ref, Resource, Synthesised } from './support';
import { EventManager } from './support-sbt-main';

const RULE = 'AWS::Events::Rule';

/** A metric of a widget, with what the array says spelled out. */
interface ShownMetric {
  readonly namespace: string;
  readonly name: string;
  readonly dimensions: Record<string, string>;
  readonly options: any;
}

/** The dashboard that an app synthesises to. */
class ShownDashboard {
  readonly app: Synthesised;
  readonly resource: Resource;
  readonly widgets: any[];

  constructor(app: App) {
    this.app = new Synthesised(app);
    this.resource = this.app.one('AWS::CloudWatch::Dashboard');
    // In the resolved text references are between < and >, which JSON lets be.
    this.widgets = JSON.parse(this.resource.properties.DashboardBody).widgets;
  }

  titled(title: string): any {
    const found = this.widgets.filter(({ properties }) => properties.title === title);
    assert.equal(found.length, 1, title);
    return found[0].properties;
  }

  /** The guide on top. */
  get text(): string {
    const [guide, ...others] = this.widgets.filter(({ type }) => type === 'text');
    assert.equal(others.length, 0);
    return guide.properties.markdown;
  }

  get titles(): string[] {
    return this.widgets.flatMap(({ properties }) => properties.title ?? []);
  }
}

/** The metrics of a graph: those of one axis follow each other with `.` and `...` for what is as before. */
function metricsOf({ metrics }: any): ShownMetric[] {
  let previous: string[] = [];
  return metrics.map((row: any[]) => {
    const options = typeof row.at(-1) === 'object' ? row.at(-1) : {};
    const given: string[] = row.filter((value) => typeof value === 'string');
    const names = given[0] === '...' ? [...previous.slice(0, previous.length - given.length + 1), ...given.slice(1)] : given;
    const full = names.map((value, index) => (value === '.' ? previous[index] : value));
    previous = full;
    const [namespace, name, ...dimensions] = full;
    const pairs = dimensions.flatMap((value, index) => (index % 2 === 0 ? [[value, dimensions[index + 1]]] : []));
    return { namespace, name, dimensions: Object.fromEntries(pairs), options };
  });
}

function lambdaStack(app: App, props: Partial<AmberfloMeteringProps> = {}): Stack {
  const stack = new Stack(app, 'Metering');
  new AmberfloMetering(stack, 'AmberfloMetering', { ...meteringProps(), ...props, eventManager: new EventManager(stack, 'EventManager') });
  return stack;
}

const onLambda = new ShownDashboard(lambdaStack(newApp()).node.root as App);

/** What dimensions say, by the type of the resource that they are to be of. */
const DIMENSIONS: Record<string, string> = {
  StreamName: 'AWS::Kinesis::Stream',
  FunctionName: 'AWS::Lambda::Function',
  QueueName: 'AWS::SQS::Queue',
  EventBusName: 'AWS::Events::EventBus',
  ClusterName: 'AWS::ECS::Cluster',
  ServiceName: 'AWS::ECS::Service',
  TableName: 'AWS::DynamoDB::Table',
};

/** Of the metrics that the worker prints. */
const LABELS = ['operation', 'outcome'];

function checkDashboard(shown: ShownDashboard): void {
  test('is JSON, with a title and units for each graph', () => {
    const graphs = shown.widgets.filter(({ type }) => type === 'metric');
    assert.ok(graphs.length >= 10);
    for (const { properties } of graphs) {
      assert.match(properties.title, /^\w/);
      assert.match(properties.yAxis.left.label, /^\w|%/, properties.title);
      assert.equal(properties.region, '<AWS::Region>');
      const hasRight = metricsOf(properties).some(({ options }) => options.yAxis === 'right');
      assert.equal(hasRight, properties.yAxis.right !== undefined, properties.title);
    }
    assert.equal(new Set(shown.titles).size, shown.titles.length, 'no title twice');
  });

  test('shows metrics of what is in the template', () => {
    const metrics = shown.widgets.filter(({ type }) => type === 'metric').flatMap(({ properties }) => metricsOf(properties));
    for (const { namespace, name, dimensions } of metrics) {
      assert.match(namespace, /^(AWS\/\w+|ECS\/ContainerInsights|AmberfloMetering(\/\w+)?)$/);
      for (const [dimension, value] of Object.entries(dimensions)) {
        if (!['RuleName', ...LABELS].includes(dimension)) {
          assert.equal(shown.app.referred(value).type, DIMENSIONS[dimension], `${namespace} ${name} ${dimension}: ${value}`);
        }
      }
    }
  });

  test('has no overlaps, and keeps to the grid', () => {
    const cells = new Set<string>();
    for (const { x, y, width, height } of shown.widgets) {
      assert.ok(x + width <= 24);
      for (let column = x; column < x + width; column++) {
        for (let row = y; row < y + height; row++) {
          assert.ok(!cells.has(`${column},${row}`), `${column},${row} is taken twice`);
          cells.add(`${column},${row}`);
        }
      }
    }
  });
}

describe('with a worker on Lambda', () => {
  checkDashboard(onLambda);

  test('goes from the bus to Amberflo, top to bottom', () => {
    const rows = [...onLambda.widgets].sort((one, other) => one.y - other.y || one.x - other.x);
    assert.deepEqual(rows.map(({ properties }) => properties.title), [
      undefined,
      'Rule: matched and invoked',
      'Rule: failed',
      'Stream: records',
      'Stream: bytes',
      'Stream: throttled',
      'Worker: how old the events are that it works on',
      'Worker: invocations',
      'Worker: duration',
      'Worker: what became of events',
      'Worker: from the stream to Amberflo',
      'Amberflo: its answers',
      'Dead letters: refused, not billed',
      'Undelivered: did not reach the stream',
      'Events about tenants that failed',
      'Admin API: requests',
      'Admin API: duration',
    ]);
  });

  const names = (title: string): string[] => metricsOf(onLambda.titled(title)).map(({ name }) => name);

  test('shows what an operator needs of each part', () => {
    assert.deepEqual(names('Rule: failed'), [
      'FailedInvocations', 'InvocationsSentToDlq', 'InvocationsFailedToBeSentToDlq', 'ThrottledRules',
    ]);
    assert.deepEqual(names('Stream: records'), ['IncomingRecords', 'GetRecords.Records']);
    assert.deepEqual(names('Stream: throttled'), ['WriteProvisionedThroughputExceeded', 'ReadProvisionedThroughputExceeded']);
    assert.deepEqual(names('Worker: how old the events are that it works on'), ['IteratorAge']);
    assert.deepEqual(names('Worker: invocations'), ['Invocations', 'Errors', 'Throttles', 'ConcurrentExecutions']);
    assert.deepEqual(names('Worker: duration'), ['Duration', 'Duration', 'Duration']);
    assert.deepEqual(names('Admin API: requests'), ['Invocations', 'Errors', 'Throttles']);
    assert.deepEqual(names('Admin API: duration'), ['Duration', 'Duration']);
  });

  test('shows what the worker prints by itself, unless it is told not to', () => {
    assert.deepEqual(names('Amberflo: its answers'), [...Array(6).fill('amberflo_requests_total'), 'ingest_paused']);
    assert.deepEqual(names('Worker: from the stream to Amberflo'), Array(3).fill('ingest_delivery_latency_seconds'));
    const [of, without] = ['Of', ''].map((METRICS_NAMESPACE) => {
      const stack = lambdaStack(newApp(), { settings: { METRICS_NAMESPACE } });
      return new ShownDashboard(stack.node.root as App);
    });
    assert.deepEqual([...new Set(metricsOf(of.titled('Amberflo: its answers')).map(({ namespace }) => namespace))], ['Of']);
    assert.ok(!without.titles.includes('Amberflo: its answers'));
  });

  test('counts sums, where the default would be an average', () => {
    for (const title of ['Worker: what became of events', 'Stream: records', 'Stream: bytes', 'Stream: throttled', 'Rule: failed']) {
      for (const { name, options } of metricsOf(onLambda.titled(title))) {
        assert.equal(options.stat, 'Sum', `${title}: ${name}`);
      }
    }
  });

  test('shows depth and age of all three queues, each its own', () => {
    const titles = onLambda.titles.filter((title) => /^(Dead|Undelivered|Events)/.test(title));
    const queues = titles.map((title) => {
      const metrics = metricsOf(onLambda.titled(title));
      assert.deepEqual(metrics.map(({ name }) => name), ['ApproximateNumberOfMessagesVisible', 'ApproximateAgeOfOldestMessage']);
      assert.ok(metrics.every(({ options }) => options.stat === 'Maximum'));
      const [one, other] = metrics.map(({ dimensions }) => dimensions.QueueName);
      assert.equal(one, other);
      return onLambda.app.referred(one).path;
    });
    assert.deepEqual(queues, [
      'AmberfloMetering/DeadLetters/Resource',
      'AmberfloMetering/Forwarder/Undelivered/Resource',
      'AmberfloMetering/ControlApi/FailedTenantEvents/Resource',
    ]);
  });

  test('tells the rule by its bus and its name, which is the second part of its ARN', () => {
    const { dimensions } = metricsOf(onLambda.titled('Rule: matched and invoked'))[0];
    const rule = onLambda.app.one(RULE);
    // As the test's resolver leaves what it does not know.
    assert.ok(onLambda.resource.properties.DashboardBody.includes('"RuleName"'));
    assert.equal(onLambda.app.referred(dimensions.EventBusName).type, 'AWS::Events::EventBus');
    assert.ok(JSON.stringify(onLambda.resource.raw).includes(`"Fn::Select":[2,{"Fn::Split":["/",{"Fn::GetAtt":["${rule.logicalId}","Arn"]}]}]`));
  });

  test('begins with what good looks like and where to go, by names that are there', () => {
    assert.match(onLambda.text, /All is well when/);
    const [groups, queues] = ['AWS::Logs::LogGroup', 'AWS::SQS::Queue'].map((type) => onLambda.app.all(type));
    const named = queues.filter(({ stack, logicalId }) => onLambda.text.includes(`<${stack}/${logicalId}.QueueName>`));
    assert.equal(named.length, 3);
    const logs = groups.filter((group) => onLambda.text.includes(ref(group))).map(({ path }) => path);
    assert.deepEqual(logs, ['AmberfloMetering/Ingest/Worker/Logs/Resource', 'AmberfloMetering/ControlApi/Admin/Logs/Resource']);
    assert.doesNotMatch(onLambda.text, /\[object|undefined|\$\{/);
  });
});

describe('with a worker on Fargate', () => {
  const stack = new Stack(newApp(), 'Metering');
  const worker = WorkerCompute.fargate({ vpc: new ec2.Vpc(stack, 'Vpc'), image: ecs.ContainerImage.fromRegistry('example.com/worker:1') });
  const eventManager = new EventManager(stack, 'EventManager');
  new AmberfloMetering(stack, 'AmberfloMetering', { ...meteringProps({ worker }), eventManager });
  const shown = new ShownDashboard(stack.node.root as App);
  checkDashboard(shown);

  test('shows the tasks, the lease table, and what the logs tell', () => {
    const names = (title: string): string[] => metricsOf(shown.titled(title)).map(({ name }) => name);
    assert.deepEqual(names('Workers: how old the events are that they read'), ['GetRecords.IteratorAgeMilliseconds']);
    assert.deepEqual(names('Workers: tasks'), ['CPUUtilization', 'MemoryUtilization', 'RunningTaskCount']);
    assert.deepEqual(names('Workers: failures in their log'), ['Errors', 'Outages']);
    assert.deepEqual(names('Lease table: consumed capacity'), [
      'ConsumedReadCapacityUnits', 'ConsumedWriteCapacityUnits', 'WriteThrottleEvents',
    ]);
  });

  test('names the log group of the workers', () => {
    const group = shown.app.one('AWS::Logs::LogGroup', ({ path }) => path.includes('/Ingest/'));
    assert.ok(shown.text.includes(ref(group)));
  });
});

describe('with the bus in another stack, which may need this one', () => {
  const app = newApp();
  const metering = new AmberfloMetering(new Stack(app, 'Metering'), 'AmberfloMetering', meteringProps());
  const bus: Construct = new Stack(app, 'Bus');
  metering.attachTo(new EventManager(bus, 'EventManager'));
  const shown = new ShownDashboard(app);
  checkDashboard(shown);

  test('says where the rule and its queue are, and does not need their stack', () => {
    assert.match(shown.text, /Not shown here: the rule is of the stack `Bus`, and the queue of undelivered events is of the stack `Bus`\./);
    assert.deepEqual(shown.app.dependencies.Metering, []);
    assert.ok(!shown.titles.some((title) => /^(Rule|Undelivered)/.test(title)));
  });
});
