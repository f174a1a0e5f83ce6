//! Many tabs of one site share a database: one has it, the others pass requests on and take over.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage, failure, until } from "./stage.mjs";

let stage;
before(async () => (stage = await Stage.open()));
after(() => stage.close());

const leads = (page) => page.evaluate(() => db.leads);

/** Five tabs; the first one has the database. */
async function five(site) {
  const tabs = [];
  for (let n = 0; n < 5; n++) tabs.push(await stage.tab(site));
  assert.deepEqual(await Promise.all(tabs.map(leads)), [true, false, false, false, false]);
  return tabs;
}

const closeAll = (tabs) => Promise.all(tabs.map((tab) => tab.close().catch(() => {})));

test("queries, writes, transactions, changes and live queries work in every tab", async () => {
  const tabs = await five("share");
  await tabs[3].evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, tab INTEGER)"));
  for (const tab of tabs) {
    await tab.evaluate(() => {
      window.heard = [];
      db.onChange(({ tables }) =>
        heard.push(...tables.flatMap(({ table, keys }) => (table === "t" ? keys : []))),
      );
      db.liveQuery("SELECT count(*) AS n FROM t", [], ([{ n }]) => (window.live = n));
    });
  }
  await Promise.all(
    tabs.map((tab, n) =>
      tab.evaluate(async (n) => {
        for (let row = 0; row < 20; row++)
          await db.exec("INSERT INTO t VALUES (?, ?)", [n * 100 + row, n]);
        await db.transaction(async (tx) => {
          const { n: mine } = await tx.get("SELECT count(*) AS n FROM t WHERE tab = ?", [n]);
          await tx.exec("INSERT INTO t VALUES (?, ?)", [n * 100 + mine, n]);
        });
      }, n),
    ),
  );
  for (const [n, tab] of tabs.entries()) {
    const { rows, blob } = await tab.evaluate(async () => ({
      rows: await db.query("SELECT tab, count(*) AS n FROM t GROUP BY tab"),
      blob: [...(await db.get("SELECT ? AS v", [new Uint8Array([1, 2])])).v],
    }));
    assert.deepEqual(
      rows,
      [0, 1, 2, 3, 4].map((tab) => ({ tab, n: 21 })),
      `tab ${n}`,
    );
    assert.deepEqual(blob, [1, 2]);
    await until(`all changes in tab ${n}`, () =>
      tab.evaluate(() => heard.length === 105 && live === 105),
    );
    assert.equal(
      (await failure(tab, "await db.exec('INSERT INTO t VALUES (0, 0)')")).code,
      "constraint",
    );
  }
  const state = await tabs[4].evaluate(() => db.status().then((status) => status.joined));
  assert.equal(state, false);
  await closeAll(tabs);
});

test("when the tab that has the database is killed, another one goes on with every accepted write", async () => {
  const tabs = await five("failover");
  await tabs[0].evaluate(() =>
    db.exec("CREATE TABLE t(tab, n, PRIMARY KEY(tab, n)); INSERT INTO t VALUES (-1, 0)"),
  );
  for (const [tab, page] of tabs.entries()) {
    await page.evaluate((tab) => {
      Object.assign(window, { accepted: 0, errors: [], empty: 0, gap: 0, last: performance.now() });
      window.writing = (async () => {
        while (!window.enough) {
          try {
            await db.exec("INSERT INTO t VALUES (?, ?)", [tab, accepted + 1]);
            accepted++;
          } catch ({ code, message }) {
            errors.push(`${code}: ${message}`);
            break;
          }
        }
      })();
      window.reading = (async () => {
        while (!window.enough) {
          const { n } = await db.get("SELECT count(*) AS n FROM t");
          const now = performance.now();
          gap = Math.max(gap, now - last);
          last = now;
          if (n === 0) empty++;
          await new Promise((next) => setTimeout(next, 5));
        }
      })();
    }, tab);
  }
  const progress = () => Promise.all(tabs.slice(1).map((page) => page.evaluate(() => accepted)));
  await until("writes of all tabs", async () => Math.min(...(await progress())) > 10);
  await Promise.all(
    tabs.slice(1).map((page) =>
      page.evaluate(() => {
        gap = 0;
        last = performance.now();
      }),
    ),
  );
  const acceptedByLeader = await tabs[0].evaluate(() => accepted);
  const session = await stage.context.newCDPSession(tabs[0]);
  await Promise.race([session.send("Page.crash").catch(() => {}), tabs[0].waitForEvent("crash")]);
  const before = await progress();
  const alive = tabs.slice(1);
  await until("writes after the take-over", async () =>
    (await progress()).every((count, n) => count > before[n] + 10),
  );
  await Promise.all(
    alive.map((page) =>
      page.evaluate(async () => {
        enough = true;
        await writing;
        await reading;
      }),
    ),
  );
  const seen = await Promise.all(
    alive.map((page) => page.evaluate(() => ({ accepted, errors, empty, gap }))),
  );
  const gap = Math.max(...seen.map((tab) => tab.gap));
  console.log(`take-over: the longest wait was ${gap.toFixed(0)} ms; the goal is 1000`);
  assert.deepEqual(
    seen.flatMap(({ errors }) => errors),
    [],
  );
  assert.deepEqual(
    seen.map(({ empty }) => empty),
    [0, 0, 0, 0],
  );
  assert.equal((await Promise.all(alive.map(leads))).filter(Boolean).length, 1);
  const rows = await alive[2].evaluate(() =>
    db.query(
      "SELECT tab, count(*) AS n, max(n) AS last FROM t WHERE tab >= 0 GROUP BY tab ORDER BY tab",
    ),
  );
  const [leader, ...others] = rows;
  assert.ok(leader.n >= acceptedByLeader && leader.n === leader.last);
  assert.deepEqual(
    others,
    seen.map(({ accepted }, n) => ({ tab: n + 1, n: accepted, last: accepted })),
  );
  // Five times the goal: a machine that is busy with something else must not fail this.
  assert.ok(gap <= 5_000, `${gap} ms`);
  await closeAll(tabs);
});

