import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { before, describe, test } from 'node:test';
import { pathToFileURL } from 'node:url';

import { App, CfnElement, Stack } from 'aws-cdk-lib';

import { code, compileSnippets, PACKAGE, propertiesOf, README, tableOf } from './support-readme';

process.env.JSII_DEPRECATED ??= 'quiet';

const REPOSITORY = dirname(PACKAGE);

/** A synthesised stack. */
interface Synthesised {
  readonly template: any;
  /** The logical ids of its elements, by their paths below the stack. */
  readonly ids: Map<string, string>;
}

function synthesise(file: string, name: string): Synthesised {
  const app = new App({
    analyticsReporting: false,
    postCliContext: { 'aws:cdk:bundling-stacks': [] },
    outdir: join(directory, `cdk.out.${name}`),
  });
  const construct = require(join(directory, `${file}.js`))[name];
  const stack: Stack = new construct(app, 'Stack', {});
  const { template } = app.synth().getStackByName('Stack');
  const elements = stack.node.findAll().filter(CfnElement.isCfnElement);
  const ids = elements.map((element): [string, string] => [element.node.path.slice('Stack/'.length), stack.resolve(element.logicalId)]);
  return { template, ids: new Map(ids) };
}

/** The resources of a type by their paths below a construct, without `/Resource`. */
function resources({ template, ids }: Synthesised, type: string, below: string): Record<string, any> {
  const found = [...ids].filter(([path, id]) => path.startsWith(below) && template.Resources[id]?.Type === type);
  return Object.fromEntries(found.map(([path, id]) => [path.slice(below.length).replace(/\/Resource$/, ''), template.Resources[id].Properties]));
}

/** The alarms with Fargate, without those that scale the tasks. */
function fargateAlarms(): Record<string, any> {
  const alarms = Object.entries(resources(fargate, 'AWS::CloudWatch::Alarm', METERING));
  return Object.fromEntries(alarms.filter(([path]) => !path.includes('/TaskCount/')));
}

const METERING = 'AmberfloMetering/';
let directory: string;
let controlPlane: Synthesised;
let fargate: Synthesised;

before(() => {
  directory = compileSnippets();
  controlPlane = synthesise('control-plane', 'ControlPlaneStack');
  fargate = synthesise('fargate', 'OnFargate');
});

test('links lead somewhere', () => {
  for (const document of ['infra/README.md', 'infra/examples/control-plane/README.md', 'README.md', 'SECURITY.md', 'CHANGELOG.md']) {
    const text = readFileSync(join(REPOSITORY, document), 'utf8');
    for (const [, file, anchor] of text.matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)) {
      const target = file ? join(REPOSITORY, dirname(document), file) : join(REPOSITORY, document);
      assert.ok(existsSync(target), `${document}: ${file}`);
      if (anchor) {
        const headings = [...readFileSync(target, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
          heading.toLowerCase().replaceAll(/[^\w\- ]/g, '').replaceAll(' ', '-'),
        );
        assert.ok(headings.includes(anchor), `${document}: ${file}#${anchor}`);
      }
    }
  }
});

