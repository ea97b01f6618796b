import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { App, Duration, Stack } from 'aws-cdk-lib';
import * as kms from 'aws-cdk-lib/aws-kms';
import { Topic } from 'aws-cdk-lib/aws-sns';

import { AmberfloMetering, AmberfloMeteringProps } from '../src';
import { meteringProps, newApp, PACKAGE, Resource, Synthesised } from './support';
import { COMPUTES, layouts, describeLayout, synthesise } from './support-layouts';
import { isOurs } from './support-resources';
import { EventManager } from './support-sbt-main';

/** An ARN, a region, an account, or a host of one partition. */
const LITERALS = [/\barn:aws[a-z-]*:/, /\b(us|eu|ap|sa|ca|me|af|il|cn|mx)(-gov|-iso\w?)?-(north|south|east|west|central)\w*-\d\b/, /\b\d{12}\b/, /amazonaws\.com\.cn/];

describe('templates without an environment name no partition, region or account', () => {
  for (const layout of layouts(['main'])) {
    test(describeLayout(layout), () => {
      const app = synthesise(layout, (stack) => ({
        archive: Duration.days(30),
        alarmTopic: new Topic(stack, 'Alarms'),
        encryptionKey: new kms.Key(stack, 'Key'),
        tracing: true,
      }));
      assertNoLiterals(app.resources.filter(isOurs));
    });
  }
});

const ENVIRONMENTS = [
  { region: 'eu-central-1', account: '111122223333' },
  { region: 'cn-north-1', account: '111122223333' },
  { region: 'us-gov-west-1', account: '111122223333' },
];

describe('in an environment, the partition is still left to CloudFormation', () => {
  for (const env of ENVIRONMENTS) {
    for (const compute of ['lambda', 'fargate'] as const) {
      test(`${env.region}, ${compute}`, () => {
        const stack = new Stack(newApp(), 'Metering', { env });
        const props: AmberfloMeteringProps = { ...COMPUTES[compute](stack), eventManager: new EventManager(stack, 'EventManager') };
        new AmberfloMetering(stack, 'AmberfloMetering', meteringProps(props));
        const app = new Synthesised(stack.node.root as App);
        for (const { path, raw } of app.resources.filter(isOurs)) {
          assert.doesNotMatch(JSON.stringify(raw), LITERALS[0], path);
        }
        const secret = JSON.stringify(app.all('AWS::IAM::Policy').map(({ properties }) => properties));
        assert.ok(secret.includes(`arn:<AWS::Partition>:secretsmanager:${env.region}:${env.account}:secret:AmberfloApiKey-??????`));
      });
    }
  }
});

test('the sources name none either', () => {
  const sources = readdirSync(join(PACKAGE, 'src'), { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'));
  assert.ok(sources.length > 10);
  for (const name of sources) {
    assertNone(readFileSync(join(PACKAGE, 'src', name), 'utf8'), name);
  }
});

function assertNoLiterals(resources: Resource[]): void {
  for (const { path, raw } of resources) {
    assertNone(JSON.stringify(raw), path);
  }
}

function assertNone(text: string, where: string): void {
  for (const literal of LITERALS) {
    assert.doesNotMatch(text, literal, where);
  }
}
