/** `npm run dashboards` writes the JSON that is committed; where it goes is the argument. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { amberflo } from './amberflo';
import { Dashboard } from './dashboard';
import { overview } from './overview';
import { pipeline } from './pipeline';
import { services } from './services';

/** The JSON of each dashboard by the name of its file. */
export function dashboards(): Record<string, string> {
  const made: Record<string, () => Dashboard> = { overview, pipeline, amberflo, services };
  return Object.fromEntries(Object.entries(made).map(([name, make]) => [`${name}.json`, make().json()]));
}

if (require.main === module) {
  const directory = process.argv[2];
  if (!directory) {
    throw new Error('usage: generate DIRECTORY');
  }
  for (const [name, json] of Object.entries(dashboards())) {
    writeFileSync(join(directory, name), json);
  }
}
