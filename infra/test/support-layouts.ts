import { ControlPlane, EventManager } from '@cdklabs/sbt-aws';
import { AppProps, Stack } from 'aws-cdk-lib';
import { Vpc } from 'aws-cdk-lib/aws-ec2';
import { ContainerImage } from 'aws-cdk-lib/aws-ecs';
import { Construct } from 'constructs';

import { AmberfloMetering, AmberfloMeteringProps, EventManagerLike, WorkerCompute } from '../src';
import { meteringProps, newApp, Synthesised } from './support';
import * as sbtMain from './support-sbt-main';

/** A way to put metering into an app. */
export interface Layout {
  /** The SBT on npm, or the double of its main branch. */
  readonly sbt: '0.5.25' | 'main';
  /** How usage events reach the stream. */
  readonly way: 'eventManager' | 'attachTo' | 'forwarder';
  /** Whether metering has a stack besides the control plane's. */
  readonly stacks: 'one stack' | 'two stacks';
  readonly compute: keyof typeof COMPUTES;
}

/** The workers, each in the scope that it needs. */
export const COMPUTES = {
  lambda: (_scope: Construct): AmberfloMeteringProps => ({}),
  fargate: (scope: Construct): AmberfloMeteringProps => ({
    worker: WorkerCompute.fargate({
      image: ContainerImage.fromRegistry('registry.example/ingest-worker:1'),
      vpc: new Vpc(scope, 'Vpc', { maxAzs: 2, natGateways: 1 }),
    }),
  }),
};

/** Every layout, or those of some SBT. */
export function layouts(sbts: Layout['sbt'][] = ['0.5.25', 'main']): Layout[] {
  return sbts.flatMap((sbt) =>
    (['eventManager', 'attachTo', 'forwarder'] as const).flatMap((way) =>
      (['one stack', 'two stacks'] as const).flatMap((stacks) =>
        (Object.keys(COMPUTES) as Layout['compute'][]).map((compute) => ({ sbt, way, stacks, compute })),
      ),
    ),
  );
}

/** A layout as a test's name. */
export function describeLayout({ sbt, way, stacks, compute }: Layout): string {
  return `SBT ${sbt}, ${way}, ${stacks}, ${compute}`;
}

/** Properties of metering, or what makes them in its stack. */
export type GivenProps = AmberfloMeteringProps | ((stack: Stack) => AmberfloMeteringProps);

/** An app of a layout before it is synthesised. */
export class LayoutApp {
  readonly app;
  /** The stack of the control plane. */
  readonly controlPlane: Stack;
  /** The stack of metering, which may be the control plane's. */
  readonly meteringStack: Stack;
  readonly metering: AmberfloMetering;
  readonly eventManager: EventManagerLike;

  constructor(layout: Layout, props: GivenProps = {}, appProps: AppProps = {}) {
    this.app = newApp(appProps);
    this.controlPlane = new Stack(this.app, 'ControlPlane');
    this.meteringStack = layout.stacks === 'one stack' ? this.controlPlane : new Stack(this.app, 'Metering');
    const managers = { '0.5.25': EventManager, main: sbtMain.EventManager };
    // With the control plane's, the stacks would need each other.
    const eventManager = layout.way === 'eventManager' ? new managers[layout.sbt](this.meteringStack, 'EventManager') : undefined;
    this.metering = new AmberfloMetering(this.meteringStack, 'AmberfloMetering', {
      ...meteringProps(),
      ...COMPUTES[layout.compute](this.meteringStack),
      eventManager,
      ...(typeof props === 'function' ? props(this.meteringStack) : props),
    });
    this.eventManager = addControlPlane(layout.sbt, this.controlPlane, this.metering, eventManager);
    if (layout.way === 'attachTo') {
      this.metering.attachTo(this.eventManager);
    }
  }

  synth(): Synthesised {
    return new Synthesised(this.app);
  }
}

function addControlPlane(
  sbt: Layout['sbt'],
  stack: Stack,
  metering: AmberfloMetering,
  eventManager: EventManager | sbtMain.EventManager | undefined,
): EventManagerLike {
  if (sbt === 'main') {
    return new sbtMain.ControlPlane(stack, 'SBT', { metering, eventManager: eventManager as sbtMain.EventManager }).eventManager;
  }
  const controlPlane = new ControlPlane(stack, 'SBT', {
    systemAdminEmail: 'admin@example.com',
    metering,
    eventManager: eventManager as EventManager,
  });
  return controlPlane.eventManager as EventManagerLike;
}

/** A layout, synthesised. */
export function synthesise(layout: Layout, props: GivenProps = {}, appProps: AppProps = {}): Synthesised {
  return new LayoutApp(layout, props, appProps).synth();
}
