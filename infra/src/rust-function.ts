import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { Duration, RemovalPolicy } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';

import { addAlarm, Common, PERIOD, suppressNagOfPolicy } from './common';

/** One of the two programs that this package has as a zip. */
export type Program = 'ingest-worker' | 'control-api';

/** A function that runs one of our programs. */
export interface RustFunctionProps {
  readonly common: Common;
  readonly program: Program;
  /** Other code than the package's. */
  readonly code?: RustCode;
  /** Which of the program's handlers. */
  readonly handler: string;
  readonly description: string;
  readonly environment: Record<string, string>;
  readonly timeout: Duration;
  readonly memorySize: number;
  readonly reservedConcurrentExecutions?: number;
}

/** A program built by yourself. */
export interface RustCode {
  /** A zip, or a directory, with `bootstrap` for the runtime `provided.al2023`. */
  readonly path: string;
  /** @default the architecture of the programs in this package */
  readonly architecture?: lambda.Architecture;
}

/** Where the package has its zips: beside its package.json, wherever this was compiled to. */
const ASSETS = join(packageRoot(__dirname), 'assets');

/** Called with whatever is given leave to invoke the function: a rule of EventBridge, or a route of API Gateway. */
export type OnInvoker = (invoker: Construct) => void;

/**
 * A function on `provided.al2023` with a role and a log group of its own, and an alarm on its errors.
 */
export class RustFunction extends Construct {
  readonly function: lambda.Function;
  readonly role: iam.Role;
  readonly logGroup: logs.LogGroup;

  /** `onInvoker` learns who is given leave to invoke the function. */
  constructor(scope: Construct, id: string, props: RustFunctionProps, onInvoker?: OnInvoker) {
    super(scope, id);
    const { common } = props;
    this.logGroup = new logs.LogGroup(this, 'Logs', {
      retention: common.logRetention,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.role = new iam.Role(this, 'Role', { assumedBy: new iam.ServicePrincipal('lambda.amazonaws.com') });
    this.logGroup.grantWrite(this.role);
    const code = props.code ?? packagedCode(props.program);
    const functionProps: lambda.FunctionProps = {
      runtime: lambda.Runtime.PROVIDED_AL2023,
      architecture: code.architecture ?? packagedArchitecture(),
      // Not shared between functions: code of an asset can be of one stack only.
      code: lambda.Code.fromAsset(code.path),
      handler: props.handler,
      description: props.description,
      environment: { ...props.environment, LOG_FORMAT: 'json' },
      timeout: props.timeout,
      memorySize: props.memorySize,
      reservedConcurrentExecutions: props.reservedConcurrentExecutions,
      tracing: common.tracing ? lambda.Tracing.ACTIVE : lambda.Tracing.DISABLED,
      role: this.role,
      logGroup: this.logGroup,
    };
    this.function = new InvokedFunction(this, 'Function', functionProps, onInvoker);
    if (common.tracing) {
      suppressNagOfPolicy(this.role, 'X-Ray knows no resources.', ['Resource::*']);
    }
    addAlarm(this, 'Errors', common, {
      metric: this.function.metricErrors({ period: PERIOD }),
      above: 0,
      periods: 3,
      description: `${props.description} Its invocations fail: look at its log group.`,
    });
  }
}

/**
 * SBT wires a function to its rules and routes by giving them leave to invoke it. That is the moment at which they show
 * themselves, and the only one: SBT has no other way to tell who uses an `IMetering`.
 */
class InvokedFunction extends lambda.Function {
  readonly #onInvoker: OnInvoker | undefined;

  constructor(scope: Construct, id: string, props: lambda.FunctionProps, onInvoker?: OnInvoker) {
    super(scope, id, props);
    this.#onInvoker = onInvoker;
  }

  public override addPermission(id: string, permission: lambda.Permission): void {
    super.addPermission(id, permission);
    if (permission.scope) {
      this.#onInvoker?.(permission.scope);
    }
  }
}

/** The closest directory upwards that has a package.json. */
export function packageRoot(directory: string): string {
  const parent = dirname(directory);
  return parent === directory || existsSync(join(directory, 'package.json')) ? directory : packageRoot(parent);
}

function packagedCode(program: Program): RustCode {
  const zip = join(ASSETS, `${program}.zip`);
  if (!existsSync(zip)) {
    throw new Error(`${zip} is missing: the npm package has it; in a clone of the repository, run \`make dist\` first`);
  }
  return { path: zip };
}

function packagedArchitecture(): lambda.Architecture {
  const manifest = join(ASSETS, 'manifest.json');
  const name = existsSync(manifest) ? JSON.parse(readFileSync(manifest, 'utf8')).architecture : 'x86_64';
  return name === 'arm64' ? lambda.Architecture.ARM_64 : lambda.Architecture.X86_64;
}
