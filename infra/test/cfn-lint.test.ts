import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { Duration, Stack } from 'aws-cdk-lib';
import * as kms from 'aws-cdk-lib/aws-kms';
import { Topic } from 'aws-cdk-lib/aws-sns';

import { AmberfloMeteringProps } from '../src';
import { PACKAGE, RECOMMENDED_FLAGS, skipUnless, Synthesised, temporaryDirectory } from './support';
import { Layout, layouts, synthesise } from './support-layouts';
import { isOurs } from './support-resources';

const CFN_LINT = join(PACKAGE, '..', 'target', 'tools', 'cfn-lint', 'bin', 'cfn-lint');
// CDK makes a function depend on its role, which it refers to anyway.
const IGNORED = ['W3005'];
const TIMEOUT = 180_000;
const skip = skipUnless(existsSync(CFN_LINT), 'infra: cfn-lint', 'it is not installed: run infra/setup.sh');

test('cfn-lint has nothing to say of our resources', { timeout: TIMEOUT, skip }, async () => {
  const apps = new Map<string, Synthesised>();
  const every = (stack: Stack): AmberfloMeteringProps => ({
    archive: Duration.days(30),
    alarmTopic: new Topic(stack, 'Alarms'),
    encryptionKey: new kms.Key(stack, 'Key'),
    tracing: true,
    shardCount: 4,
  });
  // Of SBT's generations the control plane differs, and not our part of it.
  for (const layout of [...layouts(['main']), { sbt: '0.5.25', way: 'attachTo', stacks: 'one stack', compute: 'lambda' } as Layout]) {
    apps.set(Object.values(layout).join('-').replaceAll(' ', '-'), synthesise(layout));
  }
  for (const layout of layouts(['main']).filter(({ way, stacks }) => way === 'attachTo' && stacks === 'two stacks')) {
    apps.set(`${layout.compute}-options`, synthesise(layout, every, { context: RECOMMENDED_FLAGS }));
  }

  const findings = await lint(apps);
  assert.deepEqual(findings.filter(({ ours }) => ours).map(({ text }) => text), []);
});

test('cfn-lint finds what is wrong with ours', { timeout: TIMEOUT, skip }, async () => {
  const app = synthesise({ sbt: 'main', way: 'attachTo', stacks: 'one stack', compute: 'lambda' });
  const stream = app.one('AWS::Kinesis::Stream');
  app.templates[stream.stack].Resources[stream.logicalId].Properties.RetentionPeriodHours = 9000;
  const findings = await lint(new Map([['broken', app]]));
  assert.deepEqual(findings.map(({ ours, text }) => [ours, text.split(' ')[1]]), [[true, 'E3034']]);
});

interface Finding {
  /** Whether it is of metering, and not of SBT or of the test. */
  readonly ours: boolean;
  readonly text: string;
}

async function lint(apps: Map<string, Synthesised>): Promise<Finding[]> {
  const directory = temporaryDirectory();
  const ids = new Map<string, Set<string>>();
  for (const [name, app] of apps) {
    for (const [stack, template] of Object.entries(app.templates)) {
      const file = join(directory, `${name}-${stack}.json`);
      writeFileSync(file, JSON.stringify(template));
      ids.set(file, new Set(app.resources.filter((each) => each.stack === stack && isOurs(each)).map(({ logicalId }) => logicalId)));
    }
  }
  const args = ['--format', 'json', '--ignore-checks', ...IGNORED, '--', ...ids.keys()];
  const output = await promisify(execFile)(CFN_LINT, args, { timeout: TIMEOUT, maxBuffer: 64 << 20 }).then(
    ({ stdout }) => stdout,
    // It ends with what it found: 2 for errors, 4 for warnings, 8 for hints. Anything else is a failure of its own.
    (error) => (error.code > 1 && error.code < 15 ? error.stdout : Promise.reject(error)),
  );
  return JSON.parse(output || '[]').map(({ Filename, Location, Rule, Message, Level }: any) => {
    const [section, id] = Location.Path ?? [];
    return {
      ours: section !== 'Resources' || ids.get(Filename)!.has(id),
      text: `${Level} ${Rule.Id} ${Filename.slice(directory.length + 1)}: ${(Location.Path ?? []).join('/')}: ${Message}`,
    };
  });
}
