import { IMetering } from '@cdklabs/sbt-aws';
import { HttpApi, HttpMethod } from 'aws-cdk-lib/aws-apigatewayv2';
import { HttpJwtAuthorizer } from 'aws-cdk-lib/aws-apigatewayv2-authorizers';
import { HttpLambdaIntegration } from 'aws-cdk-lib/aws-apigatewayv2-integrations';
import { EventBus, IEventBus, IRuleTarget, Rule } from 'aws-cdk-lib/aws-events';
import { LambdaFunction } from 'aws-cdk-lib/aws-events-targets';
import { IGrantable } from 'aws-cdk-lib/aws-iam';
import { Construct } from 'constructs';

/** An event as SBT's main branch defines it. */
export interface EventDefinition {
  readonly detailType: string;
  readonly source: string;
}

/** How an event manager of SBT's main branch is set up. */
export interface EventManagerProps {
  readonly eventBus?: IEventBus;
  readonly applicationPlaneEventSource?: string;
  readonly controlPlaneEventSource?: string;
  /** Sources of single events, by their names. */
  readonly sourceOverrides?: Record<string, string>;
}

/**
 * A double of the event manager in SBT's main branch, which is not on npm: its events are definitions, with names that
 * begin with `sbt_aws_`, and a rule is found again by source and detail type.
 */
export class EventManager extends Construct {
  readonly eventBus: IEventBus;
  readonly busName: string;
  readonly busArn: string;
  readonly events: Record<'onboardingRequest' | 'offboardingRequest' | 'ingestUsage', EventDefinition>;

  constructor(scope: Construct, id: string, props: EventManagerProps = {}) {
    super(scope, id);
    this.eventBus = props.eventBus ?? new EventBus(this, 'Bus');
    this.busName = this.eventBus.eventBusName;
    this.busArn = this.eventBus.eventBusArn;
    const [application, control] = [
      props.applicationPlaneEventSource ?? 'sbt.application.plane',
      props.controlPlaneEventSource ?? 'sbt.control.plane',
    ];
    const define = (name: string, source: string): EventDefinition => ({
      detailType: `sbt_aws_${name}`,
      source: props.sourceOverrides?.[name] ?? source,
    });
    this.events = {
      onboardingRequest: define('onboardingRequest', control),
      offboardingRequest: define('offboardingRequest', control),
      ingestUsage: define('ingestUsage', application),
    };
  }

  addTargetToEvent(scope: Construct, props: { eventDefinition: EventDefinition; target: IRuleTarget }): void {
    const { source, detailType } = props.eventDefinition;
    const id = `${source}-${detailType}`;
    const rule =
      (scope.node.tryFindChild(id) as Rule | undefined) ??
      new Rule(scope, id, { eventBus: this.eventBus, eventPattern: { source: [source], detailType: [detailType] } });
    rule.addTarget(props.target);
  }

  grantPutEventsTo(grantee: IGrantable): void {
    this.eventBus.grantPutEventsTo(grantee);
  }
}

/** A double of the control plane's API. */
export class ControlPlaneApi extends Construct {
  readonly api = new HttpApi(this, 'Api');
  readonly jwtAuthorizer = new HttpJwtAuthorizer('Authorizer', 'https://issuer.example', { jwtAudience: ['sbt'] });
}

/** A double of a control plane with metering and nothing else. */
export class ControlPlane extends Construct {
  readonly eventManager: EventManager;
  readonly controlPlaneApi: ControlPlaneApi;

  constructor(scope: Construct, id: string, props: { metering: IMetering; eventManager?: EventManager }) {
    super(scope, id);
    this.controlPlaneApi = new ControlPlaneApi(this, 'ControlPlaneApi');
    this.eventManager = props.eventManager ?? new EventManager(this, 'EventManager');
    new MeteringProvider(this, 'Metering', props.metering, this.eventManager, this.controlPlaneApi);
  }
}

/** Wires metering to events and routes: only functions that are there become targets. */
class MeteringProvider extends Construct {
  constructor(scope: Construct, id: string, metering: IMetering, eventManager: EventManager, api: ControlPlaneApi) {
    super(scope, id);
    const targets = [
      { event: eventManager.events.onboardingRequest, definition: metering.createCustomerFunction },
      { event: eventManager.events.offboardingRequest, definition: metering.deleteCustomerFunction },
      { event: eventManager.events.ingestUsage, definition: metering.ingestUsageEventFunction },
    ];
    for (const { event, definition } of targets) {
      if (definition?.handler) {
        eventManager.addTargetToEvent(this, { eventDefinition: event, target: new LambdaFunction(definition.handler) });
      }
    }
    const routes = [
      { route: [HttpMethod.GET, '/usage/{meterId}'] as const, definition: metering.fetchUsageFunction },
      { route: [HttpMethod.DELETE, '/usage'] as const, definition: metering.cancelUsageEventsFunction },
      { route: [HttpMethod.GET, '/meters'] as const, definition: metering.fetchAllMetersFunction },
      { route: [HttpMethod.POST, '/meters'] as const, definition: metering.createMeterFunction },
      { route: [HttpMethod.GET, '/meters/{meterId}'] as const, definition: metering.fetchMeterFunction },
      { route: [HttpMethod.PUT, '/meters/{meterId}'] as const, definition: metering.updateMeterFunction },
      { route: [HttpMethod.DELETE, '/meters/{meterId}'] as const, definition: metering.deleteMeterFunction },
    ];
    for (const { route: [method, path], definition } of routes) {
      if (definition) {
        api.api.addRoutes({
          path,
          methods: [method],
          integration: new HttpLambdaIntegration(`${method}${path}`, definition.handler),
          authorizer: api.jwtAuthorizer,
          authorizationScopes: definition.scope ? [definition.scope] : [],
        });
      }
    }
  }
}
