import * as sbt from '@cdklabs/sbt-aws';
import { EventBus, IEventBus, IRuleTarget, Rule } from 'aws-cdk-lib/aws-events';
import { LambdaFunction } from 'aws-cdk-lib/aws-events-targets';
import { IGrantable } from 'aws-cdk-lib/aws-iam';
import { Construct } from 'constructs';

import { AmberfloMetering, EventDefinitionLike, EventManagerLike } from '../../../src';

/** Which SBT: that on npm (0.5), or its main branch since June 2025. */
export type Generation = 'npm' | 'main';

/** What applications emit: the defaults of each SBT. */
export const USAGE: Record<Generation, { source: string; detailType: string }> = {
  npm: { source: 'applicationPlaneEventSource', detailType: 'ingestUsage' },
  main: { source: 'sbt.application.plane', detailType: 'sbt_aws_ingestUsage' },
};

/** An event manager of SBT, with a bus of its own. */
export function eventManager(scope: Construct, generation: Generation): EventManagerLike {
  const eventBus = new EventBus(scope, 'Bus');
  return generation === 'npm' ? new sbt.EventManager(scope, 'EventManager', { eventBus }) : new NewEventManager(scope, 'EventManager', eventBus);
}

/** Has SBT's own rule invoke metering's function for each usage event, as `ControlPlane` does with its `metering`. */
export function invokeForwarder(scope: Construct, manager: EventManagerLike, metering: AmberfloMetering): void {
  const target = new LambdaFunction(metering.ingestUsageEventFunction.handler);
  const eventDefinition = manager.events?.ingestUsage;
  manager.addTargetToEvent(scope, eventDefinition ? { eventDefinition, target } : { eventType: sbt.DetailType.INGEST_USAGE, target });
}

/** The part of SBT's main branch that rules are made by. It is not on npm. */
class NewEventManager extends Construct implements EventManagerLike {
  readonly events: Record<string, EventDefinitionLike> = { ingestUsage: USAGE.main };
  readonly #bus: IEventBus;

  constructor(scope: Construct, id: string, bus: IEventBus) {
    super(scope, id);
    this.#bus = bus;
  }

  addTargetToEvent(scope: Construct, { eventDefinition, target }: { eventDefinition: EventDefinitionLike; target: IRuleTarget }): void {
    const { detailType, source } = eventDefinition;
    const id = `${detailType}Rule`;
    const made = scope.node.tryFindChild(id) as Rule | undefined;
    const rule = made ?? new Rule(scope, id, { eventBus: this.#bus, eventPattern: { source: [source], detailType: [detailType] } });
    rule.addTarget(target);
  }

  grantPutEventsTo(grantee: IGrantable): void {
    this.#bus.grantPutEventsTo(grantee);
  }
}
