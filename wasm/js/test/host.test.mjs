//! What the Worker that has the database does with requests, without the other tabs: the moments that
//! tabs cannot be brought to at will.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { Stage } from "./stage.mjs";

/** As long as a transaction may ask for nothing, in milliseconds, instead of 10 s. */
const IDLE_MS = 300;
let stage, page;

before(async () => {
  stage = await Stage.open();
  const source = (name) => fileURLToPath(new URL(`../src/${name}`, import.meta.url));
  const contents = `export { Host } from ${JSON.stringify(source("host.ts"))};
    export { load } from ${JSON.stringify(source("module.ts"))};`;
  const resolveDir = fileURLToPath(new URL("..", import.meta.url));
  const outfile = join(stage.directory, "host", "host.js");
  const stdin = { contents, resolveDir, loader: "ts" };
  await build({ stdin, outfile, bundle: true, format: "esm", target: "es2022" });
  stage.folders = { "/host/": join(stage.directory, "host"), ...stage.folders };
  stage.rewritten["/host/host.js"] = (text) => {
    const shorter = text.replace(/(TRANSACTION_IDLE_MAX_MS = )[0-9e_]+/, `$1${IDLE_MS}`);
    assert.notEqual(shorter, text);
    return shorter;
  };
  page = await stage.page("host");
  await page.evaluate(async () => {
    const { Host, load } = await import("/host/host.js");
    const module = await load("/dist/wavesync_bg.wasm");
    // A database in memory, of the tab `own`.
    window.host = (path, own) => new Host(module, path, true, own, () => {}, console.error);
    window.ask = async (host, client, request) => {
      const answer = await host.submit(client, { args: [], ...request });
      if (answer.error) throw new Error(`${answer.error.code}: ${answer.error.message}`);
      return answer.result;
    };
    // Ties up the Worker, as a long statement does.
    window.busy = (ms) => {
      for (const end = performance.now() + ms; performance.now() < end; );
    };
  });
});
after(() => stage.close());

test("what a tab had asked of the one before it is not done twice when it takes over itself", async () => {
  const { first, again, rows } = await page.evaluate(async () => {
    const old = host("/old", "gone");
    await ask(old, "gone", { number: 1, oldest: 1, call: "exec", args: ["CREATE TABLE t(x)"] });
    const request = { number: 7, oldest: 7, call: "exec", args: ["INSERT INTO t VALUES (1), (2)"] };
    const first = await ask(old, "stays", request);
    // The answer was lost with the tab. The other one has its file now.
    const file = await ask(old, "gone", { number: 2, oldest: 2, call: "export" });
    const next = host("/next", "stays");
    await ask(next, "stays", { number: 8, oldest: 7, call: "import", args: [file] });
    const again = await ask(next, "stays", { ...request, again: true });
    const query = { number: 9, oldest: 9, call: "query", args: ["SELECT count(*) FROM t"] };
    return { first, again, rows: (await ask(next, "stays", query)).rows };
  });
  assert.deepEqual([again.changes, again.lastInsertRowid], [2, first.lastInsertRowid]);
  assert.deepEqual(rows, [[2]]);
});

test("a long statement does not count as a transaction that asks for nothing", async () => {
  const rows = await page.evaluate(async (idle) => {
    const one = host("/long", "own");
    await ask(one, "own", { number: 1, oldest: 1, call: "exec", args: ["CREATE TABLE t(x)"] });
    const tx = await ask(one, "own", { number: 2, oldest: 2, call: "begin" });
    const count = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)
      INSERT INTO t SELECT i FROM n`;
    const begun = performance.now();
    let number = 3;
    while (performance.now() < begun + 2 * idle) {
      // Both ends of each statement are within one turn of the event loop.
      const done = ask(one, "own", { number, oldest: number, call: "exec", args: [count], tx });
      busy(idle * 1.5);
      await done;
      number += 1;
    }
    await new Promise((later) => setTimeout(later, idle / 3));
    await ask(one, "own", { number, oldest: number, call: "commit", tx });
    const query = { number: 99, oldest: 99, call: "query", args: ["SELECT count(*) > 0 FROM t"] };
    return (await ask(one, "own", query)).rows;
  }, IDLE_MS);
  assert.deepEqual(rows, [[1]]);
});

test("a transaction that asks for nothing is rolled back, and the next one has its turn", async () => {
  const { error, rows } = await page.evaluate(async () => {
    const one = host("/idle", "own");
    await ask(one, "own", { number: 1, oldest: 1, call: "exec", args: ["CREATE TABLE t(x)"] });
    const tx = await ask(one, "own", { number: 2, oldest: 2, call: "begin" });
    const insert = "INSERT INTO t VALUES (1)";
    await ask(one, "own", { number: 3, oldest: 3, call: "exec", args: [insert], tx });
    // Waits for the transaction to end.
    const query = { number: 4, oldest: 4, call: "query", args: ["SELECT count(*) FROM t"] };
    const { rows } = await ask(one, "own", query);
    const commit = ask(one, "own", { number: 5, oldest: 5, call: "commit", tx });
    return { rows, error: await commit.then(String, String) };
  });
  assert.match(error, /transaction_timeout/);
  assert.deepEqual(rows, [[0]]);
});
