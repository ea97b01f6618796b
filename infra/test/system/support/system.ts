import { GetFunctionConfigurationCommand, LambdaClient, UpdateEventSourceMappingCommand } from '@aws-sdk/client-lambda';
import { CreateSecretCommand, SecretsManagerClient } from '@aws-sdk/client-secrets-manager';
import { ReceiveMessageCommand, SQSClient } from '@aws-sdk/client-sqs';

import { AmberfloMetering, WorkerCompute } from '../../../src';
import { Amberflo, API_KEY } from './amberflo';
import { Bus, Envelope } from './bus';
import { Cloud } from './cloud';
import { RunningFunction } from './function';
import { recordsOnStream, StreamMapping } from './mappings';
import { eventually, freePort, PATIENCE_MS, Program } from './process';
import { controlPlane, eventManager, Generation, USAGE } from './sbt';
import { deploy, synthesise } from './stack';
import { ResolvedTemplate } from './template';
import { binary } from './tools';

/** How a system is set up. */
export interface Setup {
  readonly generation: Generation;
  /** How events reach the stream: by a rule of metering's, or by SBT's rule and the forwarder. */
  readonly by: 'rule' | 'forwarder';
  /** The worker: the long-running program, or the function behind its event source mapping. */
  readonly worker: 'program' | 'function';
}

/** The worker, of either kind: settles all that is on the stream. */
type Settle = (records: number) => Promise<void>;

/**
 * Everything between a bus and a bill: metering deployed to the emulated AWS, our programs running with the settings that
 * the template gives them, and the stand-in for Amberflo.
 */
export class System {
  readonly #running: { stop(): void | Promise<void> }[] = [];
  readonly #setup: Setup;
  #settle!: Settle;
  cloud!: Cloud;
  amberflo!: Amberflo;
  stack!: ResolvedTemplate;
  bus!: Bus;
  forwarder!: RunningFunction;
  /** What invokes the worker, where that is a function. */
  mapping?: StreamMapping;

  private constructor(setup: Setup) {
    this.#setup = setup;
  }

  static async start(setup: Setup): Promise<System> {
    const system = new System(setup);
    try {
      await system.#start();
    } catch (error) {
      await system.stop();
      throw error;
    }
    return system;
  }

  async #start(): Promise<void> {
    const cloud = (this.cloud = this.#keep(await Cloud.start()));
    this.amberflo = this.#keep(await Amberflo.start());
    const secret = { Name: 'AmberfloApiKey', SecretString: JSON.stringify({ AmberfloApiKey: API_KEY }) };
    await new SecretsManagerClient(cloud.client).send(new CreateSecretCommand(secret));
    this.stack = await deploy(cloud, this.#synthesise());
    // The emulator's own would run the empty zips, and takes every answer for a success.
    for (const { physicalId: UUID } of this.stack.all('AWS::Lambda::EventSourceMapping')) {
      await new LambdaClient(cloud.client).send(new UpdateEventSourceMappingCommand({ UUID, Enabled: false }));
    }
    this.forwarder = await this.#function(/ForwarderForward/, 'bootstrap');
    this.bus = this.#keep(await Bus.start(cloud, this.stack, [this.forwarder]));
    this.#settle = this.#setup.worker === 'program' ? await this.#workerProgram() : await this.#workerFunction();
  }

  #synthesise(): ReturnType<typeof synthesise> {
    const { generation, by } = this.#setup;
    return synthesise('Metering', (stack, code) => {
      const manager = eventManager(stack, generation);
      const metering = new AmberfloMetering(stack, 'Metering', {
        amberfloBaseUrl: this.amberflo.url,
        eventManager: by === 'rule' ? manager : undefined,
        controlApiCode: code,
        forwarderCode: code,
        worker: WorkerCompute.lambda({ code }),
      });
      controlPlane(stack, manager, metering);
    });
  }

  /** The bus, by its name. */
  get busName(): string {
    return this.stack.one('AWS::Events::EventBus').physicalId;
  }

