import { appendFileSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { App, AppProps, CfnElement } from 'aws-cdk-lib';

import { AmberfloMeteringProps, RustCode, WorkerCompute } from '../src';
import { packageRoot } from '../src/rust-function';

// SBT uses what CDK has deprecated, and it would be said hundreds of times.
process.env.JSII_DEPRECATED ??= 'quiet';

/** The directory of this package. */
export const PACKAGE = packageRoot(__dirname);

/** What stands for a program of ours where a test looks at templates only. */
export const FAKE_PROGRAM: RustCode = { path: join(PACKAGE, 'test', 'fixtures', 'program') };

/** Properties of metering that need no built program. */
export function meteringProps(props: AmberfloMeteringProps = {}): AmberfloMeteringProps {
  return {
    worker: WorkerCompute.lambda({ code: FAKE_PROGRAM }),
    controlApiCode: FAKE_PROGRAM,
    forwarderCode: FAKE_PROGRAM,
    ...props,
  };
}

/** What `cdk init` writes to cdk.json: the behaviour of new apps. */
export const RECOMMENDED_FLAGS: Record<string, unknown> = require('aws-cdk-lib/recommended-feature-flags.json');

/** An app whose output is gone when the tests are. */
export function newApp(props: AppProps = {}): App {
  return new App({
    analyticsReporting: false,
    // SBT has functions in Python, which CDK would bundle with Docker.
    postCliContext: { 'aws:cdk:bundling-stacks': [] },
    outdir: temporaryDirectory(),
    ...props,
  });
}

let temporary: string | undefined;

/** A directory that is gone when the tests are. */
export function temporaryDirectory(): string {
  if (!temporary) {
    const root = (temporary = mkdtempSync(join(tmpdir(), 'amberflo-metering-')));
    process.once('exit', () => rmSync(root, { recursive: true, force: true }));
  }
  return mkdtempSync(join(temporary, 'd'));
}

/**
 * Why a test cannot run, unless it can: said also where `make test` collects it. With CI=true, where every test has to run,
 * it runs, and fails.
 */
export function skipUnless(available: boolean, test: string, why: string): string | false {
  if (available || process.env.CI === 'true') {
    return false;
  }
  const line = `SKIPPED ${test}: ${why}`;
  if (process.env.SUITE_REPORT) {
    appendFileSync(process.env.SUITE_REPORT, `${line}\n`);
  }
  return line;
}

/** A resource of a template, with references resolved as {@link Synthesised} says. */
export interface Resource {
  readonly stack: string;
  readonly logicalId: string;
  readonly type: string;
  readonly properties: any;
  /** The whole of it as it is in the template. */
  readonly raw: any;
  /** Its path in the construct tree, without the stack's name. */
  readonly path: string;
}

/**
 * What an app synthesises to, with what CloudFormation would make of it put in place: a reference to a resource is
 * `<STACK/LOGICAL-ID>` or `<STACK/LOGICAL-ID.ATTRIBUTE>`, also where it goes through an export of another stack, a pseudo
 * parameter is `<AWS::Region>`, and joined texts are joined. So tests compare texts, whatever the layout.
 */
export class Synthesised {
  /** By the names of the stacks. */
  readonly templates: Record<string, any> = {};
  /** The stacks that each stack is deployed after. */
  readonly dependencies: Record<string, string[]> = {};
  readonly resources: Resource[] = [];
  readonly #exports: Record<string, { stack: string; value: any }> = {};

  constructor(readonly app: App) {
    const { stacks } = app.synth();
    for (const stack of stacks) {
      this.templates[stack.id] = stack.template;
      this.dependencies[stack.id] = stack.dependencies.map(({ id }) => id).filter((id) => !id.endsWith('.assets'));
      for (const output of Object.values<any>(stack.template.Outputs ?? {})) {
        if (output.Export) {
          this.#exports[output.Export.Name] = { stack: stack.id, value: output.Value };
        }
      }
    }
    const paths = new Map(
      app.node.findAll().filter(CfnElement.isCfnElement).map((element) => {
        const { stack } = element;
        return [`${stack.node.id}/${stack.resolve(element.logicalId)}`, element.node.path.slice(stack.node.path.length + 1)];
      }),
    );
    for (const [stack, template] of Object.entries(this.templates)) {
      for (const [logicalId, raw] of Object.entries<any>(template.Resources ?? {})) {
        const properties = this.resolve(stack, raw.Properties ?? {});
        const path = paths.get(`${stack}/${logicalId}`) ?? '';
        this.resources.push({ stack, logicalId, type: raw.Type, properties, raw, path });
      }
    }
  }

  /** The resources of a type, of which there may be none. */
  all(type: string): Resource[] {
    return this.resources.filter((resource) => resource.type === type);
  }

  /** The only resource of a type that fits. */
  one(type: string, fits: (resource: Resource) => boolean = () => true): Resource {
    const found = this.all(type).filter(fits);
    if (found.length !== 1) {
      throw new Error(`${found.length} of ${type} fit: ${found.map(({ logicalId }) => logicalId)}`);
    }
    return found[0];
  }

  /** The resource that a resolved reference is to. */
  referred(reference: string): Resource {
    const [, stack, logicalId] = /^<([^/>]+)\/([^.>]+)[.>]/.exec(reference) ?? [];
    const found = this.resources.find((resource) => resource.stack === stack && resource.logicalId === logicalId);
    if (!found) {
      throw new Error(`${JSON.stringify(reference)} refers to no resource`);
    }
    return found;
  }

  /** A value of a stack's template, resolved. */
  resolve(stack: string, value: any): any {
    if (Array.isArray(value)) {
      return value.map((each) => this.resolve(stack, each));
    }
    if (value === null || typeof value !== 'object') {
      return value;
    }
    const [[key, argument] = [], ...others] = Object.entries<any>(value);
    if (key !== undefined && others.length === 0) {
      switch (key) {
        case 'Ref':
          return argument.startsWith('AWS::') ? `<${argument}>` : `<${stack}/${argument}>`;
        case 'Fn::GetAtt':
          return `<${stack}/${argument.join('.')}>`;
        case 'Fn::Join':
          return this.resolve(stack, argument[1]).join(argument[0]);
        case 'Fn::ImportValue': {
          const exported = this.#exports[argument];
          if (!exported) {
            throw new Error(`no stack exports ${JSON.stringify(argument)}`);
          }
          return this.resolve(exported.stack, exported.value);
        }
        // What new apps refer to other stacks with, instead of exports.
        case 'Fn::GetStackOutput':
          return this.resolve(argument.StackName, this.templates[argument.StackName].Outputs[argument.OutputName].Value);
      }
    }
    return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, this.resolve(stack, member)]));
  }
}

/** A reference to an attribute of a resource, as {@link Synthesised} resolves it. */
export function attribute({ stack, logicalId }: Resource, name: string): string {
  return `<${stack}/${logicalId}.${name}>`;
}

/** What `Ref` gives for a resource. */
export function ref({ stack, logicalId }: Resource): string {
  return `<${stack}/${logicalId}>`;
}
