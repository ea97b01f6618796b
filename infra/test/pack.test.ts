import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { before, describe, test } from 'node:test';
import { promisify } from 'node:util';

import { PACKAGE, skipUnless, temporaryDirectory } from './support';

const MINUTE = 60_000;
const ZIPS = ['ingest-worker.zip', 'control-api.zip'];
const MANIFEST = join(PACKAGE, 'assets', 'manifest.json');
const skip = skipUnless(existsSync(MANIFEST), 'infra: npm pack', 'there are no programs to pack: run make dist');
const description = JSON.parse(readFileSync(join(PACKAGE, 'package.json'), 'utf8'));

/** What the README begins with: all that a user writes. */
const APP = `
const { App, Stack } = require('aws-cdk-lib');
const { ControlPlane } = require('@cdklabs/sbt-aws');
const { AmberfloMetering } = require('${description.name}');

const app = new App({ outdir: 'cdk.out', postCliContext: { 'aws:cdk:bundling-stacks': [] } });
const stack = new Stack(app, 'ControlPlane');
const metering = new AmberfloMetering(stack, 'AmberfloMetering');
const controlPlane = new ControlPlane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering });
metering.attachTo(controlPlane.eventManager);
app.synth();
`;

const TYPED_APP = `
import { App, Duration, Stack } from 'aws-cdk-lib';
import { ControlPlane, EventManager } from '@cdklabs/sbt-aws';
import { AmberfloMetering, AmberfloMeteringProps, WorkerCompute } from '${description.name}';

const stack = new Stack(new App(), 'ControlPlane');
const props: AmberfloMeteringProps = {
  amberfloAPIKeySecretName: 'name',
  amberfloAPIKeySecretId: 'id',
  eventManager: new EventManager(stack, 'EventManager'),
  worker: WorkerCompute.lambda({ batchSize: 500, maxBatchingWindow: Duration.seconds(5) }),
};
const metering = new AmberfloMetering(stack, 'AmberfloMetering', props);
const { eventManager } = new ControlPlane(stack, 'SBT', { systemAdminEmail: 'admin@example.com', metering });
new AmberfloMetering(stack, 'Other').attachTo(eventManager);
`;

