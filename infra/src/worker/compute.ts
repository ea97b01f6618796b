import { Construct } from 'constructs';

import { Worker, WorkerContext } from './context';
import { FargateWorkerProps, fargateWorker } from './fargate';
import { LambdaWorkerProps, lambdaWorker } from './lambda';

/** Where the worker runs that brings the stream's events to Amberflo. */
export class WorkerCompute {
  /** A function that the stream invokes: nothing runs while nothing is used. */
  static lambda(props: LambdaWorkerProps = {}): WorkerCompute {
    return new WorkerCompute((scope, context) => lambdaWorker(scope, context, props));
  }

  /** A service of tasks that share the stream's shards: for much traffic, hard limits of the whole fleet, and Prometheus. */
  static fargate(props: FargateWorkerProps): WorkerCompute {
    return new WorkerCompute((scope, context) => fargateWorker(scope, context, props));
  }

  /** Makes the worker in `scope`. */
  readonly bind: (scope: Construct, context: WorkerContext) => Worker;

  private constructor(bind: WorkerCompute['bind']) {
    this.bind = bind;
  }
}
