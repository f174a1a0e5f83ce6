//! Syncing through the package: a sqlite3 shell, a relay, and tabs of which one has the database.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Group } from "./group.mjs";
import { Stage, failure, until } from "./stage.mjs";

const PASSPHRASE = "tidal lantern crisp orbit";
let stage, group;

before(async () => {
  stage = await Stage.open();
  group = await Group.open(stage.directory);
});
after(async () => {
  await group?.close();
  await stage?.close();
});

const join = (page) =>
  page.evaluate(
    ([relay, passphrase]) => db.join({ topic: "sync", passphrase, relays: [relay], name: "tab" }),
    [group.address, PASSPHRASE],
  );

test("what a join needs is said in typed errors", async () => {
  const page = await stage.tab("wrong");
  const codeOf = async (options) =>
    (
      await failure(page, "await db.join(argument)", {
        topic: "t",
        passphrase: PASSPHRASE,
        ...options,
      })
    )?.code;
  assert.equal(await codeOf({}), "no_relay");
  assert.equal(await codeOf({ relays: [group.address.replace("/ws", "")] }), "not_websocket");
  assert.equal(await codeOf({ relays: ["nonsense"] }), "bad_address");
  assert.equal(await codeOf({ relays: [group.address], listen: [] }), "bad_options");
  assert.equal((await failure(page, "await db.pause()")).code, "not_joined");
  await page.close();
});

test("remote changes are told in every tab with their keys, also of DELETE without WHERE", async () => {
  await group.run(`CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT); CREATE TABLE u(k TEXT PRIMARY KEY, v);
    INSERT INTO t VALUES (1, 'one');`);
  await group.join("sync", PASSPHRASE);
  const tabs = [await stage.tab("remote"), await stage.tab("remote")];
  for (const tab of tabs) {
    await tab.evaluate(() => {
      window.heard = [];
      window.statuses = 0;
      db.on("status", () => statuses++);
      db.onChange(({ tables, remote }) => {
        if (remote)
          for (const { table, keys } of tables)
            for (const key of keys ?? ["any"]) heard.push(`${table} ${key}`);
      });
    });
  }
  // Asked for by the tab that does not have the database.
  assert.match(await join(tabs[1]), /^[0-9a-f]{32}$/);
  const has = (tab, sql, want) =>
    until(`${sql} gives ${want}`, () =>
      tab.evaluate(
        ([sql, want]) =>
          db.query(sql).then(
            ([row]) => row?.v === want,
            () => false,
          ),
        [sql, want],
      ),
    );
  for (const tab of tabs) await has(tab, "SELECT v FROM t WHERE id = 1", "one");
  for (const tab of tabs)
    await tab.evaluate(() => {
      heard = [];
      db.liveQuery("SELECT id FROM t", [], (rows) => (window.live = rows.length));
    });
  const hears = (list) =>
    Promise.all(
      tabs.map((tab) =>
        until(`a tab hears ${list}`, () =>
          tab.evaluate(
            (list) =>
              list.every(
                (one) => heard.includes(one) || heard.includes(`${one.split(" ")[0]} any`),
              ),
            list,
          ),
        ),
      ),
    );
  await group.run("INSERT INTO t VALUES (7, 'seven'); INSERT INTO u VALUES ('k', 1);");
  await hears(["t 7", "u k"]);
  for (const tab of tabs) await until("the live query", () => tab.evaluate(() => live === 2));
  await group.run("DELETE FROM t;");
  await hears(["t 1", "t 7"]);
  for (const tab of tabs) await until("the live query", () => tab.evaluate(() => live === 0));
  const keys = await tabs[0].evaluate(() => heard);
  assert.ok(keys.includes("t 7") && keys.includes("u k"), `keys are told one by one: ${keys}`);
  // And a tab's own DELETE without WHERE travels.
  await tabs[1].evaluate(() => db.exec("DELETE FROM u"));
  await until(
    "u empty in the shell",
    async () => (await group.run("SELECT count(*) FROM u;"))[0] === "0",
  );
  for (const tab of tabs) {
    const { state, peers, events, statuses } = await tab.evaluate(async () => ({
      state: (await db.status()).state,
      peers: await db.peers(),
      events: await db.events(),
      statuses,
    }));
    assert.equal(state, "running");
    assert.equal(peers[0].path, "relayed");
    assert.ok(events.some(({ code }) => code === "connected") && statuses > 0);
  }
  await tabs[1].evaluate(() => db.leave({ forget: true }));
  assert.equal(await tabs[0].evaluate(() => db.status().then(({ joined }) => joined)), false);
  const left = await tabs[0].evaluate(() =>
    db.query("SELECT name FROM sqlite_schema WHERE name GLOB '__wavesync*'"),
  );
  assert.deepEqual(left, []);
  await Promise.all(tabs.map((tab) => tab.close()));
});

