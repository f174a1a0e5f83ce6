// What the tests play on: the browser, the pages it is shown, a relay, sqlite3 shells. Everything
// that is started here ends with the stage.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { createServer as createTcpServer } from "node:net";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const BUILT = process.env.WAVESYNC_WEB ?? join(HERE, "../pkg");
const CORE_TESTS = process.env.WAVESYNC_CORE_TESTS ?? join(HERE, "../core-tests/pkg");
const RELAY = process.env.WAVESYNC_RELAY;
const EXTENSION = process.env.WAVESYNC_EXT;
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".wasm": "application/wasm" };
/** What is waited for comes within this time, or the test has failed. */
export const DEADLINE_MS = 60_000;

/** Waits until `condition` gives something true, and gives that. */
export async function until(what, condition, deadline = DEADLINE_MS) {
  const end = Date.now() + deadline;
  let last;
  for (;;) {
    last = await condition();
    if (last) return last;
    if (Date.now() > end) throw new Error(`${what}: not within ${deadline} ms`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** A port that nobody listens at. */
export async function freePort() {
  const server = createTcpServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

export class Stage {
  #ends = [];

  static async open() {
    const stage = new Stage();
    stage.directory = await mkdtemp(join(tmpdir(), "wavesync-browser-"));
    stage.#ends.push(() => rm(stage.directory, { recursive: true, force: true, maxRetries: 5 }));
    await stage.#serve();
    const profile = join(stage.directory, "profile");
    stage.browser = await chromium.launchPersistentContext(profile, {
      executablePath: CHROMIUM,
      headless: true,
      ignoreHTTPSErrors: true,
      // Without a namespace for its sandbox, as in most containers and for root.
      args: ["--no-sandbox", "--disable-dev-shm-usage"],
    });
    stage.#ends.push(() => stage.browser.close());
    return stage;
  }

  async close() {
    for (const end of this.#ends.reverse()) await end();
  }

  async #serve() {
    const answer = async (request, response) => {
      const path = new URL(request.url, "http://x").pathname;
      const folders = { "/module/": BUILT, "/core-tests/": CORE_TESTS, "/": join(HERE, "site") };
      const [prefix, folder] = Object.entries(folders).find(([start]) => path.startsWith(start));
      const file = join(folder, path.slice(prefix.length) || "index.html");
      try {
        const body = await readFile(file);
        response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "text/plain" }).end(body);
      } catch {
        // Browsers ask for an icon.
        response.writeHead(path === "/favicon.ico" ? 204 : 404).end();
      }
    };
    const listen = async (server) => {
      await once(server.listen(0, "127.0.0.1"), "listening");
      this.#ends.push(() => server.close());
      return server.address().port;
    };
    this.port = await listen(createServer(answer));
    this.tlsPort = await listen(createTlsServer(await this.#certificate(), answer));
  }

  /** Signed by itself; the browser is told to take it. */
  async #certificate() {
    const [key, cert] = ["key", "cert"].map((name) => join(this.directory, `${name}.pem`));
    const subject = ["-subj", "/CN=localhost", "-days", "2"];
    const files = ["-keyout", key, "-out", cert];
    const made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", ...subject, ...files];
    execFileSync("openssl", made, { stdio: "ignore" });
    return { key: await readFile(key), cert: await readFile(cert) };
  }

  /** A page that does nothing. */
  async blank(name) {
    const page = await this.browser.newPage();
    await page.goto(`http://${name}.localhost:${this.port}/`);
    return page;
  }

  /** A tab with storage of its own, its database open. */
  async tab(name, { secure = false, ...options } = {}) {
    const page = await this.browser.newPage();
    page.on("console", (message) => {
      if (message.type() === "error") console.error(`${name}: ${message.text()}`);
    });
    page.on("pageerror", (error) => console.error(`${name}: ${error.stack}`));
    const [scheme, port] = secure ? ["https", this.tlsPort] : ["http", this.port];
    await page.goto(`${scheme}://${name}.localhost:${port}/`);
    await page.waitForFunction(() => window.call);
    const tab = new Tab(page);
    await tab.call("open", options);
    return tab;
  }

  async relay(port) {
    const relay = new Relay(port ?? (await freePort()), join(this.directory, "relay.key"));
    this.#ends.push(() => relay.stop());
    await relay.start();
    return relay;
  }

  /** A sqlite3 shell with the extension, on a file of its own. */
  async shell(name) {
    const shell = new Shell(join(this.directory, `${name}.db`));
    this.#ends.push(() => shell.close());
    await shell.run(`.load ${EXTENSION}`);
    return shell;
  }
}

/** A page and its Worker. */
export class Tab {
  constructor(page) {
    this.page = page;
  }

  /** Calls a function of the Worker. */
  call(name, ...parameters) {
    return this.page.evaluate(([name, ...rest]) => window.call(name, ...rest), [
      name,
      ...parameters,
    ]);
  }

  /** As `call`; an error is a value with `code`. */
  attempt(name, ...parameters) {
    return this.page.evaluate(([name, ...rest]) => window.attempt(name, ...rest), [
      name,
      ...parameters,
    ]);
  }

  async one(sql) {
    const [row] = await this.call("query", sql);
    return row?.[0];
  }

  /** Waits until a query gives this value. */
  gives(sql, value, deadline) {
    return until(`${sql} gives ${value}`, async () => (await this.one(sql)) === value, deadline);
  }

  /** Waits for an event with this code. */
  event(code, deadline) {
    const found = async () => (await this.call("events")).find((event) => event.code === code);
    return until(`the event ${code}`, found, deadline);
  }
}

/** The relay's own program, with websockets. */
class Relay {
  constructor(port, key) {
    this.port = port;
    this.arguments = ["--listen", `/ip4/127.0.0.1/tcp/${port}/ws`, "--identity", key];
  }

  async start() {
    this.process = spawn(RELAY, this.arguments, { stdio: ["ignore", "pipe", "ignore"] });
    const lines = createInterface(this.process.stdout);
    [this.address] = await once(lines, "line");
    lines.on("line", () => {});
  }

  async stop() {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill("SIGKILL");
    await once(this.process, "exit");
  }
}

/** The real sqlite3. */
class Shell {
  #waiting = [];
  #lines = [];

  constructor(file) {
    this.process = spawn("sqlite3", ["-batch", file], { stdio: ["pipe", "pipe", "pipe"] });
    createInterface(this.process.stdout).on("line", (line) => {
      if (line !== "-- done --") return this.#lines.push(line);
      const { resolve, reject } = this.#waiting.shift();
      const [lines, errors] = [this.#lines, this.errors];
      [this.#lines, this.errors] = [[], ""];
      if (errors) reject(new Error(`sqlite3: ${errors}`));
      else resolve(lines);
    });
    this.errors = "";
    this.process.stderr.on("data", (text) => (this.errors += text));
  }

  /** Runs SQL; gives the lines that it printed. */
  run(sql) {
    const done = new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
    this.process.stdin.write(`${sql}\n.print '-- done --'\n`);
    return done;
  }

  gives(sql, value, deadline) {
    return until(
      `sqlite3: ${sql} gives ${value}`,
      async () => (await this.run(sql))[0] === String(value),
      deadline,
    );
  }

  join(topic, passphrase, relay) {
    const options = JSON.stringify({
      listen: ["/ip4/127.0.0.1/tcp/0"],
      relays: [relay.address],
      mdns: false,
    });
    return this.run(`SELECT wavesync_join('${topic}', '${passphrase}', '${options}');`);
  }

  async close() {
    if (this.process.exitCode !== null) return;
    this.process.stdin.end(".quit\n");
    await once(this.process, "exit");
  }
}
