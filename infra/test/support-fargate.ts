import { Stack } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';

import { AmberfloMetering, AmberfloMeteringProps, FargateWorkerProps, WorkerCompute } from '../src';
import { meteringProps, newApp, Resource, Synthesised } from './support';
import { EventManager } from './support-sbt-main';

const SERVICE = 'AWS::ECS::Service';
const TASK = 'AWS::ECS::TaskDefinition';

/** Properties of the worker, besides image and VPC. */
export type WorkerProps = Partial<FargateWorkerProps>;
/** Properties, or what makes them in the stack. */
export type Props<T> = T | ((stack: Stack, vpc: ec2.IVpc) => T);

/** An app with nothing but metering and a network. */
export class FargateApp {
  readonly app;
  readonly stack: Stack;
  readonly metering: AmberfloMetering;

  constructor(worker: Props<WorkerProps> = {}, metering: Props<AmberfloMeteringProps> = {}, context?: Record<string, unknown>) {
    this.app = newApp({ context });
    this.stack = new Stack(this.app, 'Metering');
    const vpc = new ec2.Vpc(this.stack, 'Vpc');
    const resolved = <T>(props: Props<T>): T => (props instanceof Function ? props(this.stack, vpc) : props);
    const image = ecs.ContainerImage.fromRegistry('example.com/ingest-worker:1.0.0');
    this.metering = new AmberfloMetering(this.stack, 'AmberfloMetering', {
      ...meteringProps(),
      eventManager: new EventManager(this.stack, 'EventManager'),
      worker: WorkerCompute.fargate({ image, vpc, ...resolved(worker) }),
      ...resolved(metering),
    });
  }

  synth(): Synthesised {
    return new Synthesised(this.app);
  }
}

/** An app, synthesised. */
export function fargate(worker: Props<WorkerProps> = {}, metering: Props<AmberfloMeteringProps> = {}): Synthesised {
  return new FargateApp(worker, metering).synth();
}

/** A container of the tasks. */
export function container(app: Synthesised, name = 'ingest-worker'): any {
  return app.one(TASK).properties.ContainerDefinitions.find(({ Name }: any) => Name === name);
}

/** The environment of a container. */
export function environment(app: Synthesised, name?: string): Record<string, string> {
  return Object.fromEntries(container(app, name).Environment.map(({ Name, Value }: any) => [Name, Value]));
}

/** The security group of the tasks. */
export function tasksGroup(app: Synthesised): Resource {
  const [group] = app.one(SERVICE).properties.NetworkConfiguration.AwsvpcConfiguration.SecurityGroups;
  return app.referred(group);
}
