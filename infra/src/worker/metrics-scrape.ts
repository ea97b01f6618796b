import { Annotations, Arn, ArnFormat, Duration, Stack } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as ecs from 'aws-cdk-lib/aws-ecs';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as cloudmap from 'aws-cdk-lib/aws-servicediscovery';

import { checkDuration, checkText } from '../validate';

/** The port of /health, /ready and /metrics. */
const PORT = 9464;
const LOOPBACK = `127.0.0.1:${PORT}`;
/** The releases of AWS' collector: https://github.com/aws-observability/aws-otel-collector/releases */
const COLLECTOR = 'public.ecr.aws/aws-observability/aws-otel-collector:v0.49.0';
/** Cloud Map answers a DNS question with that many addresses at most. */
const MAX_ADDRESSES = 8;

/** A Prometheus of your own finds the workers by DNS. */
export interface CloudMapScrape {
  /** A namespace with DNS. */
  readonly namespace: cloudmap.INamespace;
  /** Who may connect to the workers: something with a security group, or the group itself. */
  readonly scraper: ec2.IConnectable;
  /** The name of the workers in the namespace. @default 'ingest-worker' */
  readonly name?: string;
}

/** A collector beside each worker writes to a workspace of Amazon Managed Service for Prometheus. */
export interface ManagedPrometheusScrape {
  /** The workspace, of this account, in any region. */
  readonly workspaceArn: string;
  /** AWS' collector for OpenTelemetry. @default the release that this version of the package was made with */
  readonly image?: ecs.ContainerImage;
  /** How often the metrics are read. @default 30 seconds */
  readonly interval?: Duration;
}

/** Who reads the workers' metrics. */
export class MetricsScrape {
  /**
   * Registers the tasks in Cloud Map, and lets the scraper's security group connect to them, and nobody else. In Prometheus:
   *
   * ```yaml
   * dns_sd_configs: [{ names: [ingest-worker.NAMESPACE], type: A, port: 9464 }]
   * ```
   *
   * DNS gives at most 8 addresses: with more tasks, ask Cloud Map itself (`DiscoverInstances`).
   *
   * @throws when the scraper has no security group, because everybody could connect then
   */
  static cloudMap(scrape: CloudMapScrape): MetricsScrape {
    if (scrape.scraper.connections.securityGroups.length === 0) {
      throw new Error('scraper: it has no security group; allowed is something that has one, or a security group');
    }
    if (scrape.namespace.type === cloudmap.NamespaceType.HTTP) {
      throw new Error('namespace: HTTP; allowed is one with DNS, private or public');
    }
    return new MetricsScrape(`0.0.0.0:${PORT}`, (service) => registerTasks(service, scrape));
  }

  /**
   * Puts AWS' collector beside each worker. It reads the metrics inside the task, so nothing else can connect to them, and
   * writes them to the workspace with the task as `instance`. When it fails, the worker goes on.
   */
  static managedPrometheus(scrape: ManagedPrometheusScrape): MetricsScrape {
    return new MetricsScrape(LOOPBACK, (service, logging) => addCollector(service, logging, scrape));
  }

  private constructor(
    /** Where the worker serves its metrics. */
    readonly adminListen: string,
    /** Adds to the service what reads them. */
    readonly bind: (service: ecs.FargateService, logging: ecs.LogDriver) => void,
  ) {}
}

function registerTasks(service: ecs.FargateService, { namespace, scraper, name }: CloudMapScrape): void {
  service.taskDefinition.defaultContainer?.addPortMappings({ containerPort: PORT });
  service.enableCloudMap({
    cloudMapNamespace: namespace,
    name: name ?? 'ingest-worker',
    dnsRecordType: cloudmap.DnsRecordType.A,
    dnsTtl: Duration.seconds(15),
  });
  service.connections.allowFrom(scraper, ec2.Port.tcp(PORT), 'Metrics');
}

/** Says that some tasks will not be found by DNS. */
export function warnOfHiddenTasks(service: ecs.FargateService, maxTasks: number): void {
  if (service.cloudMapService && maxTasks > MAX_ADDRESSES) {
    Annotations.of(service).addWarningV2(
      'amberflo-metering:hidden-tasks',
      `maxTasks is ${maxTasks}, and DNS gives a scraper ${MAX_ADDRESSES} addresses at most: let it ask Cloud Map itself`,
    );
  }
}

function addCollector(service: ecs.FargateService, logging: ecs.LogDriver, scrape: ManagedPrometheusScrape): void {
  const task = service.taskDefinition;
  const stack = Stack.of(service);
  const { workspaceArn } = scrape;
  checkText(
    'workspaceArn',
    workspaceArn,
    /^arn:[^:]+:aps:[^:]+:[^:]*:workspace\/[^/]+$/,
    'the ARN of a workspace, arn:PARTITION:aps:REGION:ACCOUNT:workspace/ID',
  );
  const interval = scrape.interval ?? Duration.seconds(30);
  checkDuration('interval', interval, 'seconds', 1, 3600);
  const { region = stack.region, resourceName = '' } = Arn.split(workspaceArn, ArnFormat.SLASH_RESOURCE_NAME);
  const linuxParameters = new ecs.LinuxParameters(task, 'CollectorLinux');
  linuxParameters.dropCapabilities(ecs.Capability.ALL);
  task.addContainer('Collector', {
    containerName: 'collector',
    image: scrape.image ?? ecs.ContainerImage.fromRegistry(COLLECTOR),
    logging,
    linuxParameters,
    readonlyRootFilesystem: true,
    // Metrics must never stop billing: it may fail, and not take the worker's memory.
    essential: false,
    enableRestartPolicy: true,
    memoryLimitMiB: 256,
    environment: {
      AWS_REGION: stack.region,
      AOT_CONFIG_CONTENT: stack.toJsonString(
        collectorConfig({
          interval,
          region,
          endpoint: `https://aps-workspaces.${region}.${stack.urlSuffix}/workspaces/${resourceName}/api/v1/remote_write`,
        }),
      ),
    },
  });
  task.addToTaskRolePolicy(new iam.PolicyStatement({ actions: ['aps:RemoteWrite'], resources: [workspaceArn] }));
}

/** The collector's configuration, which is YAML, and so may be JSON. */
function collectorConfig({ interval, region, endpoint }: { interval: Duration; region: string; endpoint: string }): object {
  return {
    extensions: { sigv4auth: { region, service: 'aps' } },
    receivers: {
      prometheus: {
        config: {
          scrape_configs: [
            {
              job_name: 'ingest-worker',
              scrape_interval: `${interval.toSeconds()}s`,
              scrape_timeout: `${Math.min(10, interval.toSeconds())}s`,
              static_configs: [{ targets: [LOOPBACK] }],
            },
          ],
        },
      },
    },
    processors: {
      resourcedetection: { detectors: ['ecs'] },
      // All tasks are 127.0.0.1 to their collectors, and their series would be one.
      resource: { attributes: [{ key: 'service.instance.id', from_attribute: 'aws.ecs.task.arn', action: 'upsert' }] },
    },
    exporters: { prometheusremotewrite: { endpoint, auth: { authenticator: 'sigv4auth' } } },
    service: {
      extensions: ['sigv4auth'],
      pipelines: {
        metrics: { receivers: ['prometheus'], processors: ['resourcedetection', 'resource'], exporters: ['prometheusremotewrite'] },
      },
    },
  };
}
