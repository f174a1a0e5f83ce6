//! Chromium and a small server on loopback, for tests of the package. Everything that is started
//! here ends with the stage.

import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".mjs": "text/javascript",
  ".wasm": "application/wasm",
  ".css": "text/css",
  ".json": "application/json",
};
/** What is waited for comes within this time, or the test has failed. */
export const DEADLINE_MS = 30_000;

/** Waits until `condition` gives something true, and gives that. */
export async function until(what, condition, deadline = DEADLINE_MS) {
  const end = Date.now() + deadline;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what}: not within ${deadline} ms`);
    await setTimeout(10);
  }
}

export class Stage {
  #ends = [];
  /** Folders that are served: path prefix to directory. */
  folders = { "/dist/": join(HERE, "../dist/"), "/": join(HERE, "site/") };
  /** Header lines for paths. */
  headers = {};
  /** How long the answer to a path takes, in milliseconds. */
  delays = {};
  /** What is served instead of a file: path to a function from its text to another one. */
  rewritten = {};

  /** `preferences`: of the browser's profile. */
  static async open({ args = [], preferences } = {}) {
    const stage = new Stage();
    stage.directory = await mkdtemp(join(tmpdir(), "wavesync-js-"));
    stage.#ends.push(() => rm(stage.directory, { recursive: true, force: true, maxRetries: 5 }));
    await stage.#serve();
    const profile = join(stage.directory, "profile");
    if (preferences) {
      await mkdir(join(profile, "Default"), { recursive: true });
      await writeFile(join(profile, "Default", "Preferences"), JSON.stringify(preferences));
    }
    stage.context = await chromium.launchPersistentContext(profile, {
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      headless: true,
      // Without a namespace for its sandbox, as in most containers and for root.
      args: ["--no-sandbox", "--disable-dev-shm-usage", ...args],
    });
    stage.#ends.push(() => stage.context.close());
    return stage;
  }

  async close() {
    for (const end of this.#ends.reverse()) await end();
  }

  async #serve() {
    const server = createServer(async (request, response) => {
      const path = new URL(request.url, "http://x").pathname;
      const [prefix, folder] = Object.entries(this.folders).find(([start]) =>
        path.startsWith(start),
      );
      const rest = path.slice(prefix.length) || "index.html";
      try {
        let body = await readFile(join(folder, rest));
        if (this.delays[path]) await setTimeout(this.delays[path]);
        if (this.rewritten[path]) body = this.rewritten[path](body.toString());
        const type = { "content-type": TYPES[extname(rest)] ?? "text/plain" };
        response.writeHead(200, { ...type, ...this.headers[path] }).end(body);
      } catch {
        response.writeHead(404).end();
      }
    });
    await once(server.listen(0, "127.0.0.1"), "listening");
    this.#ends.push(() => server.close());
    this.port = server.address().port;
  }

  /** Where a site of this name is; sites share no storage. */
  site(name) {
    return `http://${name}.localhost:${this.port}`;
  }

  /**
   * A tab of a site, with the package as `window.wavesync`. `failed` hears of exceptions that
   * nobody caught, and of panics of the module.
   */
  async page(name, path = "/index.html", failed = console.error) {
    const page = await this.context.newPage();
    page.on("pageerror", (error) => failed(`${name}: ${error.stack}`));
    page.on("console", (message) => {
      if (message.text().includes("panicked at")) failed(`${name}: ${message.text()}`);
    });
    await page.goto(this.site(name) + path);
    await page.waitForFunction(() => window.wavesync);
    return page;
  }

  /** A tab with a database open as `window.db`. */
  async tab(name, options = {}, failed = console.error) {
    const page = await this.page(name, "/index.html", failed);
    await page.evaluate(
      async (options) => (window.db = await wavesync.open("test", options)),
      options,
    );
    return page;
  }
}

/** What a call in a page throws: `{code, message, hint}`. */
export function failure(page, body, argument) {
  return page.evaluate(
    async ([body, argument]) => {
      try {
        await new Function("argument", `return (async () => { ${body} })()`)(argument);
        return null;
      } catch ({ code, message, hint, name, sqlite }) {
        return { code, message, hint, name, sqlite };
      }
    },
    [body, argument],
  );
}
