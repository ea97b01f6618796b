import { Annotations, CfnResource, Stack } from 'aws-cdk-lib';
import { CfnRule } from 'aws-cdk-lib/aws-events';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { Construct } from 'constructs';

import { DeadLetterQueue } from './dead-letter-queue';

/**
 * SBT has made the function the target of a rule of its own: what EventBridge cannot bring there lies in the queue, and
 * EventBridge may invoke the function before the rule points at it, because it does not try again what it is not permitted
 * to do. SBT cares for neither.
 */
export function serveRule(rule: CfnRule, handler: lambda.Function, queue: DeadLetterQueue): void {
  rule.addPropertyOverride('Targets.0.DeadLetterConfig', { Arn: queue.queueArn });
  const permission =
    handler.node.tryFindChild('AllowRules') ??
    new lambda.CfnPermission(handler, 'AllowRules', {
      functionName: handler.functionArn,
      action: 'lambda:InvokeFunction',
      principal: 'events.amazonaws.com',
      sourceArn: allRules(handler),
    });
  for (const needed of [permission, receiveFromRules(queue), ...invokeConfigs(handler)]) {
    rule.node.addDependency(needed);
  }
}

/** Lets EventBridge send what it gives up to the queue; without leave, it drops the event. Answers what lets it. */
export function receiveFromRules(queue: DeadLetterQueue): CfnResource {
  const eventBridge = new iam.ServicePrincipal('events.amazonaws.com');
  const { policyDependable } = queue.addToResourcePolicy(
    new iam.PolicyStatement({
      principals: [eventBridge],
      actions: ['sqs:SendMessage'],
      resources: [queue.queueArn],
      conditions: { ArnLike: { 'aws:SourceArn': allRules(queue) } },
    }),
  );
  const useKey = new iam.PolicyStatement({
    principals: [eventBridge],
    actions: ['kms:Decrypt', 'kms:GenerateDataKey*'],
    resources: ['*'],
  });
  const added = queue.encryptionMasterKey?.addToResourcePolicy(useKey, true);
  if (added && !added.statementAdded) {
    Annotations.of(queue).addWarningV2(
      'amberflo-metering:key-policy',
      'the policy of an imported key is not ours to change: let events.amazonaws.com use kms:Decrypt and kms:GenerateDataKey* ' +
        'in it, or events that do not reach their target are lost',
    );
  }
  return (policyDependable as Construct).node.defaultChild as CfnResource;
}

/**
 * All rules of this account and region. A rule that waits for its permissions cannot be named by them, nor can one of a
 * stack that refers to theirs.
 */
function allRules(scope: Construct): string {
  return Stack.of(scope).formatArn({ service: 'events', resource: 'rule', resourceName: '*' });
}

/** What says where the events go that a function fails on. */
function invokeConfigs(handler: lambda.Function): CfnResource[] {
  return handler.node.findAll().filter((node): node is lambda.CfnEventInvokeConfig => node instanceof lambda.CfnEventInvokeConfig);
}
