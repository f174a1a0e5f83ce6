//! The scenarios of sql-tests, as they are, with databases in tabs of Chromium: `shell.mjs` is the
//! sqlite3 that they start. Members meet through relays in place of their listening ports. What
//! a browser cannot play is named in `left-out.txt`.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { Stage } from "../stage.mjs";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const ROOT = join(HERE, "../../../..");
const PAGE = readFileSync(join(HERE, "page.js"), "utf8");
const WAIT_STEP_MS = 20;

const stage = await Stage.open();
const relays = new Map();
const files = new Map();
let number = 0;
let failures = 0;

/** What a tab says has gone wrong in it, where no scenario asks: a panic, an exception. */
function failed(text) {
  failures++;
  console.error(text);
}

/** The address of the relay that stands for a port at which a member listens. */
function relay(name) {
  if (!relays.has(name)) relays.set(name, start(name));
  return relays.get(name);
}

async function start(name) {
  const identity = join(stage.directory, `relay-${relays.size}`);
  const options = ["--listen", "/ip4/127.0.0.1/tcp/0/ws", "--identity", identity];
  const stdio = ["ignore", "pipe", "ignore"];
  const process = spawn(globalThis.process.env.WAVESYNC_RELAY, options, { stdio });
  const lines = createInterface(process.stdout);
  const [address] = await once(lines, "line");
  lines.on("line", () => {});
  return { name, process, address };
}

/** How a file looks on disk: another program may put another one there. */
function seen(path) {
  try {
    const { size, mtimeMs, ino } = statSync(path);
    return size ? `${size} ${mtimeMs} ${ino}` : "";
  } catch {
    return "";
  }
}

/** A database that scenarios know as a file: on disk while no tab has it, like every file. */
class File {
  tabs = new Set();
  #site;
  #known = "";
  #dirty = false;
  #last = Promise.resolve();

  constructor(path) {
    this.path = path;
  }

  /** One thing after the other. */
  #next(work) {
    const done = this.#last.then(work);
    this.#last = done.catch(() => {});
    return done;
  }

  open() {
    return this.#next(() => this.#open());
  }

  async #open() {
    const now = seen(this.path);
    const other = !this.#site || (this.tabs.size === 0 && now !== this.#known);
    if (other) this.#site = `file-${number++}`;
    const tab = await stage.tab(this.#site, {}, failed);
    await tab.evaluate(PAGE);
    if (other && now) {
      const bytes = readFileSync(this.path).toString("base64");
      await tab.evaluate((bytes) => imported(bytes), bytes);
    }
    this.#known = now;
    this.#dirty = true;
    this.tabs.add(tab);
    return tab;
  }

  close(tab) {
    return this.#next(async () => {
      if (this.tabs.size === 1) await this.#store(tab);
      await tab.evaluate(() => db.close());
      this.tabs.delete(tab);
      await tab.close();
    });
  }

  /** The engine ends first: it goes on taking in what comes. */
  async #store(tab) {
    await tab.evaluate(() => db.leave());
    const bytes = Buffer.from(await tab.evaluate(() => exported()), "base64");
    if (bytes.length > 0) writeFileSync(this.path, bytes);
    this.#known = seen(this.path);
    this.#dirty = false;
  }

  /** Its process is gone, without a word. */
  kill(tab) {
    this.tabs.delete(tab);
    return tab.close();
  }

  /** Writes what is in the tabs beside the file; null if the file itself has it. */
  snapshot() {
    return this.#next(async () => {
      if (this.tabs.size === 0 && this.#dirty && seen(this.path) === this.#known) {
        const tab = await this.#open();
        await this.#store(tab);
        await tab.evaluate(() => db.close());
        this.tabs.delete(tab);
        await tab.close();
      }
      const [tab] = this.tabs;
      if (!tab) return null;
      const path = `${this.path}.snapshot-${number++}`;
      writeFileSync(path, Buffer.from(await tab.evaluate(() => exported()), "base64"));
      return path;
    });
  }
}

