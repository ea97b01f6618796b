import * as sbt from '@cdklabs/sbt-aws';
import { App, Duration, Stack, StackProps } from 'aws-cdk-lib';
import * as sns from 'aws-cdk-lib/aws-sns';
import { EmailSubscription } from 'aws-cdk-lib/aws-sns-subscriptions';
import { Construct } from 'constructs';
import { AmberfloMetering } from 'sbt-aws-amberflo-rust';

interface ControlPlaneStackProps extends StackProps {
  /** Gets the temporary password of the control plane's administrator. */
  readonly adminEmail: string;
  /** Gets the alarms. */
  readonly operatorEmail: string;
}

class ControlPlaneStack extends Stack {
  constructor(scope: Construct, id: string, props: ControlPlaneStackProps) {
    super(scope, id, props);

    const alarmTopic = new sns.Topic(this, 'Alarms', { enforceSSL: true });
    alarmTopic.addSubscription(new EmailSubscription(props.operatorEmail));

    const metering = new AmberfloMetering(this, 'AmberfloMetering', { alarmTopic, archive: Duration.days(30) });
    const controlPlane = new sbt.ControlPlane(this, 'ControlPlane', { systemAdminEmail: props.adminEmail, metering });
    metering.attachTo(controlPlane.eventManager);
  }
}

const app = new App();
new ControlPlaneStack(app, 'ControlPlaneStack', {
  adminEmail: app.node.getContext('adminEmail'),
  operatorEmail: app.node.getContext('operatorEmail'),
});
