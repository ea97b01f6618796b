import { ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

/** Generous: the machine may be busy with other tests. Nothing here asserts that something is fast. */
export const PATIENCE_MS = 60_000;
const STOP_MS = 10_000;
const POLL_MS = 50;

/**
 * Becomes the program, after it has left behind a watcher that kills it when standard input ends without a word: a test
 * run that was killed says nothing, but the system closes its pipes.
 */
const WATCHED = `
exec 3<&0
{ read -r line || kill -9 $$; } <&3 >/dev/null 2>&1 3<&- &
exec "$@" </dev/null 3<&-
`;

/** How a program is started. */
export interface ProgramOptions {
  readonly args?: string[];
  /** All that it sees of the environment, besides PATH: nothing of the developer's. */
  readonly env?: Record<string, string>;
  readonly cwd?: string;
}

/** A program that runs beside the test. It ends with {@link stop}, or with the test's own process however that ends. */
export class Program {
  readonly #name: string;
  readonly #child: ChildProcess;
  #output = '';
  #end?: string;

  constructor(name: string, file: string, { args = [], env = {}, cwd }: ProgramOptions) {
    this.#name = name;
    this.#child = spawn('/bin/sh', ['-c', WATCHED, name, file, ...args], {
      cwd,
      env: { PATH: process.env.PATH ?? '', ...env },
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    for (const stream of [this.#child.stdout!, this.#child.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => (this.#output += text));
    }
    // The watcher may be gone before it has read the word.
    this.#child.stdin!.on('error', () => {});
    this.#child.on('error', (error) => (this.#end = error.message));
    this.#child.on('exit', (code, signal) => (this.#end = `${signal ?? `exit code ${code}`}`));
  }

  /** All that it has printed so far. */
  get output(): string {
    return this.#output;
  }

  /** What it prints once it is ready, as the groups of `pattern`. */
  async printed(pattern: RegExp): Promise<RegExpExecArray> {
    return eventually(`${this.#name} to print ${pattern}`, () => {
      this.assertRunning();
      return pattern.exec(this.#output) ?? undefined;
    });
  }

  /** Throws with its output when it has ended. */
  assertRunning(): void {
    if (this.#end !== undefined) {
      throw new Error(`${this.#name} has ended (${this.#end}): ${this.#output.trim()}`);
    }
  }

  /** Ends it, by force where it does not end by itself. */
  async stop(): Promise<void> {
    if (this.#end !== undefined) {
      return;
    }
    const ended = once(this.#child, 'exit');
    // After the word the watcher leaves without a kill, which might hit a new process with the same id.
    this.#child.stdin!.write('ended\n');
    this.#child.kill('SIGTERM');
    const force = setTimeout(() => this.#child.kill('SIGKILL'), STOP_MS);
    await ended;
    clearTimeout(force);
  }
}

/** Waits until `value` gives something; fails when that takes longer than a busy machine needs. */
export async function eventually<T>(what: string, value: () => T | undefined | Promise<T | undefined>): Promise<T> {
  const deadline = Date.now() + PATIENCE_MS;
  let last: unknown;
  while (Date.now() < deadline) {
    const result = await value();
    if (result !== undefined && result !== false) {
      return result;
    }
    last = result;
    await sleep(POLL_MS);
  }
  throw new Error(`waited ${PATIENCE_MS} ms for ${what}${last === undefined ? '' : `: ${last}`}`);
}

/** A port of loopback that nobody listens on. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  await once(server, 'close');
  if (typeof address !== 'object' || !address) {
    throw new Error('a server on loopback has no port');
  }
  return address.port;
}