describe('tables', () => {
  for (const [heading, file, name] of [
    ['Properties', 'amberflo-metering.ts', 'AmberfloMeteringProps'],
    ['`WorkerCompute.lambda`', 'worker/lambda.ts', 'LambdaWorkerProps'],
    ['`WorkerCompute.fargate`', 'worker/fargate.ts', 'FargateWorkerProps'],
  ]) {
    test(`${heading}: those of ${name}, with their defaults`, () => {
      const properties = propertiesOf(file, name);
      const rows = new Map(tableOf(heading).flatMap(([names, ...others]) => code(names).map((each) => [each, others.join(' | ')])));
      assert.deepEqual([...rows.keys()].sort(), Object.keys(properties).sort());
      for (const [property, documentation] of Object.entries(properties)) {
        const [, literal] = /@default (?:'([^']+)'|(?=[\w.]*\d)(\d+)|(RemovalPolicy\.\w+)|(true|false))/.exec(documentation)?.filter(Boolean) ?? [];
        if (literal) {
          assert.ok(rows.get(property)!.includes(literal), `${property}: the default is ${literal}: ${rows.get(property)}`);
        }
      }
    });
  }

  test('outputs', () => {
    const outputs = [controlPlane, fargate].flatMap(({ template }) => Object.keys(template.Outputs)).filter((name) => name.startsWith('AmberfloMetering'));
    const names = tableOf('Outputs').flatMap(([name]) => code(name));
    assert.equal(names.length, new Set(outputs).size);
    for (const name of names) {
      assert.equal(new Set(outputs.filter((output) => output.includes(name))).size, 1, name);
    }
  });

  test('alarms, and for how long they wait', () => {
    const alarms = { ...resources(controlPlane, 'AWS::CloudWatch::Alarm', METERING), ...fargateAlarms() };
    const rows = new Map(tableOf('Alarms').flatMap(([names, when]) => code(names).map((name) => [name, when])));
    assert.deepEqual([...rows.keys()].sort(), Object.keys(alarms).sort());
    for (const [name, { Period, Metrics, EvaluationPeriods, Threshold, TreatMissingData }] of Object.entries(alarms)) {
      const period = Period ?? Metrics[0].MetricStat.Period;
      const [, count = '5', unit = 'minutes'] = /for (?:\w+ than )?(\d+) (minutes|days)$/.exec(rows.get(name)!) ?? [];
      assert.equal((period * EvaluationPeriods) / 60, Number(count) * (unit === 'days' ? 24 * 60 : 1), name);
      assert.equal(TreatMissingData, ['Ingest/NoWorker', 'Ingest/NotRead'].includes(name) ? 'breaching' : 'notBreaching');
      if (name.endsWith('/Old')) {
        assert.equal(Threshold, 3 * 24 * 3600);
      }
      if (name.endsWith('Late')) {
        assert.equal(Threshold, 15 * 60 * 1000);
      }
      if (name.endsWith('Memory')) {
        assert.equal(Threshold, 90);
      }
    }
  });

  test('permissions', () => {
    const policies = { ...resources(fargate, 'AWS::IAM::Policy', METERING), ...resources(controlPlane, 'AWS::IAM::Policy', METERING) };
    const roles = {
      EventBridge: 'Stream/EventsRole',
      'Lambda worker': 'Ingest/Worker/Role',
      'Fargate worker': 'Ingest/TaskRole',
      'admin API': 'ControlApi/Admin/Role',
      forwarder: 'Forwarder/Forward/Role',
    };
    const listed: Record<string, string[]> = {};
    let who = '';
    for (const [name, actions] of tableOf('Permissions')) {
      who = name || who;
      listed[who] = [...(listed[who] ?? []), ...code(actions)];
    }
    assert.deepEqual(Object.keys(listed), Object.keys(roles));
    for (const [name, role] of Object.entries(roles)) {
      const statements: any[] = policies[`${role}/DefaultPolicy`].PolicyDocument.Statement;
      const actions = statements.flatMap(({ Action }) => Action).filter((action) => !/^(logs|aps):/.test(action));
      assert.deepEqual([...new Set(actions)].sort(), [...new Set(listed[name])].sort(), name);
    }
  });

  test('costs: what the program computes, with as many metrics of alarms as there are', async () => {
    const computed = execFileSync(process.execPath, [join(PACKAGE, 'costs.mjs')], { encoding: 'utf8' });
    const [, written] = /<!-- costs -->\n(.*?)<!-- \/costs -->/s.exec(README)!;
    assert.equal(written, computed);
    const url = pathToFileURL(join(PACKAGE, 'costs.mjs')).href;
    const { ASSUMPTIONS } = await (new Function('url', 'return import(url)')(url) as Promise<any>);
    const alarmMetrics = (alarms: Record<string, any>): number =>
      Object.values(alarms).flatMap(({ Metrics = [{ MetricStat: true }] }) => Metrics.filter(({ MetricStat }: any) => MetricStat)).length;
    assert.equal(ASSUMPTIONS.alarms.lambda, alarmMetrics(resources(controlPlane, 'AWS::CloudWatch::Alarm', METERING)));
    const [worker] = Object.values(resources(controlPlane, 'AWS::Lambda::Function', `${METERING}Ingest/Worker/`));
    assert.equal(ASSUMPTIONS.worker.memoryMb, worker.MemorySize);
    assert.equal(ASSUMPTIONS.alarms.fargate, alarmMetrics(fargateAlarms()));
    assert.equal(ASSUMPTIONS.customMetrics.fargate, Object.keys(resources(fargate, 'AWS::Logs::MetricFilter', METERING)).length);
    const [{ Cpu, Memory }] = Object.values(resources(fargate, 'AWS::ECS::TaskDefinition', METERING));
    const { tasks, vcpu, memoryGb } = ASSUMPTIONS.fargate;
    const [{ MinCapacity }] = Object.values(resources(fargate, 'AWS::ApplicationAutoScaling::ScalableTarget', METERING));
    assert.deepEqual([tasks, vcpu, memoryGb], [MinCapacity, Number(Cpu) / 1024, Number(Memory) / 1024]);
    const [forwarder] = Object.values(resources(controlPlane, 'AWS::Lambda::Function', `${METERING}Forwarder/`));
    assert.equal(ASSUMPTIONS.forwarder.memoryMb, forwarder.MemorySize);
    const [mapping] = Object.values(resources(controlPlane, 'AWS::Lambda::EventSourceMapping', `${METERING}Ingest/`));
    assert.deepEqual(
      [ASSUMPTIONS.worker.batchSize, ASSUMPTIONS.worker.windowSeconds],
      [mapping.BatchSize, mapping.MaximumBatchingWindowInSeconds],
    );
  });
});

