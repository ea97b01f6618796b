// Runs before `npm pack` and `npm publish`: a package without its programs, or with a debug build of them, is none.
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const assets = join(here, 'assets');
/** What the programs must have been built as. The tests pack a debug build, which takes less time to make. */
const profile = process.env.PACK_PROFILE || 'release';

function refusal() {
  if (!existsSync(join(assets, 'manifest.json'))) {
    return 'assets/manifest.json is missing';
  }
  const manifest = JSON.parse(readFileSync(join(assets, 'manifest.json'), 'utf8'));
  for (const name of ['ingest-worker.zip', 'control-api.zip']) {
    if (!existsSync(join(assets, name))) {
      return `assets/${name} is missing`;
    }
    const sha256 = createHash('sha256').update(readFileSync(join(assets, name))).digest('hex');
    if (sha256 !== manifest.assets?.[name]?.sha256) {
      return `assets/${name} is not the one of assets/manifest.json`;
    }
  }
  if (manifest.profile !== profile) {
    return `assets are of a ${manifest.profile} build, not of a ${profile} build`;
  }
  const { version } = JSON.parse(readFileSync(join(here, 'package.json'), 'utf8'));
  if (manifest.version !== version) {
    return `assets are of version ${manifest.version}, and the package is of version ${version}`;
  }
  return undefined;
}

const reason = refusal();
if (reason) {
  console.error(`prepack: ${reason}: run \`make dist\` first`);
  process.exit(1);
}
for (const name of ['LICENSE', 'CHANGELOG.md']) {
  copyFileSync(join(here, '..', name), join(here, name));
}
