export * from './amberflo-metering';
export * from './event-manager';
export { Scopes } from './control-api';
export { DeadLetterQueue } from './dead-letter-queue';
export { RustCode } from './rust-function';
export { WorkerCompute } from './worker/compute';
export { FargateWorkerProps } from './worker/fargate';
export { GiveUp, LambdaWorkerProps } from './worker/lambda';
export { CloudMapScrape, ManagedPrometheusScrape, MetricsScrape } from './worker/metrics-scrape';