describe('what is said of the template', () => {
  test('the rule matches the source and detail type that the README gives, and tries for 24 hours', () => {
    const [rule, ...others] = Object.values(resources(controlPlane, 'AWS::Events::Rule', METERING));
    assert.deepEqual(others, []);
    const [[, source, detailType]] = tableOf('Emit');
    assert.deepEqual(rule.EventPattern, { source: code(source), 'detail-type': code(detailType) });
    const [{ RetryPolicy, KinesisParameters }] = rule.Targets;
    assert.deepEqual(RetryPolicy, { MaximumEventAgeInSeconds: 24 * 3600, MaximumRetryAttempts: 185 });
    assert.equal(KinesisParameters.PartitionKeyPath, '$.detail.tenantId');
  });

  test('queues and stream stay, queues keep 14 days, the stream 7', () => {
    const stateful = Object.entries<any>(controlPlane.template.Resources).filter(
      ([id, { Type }]) => id.startsWith('AmberfloMetering') && ['AWS::SQS::Queue', 'AWS::Kinesis::Stream'].includes(Type),
    );
    assert.equal(stateful.length, 4);
    for (const [id, { Type, DeletionPolicy, Properties }] of stateful) {
      assert.equal(DeletionPolicy, 'Retain', id);
      const kept = Type === 'AWS::SQS::Queue' ? Properties.MessageRetentionPeriod / 3600 / 24 : Properties.RetentionPeriodHours / 24;
      assert.equal(kept, Type === 'AWS::SQS::Queue' ? 14 : 7, id);
    }
  });

  test('a bus that another account may put usage events on', () => {
    const { template } = synthesise('other-account', 'OtherAccount');
    const [policy] = Object.values<any>(template.Resources).filter(({ Type }) => Type === 'AWS::Events::EventBusPolicy');
    const { Action, Condition } = policy.Properties.Statement;
    assert.equal(Action, 'events:PutEvents');
    const [[, source, detailType]] = tableOf('Emit');
    assert.deepEqual(Condition.StringEquals, { 'events:source': code(source)[0], 'events:detail-type': code(detailType)[0] });
  });
});

test('the example app synthesises', () => {
  const { app, context } = JSON.parse(readFileSync(join(PACKAGE, 'examples', 'control-plane', 'cdk.json'), 'utf8'));
  assert.equal(app, 'npx tsc && node app.js');
  const outdir = join(directory, 'cdk.out.example');
  execFileSync(process.execPath, [join(directory, 'app.js')], {
    env: {
      ...process.env,
      CDK_OUTDIR: outdir,
      CDK_CONTEXT_JSON: JSON.stringify({ ...context, 'aws:cdk:bundling-stacks': [] }),
    },
    timeout: 120_000,
    stdio: 'pipe',
  });
  const { Resources } = JSON.parse(readFileSync(join(outdir, 'ControlPlaneStack.template.json'), 'utf8'));
  const subscribed = Object.values<any>(Resources).filter(({ Type }) => Type === 'AWS::SNS::Subscription');
  assert.deepEqual(subscribed.map(({ Properties }) => Properties.Endpoint), ['operator@example.com']);
  const alarms = Object.values<any>(Resources).filter(({ Type }) => Type === 'AWS::CloudWatch::Alarm');
  assert.ok(alarms.length > 0 && alarms.every(({ Properties }) => Properties.AlarmActions.length === 1 && Properties.OKActions.length === 1));
});

