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

/**
 * A program of this repository: from BIN_DIR if that is set, otherwise from cargo's directory for debug builds, built now
 * where it is missing. CI has built it in an earlier suite.
 */
export function binary(name: keyof typeof BUILT_BY): string {
  const { BIN_DIR, CARGO_TARGET_DIR } = process.env;
  const file = join(BIN_DIR ?? join(CARGO_TARGET_DIR ?? join(ROOT, 'target'), 'debug'), name);
  if (!existsSync(file)) {
    if (BIN_DIR) {
      throw new Error(`${file} is missing`);
    }
    execFileSync('cargo', ['build', '--locked', ...BUILT_BY[name]], { cwd: ROOT, stdio: 'inherit' });
  }
  return file;
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
