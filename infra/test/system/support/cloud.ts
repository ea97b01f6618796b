import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { eventually, freePort, Program } from './process';
import { missing, TOOLS } from './tools';

/** The region and the credentials of everything that uses the emulated AWS. */
export const REGION = 'us-east-1';
/** Everything is on loopback; a busy machine may take its time. */
const REQUEST_MS = 20_000;
const CREDENTIALS = { accessKeyId: 'emulated', secretAccessKey: 'emulated' };

/** What a client of the SDK needs to use the emulated AWS. */
export interface ClientSettings {
  readonly endpoint: string;
  readonly region: string;
  readonly credentials: typeof CREDENTIALS;
  readonly requestHandler: { connectionTimeout: number; requestTimeout: number; throwOnRequestTimeout: boolean };
}

/** Why no emulated AWS can be started here, if so. */
export function noCloud(suite: string): string | undefined {
  return missing(suite, 'infra/test/system/setup.sh', 'ministack/requirements.txt');
}

/** An emulated AWS that knows CloudFormation, on a loopback port: ministack. All in memory, empty at the start. */
export class Cloud {
  /** `http://127.0.0.1:PORT` */
  readonly url: string;
  /** For a client of the SDK. */
  readonly client: ClientSettings;
  readonly #program: Program;
  readonly #directory: string;

  private constructor(url: string, program: Program, directory: string) {
    this.url = url;
    const requestHandler = { connectionTimeout: REQUEST_MS, requestTimeout: REQUEST_MS, throwOnRequestTimeout: true };
    this.client = { endpoint: url, region: REGION, credentials: CREDENTIALS, requestHandler };
    this.#program = program;
    this.#directory = directory;
  }

  /** Starts one; it takes connections when this is done. */
  static async start(): Promise<Cloud> {
    // It names its port in what it answers, and so has to be told one.
    const port = await freePort();
    const directory = mkdtempSync(join(tmpdir(), 'cloud-'));
    const program = new Program('ministack', join(TOOLS, 'ministack', 'bin', 'ministack'), {
      cwd: directory,
      env: {
        BIND_HOST: '127.0.0.1',
        MINISTACK_HOST: '127.0.0.1',
        GATEWAY_PORT: String(port),
        MINISTACK_REGION: REGION,
        // What would listen on fixed ports.
        IOT_MTLS_ENABLED: '0',
        SFTP_ENABLED: '0',
        // Its files, and those of its functions.
        HOME: directory,
        TMPDIR: directory,
        S3_DATA_DIR: join(directory, 's3'),
        PYTHONDONTWRITEBYTECODE: '1',
      },
    });
    const url = `http://127.0.0.1:${port}`;
    try {
      await eventually('ministack to listen', async () => {
        program.assertRunning();
        const answer = await fetch(`${url}/_ministack/health`, { signal: AbortSignal.timeout(REQUEST_MS) }).catch(() => undefined);
        return answer?.ok || undefined;
      });
    } catch (error) {
      await program.stop();
      throw error;
    }
    return new Cloud(url, program, directory);
  }

  /** The variables of a process that uses it and knows nothing of the developer's profiles. */
  get environment(): Record<string, string> {
    return {
      AWS_ENDPOINT_URL: this.url,
      AWS_REGION: REGION,
      AWS_DEFAULT_REGION: REGION,
      AWS_ACCESS_KEY_ID: CREDENTIALS.accessKeyId,
      AWS_SECRET_ACCESS_KEY: CREDENTIALS.secretAccessKey,
      AWS_EC2_METADATA_DISABLED: 'true',
      AWS_CONFIG_FILE: '/dev/null',
      AWS_SHARED_CREDENTIALS_FILE: '/dev/null',
    };
  }

  async stop(): Promise<void> {
    await this.#program.stop();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
