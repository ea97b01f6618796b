import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { createServer, Server } from 'node:http';
import { AddressInfo } from 'node:net';

import { KinesisClient, PutRecordCommand } from '@aws-sdk/client-kinesis';
import { SendMessageCommand, SQSClient } from '@aws-sdk/client-sqs';

import { Cloud, REGION } from './cloud';
import { Made, RunningFunction } from './function';
import { ACCOUNT, ResolvedTemplate } from './template';

/** An entry of PutEvents. */
export interface Entry {
  readonly Source: string;
  readonly DetailType: string;
  readonly Detail: string;
  /** A name, or an ARN. @default 'default' */
  readonly EventBusName?: string;
  /** Seconds. */
  readonly Time?: number;
}

/** An event as targets see it. */
export interface Envelope {
  readonly id: string;
  readonly source: string;
  readonly detailType: string;
  /** The JSON. */
  readonly text: string;
}

/** Where an event that a rule took has gone. */
export type Delivery =
  | { readonly to: 'stream'; readonly shard: string; readonly partitionKey: string }
  | { readonly to: 'function' }
  | { readonly to: 'undelivered'; readonly why: string }
  | { readonly to: 'nowhere'; readonly why: string };

/** What stands in the way of a target. */
export interface Obstacles {
  /** The stream takes nothing, neither from EventBridge nor from a function. */
  streamFails?: boolean;
  /**
   * What becomes of an event whose partition key path leads nowhere. What EventBridge does has not been verified on AWS:
   * with `eventId` the id of the event is the key, as it is documented for a target without a path; with `fails` the
   * event cannot be delivered.
   */
  missingKey: 'eventId' | 'fails';
}

/**
 * EventBridge for one deployed stack: no emulator brings an event from a bus to a stream. Everything that decides is read
 * from the synthesised template: the rules with their patterns, their targets, the path of the partition key, and whether
 * EventBridge may send to the dead-letter queue. PutEvents is at {@link url} for real clients.
 */
export class Bus {
  /** `http://127.0.0.1:PORT`, for PutEvents. */
  readonly url: string;
  /** Where each event went that a rule took, in order. */
  readonly deliveries: Delivery[] = [];
  readonly obstacles: Obstacles = { missingKey: 'eventId' };
  readonly #cloud: Cloud;
  readonly #stack: ResolvedTemplate;
  readonly #functions: RunningFunction[];
  readonly #server: Server;

