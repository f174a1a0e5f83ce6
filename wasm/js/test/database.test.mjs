//! Statements, types, transactions, changes, live queries, copies: one tab.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage, failure, until } from "./stage.mjs";

let stage;
before(async () => (stage = await Stage.open()));
after(() => stage.close());

test("rows survive a reload", async () => {
  const page = await stage.tab("reload");
  await page.evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'kept')");
  });
  await page.reload();
  await page.waitForFunction(() => window.wavesync);
  const rows = await page.evaluate(async () => {
    window.db = await wavesync.open("test");
    const mode = await db.get("PRAGMA journal_mode");
    return [mode.journal_mode, await db.query("SELECT * FROM t")];
  });
  assert.deepEqual(rows, ["wal", [{ id: 1, v: "kept" }]]);
  await page.close();
});

test("every committed row survives a crash of the renderer", async () => {
  const page = await stage.tab("crash");
  let known = 0;
  await page.exposeFunction("committed", (n) => (known = n));
  await page.evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)");
    window.write = (async () => {
      for (let n = 1; ; n++) {
        await db.exec("INSERT INTO t VALUES (?)", [n]);
        committed(n);
      }
    })();
  });
  await until("some rows", () => known > 50);
  const session = await stage.context.newCDPSession(page);
  await Promise.race([session.send("Page.crash").catch(() => {}), page.waitForEvent("crash")]);
  const committed = known;
  await page.close();
  const again = await stage.tab("crash");
  const { n, check } = await again.evaluate(async () => ({
    ...(await db.get("SELECT count(*) AS n FROM t")),
    check: (await db.get("PRAGMA integrity_check")).integrity_check,
  }));
  assert.ok(n >= committed, `${committed} rows were committed, ${n} are there`);
  assert.equal(check, "ok");
  await again.close();
});

test("all five types come back as they went in", async () => {
  const page = await stage.tab("types");
  const shown = await page.evaluate(async () => {
    const show = (value) =>
      value instanceof Uint8Array ? `bytes ${[...value]}` : `${typeof value} ${value}`;
    await db.exec("CREATE TABLE t(v)");
    const insert = await db.prepare("INSERT INTO t VALUES (?)");
    const values = [
      null,
      1,
      -0,
      1.5,
      2 ** 53,
      9007199254740993n,
      -9223372036854775808n,
      1e300,
      "text",
      "\u0000ü😀",
      new Uint8Array([0, 255]),
      new Uint8Array(),
      true,
      new Uint8Array([7]).buffer,
    ];
    for (const value of values) await insert.run([value]);
    const select = await db.prepare("SELECT v, typeof(v) AS t FROM t WHERE rowid = $row");
    const back = [];
    for (let row = 1; row <= values.length; row++) {
      const { v, t } = await select.get({ row });
      back.push(`${t} ${Object.is(v, -0) ? "number -0" : show(v)}`);
    }
    return back;
  });
  assert.deepEqual(shown, [
    "null object null",
    "integer number 1",
    "real number -0",
    "real number 1.5",
    "real number 9007199254740992",
    "integer bigint 9007199254740993",
    "integer bigint -9223372036854775808",
    "real number 1e+300",
    "text string text",
    "text string \u0000ü😀",
    "blob bytes 0,255",
    "blob bytes ",
    "integer number 1",
    "blob bytes 7",
  ]);
  await page.close();
});

