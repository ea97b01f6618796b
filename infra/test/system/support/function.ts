import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer, IncomingMessage, Server, ServerResponse } from 'node:http';
import { AddressInfo } from 'node:net';

import { GetFunctionConfigurationCommand, LambdaClient } from '@aws-sdk/client-lambda';

import { Cloud } from './cloud';
import { PATIENCE_MS, Program } from './process';

const API = '/2018-06-01/runtime/invocation/';

/** What a function made of an event. */
export interface Made {
  /** Whether it answered, or failed. */
  readonly ok: boolean;
  readonly answer: any;
}

interface Invocation {
  readonly id: string;
  readonly payload: string;
  readonly done: (made: Made) => void;
}

/**
 * A deployed function that really runs: one of our programs, with the handler, the environment and the time limit that
 * the deployed function has, between a runtime API like Lambda's and the emulated AWS. One event at a time.
 */
export class RunningFunction {
  readonly name: string;
  readonly #server: Server;
  readonly #program: Program;
  readonly #timeoutMs: number;
  readonly #waiting: Invocation[] = [];
  readonly #open = new Map<string, Invocation>();
  #next?: ServerResponse;

  private constructor(name: string, timeoutMs: number, server: Server, start: (address: string) => Program) {
    this.name = name;
    this.#timeoutMs = timeoutMs;
    this.#server = server.on('request', (request, response) => void this.#answer(request, response));
    this.#program = start(`127.0.0.1:${(server.address() as AddressInfo).port}`);
  }

  /** Starts `program` as the deployed function. `endpoints` take the place of AWS's, where not all of it is the emulator. */
  static async start(cloud: Cloud, name: string, program: string, endpoints: Record<string, string> = {}): Promise<RunningFunction> {
    const function_ = await new LambdaClient(cloud.client).send(new GetFunctionConfigurationCommand({ FunctionName: name }));
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new RunningFunction(name, function_.Timeout! * 1000, server, (address) => {
      const env = {
        ...cloud.environment,
        ...function_.Environment?.Variables,
        ...endpoints,
        _HANDLER: function_.Handler!,
        AWS_LAMBDA_RUNTIME_API: address,
        AWS_LAMBDA_FUNCTION_NAME: name,
        AWS_LAMBDA_FUNCTION_MEMORY_SIZE: String(function_.MemorySize),
        AWS_LAMBDA_FUNCTION_VERSION: '$LATEST',
      };
      return new Program(name, program, { env });
    });
  }

  /** What it has logged. */
  get log(): string {
    return this.#program.output;
  }

  /** Invokes it with an event, and waits for what it makes of it. */
  async invoke(payload: string): Promise<Made> {
    const made = new Promise<Made>((done) => this.#waiting.push({ id: randomUUID(), payload, done }));
    this.#hand();
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, fail) => {
      const wait = Math.min(this.#timeoutMs, PATIENCE_MS);
      timer = setTimeout(() => fail(new Error(`${this.name} did not answer in ${wait} ms: ${this.log}`)), wait);
    });
    try {
      return await Promise.race([made, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async stop(): Promise<void> {
    await this.#program.stop();
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const [id, outcome] = request.url!.replace(API, '').split('/');
    if (id === 'next') {
      this.#next = response;
      this.#hand();
      return;
    }
    const body = (await request.toArray()).join('');
    response.writeHead(202).end();
    this.#open.get(id)?.done({ ok: outcome === 'response', answer: JSON.parse(body || 'null') });
    this.#open.delete(id);
  }

  /** Hands out an event when there is one and somebody asks for it. */
  #hand(): void {
    if (!this.#next || this.#waiting.length === 0) {
      return;
    }
    const invocation = this.#waiting.shift()!;
    this.#open.set(invocation.id, invocation);
    this.#next.writeHead(200, {
      'content-type': 'application/json',
      'lambda-runtime-aws-request-id': invocation.id,
      'lambda-runtime-deadline-ms': String(Date.now() + this.#timeoutMs),
      'lambda-runtime-invoked-function-arn': `arn:aws:lambda:us-east-1:000000000000:function:${this.name}`,
      'lambda-runtime-trace-id': 'Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700',
    });
    this.#next.end(invocation.payload);
    this.#next = undefined;
  }
}
