//! What a page is told when it cannot have its database: every one of these is made to happen.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage, failure } from "./stage.mjs";

let stage;
before(async () => {
  stage = await Stage.open({ args: ["--host-resolver-rules=MAP plain.test 127.0.0.1"] });
});
after(() => stage.close());

test("a page over plain http may store nothing; in memory it works", async () => {
  const page = await stage.context.newPage();
  await page.goto(`http://plain.test:${stage.port}/`);
  await page.waitForFunction(() => window.wavesync);
  const error = await failure(page, "await wavesync.open('test')");
  assert.equal(error.code, "no_opfs");
  assert.match(error.hint, /https/);
  const rows = await page.evaluate(async () => {
    window.db = await wavesync.open("test", { storage: "memory" });
    await db.exec("CREATE TABLE t(v); INSERT INTO t VALUES (1)");
    return db.query("SELECT v FROM t");
  });
  assert.deepEqual(rows, [{ v: 1 }]);
  await page.close();
});

test("beyond the quota a write fails with nothing half done, and the rest goes on", async () => {
  const page = await stage.tab("quota");
  await page.evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB)"));
  const session = await stage.context.newCDPSession(page);
  const { usage } = await page.evaluate(() => navigator.storage.estimate());
  const origin = stage.site("quota");
  await session.send("Storage.overrideQuotaForOrigin", {
    origin,
    quotaSize: usage + 6 * 1024 * 1024,
  });
  const error = await failure(
    page,
    "for (;;) await db.exec('INSERT INTO t(v) SELECT zeroblob(500000) FROM json_each(?)', ['[1,2,3]'])",
  );
  assert.equal(error.code, "quota_exceeded", error.message);
  assert.match(error.hint, /persist/);
  const count = () => page.evaluate(async () => (await db.get("SELECT count(*) AS n FROM t")).n);
  const before = await count();
  assert.equal(before % 3, 0);
  await session.send("Storage.overrideQuotaForOrigin", { origin });
  await page.evaluate(() => db.exec("INSERT INTO t(v) VALUES (zeroblob(500000))"));
  assert.equal(await count(), before + 1);
  assert.equal((await page.evaluate(() => db.get("PRAGMA integrity_check"))).integrity_check, "ok");
  await page.close();
});

/** Changes a file of the pool, behind the package's back. */
async function damage(page, path, change) {
  await page.evaluate(
    async ([path, change]) => {
      await db.close();
      let folder = await navigator.storage.getDirectory();
      for (const part of [".wavesync", "test", ".opaque"])
        folder = await folder.getDirectoryHandle(part);
      for await (const handle of folder.values()) {
        const bytes = new Uint8Array(await (await handle.getFile()).arrayBuffer());
        if (
          new TextDecoder().decode(bytes.slice(0, path.length)) !== path ||
          bytes[path.length] !== 0
        )
          continue;
        new Function("bytes", change)(bytes);
        const writable = await handle.createWritable();
        await writable.write(bytes);
        await writable.close();
        return;
      }
      throw new Error(`there is no ${path}`);
    },
    [path, change],
  );
}

for (const [what, change] of [
  ["a damaged name", "bytes[3] ^= 0x80"],
  ["a name that is gone", "bytes.fill(0, 0, 512)"],
  ["damaged flags", "bytes.fill(0, 512, 516)"],
]) {
  test(`a pool with ${what} is refused, and nothing in it is touched`, async () => {
    const site = what.replaceAll(" ", "-");
    const page = await stage.tab(site);
    await page.evaluate(() => db.exec("CREATE TABLE t(v); INSERT INTO t VALUES ('here')"));
    await damage(page, "/main.db", change);
    for (let time = 0; time < 2; time++) {
      const error = await failure(page, "await wavesync.open('test')");
      assert.equal(error.code, "corrupt_pool");
      assert.match(error.hint, /deleteDatabase/);
    }
    const held = await page.evaluate(async () => {
      let folder = await navigator.storage.getDirectory();
      for (const part of [".wavesync", "test", ".opaque"])
        folder = await folder.getDirectoryHandle(part);
      let all = "";
      for await (const handle of folder.values()) all += await (await handle.getFile()).text();
      return all.includes("CREATE TABLE t(v)");
    });
    assert.ok(held);
    await page.evaluate(async () => {
      await wavesync.deleteDatabase("test");
      window.db = await wavesync.open("test");
    });
    await page.close();
  });
}

