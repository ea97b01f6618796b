import { CfnOutput, Duration, Lazy, Stack } from 'aws-cdk-lib';
import { HttpApi, HttpMethod, IHttpRouteAuthorizer } from 'aws-cdk-lib/aws-apigatewayv2';
import { HttpLambdaIntegration } from 'aws-cdk-lib/aws-apigatewayv2-integrations';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { Construct, IConstruct } from 'constructs';

import { Common, grantApiKey, keepFailures, sameStack, suppressNagOfKey } from './common';
import { DeadLetterQueue } from './dead-letter-queue';
import { ruleOf, UsageRule } from './event-manager';
import { serveRule } from './rule-permissions';
import { OnInvoker, RustCode, RustFunction } from './rust-function';

/** API Gateway gives up after 30 seconds; the request itself ends before that, and says why. */
const TIMEOUT = Duration.seconds(30);
const REQUEST_TIMEOUT = '25s';

/** Scopes that tokens must have, as SBT's authorizer checks them. */
export interface Scopes {
  /** To read meters, usage and dead letters. @default none is needed */
  readonly read?: string;
  /** For everything else. @default none is needed */
  readonly write?: string;
}

/** The admin API's surroundings. */
export interface ControlApiProps {
  readonly common: Common;
  readonly stream: kinesis.IStream;
  readonly deadLetters: DeadLetterQueue;
  readonly code?: RustCode;
  readonly scopes: Scopes;
  /** The rule that leads usage events to the stream, once it is known. */
  readonly usageRule: () => UsageRule | undefined;
}

/** The part of SBT's `ControlPlaneAPI` that routes are added to. */
interface ControlPlaneApiLike extends IConstruct {
  readonly api: HttpApi;
  readonly jwtAuthorizer: IHttpRouteAuthorizer;
}

/** Routes that no version of SBT makes. */
const OWN_ROUTES: { path: string; method: HttpMethod; access: keyof Scopes }[] = [
  { path: '/dead-letters', method: HttpMethod.GET, access: 'read' },
  { path: '/dead-letters', method: HttpMethod.DELETE, access: 'write' },
  { path: '/dead-letters/redrive', method: HttpMethod.POST, access: 'write' },
  { path: '/usage/{meterId}/events', method: HttpMethod.GET, access: 'read' },
];

/**
 * The admin API as one function, behind SBT's API, and SBT's target for the events of tenants that come and go.
 *
 * SBT makes routes for seven of its endpoints. The others are added to the same API, with the same authorizer, when SBT
 * makes the first of its own.
 */
export class ControlApi extends Construct {
  readonly function: lambda.Function;
  /** SBT's events about tenants that could not be carried out. */
  readonly failedTenantEvents: DeadLetterQueue;
  readonly #props: ControlApiProps;
  readonly #apis = new Set<HttpApi>();

  constructor(scope: Construct, id: string, props: ControlApiProps) {
    super(scope, id);
    this.#props = props;
    const { common, stream, deadLetters } = props;
    this.failedTenantEvents = new DeadLetterQueue(this, 'FailedTenantEvents', {
      common,
      description: 'Events about tenants that are not yet carried out in Amberflo; the output FailedTenantEventsQueue names the queue.',
    });
    this.function = controlApiFunction(this, 'Admin', props, (invoker) => this.#onInvoker(invoker));
    stream.grant(
      this.function,
      'kinesis:DescribeStreamSummary',
      'kinesis:PutRecords',
      // For letters whose payload was too large for the queue.
      'kinesis:ListShards',
      'kinesis:GetShardIterator',
      'kinesis:GetRecords',
    );
    deadLetters.grant(
      this.function,
      'sqs:GetQueueAttributes',
      'sqs:ReceiveMessage',
      'sqs:DeleteMessage',
      'sqs:ChangeMessageVisibility',
    );
    common.encryptionKey?.grant(this.function, 'kms:Decrypt', 'kms:GenerateDataKey');
    keepFailures(this, common, this.function, this.failedTenantEvents, 'Events about tenants');
    suppressNagOfKey(this.function.role as iam.Role, common);
    new CfnOutput(this, 'FunctionName', { value: this.function.functionName, description: 'The admin API' });
    new CfnOutput(this, 'FailedTenantEventsQueue', {
      value: this.failedTenantEvents.queueUrl,
      description: 'The queue of events about tenants that could not be carried out',
    });
  }

  /**
   * SBT has just made the function the target of a rule for events of tenants, or put it behind its API, to which the routes
   * are added that SBT does not have.
   */
  #onInvoker(invoker: Construct): void {
    const rule = ruleOf(invoker);
    if (rule) {
      serveRule(rule, this.function, this.failedTenantEvents);
    }
    const controlPlaneApi = invoker.node.scopes.reverse().find(isControlPlaneApi);
    if (!controlPlaneApi || this.#apis.has(controlPlaneApi.api)) {
      return;
    }
    this.#apis.add(controlPlaneApi.api);
    for (const { path, method, access } of OWN_ROUTES) {
      this.#addRoute(controlPlaneApi, path, method, access, this.function);
    }
    this.#addRoute(controlPlaneApi, '/ingest', HttpMethod.POST, 'write', this.#ingestFunction(controlPlaneApi));
  }

