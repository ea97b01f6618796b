/** The construct knows the settings that the programs know, by what the programs say of themselves. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { test } from 'node:test';

import { SETTINGS } from '../../src/settings';
import { binary } from './support/tools';

/** What the construct makes itself, what is of no use on AWS, and secrets: a template is for everybody to read. */
const NOT_OFFERED = [
  'ADMIN_LISTEN', 'AMBERFLO_API_KEY', 'AMBERFLO_API_KEY_FILE', 'AMBERFLO_BASE_URL', 'API_KEY_SECRET_ID', 'API_KEY_SECRET_NAME',
  'AUTH', 'CORS_ORIGINS', 'CREATE_LEASE_TABLE', 'DEAD_LETTER_QUEUE', 'EVENT_BUS', 'EVENT_DETAIL_TYPE', 'EVENT_SOURCE',
  'FAILOVER_TIME', 'INITIAL_POSITION', 'JWKS_URL', 'JWT_AUDIENCE', 'JWT_ISSUER', 'LEASE_TABLE', 'LISTEN', 'LOCAL_MAX_BYTES',
  'LOG_FORMAT', 'OTEL_EXPORTER_OTLP_HEADERS', 'RATE_REQUESTS_PER_SECOND', 'SCOPE_READ', 'SCOPE_WRITE', 'SHUTDOWN_GRACE', 'STREAM', 'WORKER_ID',
];

test('every setting of the programs is offered, or not, on purpose', () => {
  const known = (['ingest-worker', 'control-api-lambda'] as const).flatMap((name) => {
    const help = execFileSync(binary(name), ['--help'], { encoding: 'utf8' });
    return [...help.matchAll(/\[env: (\w+)/g)].map(([, variable]) => variable);
  });
  assert.deepEqual([...new Set(known)].sort(), [...SETTINGS, ...NOT_OFFERED].sort());
});
