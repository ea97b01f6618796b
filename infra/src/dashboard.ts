import { Dashboard, GraphWidget, IWidget, Row } from 'aws-cdk-lib/aws-cloudwatch';
import * as kinesis from 'aws-cdk-lib/aws-kinesis';
import { Construct } from 'constructs';

import { ControlApi } from './control-api';
import { DeadLetterQueue } from './dead-letter-queue';
import { Worker } from './worker/context';

/** What the dashboard shows. */
export interface MeteringDashboardProps {
  readonly stream: kinesis.Stream;
  readonly worker: Worker;
  readonly deadLetters: DeadLetterQueue;
  readonly controlApi: ControlApi;
  /** The way from the bus to the stream, which is known only when the template is made. */
  readonly forwarding: () => IWidget[];
}

/** A dashboard from the bus to Amberflo. */
export class MeteringDashboard extends Dashboard {
  constructor(scope: Construct, id: string, props: MeteringDashboardProps) {
    super(scope, id);
    const { stream } = props;
    this.addWidgets(new DeferredRow(props.forwarding));
    this.addWidgets(
      new GraphWidget({
        title: 'Stream',
        width: 24,
        left: [stream.metricIncomingRecords(), stream.metricGetRecordsSuccess()],
        right: [stream.metricWriteProvisionedThroughputExceeded()],
      }),
    );
    for (const row of props.worker.widgets) {
      this.addWidgets(...row);
    }
  }
}

/** A row of widgets that are known only when the template is made. */
class DeferredRow implements IWidget {
  readonly width = 24;
  readonly height = 6;
  readonly #widgets: () => IWidget[];

  constructor(widgets: () => IWidget[]) {
    this.#widgets = widgets;
  }

  position(x: number, y: number): void {
    this.#position = [x, y];
  }
  #position: [number, number] = [0, 0];

  toJson(): unknown[] {
    const row = new Row(...this.#widgets());
    row.position(...this.#position);
    return row.toJson();
  }
}
