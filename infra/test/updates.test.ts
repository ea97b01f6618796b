import assert from 'node:assert/strict';
import { test } from 'node:test';

import { synthesise } from './support-layouts';

/**
 * Everything that holds usage, or says what of it is done. With another logical id CloudFormation would make a new one and
 * leave the old one behind: events that are not billed would lie where nobody reads.
 *
 * A test that fails here asks for another change, not for another id.
 */
const STATEFUL = ['AWS::Kinesis::Stream', 'AWS::SQS::Queue', 'AWS::DynamoDB::Table', 'AWS::Events::Archive'];

const STREAM = 'AmberfloMeteringStream88C5DAC1';
const DEAD_LETTERS = 'AmberfloMeteringDeadLetters36BEF770';
const FAILED_TENANT_EVENTS = 'AmberfloMeteringControlApiFailedTenantEvents6FA58B1B';

test('an update of the package replaces nothing that holds usage', () => {
  const found = Object.fromEntries(
    (['eventManager', 'attachTo', 'forwarder'] as const).flatMap((way) =>
      (['one stack', 'two stacks'] as const).map((stacks) => [`${way}, ${stacks}`, statefulOf(way, stacks, 'lambda')]),
    ),
  );
  const undelivered = 'AmberfloMeteringForwarderUndeliveredFE21D279';
  const inControlPlane = 'AmberfloMetering4216149eForwarderUndeliveredC5991EC2';
  assert.deepEqual(found, {
    'eventManager, one stack': { ControlPlane: [FAILED_TENANT_EVENTS, DEAD_LETTERS, undelivered, STREAM].sort() },
    'eventManager, two stacks': { Metering: [FAILED_TENANT_EVENTS, DEAD_LETTERS, undelivered, STREAM].sort() },
    'attachTo, one stack': { ControlPlane: [FAILED_TENANT_EVENTS, DEAD_LETTERS, undelivered, STREAM].sort() },
    'attachTo, two stacks': { Metering: [FAILED_TENANT_EVENTS, DEAD_LETTERS, STREAM].sort(), ControlPlane: [inControlPlane] },
    'forwarder, one stack': { ControlPlane: [FAILED_TENANT_EVENTS, DEAD_LETTERS, undelivered, STREAM].sort() },
    'forwarder, two stacks': { Metering: [FAILED_TENANT_EVENTS, DEAD_LETTERS, undelivered, STREAM].sort() },
  });
  assert.deepEqual(statefulOf('attachTo', 'two stacks', 'fargate').Metering, [
    FAILED_TENANT_EVENTS, DEAD_LETTERS, 'AmberfloMeteringIngestLeases02523369', STREAM,
  ].sort());
});

function statefulOf(way: 'eventManager' | 'attachTo' | 'forwarder', stacks: 'one stack' | 'two stacks', compute: 'lambda' | 'fargate'): Record<string, string[]> {
  const app = synthesise({ sbt: 'main', way, stacks, compute });
  const ours = app.resources.filter(({ type, path }) => STATEFUL.includes(type) && path.startsWith('AmberfloMetering'));
  const byStack: Record<string, string[]> = {};
  for (const { stack, logicalId } of ours) {
    (byStack[stack] ??= []).push(logicalId);
  }
  return Object.fromEntries(Object.entries(byStack).map(([stack, ids]) => [stack, ids.sort()]));
}