/** Functions that the extension has and the package gives as methods. */
const METHODS = {
  async join(session, [topic, passphrase, options = "{}"]) {
    const { listen, peers = [], mdns, ...rest } = JSON.parse(options);
    const places = [listen ?? [], peers].flat().map((address) => session.place(address));
    session.joined = { topic, passphrase, places: places.length ? places : [session.file.path] };
    session.joined.rest = rest;
    return session.join();
  },
  async dial(session, [address]) {
    session.joined.places.push(session.place(address));
    const left = await session.attempt("() => db.leave()");
    const { error } = left.error ? left : await session.join();
    return error ? { error } : { result: 1 };
  },
  leave: (session, [how]) =>
    session.attempt("(forget) => db.leave({ forget }).then(() => 1)", how === "forget"),
  pause: (session) => session.attempt("() => db.pause().then(() => 1)"),
  resume: (session) => session.attempt("() => db.resume().then(() => 1)"),
  async wait(session, [ms]) {
    const end = Date.now() + Number(ms);
    for (;;) {
      const { result, error } = await session.attempt("() => db.status()");
      if (error) return { error };
      if (result.peers_connected > 0 && result.caught_up) return { result: 1 };
      if (Date.now() > end) return { result: 0 };
      await new Promise((later) => setTimeout(later, WAIT_STEP_MS));
    }
  },
};
const METHOD = /^\s*SELECT wavesync_(join|dial|leave|pause|resume|wait)\(/i;

/** A statement that calls a method: its name, its arguments, and what stands behind the call. */
function method(sql) {
  const found = METHOD.exec(sql);
  if (!found) return undefined;
  const start = found[0].length;
  let [depth, at] = [1, start];
  for (let quoted = false; depth > 0 && at < sql.length; at++) {
    if (sql[at] === "'") quoted = !quoted;
    else if (!quoted && sql[at] === "(") depth++;
    else if (!quoted && sql[at] === ")") depth--;
  }
  return { name: found[1].toLowerCase(), args: sql.slice(start, at - 1), rest: sql.slice(at) };
}

/** A process that speaks like the shell. */
class Session {
  async answer(request) {
    switch (request.call) {
      case "open":
        this.file = files.get(request.file) ?? new File(request.file);
        files.set(request.file, this.file);
        this.tab = await this.file.open();
        return { result: null };
      case "snapshot":
        return { result: (await files.get(request.file)?.snapshot()) ?? null };
      case "run":
        return this.#run(request.sql, request.params);
      case "close":
        await this.file.close(this.tab);
        this.tab = undefined;
        return { result: null };
      default:
        return { error: `there is no call ${request.call}` };
    }
  }

  attempt(body, argument) {
    const call = ([body, argument]) => attempt(new Function(`return ${body}`)(), argument);
    return this.tab.evaluate(call, [body, argument]);
  }

  /** Which relay stands for a listening port. Whoever is dialed by nobody is alone. */
  place(address) {
    const port = /\/tcp\/(\d+)/.exec(address)?.[1] ?? "0";
    return port === "0" ? this.file.path : port;
  }

  async join() {
    const { topic, passphrase, places, rest } = this.joined;
    const addresses = await Promise.all([...new Set(places)].map(relay));
    const relays = addresses.map(({ address }) => address);
    return this.attempt("(options) => db.join(options)", { topic, passphrase, relays, ...rest });
  }

  async #run(sql, params) {
    const called = method(sql);
    if (!called) {
      const blobs = params.map(({ base64 }) => base64);
      return this.tab.evaluate(([sql, blobs]) => shell(sql, blobs), [sql, blobs]);
    }
    const args = called.args.trim() ? await this.#run(`SELECT ${called.args};`, []) : undefined;
    if (args?.error) return args;
    const { result, error } = await METHODS[called.name](this, args?.result[0] ?? []);
    if (error) return { error };
    return this.#run(`SELECT ${typeof result === "number" ? result : `'${result}'`}${called.rest}`, []);
  }

  async ended() {
    if (this.tab) await this.file.kill(this.tab);
  }
}

const server = createServer((socket) => {
  const session = new Session();
  let last = Promise.resolve();
  createInterface(socket).on("line", (line) => {
    last = last.then(async () => {
      const request = JSON.parse(line);
      const answer = await session.answer(request).catch((error) => ({ error: error.message }));
      if (socket.writable) socket.write(`${JSON.stringify(answer)}\n`);
    });
  });
  socket.on("error", () => {});
  socket.on("close", () => void session.ended().catch(() => {}));
});
const place = join(stage.directory, "tabs");
await once(server.listen(place), "listening");

const filters = process.argv.slice(2);
const options = ["test", "--locked", "-q", "-p", "wavesync-sql-tests", "--test", "scenarios", "--"];
const scenarios = spawn(process.env.CARGO || "cargo", [...options, ...filters], {
  cwd: ROOT,
  stdio: "inherit",
  env: {
    WAVESYNC_LEFT_OUT: join(HERE, "left-out.txt"),
    ...process.env,
    WAVESYNC_TABS: place,
    WAVESYNC_SQLITE3: process.env.SQLITE3 || "sqlite3",
    SQLITE3: join(HERE, "shell.mjs"),
    SQLITE3_FILES: join(HERE, "files.sh"),
  },
});
const [status] = await once(scenarios, "exit");
server.close();
const started = await Promise.allSettled(relays.values());
for (const { value } of started) value?.process.kill("SIGKILL");
await stage.close();
if (failures) console.error(`${failures} failures in tabs`);
process.exit(failures ? 1 : (status ?? 1));
