// A Chromium without a screen that does what the lines on standard input ask for: each is a JSON object, and so is the
// line that answers it. `node browser.mjs CHROMIUM PROFILE-DIRECTORY`. It speaks the DevTools protocol over a pipe, so it
// needs no package; the browser ends with its pipe.
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';

const [program, profile] = process.argv.slice(2);
const browser = spawn(program, [
    '--headless=new', '--remote-debugging-pipe', `--user-data-dir=${profile}`, '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync', '--disable-default-apps',
    '--disable-dev-shm-usage', '--disable-gpu', '--hide-scrollbars',
    // Its sandbox does not start as root, as which containers run tests. It opens nothing but our own page.
    '--no-sandbox', 'about:blank',
], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
browser.on('error', (error) => { console.error(String(error)); process.exit(1); });
browser.on('exit', () => process.exit(0));
const [toBrowser, fromBrowser] = [browser.stdio[3], browser.stdio[4]];

const waiting = new Map();
const requests = [];
const complaints = [];
let onLoad = () => {};
let calls = 0;
let session;

function call(method, params = {}) {
    const id = ++calls;
    toBrowser.write(JSON.stringify({ id, method, params, sessionId: session }) + '\0');
    return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

function heard({ id, result, error, method, params }) {
    const asked = waiting.get(id);
    waiting.delete(id);
    if (error) asked?.reject(new Error(error.message));
    else asked?.resolve(result);
    if (method === 'Network.requestWillBeSent') requests.push(params.request.url);
    if (method === 'Log.entryAdded' && params.entry.level !== 'info') complaints.push(params.entry.text);
    if (method === 'Runtime.exceptionThrown') complaints.push(params.exceptionDetails.text);
    if (method === 'Runtime.consoleAPICalled') complaints.push(JSON.stringify(params.args));
    if (method === 'Page.loadEventFired') onLoad();
}

const evaluate = async (expression) => {
    const { result, exceptionDetails } = await call('Runtime.evaluate', { expression, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
};

const commands = {
    /** Opens a page in a window of this size; `scheme` is light or dark. Answers what it asked for and complained of. */
    async open({ url, width, height, scheme, script = true }) {
        requests.length = complaints.length = 0;
        const mobile = width < 600;
        await call('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: mobile ? 2 : 1, mobile });
        await call('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] });
        await call('Emulation.setScriptExecutionDisabled', { value: !script });
        const loaded = new Promise((resolve) => { onLoad = resolve; });
        await call('Page.navigate', { url });
        await loaded;
        return commands.heard();
    },
    /** What was requested, and what was complained of, since the page was opened. */
    heard: async () => ({ requests: [...requests], complaints: [...complaints] }),
    /** The value of an expression. */
    evaluate: ({ expression }) => evaluate(expression),
    /** Waits until an expression is true, for so many seconds at most; answers whether it is. */
    async wait({ expression, seconds }) {
        for (const end = Date.now() + seconds * 1000; Date.now() < end;) {
            if (await evaluate(expression)) return true;
            await new Promise((resolve) => setTimeout(resolve, 50));
        }
        return false;
    },
    /** Writes the whole page as PNG. */
    async screenshot({ path, whole = true }) {
        const { data } = await call('Page.captureScreenshot', { captureBeyondViewport: whole });
        await writeFile(path, Buffer.from(data, 'base64'));
    },
};

let text = '';
fromBrowser.setEncoding('utf8').on('data', (more) => {
    const messages = (text + more).split('\0');
    text = messages.pop();
    for (const message of messages) heard(JSON.parse(message));
});
const { targetInfos } = await call('Target.getTargets');
const { targetId } = targetInfos.find(({ type }) => type === 'page') ?? await call('Target.createTarget', { url: 'about:blank' });
session = (await call('Target.attachToTarget', { targetId, flatten: true })).sessionId;
for (const domain of ['Page', 'Network', 'Runtime', 'Log']) await call(`${domain}.enable`);

for await (const line of createInterface({ input: process.stdin })) {
    const { command, ...options } = JSON.parse(line);
    const answer = await commands[command](options).then((value) => ({ value: value ?? null }), (error) => ({ error: String(error) }));
    console.log(JSON.stringify(answer));
}
browser.kill();
