import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { ControlPlane, EventManager } from '@cdklabs/sbt-aws';
import { App, Duration, Stack } from 'aws-cdk-lib';
import { Annotations, Match } from 'aws-cdk-lib/assertions';
import { EventBus, Rule } from 'aws-cdk-lib/aws-events';
import { SnsTopic } from 'aws-cdk-lib/aws-events-targets';
import * as kms from 'aws-cdk-lib/aws-kms';
import { Topic } from 'aws-cdk-lib/aws-sns';

import { AmberfloMetering, AmberfloMeteringProps } from '../src';
import { attribute, meteringProps, newApp, ref, Resource, Synthesised } from './support';
import { LayoutApp, synthesise } from './support-layouts';
import { envOf, matches, targetsOf, usageEvent } from './support-resources';
import * as sbtMain from './support-sbt-main';

const BILLED_TWICE = /AmberfloMetering: usage events reach the stream already, by \w+: they would be billed twice/;

describe('two ways to the stream', () => {
  const layout = { sbt: 'main', stacks: 'one stack', compute: 'lambda' } as const;

  test('eventManager and attachTo', () => {
    const { metering, eventManager } = new LayoutApp({ ...layout, way: 'eventManager' });
    assert.throws(() => metering.attachTo(eventManager), BILLED_TWICE);
  });

  test('attachTo twice', () => {
    const { metering, eventManager } = new LayoutApp({ ...layout, way: 'attachTo' });
    assert.throws(() => metering.attachTo(eventManager), BILLED_TWICE);
  });

  test('two control planes', () => {
    const { metering, controlPlane } = new LayoutApp({ ...layout, way: 'forwarder' });
    assert.throws(() => new sbtMain.ControlPlane(controlPlane, 'Second', { metering }), BILLED_TWICE);
  });

  test('attached already: SBT is given no function for usage events', () => {
    for (const way of ['eventManager', 'attachTo'] as const) {
      const { metering } = new LayoutApp({ ...layout, way });
      assert.equal(metering.ingestUsageEventFunction, undefined);
    }
  });

  test('attachTo before ControlPlane', () => {
    const app = newApp();
    const stack = new Stack(app, 'ControlPlane');
    const metering = new AmberfloMetering(stack, 'AmberfloMetering', meteringProps());
    const eventManager = new EventManager(stack, 'EventManager');
    metering.attachTo(eventManager);
    new ControlPlane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering, eventManager });
    assertOneWay(new Synthesised(app), 'AWS::Kinesis::Stream', usageEvent('0.5.25'));
  });

  test('another event manager than that of ControlPlane, in a third stack', () => {
    const app = newApp();
    const [bus, meteringStack, stack] = ['Bus', 'Metering', 'ControlPlane'].map((id) => new Stack(app, id));
    const eventManager = new EventManager(bus, 'EventManager');
    const metering = new AmberfloMetering(meteringStack, 'AmberfloMetering', meteringProps({ eventManager }));
    new ControlPlane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering, eventManager });
    const result = new Synthesised(app);
    assertOneWay(result, 'AWS::Kinesis::Stream', usageEvent('0.5.25'));
    assert.deepEqual(result.dependencies, { Bus: [], Metering: ['Bus'], ControlPlane: ['Metering', 'Bus'] });
  });
});

