import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { App, Aspects, Duration, Stack } from 'aws-cdk-lib';
import { Annotations, Match } from 'aws-cdk-lib/assertions';
import * as kms from 'aws-cdk-lib/aws-kms';
import { Topic } from 'aws-cdk-lib/aws-sns';
import { AwsSolutionsChecks } from 'cdk-nag';

import { RECOMMENDED_FLAGS } from './support';
import { describeLayout, Layout, LayoutApp } from './support-layouts';

// With it, what cdk-nag has to say of SBT and of the test would end the synthesis.
const FLAGS = { ...RECOMMENDED_FLAGS, '@aws-cdk/core:annotationsInValidationReport': false };

const everything = (stack: Stack) => ({
  archive: Duration.days(30),
  alarmTopic: new Topic(stack, 'Alarms'),
  encryptionKey: new kms.Key(stack, 'Key'),
  tracing: true,
  shardCount: 4,
});

describe('cdk-nag has nothing to say of metering that is not answered', () => {
  for (const compute of ['lambda', 'fargate'] as const) {
    for (const way of ['attachTo', 'forwarder'] as const) {
      const layout: Layout = { sbt: 'main', way, stacks: 'two stacks', compute };
      test(describeLayout(layout), () => assertClean(new LayoutApp(layout)));
      test(`${describeLayout(layout)}, every option, flags of new apps`, () =>
        assertClean(new LayoutApp(layout, everything, { context: FLAGS })));
    }
  }
});

test('cdk-nag looks at metering: without its answers it speaks', () => {
  const layout: Layout = { sbt: 'main', way: 'attachTo', stacks: 'one stack', compute: 'lambda' };
  const app = new LayoutApp(layout);
  for (const node of app.metering.node.findAll()) {
    (node as any).addMetadata?.('cdk_nag', undefined);
  }
  assert.ok(findings(app).some((finding) => finding.includes('AwsSolutions-SQS3')));
});

function assertClean(app: LayoutApp): void {
  assert.deepEqual(findings(app), []);
}

function findings({ app, metering, controlPlane, meteringStack }: LayoutApp): string[] {
  Aspects.of(app).add(new AwsSolutionsChecks());
  (metering.node.root as App).synth();
  return [...new Set([controlPlane, meteringStack])].flatMap((stack) => {
    const annotations = Annotations.fromStack(stack);
    const ofNag = Match.stringLikeRegexp('AwsSolutions|CdkNag');
    return [...annotations.findError('*', ofNag), ...annotations.findWarning('*', ofNag)]
      .filter(({ id }) => /^\/[^/]+\/AmberfloMetering/.test(id))
      .map(({ id, entry }) => `${id}: ${entry.data}`);
  });
}
