import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { AppProps } from 'aws-cdk-lib';

import { AmberfloMeteringProps } from '../src';
import { attribute, RECOMMENDED_FLAGS, ref, Resource, Synthesised } from './support';
import { describeLayout, Layout, layouts, synthesise } from './support-layouts';
import { envOf, isOurs, matches, permissions, targetsOf, usageEvent } from './support-resources';

const RULE = 'AWS::Events::Rule';
const QUEUE = 'AWS::SQS::Queue';
const FUNCTION = 'AWS::Lambda::Function';

for (const layout of layouts()) {
  checkLayout(describeLayout(layout), layout);
}
for (const layout of layouts(['main'])) {
  checkLayout(`${describeLayout(layout)}, flags of new apps`, layout, {}, { context: RECOMMENDED_FLAGS });
}

function checkLayout(name: string, layout: Layout, props: AmberfloMeteringProps = {}, appProps: AppProps = {}): void {
  describe(name, () => {
    const app = synthesise(layout, props, appProps);
    const ours = app.resources.filter(isOurs);
    const usageRules = app.all(RULE).filter((rule) => matches(rule, usageEvent(layout.sbt)));

    test('there is one way to the stream', () => {
      const stream = app.one('AWS::Kinesis::Stream');
      assert.equal(usageRules.length, 1);
      assert.equal(targetsOf(usageRules).length, 1);
      const expected = layout.way === 'forwarder' ? forwarder(app) : stream;
      assert.equal(targetsOf(usageRules)[0].Arn, attribute(expected, 'Arn'));
      // Its rule apart, only the worker reads the stream: nothing else leads to Amberflo.
      const mappings = app.all('AWS::Lambda::EventSourceMapping');
      const ofStream = mappings.filter((mapping) => mapping.properties.EventSourceArn === attribute(stream, 'Arn'));
      assert.equal(ofStream.length, layout.compute === 'lambda' ? 1 : 0);
    });

    test('the rule takes what this SBT emits, and nothing more', () => {
      const event = usageEvent(layout.sbt);
      assert.deepEqual(usageRules[0].properties.EventPattern, {
        source: [event.source],
        'detail-type': [event['detail-type']],
      });
    });

    if (layout.way !== 'forwarder') {
      test('EventBridge gives up late, and into a queue that takes what it gives', () => {
        const [rule] = usageRules;
        const [target] = targetsOf(usageRules);
        assert.deepEqual(target.KinesisParameters, { PartitionKeyPath: '$.detail.tenantId' });
        assert.deepEqual(target.RetryPolicy, { MaximumEventAgeInSeconds: 86400, MaximumRetryAttempts: 185 });
        const queue = app.referred(target.DeadLetterConfig.Arn);
        assert.equal(queue.type, QUEUE);
        assert.equal(queue.stack, rule.stack, 'the queue is where the rule is');
        const policy = app.one('AWS::SQS::QueuePolicy', ({ properties }) => properties.Queues.includes(ref(queue)));
        const allowed = policy.properties.PolicyDocument.Statement.filter(({ Effect }: any) => Effect === 'Allow');
        assert.deepEqual(allowed, [
          {
            Action: 'sqs:SendMessage',
            Condition: { ArnLike: { 'aws:SourceArn': 'arn:<AWS::Partition>:events:<AWS::Region>:<AWS::AccountId>:rule/*' } },
            Effect: 'Allow',
            Principal: { Service: 'events.amazonaws.com' },
            Resource: attribute(queue, 'Arn'),
          },
        ]);
      });

      test('EventBridge may write to the stream', () => {
        const role = app.referred(targetsOf(usageRules)[0].RoleArn);
        assert.equal(role.properties.AssumeRolePolicyDocument.Statement[0].Principal.Service, 'events.amazonaws.com');
        assert.deepEqual(permissions(app, role), {
          // CDK adds ListShards.
          [attribute(app.one('AWS::Kinesis::Stream'), 'Arn')]: ['kinesis:ListShards', 'kinesis:PutRecord', 'kinesis:PutRecords'],
        });
      });
    }

    test('the rule waits for whatever permits EventBridge to deliver, and to keep what it cannot', () => {
      const [rule] = usageRules;
      const [{ DeadLetterConfig, RoleArn }] = targetsOf(usageRules);
      const ofForwarder = ({ properties }: Resource): boolean => [ref(forwarder(app)), attribute(forwarder(app), 'Arn')].includes(properties.FunctionName);
      const needed = [
        app.one('AWS::SQS::QueuePolicy', ({ properties }) => properties.Queues.includes(ref(app.referred(DeadLetterConfig.Arn)))),
        ...(layout.way === 'forwarder'
          ? [
              app.one('AWS::Lambda::Permission', (resource) => ofForwarder(resource) && resource.path.endsWith('/AllowRules')),
              app.one('AWS::Lambda::EventInvokeConfig', ofForwarder),
            ]
          : [app.one('AWS::IAM::Policy', ({ properties }) => properties.Roles.includes(ref(app.referred(RoleArn))))]),
      ];
      const here = needed.filter(({ stack }) => stack === rule.stack).map(({ logicalId }) => logicalId);
      assert.deepEqual(here.filter((id) => !rule.raw.DependsOn?.includes(id)), []);
      for (const { stack } of needed.filter(({ stack }) => stack !== rule.stack)) {
        assert.ok(app.dependencies[rule.stack].includes(stack));
      }
    });

    test('the forwarder gives up into a queue, and its redrive is off', () => {
      const config = app.one('AWS::Lambda::EventInvokeConfig', ({ properties }) => properties.FunctionName === ref(forwarder(app)));
      const queue = app.referred(config.properties.DestinationConfig.OnFailure.Destination);
      assert.equal(queue.type, QUEUE);
      assert.deepEqual([config.properties.MaximumEventAgeInSeconds, config.properties.MaximumRetryAttempts], [21600, 2]);
      const redrive = app.one('AWS::Lambda::EventSourceMapping', ({ properties }) => properties.FunctionName === ref(forwarder(app)));
      assert.equal(redrive.properties.EventSourceArn, attribute(queue, 'Arn'));
      assert.equal(redrive.properties.Enabled, false);
      assert.deepEqual(redrive.properties.FunctionResponseTypes, ['ReportBatchItemFailures']);
      assert.equal(envOf(forwarder(app)).STREAM, `kinesis:${attribute(app.one('AWS::Kinesis::Stream'), 'Arn')}`);
      assert.equal(envOf(forwarder(app)).PARTITION_KEY_PATH, '$.detail.tenantId');
    });

    test('every queue keeps its messages for 14 days, and rings at 3', () => {
      const queues = ours.filter(({ type }) => type === QUEUE);
      assert.equal(queues.length, 3, 'dead letters, failed tenant events, undelivered events');
      for (const queue of queues) {
        assert.equal(queue.properties.MessageRetentionPeriod, 1209600, queue.path);
        const alarm = app.one('AWS::CloudWatch::Alarm', ({ properties }) =>
          properties.MetricName === 'ApproximateAgeOfOldestMessage' &&
          properties.Dimensions.some(({ Value }: any) => Value === attribute(queue, 'QueueName')));
        assert.equal(alarm.properties.Threshold, 3 * 24 * 60 * 60);
        assert.equal(alarm.properties.Statistic, 'Maximum');
        assert.equal(alarm.properties.ComparisonOperator, 'GreaterThanThreshold');
        assert.equal(alarm.stack, queue.stack);
      }
    });

    test('each endpoint is a route behind the authorizer of SBT, and has leave to invoke its function', () => {
      const routes = app.all('AWS::ApiGatewayV2::Route').filter(({ properties }) => ROUTES.includes(properties.RouteKey));
      assert.deepEqual(routes.map(({ properties }) => properties.RouteKey).sort(), [...ROUTES].sort());
      const authorizer = app.one('AWS::ApiGatewayV2::Authorizer');
      assert.equal(authorizer.properties.AuthorizerType, 'JWT');
      for (const route of routes) {
        const { AuthorizationType, AuthorizerId, ApiId, RouteKey } = route.properties;
        assert.deepEqual([AuthorizationType, AuthorizerId], ['JWT', ref(authorizer)], RouteKey);
        assert.equal(ApiId, authorizer.properties.ApiId);
        const handler = handlerOf(app, route);
        const isIngest = RouteKey === 'POST /ingest';
        assert.equal(handler.logicalId, isIngest ? ingest(app).logicalId : controlApi(app).logicalId, RouteKey);
        const path = RouteKey.split(' ')[1];
        assert.ok(
          app.all('AWS::Lambda::Permission').some(
            ({ properties }) =>
              properties.FunctionName === attribute(handler, 'Arn') &&
              properties.Principal === 'apigateway.amazonaws.com' &&
              properties.SourceArn.endsWith(`${ApiId}/*/*${path}`),
          ),
          `API Gateway has no leave for ${RouteKey}`,
        );
      }
    });

    test('what POST /ingest puts on the bus is what the rule takes, and it may use no other bus', () => {
      const environment = envOf(ingest(app));
      const event = { source: environment.EVENT_SOURCE, 'detail-type': environment.EVENT_DETAIL_TYPE };
      assert.ok(matches(usageRules[0], event));
      assert.equal(environment.EVENT_BUS, usageRules[0].properties.EventBusName);
      const role = app.referred(ingest(app).properties.Role);
      const buses = Object.entries(permissions(app, role)).filter(([, actions]) => actions.includes('events:PutEvents'));
      assert.deepEqual(buses, [
        [`arn:<AWS::Partition>:events:<AWS::Region>:<AWS::AccountId>:event-bus/${environment.EVENT_BUS}`, ['events:PutEvents']],
      ]);
      assert.equal(app.all('AWS::Events::EventBus').length, 1);
      assert.equal(environment.EVENT_BUS, ref(app.one('AWS::Events::EventBus')));
    });

    test('tenants that come and go reach the control API, and those that fail a queue', () => {
      for (const name of ['onboardingRequest', 'offboardingRequest']) {
        const rules = app.all(RULE).filter((rule) => matches(rule, customerEvent(layout.sbt, name)));
        const reached = targetsOf(rules).filter(({ Arn }) => Arn === attribute(controlApi(app), 'Arn'));
        assert.equal(reached.length, 1, name);
        const [rule] = rules.filter(({ properties }) => properties.Targets.some(({ Arn }: any) => Arn === attribute(controlApi(app), 'Arn')));
        const queue = app.referred(reached[0].DeadLetterConfig.Arn);
        assert.equal(queue.type, QUEUE, 'what EventBridge cannot bring to the function lies in a queue');
        const policy = app.one('AWS::SQS::QueuePolicy', ({ properties }) => properties.Queues.includes(ref(queue)));
        assert.match(JSON.stringify(policy.properties), /"events.amazonaws.com".*:rule\/\*|:rule\/\*.*"events.amazonaws.com"/);
        if (policy.stack === rule.stack) {
          assert.ok(rule.raw.DependsOn.includes(policy.logicalId));
        }
      }
      const config = app.one('AWS::Lambda::EventInvokeConfig', ({ properties }) => properties.FunctionName === ref(controlApi(app)));
      assert.equal(app.referred(config.properties.DestinationConfig.OnFailure.Destination).type, QUEUE);
    });

    if (layout.compute === 'lambda') {
      test('the worker is told which records it did not deliver, and none is given up', () => {
        const mapping = app.one('AWS::Lambda::EventSourceMapping', ({ path }) => path.includes('Ingest/Mapping'));
        const { BisectBatchOnFunctionError, FunctionResponseTypes, MaximumRetryAttempts, MaximumRecordAgeInSeconds } = mapping.properties;
        assert.deepEqual(FunctionResponseTypes, ['ReportBatchItemFailures']);
        assert.equal(BisectBatchOnFunctionError, false);
        // Said and not left out, so that an update takes back a limit that was there before.
        assert.deepEqual([MaximumRetryAttempts, MaximumRecordAgeInSeconds], [-1, -1]);
        assert.equal(mapping.properties.DestinationConfig, undefined);
        assert.equal(mapping.properties.StartingPosition, 'TRIM_HORIZON');
        assert.equal(mapping.properties.Enabled ?? true, true);
      });
    }

    test('of two stacks, only the control plane needs the other one', () => {
      const expected = layout.stacks === 'one stack' ? { ControlPlane: [] } : { ControlPlane: ['Metering'], Metering: [] };
      assert.deepEqual(app.dependencies, expected);
    });

    test('every reference is to something', () => {
      for (const [stack, template] of Object.entries(app.templates)) {
        for (const id of references({ ...template, Conditions: {} })) {
          assert.ok(template.Resources[id] || template.Parameters?.[id], `${stack}: ${id} is not there`);
        }
      }
    });
  });
}