test("the transaction of a tab that is gone is rolled back", async () => {
  const tabs = [await stage.tab("dead"), await stage.tab("dead")];
  await tabs[0].evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  await tabs[1].evaluate(() => {
    void db.transaction(async (tx) => {
      await tx.exec("INSERT INTO t VALUES (1)");
      window.begun = true;
      await new Promise(() => {});
    });
  });
  await tabs[1].waitForFunction(() => window.begun);
  await tabs[1].close();
  const rows = await tabs[0].evaluate(async () => {
    await db.exec("INSERT INTO t VALUES (2)");
    return db.query("SELECT id FROM t");
  });
  assert.deepEqual(rows, [{ id: 2 }]);
  await closeAll(tabs);
});

test("the transaction of the tab that had the database is rolled back when it ends", async () => {
  const tabs = [await stage.tab("deadleader"), await stage.tab("deadleader")];
  await tabs[0].evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY); INSERT INTO t VALUES (0)");
    void db.transaction(async (tx) => {
      await tx.exec("INSERT INTO t VALUES (1)");
      window.begun = true;
      await new Promise(() => {});
    });
  });
  await tabs[0].waitForFunction(() => window.begun);
  const waiting = tabs[1].evaluate(() => db.query("SELECT id FROM t"));
  await tabs[0].close();
  assert.deepEqual(await waiting, [{ id: 0 }]);
  await closeAll(tabs);
});

test("a transaction whose leader is gone is lost as a whole, with an error that says so", async () => {
  const tabs = [await stage.tab("lost"), await stage.tab("lost")];
  await tabs[1].evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)");
    window.go = new Promise((resolve) => (window.proceed = resolve));
    window.outcome = db
      .transaction(async (tx) => {
        await tx.exec("INSERT INTO t VALUES (1)");
        window.begun = true;
        await go;
        await tx.exec("INSERT INTO t VALUES (2)");
      })
      .then(
        () => "committed",
        ({ code }) => code,
      );
  });
  await tabs[1].waitForFunction(() => window.begun);
  await tabs[0].close();
  await until("the take-over", () => leads(tabs[1]));
  const [outcome, rows] = await tabs[1].evaluate(async () => {
    proceed();
    return [await outcome, await db.query("SELECT id FROM t")];
  });
  assert.deepEqual([outcome, rows], ["transaction_lost", []]);
  await closeAll(tabs);
});

test("a download that takes longer than a tab waits for an answer keeps no tab from opening", async () => {
  const worker = "/dist/worker.js";
  // A tab waits two seconds instead of 15 for the one that has the database.
  stage.rewritten[worker] = (text) => {
    const shorter = text.replace("15e3", "2e3");
    assert.notEqual(shorter, text);
    return shorter;
  };
  stage.delays["/dist/wavesync_bg.wasm"] = 6_000;
  const tabs = await Promise.all([stage.tab("slow"), stage.tab("slow")]);
  delete stage.rewritten[worker];
  delete stage.delays["/dist/wavesync_bg.wasm"];
  await tabs[0].evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)"));
  await tabs[1].evaluate(() => db.exec("INSERT INTO t VALUES (1)"));
  await closeAll(tabs);
});

test("closing the database in one tab hands it over", async () => {
  const tabs = [await stage.tab("close"), await stage.tab("close")];
  await tabs[0].evaluate(async () => {
    await db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY)");
    await db.close();
  });
  await tabs[1].evaluate(() => db.exec("INSERT INTO t VALUES (1)"));
  assert.ok(await leads(tabs[1]));
  await tabs[1].evaluate(() => db.close());
  await tabs[0].evaluate(() => wavesync.deleteDatabase("test"));
  assert.deepEqual(
    await tabs[0].evaluate(async () =>
      (await wavesync.open("test")).query("SELECT name FROM sqlite_schema"),
    ),
    [],
  );
  await closeAll(tabs);
});
