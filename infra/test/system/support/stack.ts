import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import {
  CloudFormationClient,
  CreateStackCommand,
  DeleteStackCommand,
  DescribeStackEventsCommand,
  DescribeStacksCommand,
  ListStackResourcesCommand,
} from '@aws-sdk/client-cloudformation';
import { CreateBucketCommand, PutObjectCommand, S3Client } from '@aws-sdk/client-s3';
import { PutParameterCommand, SSMClient } from '@aws-sdk/client-ssm';
import { App, Stack } from 'aws-cdk-lib';

import { RustCode } from '../../../src';
import { Cloud, REGION } from './cloud';
import { eventually } from './process';
import { ACCOUNT, Resource, ResolvedTemplate, Template } from './template';

/** The version of the CDK's bootstrap stack that is claimed; the templates ask for 6 and more. */
const BOOTSTRAP_VERSION = '21';
/** A zip with nothing in it. The emulator runs no functions here, so that no release build is needed for these tests. */
const EMPTY_ZIP = Buffer.from(`PK\x05\x06${'\0'.repeat(18)}`, 'latin1');

/** A stack as CDK leaves it for a deployment. */
export interface Synthesised {
  readonly name: string;
  readonly template: Template;
  /** Files that the deployment uploads, by bucket and key. */
  readonly uploads: { bucket: string; key: string; body: Buffer }[];
  /** Where the template is among them. */
  readonly templateUrl: { bucket: string; key: string };
}

/** Synthesises a stack of what `fill` puts in it. `code` stands for each of the programs. */
export function synthesise(name: string, fill: (stack: Stack, code: RustCode) => void): Synthesised {
  const directory = mkdtempSync(join(tmpdir(), 'synth-'));
  try {
    const zip = join(directory, 'empty.zip');
    writeFileSync(zip, EMPTY_ZIP);
    const app = new App({ outdir: join(directory, 'out'), postCliContext: { 'aws:cdk:bundling-stacks': [] } });
    const stack = new Stack(app, name);
    fill(stack, { path: zip });
    const { directory: out } = app.synth();
    const file = join(out, `${name}.template.json`);
    const template = withoutMetricMath(JSON.parse(readFileSync(file, 'utf8')));
    writeFileSync(file, JSON.stringify(template));
    const { files } = JSON.parse(readFileSync(join(out, `${name}.assets.json`), 'utf8'));
    const placed = Object.values<any>(files).map(({ source, destinations }) => {
      const [{ bucketName, objectKey }] = Object.values<any>(destinations);
      return { path: source.path, bucket: here(bucketName), key: objectKey };
    });
    const place = placed.find(({ path }) => path === `${name}.template.json`);
    if (!place) {
      throw new Error(`${name} has no place for its template`);
    }
    const uploads = placed.map(({ path, bucket, key }) => ({ bucket, key, body: readFileSync(join(out, path)) }));
    return { name, template, uploads, templateUrl: place };
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** The emulator's CloudFormation refuses alarms on expressions, and with them the stack. Nothing refers to an alarm. */
function withoutMetricMath(template: Template): Template {
  const isRefused = ({ Type, Properties }: Resource): boolean => Type === 'AWS::CloudWatch::Alarm' && Properties.Metrics !== undefined;
  return { ...template, Resources: Object.fromEntries(Object.entries(template.Resources).filter(([, resource]) => !isRefused(resource))) };
}

/** Deploys a stack as `cdk deploy` does: puts its files into the bootstrap bucket, and has CloudFormation create it. */
export async function deploy(cloud: Cloud, synthesised: Synthesised): Promise<ResolvedTemplate> {
  const { name, template, uploads, templateUrl } = synthesised;
  await upload(cloud, uploads);
  const cloudFormation = new CloudFormationClient(cloud.client);
  await cloudFormation.send(
    new CreateStackCommand({
      StackName: name,
      TemplateURL: `${cloud.url}/${templateUrl.bucket}/${templateUrl.key}`,
      Capabilities: ['CAPABILITY_IAM', 'CAPABILITY_NAMED_IAM'],
    }),
  );
  const status = await eventually(`the stack ${name}`, () => stackStatus(cloud, name, /_IN_PROGRESS$/));
  if (status !== 'CREATE_COMPLETE') {
    const { StackEvents: events } = await cloudFormation.send(new DescribeStackEventsCommand({ StackName: name }));
    const reasons = events?.flatMap(({ LogicalResourceId: id, ResourceStatusReason: why }) => (why ? [`${id}: ${why}`] : []));
    throw new Error(`${name} is ${status}: ${reasons?.join('; ')}`);
  }
  const { StackResourceSummaries: resources } = await cloudFormation.send(new ListStackResourcesCommand({ StackName: name }));
  return new ResolvedTemplate(
    template,
    new Map(resources?.map(({ LogicalResourceId, PhysicalResourceId }) => [LogicalResourceId!, PhysicalResourceId!])),
  );
}

/** The outputs of a stack, as an operator sees them. */
export async function outputs(cloud: Cloud, name: string): Promise<Record<string, string>> {
  const cloudFormation = new CloudFormationClient(cloud.client);
  const { Stacks: [stack] = [] } = await cloudFormation.send(new DescribeStacksCommand({ StackName: name }));
  return Object.fromEntries(stack.Outputs?.map(({ OutputKey, OutputValue }) => [OutputKey!, OutputValue!]) ?? []);
}

/** Deletes a stack. */
export async function destroy(cloud: Cloud, name: string): Promise<void> {
  const cloudFormation = new CloudFormationClient(cloud.client);
  const { Stacks: [stack] = [] } = await cloudFormation.send(new DescribeStacksCommand({ StackName: name }));
  await cloudFormation.send(new DeleteStackCommand({ StackName: name }));
  const status = await eventually(`the end of the stack ${name}`, () => stackStatus(cloud, stack.StackId!, /_IN_PROGRESS$/));
  if (status !== 'DELETE_COMPLETE') {
    throw new Error(`${name} is ${status}`);
  }
}

/** The status of a stack, once it does not match `unless`. A stack that is gone has been deleted. */
async function stackStatus(cloud: Cloud, name: string, unless: RegExp): Promise<string | undefined> {
  try {
    const { Stacks: [stack] = [] } = await new CloudFormationClient(cloud.client).send(new DescribeStacksCommand({ StackName: name }));
    return unless.test(stack.StackStatus!) ? undefined : stack.StackStatus;
  } catch (error) {
    if (/does not exist/.test(String(error))) {
      return 'DELETE_COMPLETE';
    }
    throw error;
  }
}

/** What `cdk bootstrap` prepares, and then what `cdk deploy` uploads. */
async function upload(cloud: Cloud, uploads: Synthesised['uploads']): Promise<void> {
  const parameter = { Name: '/cdk-bootstrap/hnb659fds/version', Value: BOOTSTRAP_VERSION, Type: 'String' as const, Overwrite: true };
  await new SSMClient(cloud.client).send(new PutParameterCommand(parameter));
  const s3 = new S3Client({ ...cloud.client, forcePathStyle: true });
  for (const Bucket of new Set(uploads.map(({ bucket }) => bucket))) {
    await s3.send(new CreateBucketCommand({ Bucket }));
  }
  for (const { bucket: Bucket, key: Key, body: Body } of uploads) {
    await s3.send(new PutObjectCommand({ Bucket, Key, Body }));
  }
}

/** A name of a bucket, which stands for every account and region. */
function here(name: string): string {
  return name.replace('${AWS::AccountId}', ACCOUNT).replace('${AWS::Region}', REGION);
}
