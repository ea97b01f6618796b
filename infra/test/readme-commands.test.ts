import assert from 'node:assert/strict';
import { ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';

import * as sbt from '@cdklabs/sbt-aws';
import { App, Duration, Stack } from 'aws-cdk-lib';

import { AmberfloMetering, WorkerCompute } from '../src';
import { Block, blocks, PACKAGE, README } from './support-readme';

process.env.JSII_DEPRECATED ??= 'quiet';

const COMMANDS = blocks(README).filter(({ language }) => language === 'sh');
const directory = mkdtempSync(join(tmpdir(), 'amberflo-readme-'));
after(() => rmSync(directory, { recursive: true, force: true }));

describe('the commands of the README, with programs that only note how they are called', () => {
  let calls: string[][];
  let template: any;

  before(() => {
    const bin = join(directory, 'bin');
    mkdirSync(join(directory, 'infra'), { recursive: true });
    mkdirSync(bin);
    const log = join(directory, 'calls');
    for (const program of ['aws', 'curl', 'docker', 'jq', 'make', 'npm', 'npx']) {
      const file = join(bin, program);
      // It reads its input, or who pipes into it would fail. The separators are ASCII's of units and records. The answer has to be a word.
      writeFileSync(file, `#!/bin/sh\ncat >/dev/null\n{ printf '%s\\037' ${program} "$@"; printf '\\036'; } >>'${log}'\necho ${program}-answer\n`);
      chmodSync(file, 0o755);
    }
    const script = join(directory, 'pasted.sh');
    // Whatever fails, or has no value, ends the shell.
    writeFileSync(script, `set -euo pipefail\n${COMMANDS.map(({ text }) => text).join('\n')}`);
    execFileSync('bash', [script], {
      cwd: directory,
      env: { PATH: `${bin}:${process.env.PATH}`, HOME: directory },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 60_000,
    });
    calls = readFileSync(log, 'utf8').split('\x1e').slice(0, -1).map((call) => call.split('\x1f').slice(0, -1));
    template = controlPlane();
  });

  const callsOf = (program: string): string[][] => calls.filter(([name]) => name === program).map(([, ...args]) => args);

  test('every output that they ask for is there, once', () => {
    const asked = callsOf('aws').flatMap((args) => [...args.join(' ').matchAll(/contains\(OutputKey, '(\w+)'\)/g)].map(([, name]) => name));
    assert.ok(asked.length > 10);
    for (const name of asked) {
      assert.equal(Object.keys(template.Outputs).filter((output) => output.includes(name)).length, 1, name);
    }
  });

  test('every resource that they ask for is there, once', () => {
    const asked = callsOf('aws').flatMap((args) => [
      ...args.join(' ').matchAll(/ResourceType=='([\w:]+)' && contains\(LogicalResourceId, '(\w+)'\)/g),
    ]);
    assert.equal(asked.length, 2);
    for (const [, type, name] of asked) {
      const fit = Object.entries<any>(template.Resources).filter(([id, { Type }]) => Type === type && id.includes(name));
      assert.equal(fit.length, 1, `${type} ${name}`);
    }
  });

  test('every request has a route, a token, and a body that is JSON', () => {
    const routes = Object.values<any>(template.Resources)
      .filter(({ Type }) => Type === 'AWS::ApiGatewayV2::Route')
      .map(({ Properties }) => new RegExp(`^${Properties.RouteKey.replaceAll(/\{\w+\}/g, '[^/?]+')}$`));
    const requests = callsOf('curl');
    assert.ok(requests.length >= 6);
    for (const args of requests) {
      const value = (flag: string): string | undefined => args[args.indexOf(flag) + 1 || args.length];
      const url = args.find((arg) => arg.startsWith('aws-answer/'));
      assert.ok(url, `the endpoint in ${args}`);
      const request = `${value('-X') ?? 'GET'} ${url.slice('aws-answer'.length).split('?')[0]}`;
      assert.ok(routes.some((route) => route.test(request)), request);
      assert.equal(value('-H'), 'Authorization: Bearer aws-answer');
      if (args.includes('-d')) {
        JSON.parse(value('-d')!);
      }
    }
  });

  test('JSON among the arguments of the AWS CLI is JSON', () => {
    const json = callsOf('aws').flat().filter((arg) => /^[[{]/.test(arg));
    assert.equal(json.length, 4);
    for (const arg of json) {
      const [entry] = [JSON.parse(arg)].flat();
      if (entry.Detail) {
        assert.equal(JSON.parse(entry.Detail).tenantId, 'acme');
      }
    }
  });
});

function controlPlane(): any {
  // Any directory will do.
  const code = { path: join(PACKAGE, 'examples') };
  const app = new App({ analyticsReporting: false, postCliContext: { 'aws:cdk:bundling-stacks': [] }, outdir: join(directory, 'cdk.out') });
  const stack = new Stack(app, 'ControlPlaneStack');
  const metering = new AmberfloMetering(stack, 'AmberfloMetering', {
    archive: Duration.days(30),
    controlApiCode: code,
    forwarderCode: code,
    worker: WorkerCompute.lambda({ code }),
  });
  const { eventManager } = new sbt.ControlPlane(stack, 'ControlPlane', { systemAdminEmail: 'admin@example.com', metering });
  metering.attachTo(eventManager);
  return app.synth().getStackByName('ControlPlaneStack').template;
}

const LOADTEST = process.env.LOADTEST_PROGRAM ?? join(PACKAGE, '..', 'target', 'debug', 'loadtest');

describe('from nothing to a bill, on this machine', { skip: !existsSync(LOADTEST) && !process.env.CI && `${LOADTEST} is not built` }, () => {
  let dev: ChildProcess;
  let api: string;
  const errors: string[] = [];

  before(async () => {
    const ports = ['control-api', 'control-api-admin', 'bus', 'worker-admin', 'sandbox'].map((name) => `--${name}-port=0`);
    dev = spawn(LOADTEST, ['dev', ...ports], { stdio: ['ignore', 'pipe', 'pipe'] });
    dev.stderr!.on('data', (data) => errors.push(String(data)));
    const lines = createInterface({ input: dev.stdout! });
    api = await new Promise<string>((resolve, reject) => {
      setTimeout(() => reject(new Error(`it says nothing of its API: ${errors.join('')}`)), 60_000).unref();
      dev.once('exit', () => reject(new Error(errors.join(''))));
      let url: string | undefined;
      lines.on('line', (line) => {
        url ??= /^control API\s+(http:\S+)/.exec(line)?.[1];
        if (url && line.includes('/usage/')) {
          resolve(url);
        }
      });
    });
  });
  after(async () => {
    if (dev.exitCode === null && dev.signalCode === null) {
      const exit = once(dev, 'exit');
      dev.kill('SIGINT');
      await exit;
    }
  });

  const paste = async ({ text }: Block): Promise<any[]> => {
    const { stdout } = await promisify(execFile)('bash', ['-euc', text], { env: { ...process.env, API: `${api}/`, TOKEN: 'none' }, timeout: 30_000 });
    // Each answer is one line, whose end curl does not write.
    return JSON.parse(`[${stdout.trim().replaceAll(/\}\s*\{"data"/g, '},{"data"')}]`);
  };
  const block = (words: string): Block => {
    const found = COMMANDS.filter(({ text }) => text.includes(words));
    assert.equal(found.length, 1, words);
    return found[0];
  };

  test('a meter, an event, its usage', async () => {
    const [created, listed] = await paste(block('"label": "Orders"'));
    assert.equal(created.data.meterApiName, 'orders');
    assert.ok(listed.data.some(({ id }: { id: string }) => id === created.data.id), JSON.stringify(listed));
    const [ingested] = await paste(block('POST "${API%/}/ingest"'));
    assert.equal(ingested.data.accepted, 1, JSON.stringify(ingested));
    let usage: any;
    for (const start = Date.now(); Date.now() - start < 30_000; await new Promise((resolve) => setTimeout(resolve, 200))) {
      [usage] = await paste(block('/usage/meterId?meterApiName=orders'));
      if (usage.data.clientMeters[0]?.groupValue === 2) {
        return;
      }
    }
    assert.fail(JSON.stringify(usage));
  });

  test('dead letters: none to look at, none to redrive', async () => {
    const [letters, redriven] = await paste(block('dead-letters/redrive'));
    assert.deepEqual(letters.data.letters, []);
    assert.equal(redriven.data.redriven, 0, JSON.stringify(redriven));
  });
});
