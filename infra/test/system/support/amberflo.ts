import { PATIENCE_MS, Program } from './process';
import { binary } from './tools';

/** The key that the stand-in takes. */
export const API_KEY = 'sandbox-key';

/** What has been billed, as far as tests look at it. */
export interface Ledger {
  readonly events: number;
  readonly absorbed_copies: number;
  readonly absorbed_with_other_bytes: number;
  readonly conflicting_copies: number;
  readonly billed_again: number;
}

/** A billed record, as far as tests look at it. */
export interface Billed {
  readonly customer_id: string;
  readonly meter_api_name: string;
  readonly time_millis: number;
  readonly value: string;
  readonly unique_id: string;
  readonly dimensions: Record<string, string>;
}

/** The stand-in for Amberflo, on a loopback port. It keeps every record. */
export class Amberflo {
  /** `http://127.0.0.1:PORT` */
  readonly url: string;
  readonly #program: Program;

  private constructor(url: string, program: Program) {
    this.url = url;
    this.#program = program;
  }

  static async start(): Promise<Amberflo> {
    const args = ['--listen', '127.0.0.1:0', '--keep-records', '--api-keys', API_KEY];
    const program = new Program('amberflo-sandbox', binary('amberflo-sandbox'), { args });
    const [, address] = await program.printed(/address=(127\.0\.0\.1:\d+)/);
    return new Amberflo(`http://${address}`, program);
  }

  /** What has been billed. */
  ledger(): Promise<Ledger> {
    return this.#get('/sandbox/ledger');
  }

  /** The billed records, or those with one id. */
  billed(uniqueId?: string): Promise<Billed[]> {
    return this.#get(`/sandbox/events?limit=10000${uniqueId === undefined ? '' : `&uniqueId=${encodeURIComponent(uniqueId)}`}`);
  }

  /** Has every request for ingestion fail, or none. */
  async fail(always: boolean): Promise<void> {
    const faults = always ? { fail_before: { rate: 1 } } : {};
    const answer = await fetch(`${this.url}/sandbox/faults`, { method: 'PUT', body: JSON.stringify(faults), signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) {
      throw new Error(`faults: ${answer.status} ${await answer.text()}`);
    }
  }

  async #get<T>(path: string): Promise<T> {
    const answer = await fetch(this.url + path, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) {
      throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    }
    return (await answer.json()) as T;
  }

  stop(): Promise<void> {
    return this.#program.stop();
  }
}