describe('npm pack', { timeout: 12 * MINUTE, skip }, () => {
  let tarball: string;
  let offline: string | undefined;

  before(async () => {
    const directory = temporaryDirectory();
    const PACK_PROFILE = JSON.parse(readFileSync(MANIFEST, 'utf8')).profile;
    await run('npm', ['pack', '--pack-destination', directory], PACKAGE, { ...process.env, PACK_PROFILE });
    tarball = join(directory, readdirSync(directory).find((name) => name.endsWith('.tgz'))!);
    offline = await whyOffline();
  });

  test('has what a user needs, and nothing else', async () => {
    const files = (await run('tar', ['-tzf', tarball], PACKAGE)).trim().split('\n').map((name) => name.replace(/^package\//, ''));
    for (const name of ['package.json', 'README.md', 'LICENSE', 'CHANGELOG.md', 'assets/manifest.json', ...ZIPS.map((zip) => `assets/${zip}`)]) {
      assert.ok(files.includes(name), `${name} is missing`);
    }
    for (const source of readdirSync(join(PACKAGE, 'src'), { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.ts'))) {
      for (const suffix of ['.js', '.d.ts']) {
        assert.ok(files.includes(`lib/${source.replace(/\.ts$/, suffix)}`), `${source} is missing as ${suffix}`);
      }
    }
    for (const kind of ['dashboards', 'rules']) {
      for (const name of readdirSync(join(PACKAGE, 'observability', kind)).filter((file) => /\.(json|yaml)$/.test(file))) {
        assert.ok(files.includes(`observability/${kind}/${name}`), `${name} is missing`);
      }
    }
    const observability = /^observability\/(\w+\.md|mixin\.libsonnet|dashboards\/\w+\.json|rules\/\w+\.yaml)$/;
    const expected = /^(package\.json|README\.md|LICENSE|CHANGELOG\.md|assets\/(manifest\.json|[\w-]+\.zip)|lib\/[\w/-]+(\.d\.ts|\.js))$/;
    assert.deepEqual(files.filter((name) => !expected.test(name) && !observability.test(name)), []);
    assert.ok(!existsSync(join(PACKAGE, 'LICENSE')), 'what was copied for packing is gone again');
  });

  const versions = { 'the oldest': oldestPeers(), 'that of the other tests': installedPeers() };
  for (const [name, peers] of Object.entries(versions)) {
    test(`synthesises in an empty app without Rust, with CDK ${peers['aws-cdk-lib']}, ${name}`, { timeout: 5 * MINUTE }, async (t) => {
      if (offline) {
        return t.skip(offline);
      }
      const directory = temporaryDirectory();
      await install(directory, tarball, peers);
      writeFileSync(join(directory, 'app.js'), APP);
      await run('node', ['app.js'], directory, { PATH: pathWith('node'), JSII_DEPRECATED: 'quiet' });

      const template = JSON.parse(readFileSync(join(directory, 'cdk.out', 'ControlPlane.template.json'), 'utf8'));
      const targets = Object.values<any>(template.Resources).flatMap(({ Type, Properties }) => (Type === 'AWS::Events::Rule' ? Properties.Targets : []));
      assert.equal(targets.filter(({ KinesisParameters }) => KinesisParameters).length, 1);
      const synthesised = readdirSync(join(directory, 'cdk.out')).filter((file) => file.endsWith('.zip')).map((file) => sha256(join(directory, 'cdk.out', file)));
      const { assets } = JSON.parse(readFileSync(MANIFEST, 'utf8'));
      for (const zip of ZIPS) {
        assert.ok(synthesised.includes(assets[zip].sha256), `${zip} is not among the assets`);
      }

      writeFileSync(join(directory, 'app.ts'), TYPED_APP);
      // Our declarations are checked too, and with them those of CDK, which want Disposable.
      const options = '--noEmit --strict --target es2022 --lib es2022,esnext.disposable --module node16 --moduleResolution node16 --skipLibCheck false';
      await run(join(PACKAGE, 'node_modules', '.bin', 'tsc'), [...options.split(' '), '--types', '', 'app.ts'], directory);
    });
  }
});

describe('npm pack refuses in one line', () => {
  const refusals: [string, string, (root: string) => void][] = [
    ['no manifest', 'assets/manifest.json is missing', () => undefined],
    ['a program missing', 'assets/control-api.zip is missing', (root) => manifest(root, ['ingest-worker.zip'])],
    ['another program', 'assets/control-api.zip is not the one of assets/manifest.json', (root) => {
      manifest(root, ZIPS);
      writeFileSync(join(root, 'infra', 'assets', 'control-api.zip'), 'other');
    }],
    ['a debug build', 'assets are of a dev build, not of a release build', (root) => manifest(root, ZIPS, { profile: 'dev' })],
    ['another version', 'assets are of version 0.0.1, and the package is of version 1.0.0', (root) => manifest(root, ZIPS, { version: '0.0.1' })],
  ];
  for (const [name, message, prepare] of refusals) {
    test(name, async () => {
      const root = emptyRepository();
      prepare(root);
      await assert.rejects(prepack(root), { stderr: `prepack: ${message}: run \`make dist\` first\n` });
    });
  }

  test('what is complete is packed', async () => {
    const root = emptyRepository();
    manifest(root, ZIPS);
    await prepack(root);
    assert.ok(existsSync(join(root, 'infra', 'LICENSE')));
  });

  function emptyRepository(): string {
    const root = temporaryDirectory();
    mkdirSync(join(root, 'infra', 'assets'), { recursive: true });
    copyFileSync(join(PACKAGE, 'prepack.mjs'), join(root, 'infra', 'prepack.mjs'));
    writeFileSync(join(root, 'infra', 'package.json'), '{"version": "1.0.0"}');
    for (const name of ['LICENSE', 'CHANGELOG.md']) {
      writeFileSync(join(root, name), name);
    }
    return root;
  }

  function manifest(root: string, zips: string[], facts: Record<string, string> = {}): void {
    const assets = join(root, 'infra', 'assets');
    zips.forEach((zip) => writeFileSync(join(assets, zip), zip));
    const described = Object.fromEntries(zips.map((zip) => [zip, { sha256: sha256(join(assets, zip)) }]));
    writeFileSync(join(assets, 'manifest.json'), JSON.stringify({ version: '1.0.0', profile: 'release', assets: described, ...facts }));
  }

  async function prepack(root: string): Promise<void> {
    const { PACK_PROFILE, ...environment } = process.env;
    await run(process.execPath, ['prepack.mjs'], join(root, 'infra'), environment);
  }
});

type Peers = Record<'aws-cdk-lib' | 'constructs' | '@cdklabs/sbt-aws', string>;

/** The oldest versions that package.json allows. */
function oldestPeers(): Peers {
  const oldest = ([name, range]: [string, any]) => [name, /\d+\.\d+\.\d+/.exec(range)![0]];
  return Object.fromEntries(Object.entries(description.peerDependencies).map(oldest)) as Peers;
}

/** The versions that the other tests use. */
function installedPeers(): Peers {
  const installed = (name: string) => [name, JSON.parse(readFileSync(join(PACKAGE, 'node_modules', name, 'package.json'), 'utf8')).version];
  return Object.fromEntries(Object.keys(description.peerDependencies).map(installed)) as Peers;
}

async function install(directory: string, tarball: string, peers: Peers): Promise<void> {
  await run('npm', ['init', '--yes'], directory);
  const packages = Object.entries(peers).map(([name, version]) => `${name}@${version}`);
  const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', '--loglevel', 'error'];
  await run('npm', ['install', ...options, tarball, ...packages], directory);
}

/** Why packages cannot be installed here, if so. */
async function whyOffline(): Promise<string | undefined> {
  const asked = run('npm', ['ping', '--fetch-timeout', '10000', '--fetch-retries', '0'], PACKAGE);
  const online = await asked.then(() => true, () => false);
  return skipUnless(online, 'infra: the package in an empty app', 'the npm registry cannot be reached') || undefined;
}

/** A PATH with one program and nothing else, so that there is no cargo. */
function pathWith(program: string): string {
  const directory = temporaryDirectory();
  symlinkSync(process.execPath, join(directory, program));
  return directory;
}

async function run(command: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env): Promise<string> {
  // The npm that comes with this node.
  const PATH = env.PATH === process.env.PATH ? `${dirname(process.execPath)}:${env.PATH}` : env.PATH;
  const { stdout } = await promisify(execFile)(command, args, { cwd, env: { ...env, PATH }, timeout: 4 * MINUTE, maxBuffer: 16 << 20 });
  return stdout;
}

function sha256(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}
