import { execFileSync } from 'node:child_process';
import { appendFileSync, existsSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** The repository. This file is compiled to infra/build/test/system/support. */
export const ROOT = resolve(__dirname, '..', '..', '..', '..', '..');
/** Where setup scripts install what tests need. */
export const TOOLS = join(ROOT, 'target', 'tools');

/** The programs of this repository that the tests run, and what cargo builds them from. */
const BUILT_BY = {
  'amberflo-sandbox': ['--package', 'amberflo-sandbox', '--bin', 'amberflo-sandbox'],
  'ingest-worker': ['--package', 'ingest-worker', '--bin', 'ingest-worker'],
  bootstrap: ['--package', 'ingest-worker', '--features', 'lambda', '--bin', 'bootstrap'],
  'control-api-lambda': ['--package', 'control-api', '--features', 'lambda', '--bin', 'control-api-lambda'],
} as const;

/** Where the programs lie: in BIN_DIR if that is set, otherwise in cargo's directory for debug builds. */
const BINARIES = process.env.BIN_DIR ?? resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target', 'debug');

/** One of this repository's programs. */
export function binary(name: keyof typeof BUILT_BY): string {
  return join(BINARIES, name);
}

/**
 * Builds those programs that are missing; CI has built them in an earlier suite. To be called before anything is started,
 * because nothing else happens in this process meanwhile.
 */
export function build(...names: (keyof typeof BUILT_BY)[]): void {
  for (const name of names.filter((each) => !existsSync(binary(each)))) {
    if (process.env.BIN_DIR) {
      throw new Error(`${binary(name)} is missing`);
    }
    // What cargo says must not be taken for the output of the test runner.
    execFileSync('cargo', ['build', '--locked', ...BUILT_BY[name]], { cwd: ROOT, stdio: ['ignore', 2, 2] });
  }
}

/**
 * Why a test cannot run here: a tool under target/tools is missing. Undefined where all are there. It is said where
 * `make test` collects it; with CI=true, where every test has to run, it is an error.
 */
export function missing(suite: string, setup: string, ...files: string[]): string | undefined {
  const absent = files.find((file) => !existsSync(join(TOOLS, file)));
  if (!absent) {
    return undefined;
  }
  const line = `SKIPPED ${suite}: target/tools/${absent} is missing: run ${setup}`;
  if (process.env.CI === 'true') {
    throw new Error(line);
  }
  if (process.env.SUITE_REPORT) {
    appendFileSync(process.env.SUITE_REPORT, `${line}\n`);
  }
  return line;
}
