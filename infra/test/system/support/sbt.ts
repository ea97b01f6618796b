import * as sbt from '@cdklabs/sbt-aws';
import { HttpMethod } from 'aws-cdk-lib/aws-apigatewayv2';
import { HttpLambdaIntegration } from 'aws-cdk-lib/aws-apigatewayv2-integrations';
import { EventBus } from 'aws-cdk-lib/aws-events';
import { LambdaFunction } from 'aws-cdk-lib/aws-events-targets';
import { Construct } from 'constructs';

import { AmberfloMetering, EventManagerLike } from '../../../src';
import * as main from '../../support-sbt-main';

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
  return new { npm: sbt.EventManager, main: main.EventManager }[generation](scope, 'EventManager', { eventBus });
}

/** Gives metering to a control plane: the double of SBT's main branch, or as much of npm's as leads to metering. */
export function controlPlane(scope: Construct, manager: EventManagerLike, metering: AmberfloMetering): void {
  if (manager instanceof main.EventManager) {
    new main.ControlPlane(scope, 'ControlPlane', { metering, eventManager: manager });
    return;
  }
  const handler = metering.ingestUsageEventFunction?.handler;
  if (handler) {
    manager.addTargetToEvent(scope, { eventType: sbt.DetailType.INGEST_USAGE, target: new LambdaFunction(handler) });
  }
  // The real control plane has users, tenants and Docker in it.
  const { api, jwtAuthorizer } = new main.ControlPlaneApi(scope, 'ControlPlaneApi');
  api.addRoutes({
    path: '/usage/{meterId}',
    methods: [HttpMethod.GET],
    integration: new HttpLambdaIntegration('Usage', metering.fetchUsageFunction.handler),
    authorizer: jwtAuthorizer,
  });
}