  #addRoute({ api, jwtAuthorizer }: ControlPlaneApiLike, path: string, method: HttpMethod, access: keyof Scopes, handler: lambda.IFunction): void {
    const scope = this.#props.scopes[access];
    api.addRoutes({
      path,
      methods: [method],
      integration: new HttpLambdaIntegration(`AmberfloMetering${method}${path}`, handler),
      authorizer: jwtAuthorizer,
      authorizationScopes: scope ? [scope] : [],
    });
  }

  /**
   * The function for POST /ingest. It has to know the bus: where that is of SBT's stack, which refers to ours, ours cannot
   * refer to it, and the function is one of SBT's stack.
   */
  #ingestFunction(controlPlaneApi: ControlPlaneApiLike): lambda.IFunction {
    if (sameStack(controlPlaneApi, this)) {
      return enableIngest(this.function, this.#props.usageRule);
    }
    const ingest = controlApiFunction(Stack.of(controlPlaneApi), `AmberfloMeteringIngest${this.node.addr.slice(-8)}`, this.#props);
    return enableIngest(ingest, this.#props.usageRule);
  }
}

function isControlPlaneApi(construct: IConstruct): construct is ControlPlaneApiLike {
  return 'api' in construct && 'jwtAuthorizer' in construct;
}

/** A function that runs the admin API, and may read the API key. */
function controlApiFunction(scope: Construct, id: string, props: ControlApiProps, onInvoker?: OnInvoker): lambda.Function {
  const { common } = props;
  const { function: handler } = new RustFunction(
    scope,
    id,
    {
      common,
      program: 'control-api',
      code: props.code,
      handler: 'bootstrap',
      description: 'The admin API of metering.',
      environment: {
        ...common.settings,
        AUTH: 'gateway',
        REQUEST_TIMEOUT,
        STREAM: `kinesis:${props.stream.streamArn}`,
        DEAD_LETTER_QUEUE: props.deadLetters.queueUrl,
        ...(props.scopes.read && { SCOPE_READ: props.scopes.read }),
        ...(props.scopes.write && { SCOPE_WRITE: props.scopes.write }),
      },
      timeout: TIMEOUT,
      memorySize: 512,
    },
    onInvoker,
  );
  grantApiKey(handler, common);
  return handler;
}

/** Lets a function put usage events on the bus, in the way that the rule takes them. The rule may come later. */
function enableIngest(handler: lambda.Function, usageRule: ControlApiProps['usageRule']): lambda.Function {
  const lazy = (of: (rule: UsageRule) => string): string =>
    Lazy.string({
      produce: () => {
        const rule = usageRule();
        if (!rule) {
          throw new Error(`${handler.node.path}: POST /ingest has no event bus: give AmberfloMetering an eventManager, or call attachTo`);
        }
        return of(rule);
      },
    });
  handler.addEnvironment('EVENT_BUS', lazy((rule) => rule.busName));
  handler.addEnvironment('EVENT_SOURCE', lazy((rule) => rule.source));
  handler.addEnvironment('EVENT_DETAIL_TYPE', lazy((rule) => rule.detailType));
  handler.addToRolePolicy(
    new iam.PolicyStatement({ actions: ['events:PutEvents'], resources: [lazy((rule) => rule.busArn)] }),
  );
  return handler;
}
