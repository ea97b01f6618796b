import { DetailType } from '@cdklabs/sbt-aws';
import { CfnRule, EventPattern, IRuleTarget } from 'aws-cdk-lib/aws-events';
import { IGrantable } from 'aws-cdk-lib/aws-iam';
import { Construct, IConstruct } from 'constructs';
import { ArnFormat, CfnResource, Stack, Token } from 'aws-cdk-lib';

/** An event as newer versions of SBT define it. */
export interface EventDefinitionLike {
  readonly detailType: string;
  readonly source: string;
}

/**
 * SBT's event manager, of either generation. The one on npm (0.5) takes a target with an `eventType`; the one since
 * June 2025 has `events`, and takes a target with an `eventDefinition`.
 */
export interface EventManagerLike {
  /** The events that this event manager defines; only newer versions of SBT have it. */
  readonly events?: Record<string, EventDefinitionLike>;
  /** Makes `target` a target of the rule for an event, which is made in `scope` when it is not there yet. */
  addTargetToEvent(scope: Construct, props: any): void;
  /** Lets `grantee` put events on the bus. */
  grantPutEventsTo(grantee: IGrantable): void;
}

/** Has the usage events of `eventManager` go to `target`, by a rule in `scope`. */
export function addUsageTarget(eventManager: EventManagerLike, scope: Construct, target: IRuleTarget): void {
  const definition = eventManager.events?.ingestUsage;
  eventManager.addTargetToEvent(
    scope,
    definition ? { eventDefinition: definition, target } : { eventType: DetailType.INGEST_USAGE, target },
  );
}

/**
 * What a rule for usage events says, whoever made it: on which bus, and what an event must be for the rule to take it.
 * It is read from the rule, so that what `POST /ingest` puts on the bus cannot differ from what the rule expects.
 */
export interface UsageRule {
  readonly rule: CfnRule;
  readonly busName: string;
  readonly busArn: string;
  readonly pattern: EventPattern;
  /** Of the events that `POST /ingest` emits. */
  readonly source: string;
  readonly detailType: string;
}

/** The rule of EventBridge that `construct` is, if it is one. */
export function ruleOf(construct: IConstruct): CfnRule | undefined {
  const rule = construct.node.defaultChild;
  return CfnResource.isCfnResource(rule) && rule.cfnResourceType === CfnRule.CFN_RESOURCE_TYPE_NAME ? (rule as CfnRule) : undefined;
}

/** The rule that is `construct`, or undefined if it is none. */
export function usageRule(construct: IConstruct): UsageRule | undefined {
  const cfn = ruleOf(construct);
  if (!cfn) {
    return undefined;
  }
  const stack = Stack.of(cfn);
  const pattern = stack.resolve(cfn.eventPattern) ?? {};
  const first = (name: string): string => {
    const values = pattern[name];
    if (!Array.isArray(values) || values.length === 0) {
      throw new Error(`the rule ${construct.node.path} for usage events has no ${name} in its pattern`);
    }
    return Token.asString(values[0]);
  };
  const busName = cfn.eventBusName ?? 'default';
  // The name may be an ARN where the bus was imported.
  const isArn = !Token.isUnresolved(busName) && busName.startsWith('arn:');
  const busArn = isArn
    ? busName
    : stack.formatArn({ service: 'events', resource: 'event-bus', resourceName: busName, arnFormat: ArnFormat.SLASH_RESOURCE_NAME });
  return { rule: cfn, busName, busArn, pattern, source: first('source'), detailType: first('detail-type') };
}