test("a file that was made and never written hides nothing", async () => {
  const page = await stage.tab("unwritten");
  await page.evaluate(async () => {
    await db.exec("CREATE TABLE t(v); INSERT INTO t VALUES ('here')");
    await db.close();
    let folder = await navigator.storage.getDirectory();
    for (const part of [".wavesync", "test", ".opaque"])
      folder = await folder.getDirectoryHandle(part);
    for (let n = 0; n < 8; n++)
      await folder.getFileHandle(`${n}${crypto.randomUUID()}`, { create: true });
    window.db = await wavesync.open("test");
  });
  assert.deepEqual(await page.evaluate(() => db.query("SELECT v FROM t")), [{ v: "here" }]);
  await page.close();
});

test("a damaged database is said to be one", async () => {
  const page = await stage.tab("damaged");
  await page.evaluate(() => db.exec("CREATE TABLE t(v); INSERT INTO t VALUES (1)"));
  await damage(page, "/main.db", "bytes.fill(1, 4096, 4096 + 200)");
  const error = await failure(page, "await wavesync.open('test')");
  assert.equal(error.code, "corrupt_database");
  assert.match(error.hint, /import|delete/);
  await page.close();
});

test("a worker script that the page's policy blocks", async () => {
  stage.headers["/policy.html"] = { "content-security-policy": "worker-src 'none'" };
  const page = await stage.page("policy", "/policy.html");
  const error = await failure(page, "await wavesync.open('test')");
  assert.equal(error.code, "worker_blocked");
  assert.match(error.hint, /worker-src/);
  await page.close();
});

test("WebAssembly that the worker's policy blocks", async () => {
  stage.headers["/dist/worker.js"] = { "content-security-policy": "script-src 'self'" };
  const page = await stage.page("nowasm");
  const error = await failure(page, "await wavesync.open('test')");
  delete stage.headers["/dist/worker.js"];
  assert.equal(error.code, "wasm_blocked", error.message);
  assert.match(error.hint, /wasm-unsafe-eval/);
  await page.close();
});

test("files of the package that are not where they should be", async () => {
  const page = await stage.page("missing");
  const worker = await failure(page, "await wavesync.open('test', {worker: '/nowhere.js'})");
  assert.equal(worker.code, "worker_failed");
  const wasm = await failure(page, "await wavesync.open('test', {wasm: '/nowhere.wasm'})");
  assert.equal(wasm.code, "wasm_failed", wasm.message);
  assert.match(wasm.hint, /wavesync_bg.wasm/);
  await page.close();
});

test("two versions of the package on one database", async () => {
  const first = await stage.tab("versions");
  await first.evaluate(() => db.exec("CREATE TABLE t(v)"));
  stage.rewritten["/dist/worker.js"] = (text) => text.replaceAll('"0.1.0"', '"0.0.9"');
  const second = await stage.page("versions");
  const error = await failure(second, "await wavesync.open('test')");
  delete stage.rewritten["/dist/worker.js"];
  assert.equal(error.code, "version_mismatch");
  assert.match(error.message, /0\.1\.0.*0\.0\.9/);
  assert.match(error.hint, /reload/);
  assert.deepEqual(await first.evaluate(() => db.query("SELECT v FROM t")), []);
  await second.close();
  await first.close();
});

test("a window that may store nothing; in memory it works", async () => {
  // As a private window of browsers that give it no storage, or "block all site data".
  const profile = { default_content_setting_values: { cookies: 2 } };
  const blocked = await Stage.open({ preferences: { profile } });
  try {
    const page = await blocked.page("blocked");
    const refused = await page.evaluate(() =>
      navigator.storage.getDirectory().then(
        () => null,
        (error) => error.name,
      ),
    );
    assert.equal(refused, "SecurityError", "this browser gives storage all the same");
    const error = await failure(page, "await wavesync.open('test')");
    assert.deepEqual([error.name, error.code], ["WavesyncError", "no_opfs"]);
    assert.match(error.hint, /storage: 'memory'/);
    const rows = await page.evaluate(async () => {
      const db = await wavesync.open("test", { storage: "memory" });
      return db.query("SELECT 1 AS one");
    });
    assert.deepEqual(rows, [{ one: 1 }]);
  } finally {
    await blocked.close();
  }
});
