//! The module fails: its Worker ends, another one goes on, and whoever asked is told.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage, failure, until } from "./stage.mjs";

let stage;
before(async () => (stage = await Stage.open()));
after(() => stage.close());

/** A Worker of another tab is not up yet when the first one fails; it is when this has answered. */
const count = (page) => page.evaluate(() => db.get("SELECT count(*) AS n FROM t").then((r) => r.n));
const works = (page) => until("an answer", () => count(page).catch(() => undefined));

async function filled(site) {
  const page = await stage.tab(site);
  page.panics = 0;
  page.on("console", (message) => {
    if (message.text().includes("a test asked for this")) page.panics++;
  });
  await page.evaluate(() => db.exec("CREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES (1)"));
  return page;
}

test("calls in flight are told, and a fresh Worker goes on with every committed row", async () => {
  const page = await filled("crash");
  const told = await page.evaluate(async () => {
    const calls = [db.exec("INSERT INTO t VALUES (2)"), db.call("panic", [false])];
    for (let n = 0; n < 3; n++) calls.push(db.query("SELECT v FROM t"));
    return (await Promise.allSettled(calls)).map(
      ({ status, reason }) => reason && [status, reason.name, reason.code, reason.message],
    );
  });
  assert.equal(told[0], undefined, "what was done before is answered");
  for (const [status, name, code, message] of told.slice(1)) {
    assert.deepEqual([status, name, code], ["rejected", "WavesyncError", "crashed"]);
    assert.match(message, /a test asked for this/);
  }
  assert.equal(await works(page), 2);
  await page.evaluate(() => db.exec("INSERT INTO t VALUES (3)"));
  assert.equal(await count(page), 3);
  assert.equal(await page.evaluate(() => db.leads), true);
  await page.close();
});

test("another tab takes over; the call that made it fail is not repeated there", async () => {
  const first = await filled("relieved");
  const second = await filled("relieved");
  assert.equal(await second.evaluate(() => db.leads), false);
  const error = await failure(second, "await db.call('panic', [false])");
  assert.equal(error.code, "crashed");
  assert.equal(await works(second), 2);
  assert.equal(await works(first), 2);
  const leading = await Promise.all([first, second].map((page) => page.evaluate(() => db.leads)));
  assert.equal(leading.filter(Boolean).length, 1);
  assert.deepEqual([first.panics, second.panics], [1, 0]);
  await second.evaluate(() => db.exec("INSERT INTO t VALUES (3)"));
  assert.equal(await count(first), 3);
  await first.close();
  await second.close();
});

test("an engine that fails by itself comes back as a member of the same group", async () => {
  const page = await filled("rejoined");
  const peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
  await page.evaluate((peer) => {
    const relays = [`/ip4/127.0.0.1/tcp/9/ws/p2p/${peer}`];
    return db.join({ topic: "crash", passphrase: "correct horse battery staple", relays });
  }, peer);
  await page.evaluate(() => {
    window.roles = [];
    db.on("role", (leads) => roles.push(leads));
    return db.call("panic", [true]).catch(() => {});
  });
  await until("the fresh Worker", () => page.evaluate(() => roles.includes(true)));
  const joined = () => page.evaluate(() => db.status().then((status) => status.joined));
  await until("it is a member", joined);
  assert.equal(await count(page), 1);
  assert.equal(page.panics, 1);
  await page.close();
});

test("one that fails again and again is given up", async () => {
  const page = await filled("again");
  for (let time = 0; time < 4; time++) {
    assert.equal((await failure(page, "await db.call('panic', [false])")).code, "crashed");
    // Each time a fresh Worker has answered: else the next call would meet the one that fails.
    if (time < 3) assert.equal(await works(page), 1);
  }
  assert.equal(page.panics, 4);
  assert.equal((await failure(page, "await db.query('SELECT 1')")).code, "crashed");
  await page.evaluate(async () => (window.db = await wavesync.open("test")));
  assert.equal(await count(page), 1);
  await page.close();
});

test("a database in memory is lost, and no empty one takes its place", async () => {
  const page = await stage.tab("memory", { storage: "memory" });
  await page.evaluate(() => db.exec("CREATE TABLE t(v)"));
  assert.equal((await failure(page, "await db.call('panic', [false])")).code, "crashed");
  assert.equal((await failure(page, "await db.query('SELECT 1')")).code, "crashed");
  await page.close();
});