describe('attachTo takes back what SBT and we made for the forwarder', () => {
  // Everything that refers to the rule or to the forwarder.
  const everything = (stack: Stack): AmberfloMeteringProps => ({
    archive: Duration.days(30),
    alarmTopic: new Topic(stack, 'Alarms'),
    encryptionKey: new kms.Key(stack, 'Key'),
    tracing: true,
  });

  for (const split of [false, true]) {
    test(split ? 'two stacks' : 'one stack', () => {
      const app = newApp();
      const stack = new Stack(app, 'ControlPlane');
      const meteringStack = split ? new Stack(app, 'Metering') : stack;
      const metering = new AmberfloMetering(meteringStack, 'AmberfloMetering', meteringProps(everything(meteringStack)));
      const controlPlane = new ControlPlane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering });
      metering.attachTo(controlPlane.eventManager);
      const result = new Synthesised(app);
      assertOneWay(result, 'AWS::Kinesis::Stream', usageEvent('0.5.25'));
      assert.equal(result.all('AWS::Events::Archive').length, 1);
      // A dead forwarder in either stack would show as a second of each.
      assert.equal(result.all('AWS::Lambda::Function').filter(({ path }) => path.includes('/Forward/')).length, 1);
      assert.equal(result.all('AWS::SQS::Queue').filter(({ path }) => path.includes('/Undelivered/')).length, 1);
      const permissions = result.all('AWS::Lambda::Permission').filter(({ properties }) => /Forward/.test(properties.FunctionName));
      assert.deepEqual(permissions, [], 'nobody invokes the forwarder but its redrive');
      for (const [name, template] of Object.entries(result.templates)) {
        const text = JSON.stringify(template);
        for (const [, id] of text.matchAll(/"Fn::GetAtt":\["(\w+)"/g)) {
          assert.ok(template.Resources[id], `${name}: ${id} is not there`);
        }
      }
    });
  }
});

test('attachTo removes no targets of yours', () => {
  const stack = new Stack(newApp(), 'ControlPlane');
  const metering = new AmberfloMetering(stack, 'AmberfloMetering', meteringProps());
  const controlPlane = new ControlPlane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering });
  const rule = controlPlane.node.findChild('Metering').node.findChild('ingestUsageRule') as Rule;
  rule.addTarget(new SnsTopic(new Topic(stack, 'Mine')));
  assert.throws(() => metering.attachTo(controlPlane.eventManager), /ingestUsageRule\/Resource: has 2 targets; attachTo would remove them all/);
});

describe('the archive', () => {
  for (const way of ['eventManager', 'attachTo', 'forwarder'] as const) {
    test(`keeps usage events and nothing else, of the bus with the rule: ${way}`, () => {
      const layout = { sbt: 'main', way, stacks: 'two stacks', compute: 'lambda' } as const;
      const app = synthesise(layout, { archive: Duration.days(30) });
      const archive = app.one('AWS::Events::Archive');
      const rule = assertOneWay(app, way === 'forwarder' ? 'AWS::Lambda::Function' : 'AWS::Kinesis::Stream', usageEvent('main'));
      assert.deepEqual(archive.properties.EventPattern, rule.properties.EventPattern);
      assert.equal(archive.properties.RetentionDays, 30);
      assert.equal(archive.stack, rule.stack);
      assert.equal(
        archive.properties.SourceArn,
        `arn:<AWS::Partition>:events:<AWS::Region>:<AWS::AccountId>:event-bus/${rule.properties.EventBusName}`,
      );
    });
  }
});