  /** Puts a usage event on the bus, as an application of this SBT does. */
  emit(detail: object | string, other: { source?: string; detailType?: string } = {}): Promise<Envelope> {
    const { source, detailType } = { ...USAGE[this.#setup.generation], ...other };
    const Detail = typeof detail === 'string' ? detail : JSON.stringify(detail);
    return this.bus.put({ Source: source, DetailType: detailType, Detail, EventBusName: this.busName });
  }

  /** Starts the admin API; it puts events on the bus of this system. */
  controlApi(): Promise<RunningFunction> {
    return this.#function(/ControlApiAdmin/, 'control-api-lambda', { AWS_ENDPOINT_URL_EVENTBRIDGE: this.bus.url });
  }

  /** Waits until everything on the stream is settled: billed, recognised as a copy, or a dead letter. */
  async settled(): Promise<void> {
    await this.#settle(await recordsOnStream(this.cloud, this.stack));
  }

  /** The dead letters of the worker, up to 10. They stay where they are. */
  async deadLetters(): Promise<any[]> {
    return (await this.#messages(/DeadLetters/)).map((body) => JSON.parse(body));
  }

  /** The messages of events that did not reach the stream, up to 10. They stay where they are. */
  undelivered(): Promise<string[]> {
    return this.#messages(/Undelivered/);
  }

  async stop(): Promise<void> {
    for (const each of this.#running.reverse()) {
      await each.stop();
    }
  }

  async #messages(queue: RegExp): Promise<string[]> {
    const QueueUrl = this.stack.one('AWS::SQS::Queue', queue).physicalId;
    const receive = new ReceiveMessageCommand({ QueueUrl, MaxNumberOfMessages: 10, VisibilityTimeout: 0 });
    const { Messages = [] } = await new SQSClient(this.cloud.client).send(receive);
    return Messages.map(({ Body }) => Body!);
  }

  /** The worker function behind its mapping. */
  async #workerFunction(): Promise<Settle> {
    const mapping = (this.mapping = new StreamMapping(this.cloud, this.stack, await this.#function(/IngestWorker/, 'bootstrap')));
    return async (records) => {
      await eventually(`${records} records to be settled`, async () => {
        await mapping.poll();
        return mapping.settled >= records || undefined;
      });
    };
  }

  /** The long-running worker, with the settings of the worker function. */
  async #workerProgram(): Promise<Settle> {
    const { physicalId: FunctionName } = this.stack.one('AWS::Lambda::Function', /IngestWorker/);
    const { Environment } = await new LambdaClient(this.cloud.client).send(new GetFunctionConfigurationCommand({ FunctionName }));
    const admin = `127.0.0.1:${await freePort()}`;
    const settings = { CREATE_LEASE_TABLE: 'true', ADMIN_LISTEN: admin };
    const program = this.#keep(
      new Program('ingest-worker', binary('ingest-worker'), { env: { ...this.cloud.environment, ...Environment?.Variables, ...settings } }),
    );
    return async (records) => {
      await eventually(`${records} records to be settled`, async () => {
        program.assertRunning();
        const metrics = await fetch(`http://${admin}/metrics`, { signal: AbortSignal.timeout(PATIENCE_MS) }).then((answer) => answer.text(), () => '');
        const outcomes = [...metrics.matchAll(/^ingest_events_total\{outcome="(?:delivered|duplicate|dead_lettered)"\} (\d+)/gm)];
        return outcomes.reduce((sum, [, count]) => sum + Number(count), 0) >= records || undefined;
      });
    };
  }

  async #function(id: RegExp, program: Parameters<typeof binary>[0], endpoints: Record<string, string> = {}): Promise<RunningFunction> {
    const { physicalId } = this.stack.one('AWS::Lambda::Function', id);
    return this.#keep(await RunningFunction.start(this.cloud, physicalId, binary(program), endpoints));
  }

  #keep<T extends { stop(): void | Promise<void> }>(part: T): T {
    this.#running.push(part);
    return part;
  }
}