test("errors have a code, a message and a hint", async () => {
  const page = await stage.tab("errors");
  await page.evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v CHECK(v > 0))"));
  const codeOf = async (body) => (await failure(page, body))?.code;
  const syntax = await failure(page, "await db.exec('SELEC 1')");
  assert.equal(syntax.code, "sql");
  assert.equal(syntax.name, "WavesyncError");
  assert.match(syntax.message, /near "SELEC": syntax error/);
  assert.equal(await codeOf("await db.exec('INSERT INTO t VALUES (1, 0)')"), "constraint");
  assert.equal(await codeOf("await db.exec('BEGIN')"), "use_transaction");
  assert.equal(await codeOf("await db.query('  -- x\\n COMMIT')"), "use_transaction");
  assert.equal(await codeOf("await db.query('SAVEPOINT a')"), "use_transaction");
  assert.equal(await codeOf("await db.exec('INSERT INTO t VALUES (2, 2)')"), undefined);
  assert.equal(await codeOf("await db.query('SELECT ?', [])"), "bad_parameter");
  assert.equal(await codeOf("await db.query('SELECT ?', [new Date()])"), "bad_parameter");
  assert.equal(await codeOf("await db.query('SELECT ?', [() => 1])"), "bad_parameter");
  assert.equal(await codeOf("await db.query('SELECT ?', [2n ** 64n])"), "bad_parameter");
  assert.equal(await codeOf("await db.query('SELECT $a', {b: 1})"), "bad_parameter");
  assert.equal(await codeOf("await db.query('SELECT 1; SELECT 2')"), "sql");
  assert.equal(await codeOf("await wavesync.open('')"), "bad_name");
  assert.equal(await codeOf("await wavesync.open('x', {storage: 'disk'})"), "bad_argument");
  assert.equal(await codeOf("await db.import(new Uint8Array(9))"), "not_a_database");
  assert.equal(await codeOf("await wavesync.deleteDatabase('test')"), "in_use");
  const twice = "await Promise.all([db.close(), db.close()]); await db.query('SELECT 1')";
  assert.equal(await codeOf(twice), "closed");
  await page.close();
});

test("exec is all or nothing, and so is a transaction", async () => {
  const page = await stage.tab("atomic");
  const left = await page.evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)");
    await db.exec("INSERT INTO t VALUES (1); INSERT INTO t VALUES (1)").catch(() => {});
    await db
      .transaction(async (tx) => {
        await tx.exec("INSERT INTO t VALUES (2)");
        throw new Error("mine");
      })
      .catch((error) => {
        if (error.message !== "mine") throw error;
      });
    const sum = await db.transaction(async (tx) => {
      await tx.exec("INSERT INTO t VALUES (3)");
      return (await tx.get("SELECT sum(id) AS n FROM t")).n;
    });
    return [sum, (await db.query("SELECT id FROM t")).map(({ id }) => id)];
  });
  assert.deepEqual(left, [3, [3]]);
  await page.close();
});

test("others wait for a transaction and see all of it or nothing", async () => {
  const page = await stage.tab("isolation");
  const seen = await page.evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)");
    let during;
    await db.transaction(async (tx) => {
      await tx.exec("INSERT INTO t VALUES (1)");
      during = db.get("SELECT count(*) AS n FROM t");
      await tx.exec("INSERT INTO t VALUES (2)");
    });
    return (await during).n;
  });
  assert.equal(seen, 2);
  await page.close();
});

test("a change tells tables and keys, also of DELETE without WHERE", async () => {
  const page = await stage.tab("changes");
  const heard = await page.evaluate(async () => {
    await db.exec(`CREATE TABLE a(id INTEGER PRIMARY KEY, v); CREATE TABLE b(k TEXT PRIMARY KEY, v UNIQUE);
      CREATE TABLE c(x, y, z, PRIMARY KEY(x, y)) WITHOUT ROWID`);
    const changes = [];
    db.onChange((change) => changes.push(change));
    await db.exec("INSERT INTO a VALUES (1, 'x'), (2, 'y')");
    await db.exec("INSERT INTO c VALUES ('p', 1, 0)");
    await db.exec("INSERT INTO b VALUES ('k', 1)");
    await db.exec("INSERT OR REPLACE INTO b VALUES ('l', 1)");
    await db.exec("UPDATE a SET id = 3 WHERE id = 2");
    await db.exec("DELETE FROM a");
    await db.exec("DELETE FROM c");
    await db
      .transaction(async (tx) => {
        await tx.exec("DELETE FROM b");
        throw 0;
      })
      .catch(() => {});
    await db.exec(`WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 1500)
      INSERT INTO a SELECT i, i FROM n`);
    return changes.map(({ tables, remote }) => [
      remote,
      tables.map(({ table, keys }) => [table, keys]),
    ]);
  });
  assert.deepEqual(heard, [
    [false, [["a", [1, 2]]]],
    [false, [["c", [["p", 1]]]]],
    [false, [["b", ["k"]]]],
    [false, [["b", ["k", "l"]]]],
    [false, [["a", [2, 3]]]],
    [false, [["a", [1, 3]]]],
    [false, [["c", [["p", 1]]]]],
    [false, [["a", null]]],
  ]);
  await page.close();
});

