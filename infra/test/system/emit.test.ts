import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';

import { Entry } from './support/bus';
import { Fault, FaultyBus, LocalBus } from './support/local-bus';
import { eventually, PATIENCE_MS } from './support/process';
import { Generation, USAGE } from './support/sbt';
import { build, missing, ROOT, TOOLS } from './support/tools';

const EXAMPLES = join(ROOT, 'infra', 'examples', 'emit');
/** The limit of one PutEvents that every region takes. */
const MAX_BYTES = 256 * 1024;

/** An example emitter: how it is run once its dependencies are installed. */
interface Emitter {
  readonly language: string;
  readonly installed: string;
  readonly command: () => string[];
}

const EMITTERS: Emitter[] = [
  {
    language: 'node',
    installed: 'emit-node/installed-lock.json',
    // It looks for its client beside itself.
    command: () => {
      const copy = join(TOOLS, 'emit-node', 'emit.mjs');
      copyFileSync(join(EXAMPLES, 'node', 'emit.mjs'), copy);
      return [process.execPath, copy];
    },
  },
  {
    language: 'python',
    installed: 'emit-python/requirements.txt',
    command: () => [join(TOOLS, 'emit-python', 'bin', 'python'), join(EXAMPLES, 'python', 'emit.py')],
  },
];

