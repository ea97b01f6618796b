import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer, Server } from 'node:http';
import { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Amberflo, API_KEY } from './amberflo';
import { Entry } from './bus';
import { eventually, freePort, PATIENCE_MS, Program } from './process';
import { binary } from './tools';

/** The worker in local mode, with its own event bus, and the stand-in for Amberflo behind it. */
export class LocalBus {
  /** `http://127.0.0.1:PORT`, for PutEvents. */
  readonly url: string;
  readonly amberflo: Amberflo;
  readonly #program: Program;
  readonly #directory: string;

  private constructor(url: string, amberflo: Amberflo, program: Program, directory: string) {
    this.url = url;
    this.amberflo = amberflo;
    this.#program = program;
    this.#directory = directory;
  }

  static async start(): Promise<LocalBus> {
    const amberflo = await Amberflo.start();
    const directory = mkdtempSync(join(tmpdir(), 'bus-'));
    const [listen, admin] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`];
    const program = new Program('ingest-worker', binary('ingest-worker'), {
      env: {
        STREAM: `local:${directory}`,
        LISTEN: listen,
        ADMIN_LISTEN: admin,
        AMBERFLO_BASE_URL: amberflo.url,
        AMBERFLO_API_KEY: API_KEY,
        BATCH_LINGER: '100ms',
      },
    });
    const bus = new LocalBus(`http://${listen}`, amberflo, program, directory);
    try {
      await eventually('the local bus to listen', async () => {
        program.assertRunning();
        return fetch(`http://${admin}/ready`, { signal: AbortSignal.timeout(PATIENCE_MS) }).then(({ ok }) => ok || undefined, () => undefined);
      });
    } catch (error) {
      await bus.stop();
      throw error;
    }
    return bus;
  }

  async stop(): Promise<void> {
    await this.#program.stop();
    await this.amberflo.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** What a faulty bus does with one call: the code with which it refuses an entry, or that nobody gets to know its answer. */
export type Fault = (entries: Entry[]) => (string | undefined)[] | 'answer is lost' | undefined;

/** A bus in front of another one, which refuses entries of a call as `fault` says, and hands on the others. */
export class FaultyBus {
  /** `http://127.0.0.1:PORT`, for PutEvents. */
  readonly url: string;
  /** The entries of each call. */
  readonly calls: Entry[][] = [];
  readonly #server: Server;

  private constructor(server: Server, target: string, fault: Fault) {
    this.#server = server;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on('request', async (request, response) => {
      const entries: Entry[] = JSON.parse((await request.toArray()).join('')).Entries;
      this.calls.push(entries);
      const verdict = fault(entries);
      const codes = Array.isArray(verdict) ? verdict : [];
      const taken = entries.filter((_, index) => !codes[index]);
      const results = taken.length > 0 ? await handOn(target, taken) : [];
      if (verdict === 'answer is lost') {
        response.writeHead(503).end();
        return;
      }
      const Entries = entries.map((_, index) => (codes[index] ? { ErrorCode: codes[index], ErrorMessage: 'as the test wants it' } : results.shift()));
      const FailedEntryCount = Entries.filter((entry) => entry && 'ErrorCode' in entry).length;
      response.writeHead(200, { 'content-type': 'application/x-amz-json-1.1' }).end(JSON.stringify({ FailedEntryCount, Entries }));
    });
  }

  static async start(target: string, fault: Fault): Promise<FaultyBus> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new FaultyBus(server, target, fault);
  }

  stop(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

async function handOn(target: string, Entries: Entry[]): Promise<object[]> {
  const headers = { 'x-amz-target': 'AWSEvents.PutEvents', 'content-type': 'application/x-amz-json-1.1' };
  const answer = await fetch(target, { method: 'POST', headers, body: JSON.stringify({ Entries }), signal: AbortSignal.timeout(PATIENCE_MS) });
  const { Entries: results } = (await answer.json()) as { Entries: object[] };
  return results;
}