describe('other buses and sources', () => {
  const attached = (make: (stack: Stack) => EventManager | sbtMain.EventManager, event: Record<string, unknown>): [Resource, Record<string, string>, Synthesised] => {
    const app = newApp();
    const stack = new Stack(app, 'ControlPlane');
    const eventManager = make(stack);
    const metering = new AmberfloMetering(stack, 'AmberfloMetering', meteringProps({ eventManager }));
    const Plane = eventManager instanceof EventManager ? ControlPlane : sbtMain.ControlPlane;
    new Plane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering, eventManager: eventManager as any });
    const result = new Synthesised(app);
    const rule = assertOneWay(result, 'AWS::Kinesis::Stream', event);
    const environment = envOf(result.one('AWS::Lambda::Function', (handler) => 'EVENT_BUS' in envOf(handler)));
    assert.ok(matches(rule, { source: environment.EVENT_SOURCE, 'detail-type': environment.EVENT_DETAIL_TYPE }));
    return [rule, environment, result];
  };
  const mayPut = (app: Synthesised): unknown[] =>
    app.all('AWS::IAM::Policy')
      .filter(({ path }) => path.startsWith('AmberfloMetering'))
      .flatMap(({ properties }) => properties.PolicyDocument.Statement)
      .filter(({ Action }: any) => Action === 'events:PutEvents')
      .map(({ Resource }: any) => Resource);
  const arnOf = (bus: string): string => `arn:<AWS::Partition>:events:<AWS::Region>:<AWS::AccountId>:event-bus/${bus}`;

  test('a bus imported by its name', () => {
    const [rule, environment, app] = attached(
      (stack) => new EventManager(stack, 'EventManager', { eventBus: EventBus.fromEventBusName(stack, 'Bus', 'usage') }),
      usageEvent('0.5.25'),
    );
    assert.deepEqual([rule.properties.EventBusName, environment.EVENT_BUS, mayPut(app)], ['usage', 'usage', [arnOf('usage')]]);
  });

  test('a bus imported by its ARN', () => {
    const arn = 'arn:aws:events:eu-west-1:111122223333:event-bus/usage';
    const [rule, environment, app] = attached(
      (stack) => new sbtMain.EventManager(stack, 'EventManager', { eventBus: EventBus.fromEventBusArn(stack, 'Bus', arn) }),
      usageEvent('main'),
    );
    assert.deepEqual([rule.properties.EventBusName, environment.EVENT_BUS, mayPut(app)], ['usage', 'usage', [arnOf('usage')]]);
  });

  test('the default bus, whose rules have other metrics', () => {
    const [rule, environment, app] = attached(
      (stack) => new EventManager(stack, 'EventManager', { eventBus: EventBus.fromEventBusName(stack, 'Bus', 'default') }),
      usageEvent('0.5.25'),
    );
    assert.deepEqual([environment.EVENT_BUS, mayPut(app)], ['default', [arnOf('default')]]);
    assert.deepEqual(failedInvocations(app).properties.Dimensions, [
      { Name: 'RuleName', Value: { 'Fn::Select': [1, { 'Fn::Split': ['/', attribute(rule, 'Arn')] }] } },
    ]);
  });

  test('a bus of its own: its metrics are told apart by bus', () => {
    const [rule, , app] = attached((stack) => new EventManager(stack, 'EventManager'), usageEvent('0.5.25'));
    assert.deepEqual(failedInvocations(app).properties.Dimensions, [
      { Name: 'EventBusName', Value: ref(app.one('AWS::Events::EventBus')) },
      { Name: 'RuleName', Value: { 'Fn::Select': [2, { 'Fn::Split': ['/', attribute(rule, 'Arn')] }] } },
    ]);
  });

  test('sources of your own', () => {
    const [, environment] = attached(
      (stack) => new EventManager(stack, 'EventManager', { eventMetadata: { ingestUsage: 'our.product' } }),
      { source: 'our.product', 'detail-type': 'ingestUsage' },
    );
    assert.equal(environment.EVENT_SOURCE, 'our.product');
    const [, other] = attached(
      (stack) => new sbtMain.EventManager(stack, 'EventManager', { sourceOverrides: { ingestUsage: 'our.product' } }),
      { source: 'our.product', 'detail-type': 'sbt_aws_ingestUsage' },
    );
    assert.equal(other.EVENT_SOURCE, 'our.product');
  });
});

