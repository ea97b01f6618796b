import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { noCloud } from './support/cloud';
import { request } from './support/gateway';
import { redrive } from './support/mappings';
import { Setup, System } from './support/system';
import { build } from './support/tools';

/** Each generation with each way and each worker, each way with each worker. */
const SETUPS: Setup[] = [
  { generation: 'npm', by: 'rule', worker: 'program' },
  { generation: 'main', by: 'rule', worker: 'function' },
  { generation: 'npm', by: 'forwarder', worker: 'function' },
  { generation: 'main', by: 'forwarder', worker: 'program' },
];

/** A usage event of the present, as an application makes it: with an id and a time of its own. */
function usage(uniqueId: string, other: object = {}): Record<string, unknown> {
  return { tenantId: 'acme', meterApiName: 'api-calls', meterValue: 3, uniqueId, meterTimeInMillis: Date.now(), ...other };
}

const skip = noCloud('infra: template in, billed usage out');
if (!skip) {
  build('amberflo-sandbox', 'ingest-worker', 'bootstrap', 'control-api-lambda');
}

describe('template in, billed usage out', { skip, concurrency: 2, timeout: 300_000 }, () => {
  for (const setup of SETUPS) {
    describe(`SBT ${setup.generation}, by ${setup.by}, the worker a ${setup.worker}`, { concurrency: 1 }, () => bills(setup));
  }
});

function bills(setup: Setup): void {
  let system: System;
  /** How many events must have been billed by now. */
  let billed = 0;

  before(async () => {
    system = await System.start(setup);
  });
  after(() => system?.stop());

  /** Everything is settled, and each of the events has been billed once. */
  async function assertBilled(more: number): Promise<void> {
    billed += more;
    await system.settled();
    const { events, billed_again, conflicting_copies, absorbed_with_other_bytes } = await system.amberflo.ledger();
    assert.deepEqual(
      { events, billed_again, conflicting_copies, absorbed_with_other_bytes },
      { events: billed, billed_again: 0, conflicting_copies: 0, absorbed_with_other_bytes: 0 },
    );
  }

  test('every event is billed once, to its tenant', async () => {
    const events = Array.from({ length: 20 }, (_, n) => usage(`order-${n}`, { tenantId: `tenant-${n % 4}`, meterValue: n, region: 'eu' }));
    for (const event of events) {
      await system.emit(event);
    }
    await assertBilled(events.length);
    for (const { tenantId, meterApiName, meterValue, uniqueId, meterTimeInMillis } of events) {
      const [record, ...others] = await system.amberflo.billed(String(uniqueId));
      assert.deepEqual(others, []);
      assert.deepEqual(
        { ...record },
        {
          ...record,
          customer_id: tenantId,
          meter_api_name: meterApiName,
          value: String(meterValue),
          time_millis: meterTimeInMillis,
          dimensions: { region: 'eu' },
        },
      );
    }
  });

  test('an event of another detail type, source or bus is not taken', async () => {
    const before = system.bus.deliveries.length;
    await system.emit(usage('other-type'), { detailType: 'onboardingRequest' });
    await system.emit(usage('other-source'), { source: 'somebody-else' });
    const { source, detailType } = await system.emit(usage('taken'));
    await system.bus.put({ Source: source, DetailType: detailType, Detail: JSON.stringify(usage('other-bus')) });
    assert.equal(system.bus.deliveries.length, before + 1, 'only one is taken');
    await assertBilled(1);
  });

  test('an event that is put twice is billed once', async () => {
    const event = usage('twice');
    const [first, second] = [await system.emit(event), await system.emit(event)];
    assert.notEqual(first.id, second.id, 'to EventBridge they are two');
    await assertBilled(1);
    if (setup.worker === 'program') {
      // Both were on the same shard, whose worker knew the second for a copy.
      assert.equal((await system.amberflo.ledger()).absorbed_copies, 0);
    }
  });

  test('a replay of an archive changes nothing', async () => {
    const event = await system.emit(usage('replayed'));
    await assertBilled(1);
    const { absorbed_copies } = await system.amberflo.ledger();
    await system.bus.replay(event, system.busName);
    await assertBilled(0);
    // A function knows the copies of its own invocation: what comes later is sent again, as the identical bytes.
    const sentAgain = setup.worker === 'function' ? 1 : 0;
    assert.equal((await system.amberflo.ledger()).absorbed_copies, absorbed_copies + sentAgain);
  });

  test('without ids of its own an event is the same in a replay', async () => {
    const event = await system.emit({ tenantId: 'acme', meterApiName: 'api-calls', meterValue: 1 });
    await assertBilled(1);
    await system.bus.replay(event, system.busName);
    await assertBilled(0);
  });

  test('an event that cannot be billed is a dead letter', async () => {
    await system.emit(usage('malformed', { meterValue: 'many' }));
    await assertBilled(0);
    const [letter] = (await system.deadLetters()).filter(({ uniqueId }) => uniqueId === 'malformed');
    assert.equal(letter?.reason, 'invalid_meter_value');
  });

  test('an event without a tenant is a dead letter, or undelivered', async () => {
    const { tenantId: _, ...anonymous } = usage('anonymous');
    await system.emit(anonymous);
    await assertBilled(0);
    const [letter] = (await system.deadLetters()).filter(({ uniqueId }) => uniqueId === 'anonymous');
    assert.equal(letter?.reason, 'missing_field');
    if (setup.by === 'rule') {
      // EventBridge may do this instead: it is not verified which.
      system.bus.obstacles.missingKey = 'fails';
      const { text } = await system.emit(anonymous);
      system.bus.obstacles.missingKey = 'eventId';
      assert.deepEqual(await system.undelivered(), [text]);
      await redrive(system.cloud, system.stack, system.forwarder);
      await assertBilled(0);
    }
  });

  test('an event that did not reach the stream is kept, and billed after a redrive', async () => {
    system.bus.obstacles.streamFails = true;
    await system.emit(usage('undelivered'));
    system.bus.obstacles.streamFails = false;
    assert.equal(system.bus.deliveries.at(-1)?.to, 'undelivered');
    await assertBilled(0);
    assert.equal((await system.undelivered()).length, 1);
    await redrive(system.cloud, system.stack, system.forwarder);
    assert.deepEqual(await system.undelivered(), []);
    await assertBilled(1);
  });

  if (setup.worker === 'function') {
    test('an outage of Amberflo delays, and loses nothing', async () => {
      await system.amberflo.fail(true);
      await system.emit(usage('during-an-outage'));
      assert.equal(await system.mapping?.poll(), 1);
      await system.amberflo.fail(false);
      // It comes again, because the mapping asks the function what has failed.
      await assertBilled(1);
    });
  }

  test('POST /ingest puts events that the rule takes', async () => {
    const controlApi = await system.controlApi();
    const { ok, answer } = await controlApi.invoke(request('POST', '/ingest', [usage('posted-1'), usage('posted-2', { tenantId: 'globex' })]));
    assert.ok(ok && answer.statusCode === 202, JSON.stringify(answer));
    await assertBilled(2);
    assert.equal((await system.amberflo.billed('posted-2'))[0].customer_id, 'globex');
  });
}