const ROUTES = [
  'GET /meters', 'POST /meters', 'GET /meters/{meterId}', 'PUT /meters/{meterId}', 'DELETE /meters/{meterId}',
  'GET /usage/{meterId}', 'DELETE /usage',
  'POST /ingest', 'GET /dead-letters', 'DELETE /dead-letters', 'POST /dead-letters/redrive', 'GET /usage/{meterId}/events',
];

function forwarder(app: Synthesised): Resource {
  return app.one(FUNCTION, ({ path }) => path.includes('/Forward/'));
}

function controlApi(app: Synthesised): Resource {
  return app.one(FUNCTION, ({ path }) => path.includes('ControlApi/Admin/'));
}

/** The function behind POST /ingest. */
function ingest(app: Synthesised): Resource {
  return app.one(FUNCTION, (handler) => 'EVENT_BUS' in envOf(handler));
}

function handlerOf(app: Synthesised, route: Resource): Resource {
  const integration = app.referred(route.properties.Target.replace('integrations/', ''));
  return app.referred(integration.properties.IntegrationUri);
}

function customerEvent(sbt: Layout['sbt'], name: string): Record<string, unknown> {
  return sbt === '0.5.25'
    ? { source: 'controlPlaneEventSource', 'detail-type': name }
    : { source: 'sbt.control.plane', 'detail-type': `sbt_aws_${name}` };
}

/** The logical ids that a part of a template refers to. */
function references(value: any): string[] {
  if (value === null || typeof value !== 'object') {
    return [];
  }
  const own = typeof value.Ref === 'string' && !value.Ref.startsWith('AWS::') ? [value.Ref] : [];
  const attributes = Array.isArray(value['Fn::GetAtt']) ? [value['Fn::GetAtt'][0]] : [];
  const depends = [value.DependsOn ?? []].flat().filter((id) => typeof id === 'string');
  return [...own, ...attributes, ...depends, ...Object.values(value).flatMap(references)];
}