describe('never attached', () => {
  test('is warned of', () => {
    const app = newApp();
    const stack = new Stack(app, 'Metering');
    new AmberfloMetering(stack, 'AmberfloMetering', meteringProps());
    assert.match(warnings(stack).join(), /no usage events reach the stream/);
    assert.equal(new Synthesised(app).all('AWS::Events::Rule').length, 0);
  });

  test('attached: nothing is warned of', () => {
    for (const way of ['eventManager', 'attachTo', 'forwarder'] as const) {
      const { controlPlane } = new LayoutApp({ sbt: 'main', way, stacks: 'one stack', compute: 'lambda' });
      assert.deepEqual(warnings(controlPlane).filter((each) => each.includes('amberflo')), [], way);
    }
  });

  test('POST /ingest without a bus is refused', () => {
    const app = newApp();
    const stack = new Stack(app, 'ControlPlane');
    const metering = new AmberfloMetering(stack, 'AmberfloMetering', meteringProps());
    const members = { ingestUsageEventFunction: undefined } as unknown as AmberfloMetering;
    const withoutUsage: AmberfloMetering = Object.assign(Object.create(null), pick(metering), members);
    new sbtMain.ControlPlane(stack, 'SBT', { metering: withoutUsage });
    assert.throws(() => app.synth(), /POST \/ingest has no event bus: give AmberfloMetering an eventManager, or call attachTo/);
  });
});

describe('two of it', () => {
  for (const split of [false, true]) {
    test(split ? 'in an app' : 'in a stack', () => {
      const app = newApp();
      const stack = new Stack(app, 'Metering');
      const control = split ? new Stack(app, 'ControlPlane') : stack;
      const planes = ['One', 'Two'].map((id) => {
        const metering = new AmberfloMetering(stack, id, meteringProps());
        const plane = new sbtMain.ControlPlane(control, `SBT${id}`, { metering });
        metering.attachTo(plane.eventManager);
        return plane;
      });
      const result = new Synthesised(app);
      assert.equal(result.all('AWS::Kinesis::Stream').length, 2);
      for (const plane of planes) {
        const rules = result.all('AWS::Events::Rule').filter(
          (rule) => matches(rule, usageEvent('main')) && rule.properties.EventBusName === result.resolve(control.node.id, control.resolve(plane.eventManager.busName)));
        assert.equal(targetsOf(rules).length, 1);
      }
    });
  }

  test('on one bus are billed twice, unless they have accounts of their own', () => {
    const stack = new Stack(newApp(), 'Metering');
    const eventManager = new EventManager(stack, 'EventManager');
    new AmberfloMetering(stack, 'One', meteringProps({ eventManager }));
    new AmberfloMetering(stack, 'Test', meteringProps({ eventManager, amberfloAPIKeySecretName: 'AmberfloTest' }));
    const two = new AmberfloMetering(stack, 'Two', meteringProps());
    assert.throws(
      () => two.attachTo(eventManager),
      { message: 'Metering/Two: Metering/One brings the same usage events to the same account of Amberflo: they would be billed twice' },
    );
  });
});

/** Asserts that one rule takes the event, to one target of that type. */
function assertOneWay(app: Synthesised, targetType: string, event: Record<string, unknown>): Resource {
  const rules = app.all('AWS::Events::Rule').filter((rule) => matches(rule, event));
  const targets = targetsOf(rules);
  assert.equal(targets.length, 1);
  assert.equal(app.referred(targets[0].Arn).type, targetType);
  return rules[0];
}

function failedInvocations(app: Synthesised): Resource {
  return app.one('AWS::CloudWatch::Alarm', ({ properties }) => properties.MetricName === 'FailedInvocations');
}

function warnings(stack: Stack): string[] {
  (stack.node.root as App).synth();
  return Annotations.fromStack(stack).findWarning('*', Match.anyValue()).map(({ entry }) => String(entry.data));
}

/** The members of `IMetering`, the forwarder apart. */
function pick(metering: AmberfloMetering): Partial<AmberfloMetering> {
  const {
    createMeterFunction, fetchMeterFunction, fetchAllMetersFunction, updateMeterFunction, deleteMeterFunction,
    fetchUsageFunction, cancelUsageEventsFunction, createCustomerFunction, deleteCustomerFunction,
  } = metering;
  return {
    createMeterFunction, fetchMeterFunction, fetchAllMetersFunction, updateMeterFunction, deleteMeterFunction,
    fetchUsageFunction, cancelUsageEventsFunction, createCustomerFunction, deleteCustomerFunction,
  };
}
