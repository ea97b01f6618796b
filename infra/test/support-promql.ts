import { join } from 'node:path';

import { PACKAGE } from './support';

/** Where infra/observability/setup.sh puts what it installs. */
export const TOOLS = join(PACKAGE, '..', 'target', 'tools');
export const PROMTOOL = join(TOOLS, 'prometheus', 'promtool');

/** Words of PromQL that stand where a metric could. */
const WORDS = new Set(['by', 'without', 'on', 'ignoring', 'group_left', 'group_right', 'and', 'or', 'unless', 'bool', 'offset']);

/** The metrics that a query names. */
export function metrics(expr: string): string[] {
  const bare = expr
    .replace(/"(\\.|[^"])*"/g, '""')
    .replace(/\{[^}]*\}|\[[^\]]*\]|\$\w+/g, '')
    .replace(/\b(by|without|on|ignoring|group_left|group_right) *\([^)]*\)/g, ' ');
  const names = [...bare.matchAll(/(?<![\w.])([a-zA-Z_:][\w:]*)(?! *\()\b(?! *\()/g)].map(([name]) => name);
  return names.filter((name) => !WORDS.has(name));
}