test("what gave way is listed by SQL, and comes back by it", async () => {
  await group.run("CREATE TABLE named(id TEXT PRIMARY KEY, name TEXT UNIQUE);");
  const tab = await stage.tab("refused");
  const query = (sql, params) =>
    tab.evaluate(([sql, params]) => db.query(sql, params), [sql, params]);
  assert.deepEqual(await query("SELECT state, topic FROM wavesync_status"), [
    { state: "off", topic: null },
  ]);
  assert.deepEqual(await query("SELECT * FROM wavesync_conflicts"), []);
  assert.match((await failure(tab, "await db.query('SELECT wavesync_retry()')")).message, /joined/);
  const site = await join(tab);
  await until("the table", () =>
    query("SELECT 1 FROM wavesync_tables WHERE name = 'named' AND tracked").then((r) => r[0]),
  );
  const paused = await tab.evaluate(() => db.pause().then(() => db.status()));
  assert.deepEqual([paused.state, paused.peers_connected], ["paused", 0]);
  await group.run("INSERT INTO named VALUES('a', 'same');");
  await query("INSERT INTO named VALUES('b', 'same')");
  await tab.evaluate(() => db.resume());
  const [conflict] = await until("the conflict", () =>
    query('SELECT * FROM wavesync_conflicts WHERE "table" = ?', ["named"]).then((r) => r[0] && r),
  );
  assert.deepEqual([conflict.pk, conflict.kind, conflict.parked], ["b", "unique", 1]);
  assert.deepEqual(JSON.parse(conflict.theirs), { name: "same" });
  assert.deepEqual(await query("SELECT conflicts, parked, state FROM wavesync_status"), [
    { conflicts: 0, parked: 1, state: "running" },
  ]);
  // A function writes through a connection of its own; the tab hears of it all the same.
  await tab.evaluate(() => {
    window.heard = [];
    db.onChange(({ tables }) =>
      tables.forEach(({ table, keys }) => keys?.forEach((key) => heard.push(`${table} ${key}`))),
    );
  });
  const inside = await failure(
    tab,
    "await db.transaction(async (tx) => { await tx.exec(`UPDATE named SET name = 'x'`); await tx.query(`SELECT wavesync_restore(${argument})`) })",
    conflict.id,
  );
  assert.match(inside.message, /part of a transaction/);
  assert.deepEqual(await query("SELECT wavesync_restore(?) AS done", [conflict.id]), [{ done: 1 }]);
  assert.deepEqual(await query("SELECT * FROM named"), [{ id: "b", name: "same" }]);
  await until("the tab hears", () => tab.evaluate(() => heard.includes("named b")));
  await until("the other one", async () => (await group.run("SELECT id FROM named;"))[0] === "b");
  const [own] = await query(
    "SELECT wavesync_site_id() AS site, typeof(wavesync_export()) AS export, wavesync_version() AS version, " +
      "wavesync_db_version() > 0 AS written, wavesync_config('name') AS name, wavesync_id() > 0 AS id",
  );
  const version = await tab.evaluate(() => wavesync.version);
  assert.deepEqual(own, { site, export: "blob", version, written: 1, name: "tab", id: 1 });
  assert.equal((await query("SELECT code FROM wavesync_events WHERE code = 'joined' OR code = 'connected'"))[0].code, "connected");
  assert.equal((await query("SELECT path FROM wavesync_peers"))[0].path, "relayed");
  // A file from elsewhere must not be able to call them.
  await query("CREATE VIEW sly AS SELECT wavesync_retry() AS done");
  assert.match((await failure(tab, "await db.query('SELECT * FROM sly')")).message, /unsafe/);
  await tab.close();
});

test("unfit calls by SQL are errors that say what to do, in memory as on OPFS", async () => {
  for (const storage of ["opfs", "memory"]) {
    const tab = await stage.tab(`unfit-${storage}`, { storage });
    const refused = async (sql, what) =>
      assert.match((await failure(tab, "await db.query(argument)", sql)).message, what, sql);
    await refused("SELECT wavesync_config('colour')", /^wavesync: there is no setting 'colour'/);
    await refused("SELECT wavesync_config('name', 'x')", /has not joined a group/);
    await refused("SELECT wavesync_restore('one')", /takes an id/);
    await refused("SELECT wavesync_restore()", /wrong number of arguments/);
    await refused("SELECT wavesync_apply(x'00')", /^wavesync: /);
    await refused("SELECT wavesync_track('t' || char(0) || 'x')", /^wavesync: /);
    await refused("SELECT wavesync_alter('DROP TABLE t')", /^wavesync: /);
    await refused("INSERT INTO wavesync_conflicts(id) VALUES (1)", /may not be modified/);
    await tab.evaluate(() => db.exec("CREATE TABLE t(v)"));
    const rows = (sql) => tab.evaluate((sql) => db.query(sql), sql);
    assert.equal((await rows("SELECT reason FROM wavesync_tables WHERE name = 't'")).length, 1);
    const hint = "call join() to sync this database";
    assert.deepEqual(await rows("SELECT hint FROM wavesync_status"), [{ hint }]);
    const ids = "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)";
    const counted = `${ids} SELECT count(DISTINCT id) AS n FROM (SELECT wavesync_id() AS id FROM n)`;
    assert.deepEqual(await rows(counted.replace("WITH", "WITH RECURSIVE")), [{ n: 10000 }]);
    await tab.close();
  }
});

