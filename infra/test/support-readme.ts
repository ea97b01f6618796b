import { execFileSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { packageRoot } from '../src/rust-function';

/** The directory of this package, wherever this was compiled to. */
export const PACKAGE = packageRoot(__dirname);

/** The README of this package. */
export const README = readFileSync(join(PACKAGE, 'README.md'), 'utf8');

/** A fenced code block, without the indentation of the list that it stands in. */
export interface Block {
  readonly language: string;
  readonly text: string;
}

/** The code blocks of a document, in order. */
export function blocks(document: string): Block[] {
  return [...document.matchAll(/^( *)```(\w+)\n(.*?)^ *```$/gms)].map(([, indentation, language, text]) => ({
    language,
    text: text.replaceAll(new RegExp(`^${indentation}`, 'gm'), ''),
  }));
}

/** The rows of the first table after a heading, header and dashes left out, as cells. */
export function tableOf(heading: string): string[][] {
  const [, section] = new RegExp(`^#+ ${heading}\\n(.*?)(?=^#+ |$(?![\\s\\S]))`, 'ms').exec(README) ?? [];
  const lines = (section ?? '').split('\n');
  const start = lines.findIndex((line) => line.startsWith('|'));
  if (start < 0) {
    throw new Error(`no table under ${heading}`);
  }
  const end = lines.findIndex((line, index) => index > start && !line.startsWith('|'));
  return lines.slice(start + 2, end < 0 ? undefined : end).map((line) => line.slice(1, -1).split(' | ').map((cell) => cell.trim()));
}

/** What stands in `backticks`. */
export function code(cell: string): string[] {
  return [...cell.matchAll(/`([^`]+)`/g)].map(([, text]) => text);
}

/** The names of an interface's properties, with the text of their documentation. */
export function propertiesOf(file: string, name: string): Record<string, string> {
  const source = readFileSync(join(PACKAGE, 'src', file), 'utf8');
  const [, body] = new RegExp(`^export interface ${name} \\{\\n(.*?)^\\}`, 'ms').exec(source) ?? [];
  if (body === undefined) {
    throw new Error(`${file} has no interface ${name}`);
  }
  return Object.fromEntries([...body.matchAll(/\/\*\*(.*?)\*\/\s*readonly (\w+)/gs)].map(([, text, property]) => [property, text]));
}

const MIGRATION = `
import * as sbt from '@cdklabs/sbt-aws';
import { Stack } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import { Construct } from 'constructs';
import { AmberfloMetering as OriginalMetering } from 'sbt-aws-amberflo';
import { AmberfloMetering } from 'sbt-aws-amberflo-rust';
export class BuildBeside extends Stack {
  constructor(scope: Construct, id: string) {
    super(scope, id);
    SNIPPET
  }
}
`;
const OTHER_ACCOUNT = `
import * as sbt from '@cdklabs/sbt-aws';
import { Stack } from 'aws-cdk-lib';
import * as events from 'aws-cdk-lib/aws-events';
import { Construct } from 'constructs';
export class OtherAccount extends Stack {
  constructor(scope: Construct, id: string) {
    super(scope, id);
    const controlPlane = new sbt.ControlPlane(this, 'ControlPlane', { systemAdminEmail: 'admin@example.com' });
    SNIPPET
  }
}
`;
const FARGATE = `
import { Stack } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecr from 'aws-cdk-lib/aws-ecr';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import { Construct } from 'constructs';
import * as sbt from '@cdklabs/sbt-aws';
import { AmberfloMetering, MetricsScrape, WorkerCompute } from 'sbt-aws-amberflo-rust';
export class OnFargate extends Stack {
  constructor(scope: Construct, id: string) {
    super(scope, id, { env: { account: '111122223333', region: 'eu-west-1' } });
    const workspaceArn = 'arn:aws:aps:eu-west-1:111122223333:workspace/ws-1';
    SNIPPET
    metering.attachTo(new sbt.EventManager(this, 'EventManager'));
  }
}
`;
const ORIGINAL_TYPES = `
import { IMetering, IASyncFunction } from '@cdklabs/sbt-aws';
import { Construct } from 'constructs';
export class AmberfloMetering extends Construct {
  constructor(scope: Construct, id: string, props: { amberfloBaseUrl?: string });
  readonly ingestUsageEventFunction: IASyncFunction;
}
export interface AmberfloMetering extends IMetering {}
`;

/**
 * Compiles what a reader copies, against this package as npm would have it: the snippets of the README, with the step of the
 * migration that it describes in words, and the example app. Answers the directory of what came out.
 */
export function compileSnippets(): string {
  const directory = join(PACKAGE, 'build', 'readme');
  rmSync(directory, { recursive: true, force: true });
  const ours = join(directory, 'node_modules', 'sbt-aws-amberflo-rust');
  const original = join(directory, 'node_modules', 'sbt-aws-amberflo');
  write(join(original, 'index.d.ts'), ORIGINAL_TYPES);
  cpSync(join(__dirname, 'support-original.js'), join(original, 'index.js'));
  cpSync(join(PACKAGE, 'package.json'), join(ours, 'package.json'));
  for (const program of ['control-api', 'ingest-worker']) {
    write(join(ours, 'assets', `${program}.zip`), 'stands for the program');
  }
  tsc('-p', join(PACKAGE, 'tsconfig.json'), '--outDir', join(ours, 'lib'));

  const [controlPlane, fargate, migration, otherAccount, ...others] = blocks(README).filter(({ language }) => language === 'ts');
  if (others.length > 0) {
    throw new Error(`the README has a snippet that is not compiled:\n${others[0].text}`);
  }
  const wrap = (frame: string, { text }: Block): string => frame.replace('SNIPPET', () => text);
  const beside = wrap(MIGRATION, migration);
  const turn = beside.replace('metering: old }', 'metering }').replace('BuildBeside', 'Turn');
  const attach = turn.replace(/^.*new sbt\.ControlPlane.*$/m, 'const controlPlane = $&\nmetering.attachTo(controlPlane.eventManager);');
  write(join(directory, 'control-plane.ts'), controlPlane.text);
  write(join(directory, 'fargate.ts'), wrap(FARGATE, fargate));
  write(join(directory, 'beside.ts'), beside);
  write(join(directory, 'turn.ts'), turn);
  write(join(directory, 'attach.ts'), withoutOld(attach.replace('Turn', 'Attach')));
  write(join(directory, 'other-account.ts'), wrap(OTHER_ACCOUNT, otherAccount));
  const example = join(PACKAGE, 'examples', 'control-plane');
  cpSync(join(example, 'app.ts'), join(directory, 'app.ts'));
  cpSync(join(example, 'tsconfig.json'), join(directory, 'tsconfig.json'));
  tsc('-p', directory);
  return directory;
}

/** The fourth step of the migration: after the third, the original and its permission are gone. */
function withoutOld(source: string): string {
  return source
    .replace(/^.*new OriginalMetering.*$/m, '')
    .replace(/^\s*old\.ingestUsageEventFunction.*?^\s*\}\);\n/ms, '')
    .replace(/^import .*'sbt-aws-amberflo';$/m, '')
    .replace(/^import \* as iam.*$/m, '');
}

function tsc(...args: string[]): void {
  try {
    execFileSync(process.execPath, [join(PACKAGE, 'node_modules', 'typescript', 'bin', 'tsc'), ...args], { encoding: 'utf8', timeout: 120_000 });
  } catch (error) {
    throw new Error((error as { stdout: string }).stdout);
  }
}

function write(file: string, text: string): void {
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
}