for (const { language, installed, command } of EMITTERS) {
  const skip = missing(`infra: examples/emit/${language}`, 'infra/test/system/setup.sh', installed);
  if (!skip) {
    build('amberflo-sandbox', 'ingest-worker');
  }

  describe(`examples/emit/${language}`, { skip, timeout: 120_000 }, () => {
    let bus: LocalBus;
    let billed = 0;

    before(async () => {
      bus = await LocalBus.start();
    });
    after(() => bus?.stop());

    /** Emits lines through a bus with faults. Answers what the emitter printed and how it ended. */
    async function emit(lines: string[], fault: Fault, env: Record<string, string> = {}) {
      const faulty = await FaultyBus.start(bus.url, fault);
      const [file, ...args] = command();
      const emitter = spawn(file, args, {
        env: {
          PATH: process.env.PATH,
          AWS_ENDPOINT_URL_EVENTBRIDGE: faulty.url,
          AWS_REGION: 'us-east-1',
          AWS_DEFAULT_REGION: 'us-east-1',
          AWS_ACCESS_KEY_ID: 'local',
          AWS_SECRET_ACCESS_KEY: 'local',
          AWS_EC2_METADATA_DISABLED: 'true',
          AWS_CONFIG_FILE: '/dev/null',
          AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
          PYTHONDONTWRITEBYTECODE: '1',
          ...env,
        },
        stdio: ['pipe', 'pipe', 'pipe'],
        timeout: PATIENCE_MS,
      });
      emitter.stdin.end(lines.join('\n'));
      const [printed, said, [code]] = await Promise.all([emitter.stdout.toArray(), emitter.stderr.toArray(), once(emitter, 'exit')]);
      faulty.stop();
      const notTaken = printed.join('').split('\n').filter(Boolean);
      return { code, notTaken, said: said.join(''), calls: faulty.calls };
    }

    /** So many more events have been billed, each once. */
    async function assertBilled(more: number, absorbed = 0): Promise<void> {
      billed += more;
      await eventually(`${billed} events to be billed`, async () => (await bus.amberflo.ledger()).events >= billed || undefined);
      const { events, billed_again, absorbed_copies } = await bus.amberflo.ledger();
      assert.deepEqual({ events, billed_again, absorbed_copies }, { events: billed, billed_again: 0, absorbed_copies: absorbed });
      const ids = (await bus.amberflo.billed()).map(({ unique_id }) => unique_id);
      assert.equal(new Set(ids).size, billed);
    }

    const lines = (count: number, name: string): string[] =>
      Array.from({ length: count }, (_, n) => JSON.stringify({ tenantId: `${name}-${n % 3}`, meterApiName: 'api-calls', meterValue: n, name }));

    for (const generation of ['npm', 'main'] satisfies Generation[]) {
      test(`25 events are put in batches, with the names of SBT ${generation}, and billed`, async () => {
        const { source, detailType } = USAGE[generation];
        // The names of npm's are the default.
        const env: Record<string, string> = generation === 'npm' ? {} : { EVENT_SOURCE: source, EVENT_DETAIL_TYPE: detailType };
        const { code, notTaken, calls } = await emit(lines(25, generation), () => undefined, { ...env, EVENT_BUS_NAME: 'sbt-bus' });
        assert.deepEqual([code, notTaken], [0, []]);
        assert.deepEqual(calls.map((entries) => entries.length), [10, 10, 5]);
        for (const entry of calls.flat()) {
          assert.deepEqual([entry.Source, entry.DetailType, entry.EventBusName], [source, detailType, 'sbt-bus']);
        }
        await assertBilled(25);
      });
    }

    test('entries that are refused at first are put again as they were, and only they', async () => {
      let call = 0;
      const refuse = (entries: Entry[]): (string | undefined)[] =>
        entries.map((_, index) => (index % 3 === 0 ? ['ThrottlingException', 'InternalFailure'][call % 2] : undefined));
      const { code, notTaken, calls } = await emit(lines(12, 'refused'), (entries) => (call++ < 3 ? refuse(entries) : undefined));
      assert.deepEqual([code, notTaken], [0, []]);
      // 4 of the first ten and 1 of the other two; then 2 of those 5.
      assert.deepEqual(calls.map((entries) => entries.length), [10, 2, 5, 2]);
      const first = new Set(calls.slice(0, 2).flat().map(({ Detail }) => Detail));
      assert.ok(calls.slice(2).flat().every(({ Detail }) => first.has(Detail)), 'with the same uniqueId and time');
      await assertBilled(12);
    });

    test('a call whose answer is lost is repeated, and billed once', async () => {
      let call = 0;
      const { code, calls } = await emit(lines(10, 'lost'), () => (call++ === 0 ? 'answer is lost' : undefined));
      assert.deepEqual([code, calls.length], [0, 2]);
      assert.deepEqual(calls[0], calls[1]);
      await assertBilled(10);
    });

    test('what is not taken is printed, and can be emitted again', async () => {
      const isBad = ({ Detail }: Entry): boolean => JSON.parse(Detail).meterValue === 3;
      const first = await emit(lines(12, 'again'), (entries) => entries.map((entry) => (isBad(entry) ? 'NotAuthorizedForSourceException' : undefined)));
      assert.equal(first.code, 1);
      assert.deepEqual(first.calls.map((entries) => entries.length), [10, 2], 'what is final is not tried again');
      assert.deepEqual(first.notTaken, first.calls.flat().filter(isBad).map(({ Detail }) => Detail));
      assert.match(first.said, /NotAuthorizedForSourceException/);
      const again = await emit(first.notTaken, () => undefined);
      assert.deepEqual([again.code, again.notTaken], [0, []]);
      assert.deepEqual(again.calls.flat().map(({ Detail }) => Detail), first.notTaken);
      await assertBilled(12);
    });

    test('a bus that refuses for too long, or altogether, is given up', async () => {
      for (const fault of [(entries: Entry[]) => entries.map(() => 'InternalFailure'), () => 'answer is lost' as const]) {
        const { code, notTaken } = await emit(lines(3, 'given-up'), fault, { GIVE_UP_SECONDS: '1', AWS_MAX_ATTEMPTS: '1' });
        assert.equal(code, 1);
        assert.equal(notTaken.length, 3);
        billed += fault([]) === 'answer is lost' ? 3 : 0;
      }
      // The bus took those whose answer was lost: nobody can know that, and emitting them again would do no harm.
      await assertBilled(0);
    });

    test('calls stay below what every region takes, and an event that never fits is not put', async () => {
      const of = (bytes: number, name: string): string =>
        JSON.stringify({ tenantId: 'acme', meterApiName: 'api-calls', meterValue: 1, uniqueId: name, filler: 'ü'.repeat(bytes / 2) });
      const large = ['a', 'b', 'c', 'd', 'e'].map((name) => of(100 * 1024, `${name}-${language}`));
      const { code, notTaken, calls, said } = await emit([...large, of(MAX_BYTES, 'too-large')], () => undefined);
      assert.deepEqual(calls.map((entries) => entries.length), [2, 2, 1]);
      for (const entries of calls) {
        const bytes = entries.map(({ Source, DetailType, Detail }) => Buffer.byteLength(Source + DetailType + Detail));
        assert.ok(bytes.reduce((sum, size) => sum + size) < MAX_BYTES);
      }
      assert.deepEqual([code, notTaken.length], [1, 1]);
      assert.match(said, /too-large/);
      await assertBilled(5);
    });
  });
}
