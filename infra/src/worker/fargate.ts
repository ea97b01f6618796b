import { Construct } from 'constructs';

import { Worker, WorkerContext } from './context';

/** A worker as a service of Fargate tasks. */
export interface FargateWorkerProps {}

/** The worker as a service of Fargate tasks. */
export function fargateWorker(_scope: Construct, _context: WorkerContext, _props: FargateWorkerProps): Worker {
  throw new Error('being written');
}