describe('migration', () => {
  const RULE = 'ControlPlane/Metering/ingestUsageRule/Resource';
  let steps: { beside: Synthesised; turn: Synthesised; attach: Synthesised };
  before(() => {
    steps = {
      beside: synthesise('beside', 'BuildBeside'),
      turn: synthesise('turn', 'Turn'),
      attach: synthesise('attach', 'Attach'),
    };
  });
  const idOf = (step: Synthesised, path: string): string => step.ids.get(path) ?? assert.fail(`no ${path}`);
  const rule = (step: Synthesised): any => step.template.Resources[idOf(step, RULE)].Properties;
  /** The rules for usage events, with what their targets are. */
  const ways = ({ template }: Synthesised): [string, string][] =>
    Object.entries<any>(template.Resources)
      .filter(([, { Type, Properties }]) => Type === 'AWS::Events::Rule' && Properties.EventPattern['detail-type'].includes('ingestUsage'))
      .flatMap(([id, { Properties }]) => Properties.Targets.map((target: any) => [id, target.Arn['Fn::GetAtt'][0]]));

  test('SBT\'s rule stays, and its only target is replaced under its id', () => {
    const { beside, turn } = steps;
    assert.deepEqual(ways(beside), [[idOf(beside, RULE), idOf(beside, 'AmberfloMetering/Service/Resource')]]);
    assert.deepEqual(ways(turn), [[idOf(turn, RULE), idOf(turn, 'Metering/Forwarder/Forward/Function/Resource')]]);
    assert.equal(idOf(beside, RULE), idOf(turn, RULE));
    const [from, to] = [beside, turn].map((step) => ({ ...rule(step), Targets: rule(step).Targets.map(({ Id }: any) => Id) }));
    assert.deepEqual(from, to);
    assert.equal(idOf(turn, 'Metering/Forwarder/Undelivered/Resource'), rule(turn).Targets[0].DeadLetterConfig.Arn['Fn::GetAtt'][0]);
    assert.deepEqual(Object.keys(rule(beside).Targets[0]).sort(), ['Arn', 'Id'], 'no queue for what EventBridge gives up');
  });

  test('EventBridge may invoke either function before the rule points at it', () => {
    const { beside, turn } = steps;
    const [old, ours] = [idOf(turn, 'AmberfloMetering/Service/Migration'), idOf(turn, 'Metering/Forwarder/Forward/Function/AllowRules')];
    for (const id of [old, ours]) {
      const permission = turn.template.Resources[id];
      assert.ok(!JSON.stringify(permission).includes(idOf(beside, RULE)), `${id} waits for the rule`);
      assert.match(JSON.stringify(permission.Properties.SourceArn), /:rule\/\*/);
    }
    assert.deepEqual(beside.template.Resources[old], turn.template.Resources[old], 'the deployment that turns does not touch it');
    assert.ok(turn.template.Resources[idOf(turn, RULE)].DependsOn.includes(ours), 'the rule waits for ours');
    const [sbts] = Object.entries<any>(turn.template.Resources).filter(
      ([, { Type, Properties }]) => Type === 'AWS::Lambda::Permission' && JSON.stringify(Properties.SourceArn).includes(idOf(turn, RULE)),
    );
    assert.ok(sbts, "the reason for it: SBT's own permission is made after the rule");
  });

  test('what holds events is the same in every step', () => {
    const holds = ({ template }: Synthesised): [string, unknown][] =>
      Object.entries<any>(template.Resources)
        .filter(([id, { Type }]) => id.startsWith('Metering') && ['AWS::SQS::Queue', 'AWS::Kinesis::Stream'].includes(Type))
        .sort(([one], [other]) => one.localeCompare(other));
    const undelivered = idOf(steps.turn, 'Metering/Forwarder/Undelivered/Resource');
    assert.equal(holds(steps.turn).length, 4);
    assert.deepEqual(holds(steps.beside), holds(steps.turn).filter(([id]) => id !== undelivered));
    assert.deepEqual(holds(steps.attach), holds(steps.turn));
  });

  test('afterwards the stream is the target, and what the forwarder still holds keeps its function', () => {
    const { attach, turn } = steps;
    assert.deepEqual(ways(attach), [[idOf(attach, 'Metering/Usage/ingestUsageRule/Resource'), idOf(attach, 'Metering/Stream/Resource')]]);
    const path = 'Metering/Forwarder/Forward/Function/Resource';
    assert.equal(idOf(attach, path), idOf(turn, path));
    assert.ok(!attach.ids.has('AmberfloMetering/Service/Resource'));
  });

  test('no logical id changes its type, which CloudFormation refuses', () => {
    const types = Object.values(steps).flatMap(({ template }) => Object.entries<any>(template.Resources).map(([id, { Type }]) => [id, Type]));
    const seen = new Map<string, string>();
    for (const [id, type] of types) {
      assert.equal(seen.get(id) ?? type, type, id);
      seen.set(id, type);
    }
  });
});
