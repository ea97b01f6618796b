import { REGION } from './cloud';

/** A resource of a template. */
export interface Resource {
  readonly Type: string;
  readonly Properties?: any;
  readonly DeletionPolicy?: string;
  readonly DependsOn?: string | string[];
}

/** A template as it was synthesised. */
export interface Template {
  readonly Resources: Record<string, Resource>;
  readonly Outputs?: Record<string, { readonly Value: unknown }>;
}

/** The account that the emulator is in. */
export const ACCOUNT = '000000000000';

/** The parts of an ARN after the partition, by type of resource; the physical id is what CloudFormation answers. */
const ARNS: Record<string, (physicalId: string, properties: any) => string> = {
  'AWS::Events::EventBus': (id) => `events:${REGION}:${ACCOUNT}:event-bus/${id}`,
  'AWS::Events::Rule': (id, { EventBusName }) => `events:${REGION}:${ACCOUNT}:rule/${EventBusName}/${id}`,
  'AWS::IAM::Role': (id) => `iam::${ACCOUNT}:role/${id}`,
  'AWS::Kinesis::Stream': (id) => `kinesis:${REGION}:${ACCOUNT}:stream/${id}`,
  'AWS::Lambda::Function': (id) => `lambda:${REGION}:${ACCOUNT}:function:${id}`,
  'AWS::Logs::LogGroup': (id) => `logs:${REGION}:${ACCOUNT}:log-group:${id}:*`,
  'AWS::SQS::Queue': (id) => `sqs:${REGION}:${ACCOUNT}:${id.split('/').at(-1)}`,
};

/**
 * A template with its references filled in: what it says, to be compared with what is there. The names come from
 * CloudFormation; how they become values is written down here once more, independent of the emulator.
 */
export class ResolvedTemplate {
  readonly template: Template;
  /** The physical id of each resource, by its logical id. */
  readonly physicalIds: ReadonlyMap<string, string>;

  constructor(template: Template, physicalIds: ReadonlyMap<string, string>) {
    this.template = template;
    this.physicalIds = physicalIds;
  }

  /** The resources of a type: logical id, physical id, and properties with their references filled in. */
  all(type: string): { id: string; physicalId: string; properties: any; deletionPolicy?: string }[] {
    return Object.entries(this.template.Resources)
      .filter(([, resource]) => resource.Type === type)
      .map(([id, { Properties, DeletionPolicy }]) => ({
        id,
        physicalId: this.#physicalId(id),
        properties: this.resolve(Properties ?? {}),
        deletionPolicy: DeletionPolicy,
      }));
  }

  /** The one resource of a type whose logical id matches. */
  one(type: string, id: RegExp = /./): ReturnType<ResolvedTemplate['all']>[number] {
    const [found, ...others] = this.all(type).filter((resource) => id.test(resource.id));
    if (!found || others.length > 0) {
      throw new Error(`the template has ${others.length + (found ? 1 : 0)} resources ${type} that match ${id}`);
    }
    return found;
  }

  /** The ARN of a resource. */
  arn(id: string): string {
    const { Type, Properties } = this.template.Resources[id];
    const arn = ARNS[Type];
    if (!arn) {
      throw new Error(`it is not known how the ARN of ${Type} (${id}) looks`);
    }
    return `arn:aws:${arn(this.#physicalId(id), this.resolve(Properties ?? {}))}`;
  }

  /** A value of the template with its references filled in. */
  resolve(value: any): any {
    if (Array.isArray(value)) {
      return value.map((element) => this.resolve(element));
    }
    if (typeof value !== 'object' || value === null) {
      return value;
    }
    const [[name, argument] = ['', undefined], ...others] = Object.entries<any>(value);
    if (others.length > 0 || !(name === 'Ref' || name.startsWith('Fn::'))) {
      return Object.fromEntries(Object.entries(value).map(([key, member]) => [key, this.resolve(member)]));
    }
    switch (name) {
      case 'Ref':
        return this.#ref(argument);
      case 'Fn::GetAtt':
        return this.#attribute(argument[0], argument[1]);
      case 'Fn::Join':
        return this.resolve(argument[1]).join(argument[0]);
      case 'Fn::Select':
        return this.resolve(argument[1])[Number(argument[0])];
      case 'Fn::Split':
        return this.resolve(argument[1]).split(argument[0]);
      case 'Fn::Sub':
        return argument.replace(/\$\{([^}]+)\}/g, (_: string, reference: string) => this.#ref(reference));
      default:
        throw new Error(`${name} is not expected in the template`);
    }
  }

  #ref(name: string): string {
    const pseudo: Record<string, string> = {
      'AWS::Partition': 'aws',
      'AWS::Region': REGION,
      'AWS::AccountId': ACCOUNT,
      'AWS::URLSuffix': 'amazonaws.com',
    };
    return pseudo[name] ?? this.#physicalId(name);
  }

  #attribute(id: string, attribute: string): string {
    switch (attribute) {
      case 'Arn':
        return this.arn(id);
      case 'QueueName':
        return this.#physicalId(id).split('/').at(-1)!;
      case 'Name':
      case 'EventSourceMappingId':
      case 'Id':
        return this.#physicalId(id);
      default:
        throw new Error(`the attribute ${attribute} of ${id} is not expected in the template`);
    }
  }

  #physicalId(id: string): string {
    const physicalId = this.physicalIds.get(id);
    if (physicalId === undefined) {
      throw new Error(`CloudFormation does not know the resource ${id}`);
    }
    return physicalId;
  }
}