  private constructor(cloud: Cloud, stack: ResolvedTemplate, functions: RunningFunction[], server: Server) {
    this.#cloud = cloud;
    this.#stack = stack;
    this.#functions = functions;
    this.#server = server;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    server.on('request', async (request, response) => {
      if (request.headers['x-amz-target'] !== 'AWSEvents.PutEvents') {
        response.writeHead(400).end('{"__type": "UnknownOperationException"}');
        return;
      }
      const { Entries } = JSON.parse((await request.toArray()).join(''));
      const results = [];
      for (const entry of Entries) {
        const { id } = await this.put(entry);
        results.push({ EventId: id });
      }
      response.writeHead(200, { 'content-type': 'application/x-amz-json-1.1' });
      response.end(JSON.stringify({ FailedEntryCount: 0, Entries: results }));
    });
  }

  /** `functions` are those of the stack that run, for rules that invoke them. */
  static async start(cloud: Cloud, stack: ResolvedTemplate, functions: RunningFunction[] = []): Promise<Bus> {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    return new Bus(cloud, stack, functions, server);
  }

  /** Puts an event on its bus; it has gone where it goes when this is done. */
  async put(entry: Entry): Promise<Envelope> {
    const envelope = enveloped(entry);
    await this.#route(envelope, entry.EventBusName ?? 'default');
    return envelope;
  }

  /** Replays an event as an archive of its bus does: the same event, the replay's name added. */
  async replay(envelope: Envelope, busName: string): Promise<void> {
    const text = envelope.text.replace(/\}$/, ',"replay-name":"after-the-outage"}');
    await this.#route({ ...envelope, text }, busName);
  }

  stop(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }

  async #route(envelope: Envelope, bus: string): Promise<void> {
    const onBus = ({ properties: { EventBusName: name } }: { properties: any }): boolean =>
      bus === name || bus === `arn:aws:events:${REGION}:${ACCOUNT}:event-bus/${name}`;
    const event = JSON.parse(envelope.text);
    for (const rule of this.#stack.all('AWS::Events::Rule').filter(onBus)) {
      if (rule.properties.State === 'ENABLED' && matches(rule.properties.EventPattern, event)) {
        for (const target of rule.properties.Targets) {
          this.deliveries.push(await this.#deliver(envelope, event, target, this.#stack.arn(rule.id)));
        }
      }
    }
  }

  async #deliver(envelope: Envelope, event: any, target: any, ruleArn: string): Promise<Delivery> {
    const function_ = this.#functions.find(({ name }) => target.Arn.endsWith(`:function:${name}`));
    if (function_) {
      return this.#invoke(function_, envelope);
    }
    const partitionKey = at(event, target.KinesisParameters.PartitionKeyPath) ?? (this.obstacles.missingKey === 'eventId' ? envelope.id : undefined);
    if (partitionKey === undefined || this.obstacles.streamFails) {
      const why = partitionKey === undefined ? 'no partition key' : 'the stream fails';
      return this.#giveUp(envelope, target, ruleArn, why);
    }
    const { ShardId } = await new KinesisClient(this.#cloud.client).send(
      new PutRecordCommand({ StreamARN: target.Arn, PartitionKey: partitionKey, Data: Buffer.from(envelope.text) }),
    );
    return { to: 'stream', shard: ShardId!, partitionKey };
  }

  /** What EventBridge does when it has tried for long enough: it loses the event if the queue's policy does not let it in. */
  async #giveUp(envelope: Envelope, target: any, ruleArn: string, why: string): Promise<Delivery> {
    const queueArn = target.DeadLetterConfig?.Arn;
    const queue = this.#stack.all('AWS::SQS::Queue').find(({ id }) => this.#stack.arn(id) === queueArn);
    if (!queue || !this.#mayBeSent(queue.physicalId, queueArn, ruleArn)) {
      return { to: 'nowhere', why };
    }
    await this.#send(queue.physicalId, envelope.text);
    return { to: 'undelivered', why };
  }

  #mayBeSent(queueUrl: string, queueArn: string, ruleArn: string): boolean {
    const policies = this.#stack.all('AWS::SQS::QueuePolicy').filter(({ properties }) => properties.Queues.includes(queueUrl));
    return policies
      .flatMap(({ properties }) => properties.PolicyDocument.Statement)
      .some(
        ({ Effect, Action, Principal, Resource, Condition }) =>
          Effect === 'Allow' &&
          [Action].flat().includes('sqs:SendMessage') &&
          Principal.Service === 'events.amazonaws.com' &&
          Resource === queueArn &&
          isBelow(Condition?.ArnLike?.['aws:SourceArn'], ruleArn),
      );
  }

  /** As Lambda invokes asynchronously: it tries again after errors, and then hands the event to the destination for failures. */
  async #invoke(function_: RunningFunction, envelope: Envelope): Promise<Delivery> {
    const config = this.#stack.all('AWS::Lambda::EventInvokeConfig').find(({ properties }) => properties.FunctionName === function_.name);
    const attempt = async (): Promise<Made> =>
      this.obstacles.streamFails ? { ok: false, answer: { errorMessage: 'the stream fails' } } : function_.invoke(envelope.text);
    let made = await attempt();
    for (let retry = 0; !made.ok && retry < config?.properties.MaximumRetryAttempts; retry += 1) {
      made = await attempt();
    }
    if (made.ok) {
      return { to: 'function' };
    }
    const why = JSON.stringify(made.answer);
    const arn = config?.properties.DestinationConfig.OnFailure.Destination;
    const queue = this.#stack.all('AWS::SQS::Queue').find(({ id }) => this.#stack.arn(id) === arn);
    if (!queue) {
      return { to: 'nowhere', why };
    }
    const record = `{"version":"1.0","requestContext":{"condition":"RetriesExhausted"},"requestPayload":${envelope.text},"responsePayload":${why}}`;
    await this.#send(queue.physicalId, record);
    return { to: 'undelivered', why };
  }

  async #send(QueueUrl: string, MessageBody: string): Promise<void> {
    await new SQSClient(this.#cloud.client).send(new SendMessageCommand({ QueueUrl, MessageBody }));
  }
}

/** The event of an entry. The detail stays as it is written: numbers keep their digits. */
function enveloped({ Source: source, DetailType: detailType, Detail, Time }: Entry): Envelope {
  const id = randomUUID();
  const time = (Time === undefined ? new Date() : new Date(Time * 1000)).toISOString().replace(/\.\d+Z$/, 'Z');
  const members = { version: '0', id, 'detail-type': detailType, source, account: ACCOUNT, time, region: REGION, resources: [] };
  return { id, source, detailType, text: JSON.stringify(members).replace(/\}$/, `,"detail":${Detail}}`) };
}

/** Whether an ARN is one of those that a pattern with a `*` at its end, and nowhere else, stands for. */
function isBelow(pattern: unknown, arn: string): boolean {
  return typeof pattern === 'string' && pattern.indexOf('*') === pattern.length - 1 && arn.startsWith(pattern.slice(0, -1));
}

/** Whether an event is as a pattern says. Patterns are those that the template has: names, and lists of exact values. */
function matches(pattern: any, event: any): boolean {
  return Object.entries<any>(pattern).every(([name, allowed]) => {
    if (!Array.isArray(allowed)) {
      return typeof event?.[name] === 'object' && matches(allowed, event[name]);
    }
    if (allowed.some((value) => typeof value === 'object' && value !== null)) {
      throw new Error(`it is not known what ${JSON.stringify(allowed)} means in a pattern`);
    }
    return allowed.includes(event?.[name]);
  });
}

/** The text or number that a path such as `$.detail.tenantId` leads to. */
function at(event: any, path: string): string | undefined {
  const value = path.replace(/^\$\./, '').split('.').reduce((object, name) => object?.[name], event);
  return typeof value === 'string' || typeof value === 'number' ? String(value) : undefined;
}