test("a live query gives its rows whenever they are others, also through views", async () => {
  const page = await stage.tab("live");
  await page.evaluate(async () => {
    await db.exec(
      "CREATE TABLE t(id INTEGER PRIMARY KEY, v); CREATE VIEW w AS SELECT v FROM t WHERE v > 1;" +
        "CREATE TABLE other(id INTEGER PRIMARY KEY)",
    );
    window.given = [];
    window.stop = db.liveQuery("SELECT v FROM w ORDER BY v", [], (rows) =>
      given.push(rows.map(({ v }) => v)),
    );
  });
  const given = (n) =>
    until(`${n} results`, () => page.evaluate((n) => given.length >= n && given, n));
  assert.deepEqual(await given(1), [[]]);
  await page.evaluate(() => db.exec("INSERT INTO t VALUES (1, 1), (2, 2)"));
  assert.deepEqual(await given(2), [[], [2]]);
  // Neither another table nor a row that the query does not show gives anything.
  await page.evaluate(() => db.exec("INSERT INTO other VALUES (1); INSERT INTO t VALUES (3, 0)"));
  await page.evaluate(() => db.exec("DELETE FROM t"));
  assert.deepEqual(await given(3), [[], [2], []]);
  await page.evaluate(async () => {
    stop();
    await db.exec("INSERT INTO t VALUES (5, 5)");
    await db.query("SELECT 1");
  });
  assert.equal((await given(3)).length, 3);
  await page.close();
});

test("export and import carry the whole database", async () => {
  const page = await stage.tab("copies");
  const result = await page.evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'a')");
    const file = await db.export();
    await db.exec("DELETE FROM t; CREATE TABLE u(x)");
    await db.import(file);
    const after = await db.query("SELECT v FROM t");
    const tables = await db.query("SELECT name FROM sqlite_schema ORDER BY name");
    const broken = file.slice();
    broken.fill(7, 100, 4000);
    const error = await db.import(broken).then(
      () => null,
      ({ code }) => code,
    );
    const memory = await wavesync.open("copy", { storage: "memory" });
    await memory.import(file);
    const copy = await memory.query("SELECT v FROM t");
    return [
      new TextDecoder().decode(file.slice(0, 15)),
      after,
      tables,
      error,
      await db.query("SELECT v FROM t"),
      copy,
    ];
  });
  const rows = [{ v: "a" }];
  assert.deepEqual(result, [
    "SQLite format 3",
    rows,
    [{ name: "t" }],
    "corrupt_database",
    rows,
    rows,
  ]);
  await page.close();
});

test("the first query comes soon after open, with a warm cache", async () => {
  const page = await stage.tab("warm");
  await page.evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  const times = [];
  const alone = [];
  for (let run = 0; run < 7; run++) {
    await page.reload();
    await page.waitForFunction(() => window.wavesync);
    // A Worker that does nothing: what the machine's other work costs shows in it, too.
    alone.push(
      await page.evaluate(async () => {
        const begun = performance.now();
        const script = URL.createObjectURL(new Blob(["postMessage(0)"]));
        await new Promise((heard) => (new Worker(script).onmessage = heard));
        return performance.now() - begun;
      }),
    );
    times.push(
      await page.evaluate(async () => {
        const begun = performance.now();
        window.db = await wavesync.open("test");
        await db.query("SELECT * FROM t");
        return performance.now() - begun;
      }),
    );
  }
  const median = (list) => list.sort((a, b) => a - b)[3];
  console.log(
    `start to first query, warm: ${median(times).toFixed(0)} ms (median of 7), an empty Worker ` +
      `${median(alone).toFixed(0)} ms; the goal is 300 on an idle machine`,
  );
  // The goal is ten times less. A machine that is busy with something else must not fail this.
  assert.ok(median(times) <= 3_000, `${median(times)} ms`);
  await page.close();
});
