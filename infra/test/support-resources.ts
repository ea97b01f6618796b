import { Resource, Synthesised } from './support';
import { Layout } from './support-layouts';

/** What an event bus sees of a usage event, as an application emits it for this SBT. */
export function usageEvent(sbt: Layout['sbt']): Record<string, unknown> {
  return sbt === '0.5.25'
    ? { source: 'applicationPlaneEventSource', 'detail-type': 'ingestUsage' }
    : { source: 'sbt.application.plane', 'detail-type': 'sbt_aws_ingestUsage' };
}

/** Whether a rule takes an event: its pattern may list values only, as SBT's do. */
export function matches(rule: Resource, event: Record<string, unknown>): boolean {
  return Object.entries<any>(rule.properties.EventPattern).every(([name, allowed]) => {
    if (!Array.isArray(allowed) || allowed.some((value) => typeof value !== 'string')) {
      throw new Error(`${rule.path}: a pattern with more than values: ${JSON.stringify(allowed)}`);
    }
    return allowed.includes(event[name]);
  });
}

/** Whether a resource is of metering, in whichever stack. */
export function isOurs({ path }: Resource): boolean {
  return path.startsWith('AmberfloMetering');
}

/** The targets of rules. */
export function targetsOf(rules: Resource[]): any[] {
  return rules.flatMap(({ properties }) => properties.Targets ?? []);
}

/** The environment of a function. */
export function envOf(handler: Resource): Record<string, string> {
  return handler.properties.Environment?.Variables ?? {};
}

/**
 * What a role may do: the actions, sorted, for each resource. Of a statement for several resources, each has all actions.
 *
 * @throws for managed policies and conditions, which would have to be looked at too
 */
export function permissions(app: Synthesised, role: Resource): Record<string, string[]> {
  const { stack, logicalId, properties } = role;
  if (properties.ManagedPolicyArns || properties.Policies) {
    throw new Error(`${role.path}: managed or inline policies`);
  }
  const policies = app.all('AWS::IAM::Policy').filter((policy) => policy.properties.Roles.includes(`<${stack}/${logicalId}>`));
  const found: Record<string, string[]> = {};
  for (const statement of policies.flatMap((policy) => policy.properties.PolicyDocument.Statement)) {
    if (statement.Effect !== 'Allow' || statement.Condition) {
      throw new Error(`${role.path}: ${JSON.stringify(statement)}`);
    }
    for (const resource of [statement.Resource].flat()) {
      found[resource] = [...new Set([...(found[resource] ?? []), ...[statement.Action].flat()])].sort();
    }
  }
  return found;
}