test("a decision about rows from before a join is told, and the next leader takes none", async () => {
  const box = (page, word) =>
    page.evaluate(async (word) => {
      await db.exec("CREATE TABLE box(id INTEGER PRIMARY KEY, v TEXT NOT NULL)");
      for (const number of [1, 2, 3])
        await db.exec("INSERT INTO box(v) VALUES (?)", [`${word} ${number}`]);
    }, word);
  const join = (page, options) =>
    page.evaluate(
      ([relay, passphrase, options]) =>
        db.join({ topic: "boxes", passphrase, relays: [relay], ...options }),
      [group.address, PASSPHRASE, options],
    );
  const values = (page) =>
    page.evaluate(async () => (await db.query("SELECT v FROM box")).map(({ v }) => v));
  const states = (page) =>
    page.evaluate(() => db.peers().then((peers) => peers.map(({ state }) => state).sort()));
  const first = await stage.tab("box-first");
  await box(first, "first");
  const leader = await stage.tab("box-second");
  const other = await stage.tab("box-second");
  await box(leader, "second");
  await join(leader, {});
  await join(first, {});
  await until("they do not exchange", async () => (await states(leader)).join() === "unrelated");
  await other.evaluate(() => {
    window.told = [];
    db.onChange(({ tables, remote }) => {
      if (!remote) told.push(...tables.map(({ table, keys }) => `${table} ${keys}`));
    });
  });
  await join(leader, { existing: "new_ids" });
  await until("the new ids are told", () => other.evaluate(() => told.includes("box null")));
  for (const page of [first, other])
    await until("all six boxes", async () => (await values(page)).length === 6);
  // Somebody else with other rows under these ids: nobody has said anything about those.
  const third = await stage.tab("box-third");
  await box(third, "third");
  await join(third, {});
  await until("two members do not exchange with it", async () =>
    (await states(third)).join() === "unrelated,unrelated",
  );
  await until("the leader has noticed", async () => (await states(leader)).includes("unrelated"));
  await leader.close();
  await first.evaluate(() => db.exec("INSERT INTO box(v) VALUES ('first, later')"));
  await until("the next leader syncs", async () => (await values(other)).includes("first, later"));
  await until("and does not exchange with it either", async () =>
    (await states(other)).includes("unrelated"),
  );
  assert.equal((await values(third)).length, 3);
  for (const page of [first, other, third]) await page.close();
});

test("who leads for a moment only leaves the next one joined, and a leave at that moment counts", async () => {
  const tabs = [];
  for (let n = 0; n < 4; n++) tabs.push(await stage.tab("moment"));
  await tabs[0].evaluate(() => db.exec("CREATE TABLE t(id INTEGER PRIMARY KEY, v)"));
  await join(tabs[0]);
  const joined = (page) => page.evaluate(async () => (await db.status()).joined);
  await until("all know that it is joined", async () =>
    (await Promise.all(tabs.map(joined))).every(Boolean),
  );
  // The second one takes over and is gone before it has joined again.
  await tabs[0].evaluate(() => db.close());
  await tabs[1].evaluate(() => db.exec("INSERT INTO t(v) VALUES (1)").then(() => db.close()));
  await until("the third one is joined", () => joined(tabs[2]));
  // The fourth one takes over, and leaves before it has joined again.
  await tabs[2].evaluate(() => db.close());
  await tabs[3].evaluate(() => db.leave());
  await tabs[3].evaluate(async () => {
    const end = performance.now() + 500;
    while (performance.now() < end)
      if ((await db.status()).joined) throw new Error("what was left is joined again");
  });
  for (const tab of tabs) await tab.close();
});

test("a tab that takes over is off the network, and leaves tables alone, as the one before it", async () => {
  const tabs = [await stage.tab("goes-on"), await stage.tab("goes-on")];
  await tabs[0].evaluate(
    async ([relay, passphrase]) => {
      await db.exec("CREATE TABLE a(id INTEGER PRIMARY KEY); CREATE TABLE b(id INTEGER PRIMARY KEY)");
      const tables = ["a", "b"];
      await db.join({ topic: "goes-on", passphrase, relays: [relay], tables });
      await db.query("SELECT wavesync_untrack('b')");
      await db.pause();
    },
    [group.address, PASSPHRASE],
  );
  const state = () => tabs[1].evaluate(() => db.status().then(({ state }) => state));
  await until("the other tab hears of it", async () => (await state()) === "paused");
  await tabs[0].evaluate(() => db.close());
  await until("it has joined again", async () => (await state()) === "paused");
  const tracked = await tabs[1].evaluate(() =>
    db.query("SELECT name, tracked FROM wavesync_tables ORDER BY name"),
  );
  assert.deepEqual(tracked, [
    { name: "a", tracked: 1 },
    { name: "b", tracked: 0 },
  ]);
  await tabs[1].evaluate(() => db.resume());
  await until("it is on the network", async () => (await state()) === "running");
  await Promise.all(tabs.map((tab) => tab.close()));
});
