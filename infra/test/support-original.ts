import { IASyncFunction, IMetering, ISyncFunction } from '@cdklabs/sbt-aws';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { Construct } from 'constructs';

/** Stands for the construct of `sbt-aws-amberflo`: one function for everything, under the id that it has there. */
export class AmberfloMetering extends Construct implements IMetering {
  readonly createMeterFunction: ISyncFunction;
  readonly fetchMeterFunction: ISyncFunction;
  readonly fetchAllMetersFunction: ISyncFunction;
  readonly updateMeterFunction: ISyncFunction;
  readonly deleteMeterFunction: ISyncFunction;
  readonly fetchUsageFunction: ISyncFunction;
  readonly cancelUsageEventsFunction: ISyncFunction;
  readonly ingestUsageEventFunction: IASyncFunction;

  constructor(scope: Construct, id: string, _props: object) {
    super(scope, id);
    const handler = new lambda.Function(this, 'Service', {
      runtime: lambda.Runtime.PYTHON_3_12,
      handler: 'index.handler',
      code: lambda.Code.fromInline('def handler(event, context): pass'),
    });
    this.createMeterFunction = this.fetchMeterFunction = this.fetchAllMetersFunction = { handler };
    this.updateMeterFunction = this.deleteMeterFunction = { handler };
    this.fetchUsageFunction = this.cancelUsageEventsFunction = this.ingestUsageEventFunction = { handler };
  }
}
