// A tab in real Chromium against the real relay program, sqlite3 shells and other tabs.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage, freePort, until } from "./stage.mjs";

const PASSPHRASE = "correct horse battery staple";
const NOTE = "CREATE TABLE note(id TEXT PRIMARY KEY, body TEXT);";
const TOTALS = "SELECT count(*), total(length(body)) FROM note";

/** A table with so many rows of about 100 bytes. */
const filled = (rows) => `${NOTE}
  INSERT INTO note WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ${rows})
  SELECT printf('key-%08d', i), hex(randomblob(40)) || i FROM n;`;

let stage;
let relay;
before(async () => {
  stage = await Stage.open();
  relay = await stage.relay();
});
after(() => stage?.close());

const joined = async (name, topic, { passphrase = PASSPHRASE, sql, ...options } = {}) => {
  const tab = await stage.tab(name);
  if (sql) await tab.call("exec", sql);
  await tab.call("join", topic, passphrase, { relays: [relay.address], ...options });
  return tab;
};
const caughtUp = (tab) =>
  until("the tab is caught up", async () => (await tab.call("status")).caught_up);

test("a fresh tab asks at once for 10,000 rows of history, and all of them arrive", async () => {
  const shell = await stage.shell("history");
  await shell.run(filled(10_000));
  await shell.join("history", PASSPHRASE, relay);
  await until("the shell is reserved", async () =>
    (await shell.run("SELECT relays FROM wavesync_status;"))[0].includes("reserved"));
  const tab = await joined("history", "history");
  const connected = await tab.event("connected");
  await tab.gives("SELECT count(*) FROM sqlite_schema WHERE name = 'note'", 1);
  await tab.gives("SELECT count(*) FROM note", 10_000);
  await caughtUp(tab);

  // The content, not only the count.
  const [[count, bytes]] = await tab.call("query", TOTALS);
  assert.equal(`${count}|${bytes}.0`, (await shell.run(`${TOTALS};`))[0]);
  const [last] = await shell.run("SELECT body FROM note WHERE id = 'key-00010000';");
  assert.equal(await tab.one("SELECT body FROM note WHERE id = 'key-00010000'"), last);

  // The member is asked for its tables with the first message, and for its rows as soon as they
  // are here: one round trip later.
  const snapshots = await tab.page.evaluate(() => window.snapshots);
  const shown = snapshots.filter(({ peers }) => peers[0]?.site_id);
  const asked = shown.find(({ peers }) => peers[0].requests_out >= 1);
  assert.equal(asked.peers[0].requests_out, 1);
  const adopted = await tab.event("schema_adopted");
  const pause = asked.at - Date.parse(adopted.at);
  // One round trip, on a machine that may be busy; whoever waits for a timer takes 30 s.
  assert.ok(pause < 5_000, `it asked ${pause} ms after the tables came`);
  const status = await tab.call("status");
  assert.equal(status.peers[0].path, "relayed");
  assert.equal(status.peers[0].rows_in, 10_000);
  const reserved = await tab.event("relay_reserved");
  const wait = Date.parse(connected.at) - Date.parse(reserved.at);
  console.log(`  member connected ${wait} ms after the reservation, round trip ` +
    `${status.peers[0].rtt_ms?.toFixed(1)} ms`);
  assert.ok(wait < 10_000, `the member was connected ${wait} ms after the reservation`);

  // Live from here on, in both directions, and the application hears of it.
  await tab.page.evaluate(() => (window.changes = []));
  await shell.run("UPDATE note SET body = 'from the shell' WHERE id = 'key-00000001';");
  await tab.gives("SELECT body FROM note WHERE id = 'key-00000001'", "from the shell");
  await until("the change is told", () => tab.page.evaluate(() => window.changes.length > 0));
  assert.deepEqual(await tab.page.evaluate(() => window.changes[0]), '["note"]');
  await tab.call("exec", "UPDATE note SET body = 'from the tab' WHERE id = 'key-00000002'");
  await shell.gives("SELECT body FROM note WHERE id = 'key-00000002';", "from the tab");
  await tab.page.close();
  await shell.close();
});

test("two tabs sync through the relay, live and after both were away", async () => {
  const a = await joined("a", "tabs", { sql: `${NOTE} INSERT INTO note VALUES('1', 'from a')` });
  const b = await joined("b", "tabs");
  await b.gives("SELECT count(*) FROM sqlite_schema WHERE name = 'note'", 1);
  await b.gives("SELECT body FROM note WHERE id = '1'", "from a");
  await b.call("exec", "INSERT INTO note VALUES('2', 'from b')");
  await a.gives("SELECT body FROM note WHERE id = '2'", "from b");

  for (const tab of [a, b]) {
    await tab.call("pause");
    await until("it is away", async () => (await tab.call("status")).state === "paused");
  }
  await a.call("exec", "UPDATE note SET body = 'by a' WHERE id = '1'");
  await a.call("exec", "INSERT INTO note VALUES('3', 'a')");
  await b.call("exec", "DELETE FROM note WHERE id = '2'; INSERT INTO note VALUES('4', 'b')");
  await b.call("exec", "INSERT INTO note VALUES('5', 'b')");
  for (const tab of [a, b]) await tab.call("resume");
  const both = [["1", "by a"], ["3", "a"], ["4", "b"], ["5", "b"]];
  for (const tab of [a, b]) {
    const rows = () => tab.call("query", "SELECT id, body FROM note ORDER BY id");
    await until("both edits are there", async () => (await rows()).length === 4);
    assert.deepEqual(await rows(), both);
  }
  await a.page.close();
  await b.page.close();
});

test("a tab returns by itself after the relay was restarted", async () => {
  const [a, b] = [await joined("a2", "restart", { sql: NOTE }), await joined("b2", "restart")];
  await b.gives("SELECT count(*) FROM sqlite_schema WHERE name = 'note'", 1);
  await relay.stop();
  await b.event("relay_lost");
  await until("nobody is connected", async () => (await b.call("status")).peers_connected === 0);
  await a.call("exec", "INSERT INTO note VALUES('1', 'while it was away')");
  await relay.start();
  await b.gives("SELECT count(*) FROM note", 1);
  await b.call("exec", "INSERT INTO note VALUES('2', 'back')");
  await a.gives("SELECT count(*) FROM note", 2);
  await a.page.close();
  await b.page.close();
});

test("a wrong passphrase connects nobody and says so", async () => {
  const a = await joined("a3", "secret", { sql: `${NOTE} INSERT INTO note VALUES('1', 'secret')` });
  // Members meet by a tag of the key, so whoever has another one is not even found at the relay.
  const b = await joined("b3", "secret", { passphrase: "not the right one at all" });
  await b.event("relay_reserved");
  await until("the relay has answered", async () =>
    (await b.call("status")).relays[0].state === "reserved");
  const status = await b.call("status");
  assert.equal(status.peers_connected, 0);
  assert.match(status.hint, /no member is connected/);
  assert.equal(await b.one("SELECT count(*) FROM sqlite_schema WHERE name = 'note'"), 0);
  // Whoever goes to it directly is refused.
  const me = (await a.call("status")).peer_id;
  await b.call("leave");
  await b.call("join", "secret", "not the right one at all", {
    peers: [`${relay.address}/p2p-circuit/p2p/${me}`],
  });
  const refused = await until("it is refused", async () =>
    (await b.call("status")).peers.find(({ state }) => state === "refused"));
  assert.match(refused.last_error + refused.hint, /passphrase/);
  assert.equal(await b.one("SELECT count(*) FROM sqlite_schema WHERE name = 'note'"), 0);
  const joinedTwice = await a.attempt("join", "secret", "another", { relays: [relay.address] });
  assert.equal(joinedTwice.code, "already_joined");
  await a.page.close();
  await b.page.close();
});

test("a first sync of 100,000 rows keeps queries quick and memory small", async () => {
  const shell = await stage.shell("large");
  await shell.run(filled(100_000));
  await shell.join("large", PASSPHRASE, relay);
  const tab = await joined("large", "large");
  const probed = tab.page.evaluate(() => window.probe("SELECT count(*) FROM sqlite_schema"));
  const begun = Date.now();
  await tab.gives("SELECT count(*) FROM sqlite_schema WHERE name = 'note'", 1);
  const done = async () => {
    const { peers, caught_up: even } = await tab.call("status");
    return even && peers[0]?.rows_in >= 100_000;
  };
  await until("all rows are there", done, 120_000);
  const seconds = (Date.now() - begun) / 1000;
  await tab.page.evaluate(() => (window.stop = true));
  const { times, late } = await probed;
  const at = (list, part) => list.sort((a, b) => a - b)[Math.floor((list.length - 1) * part)];
  assert.equal(await tab.one("SELECT count(*) FROM note"), 100_000);
  const { memory_bytes: memory } = await tab.call("status");
  const [p50, p99, most, noise] = [at(times, 0.5), at(times, 0.99), at(times, 1), at(late, 0.99)];
  console.log(`  ${seconds.toFixed(1)} s, ${times.length} queries meanwhile: p50 ` +
    `${p50.toFixed(0)}, p99 ${p99.toFixed(0)}, at most ${most.toFixed(0)} ms, an idle page waits ` +
    `${noise.toFixed(0)}; memory ${(memory / 2 ** 20).toFixed(0)} MiB`);
  const snapshots = await tab.page.evaluate(() => window.snapshots);
  const steps = new Set(snapshots.map(({ peers }) => peers[0]?.rows_in ?? 0));
  assert.ok(steps.size >= 10, `progress was shown in ${steps.size} steps`);
  // The goal is that 99 of 100 queries take 100 ms, and on an idle machine they do. What the
  // machine's other work costs an idle page, it costs a Worker on each of its many turns.
  assert.ok(p50 <= 100 + 2 * noise, `half of the queries took more than ${p50} ms`);
  assert.ok(p99 <= 100 + 20 * noise, `of 100 queries, one took ${p99} ms`);
  assert.ok(memory <= 128 * 2 ** 20, `${memory} bytes of memory`);
  await tab.page.close();
  await shell.close();
});

test("mistakes in joining are told by a code and what to do", async () => {
  const tab = await stage.tab("mistakes");
  const code = async (options, topic = "x") =>
    (await tab.attempt("join", topic, PASSPHRASE, options)).code;
  const id = relay.address.split("/p2p/")[1];
  assert.equal(await code({}), "no_relay");
  assert.equal(await code({ relays: [`/ip4/127.0.0.1/tcp/4001/p2p/${id}`] }), "not_websocket");
  assert.equal(await code({ relays: ["/ip4/127.0.0.1/tcp/4001/ws"] }), "bad_address");
  assert.equal(await code({ relays: ["127.0.0.1:4001"] }), "bad_address");
  assert.equal(await code({ relay: [] }), "bad_options");
  assert.equal(await code({ listen: [] }), "bad_options");
  assert.equal(await code({ relays: [relay.address] }, ""), "bad_argument");
  assert.equal((await tab.attempt("pause")).code, "not_joined");
  assert.equal((await tab.call("status")).joined, false);
  await tab.page.close();

  // The same address is fine for a page without TLS, and so is a relay on the same machine.
  const secure = await stage.tab("mistakes", { secure: true });
  const plain = { relays: [`/dns4/relay.example/tcp/80/ws/p2p/${id}`] };
  assert.equal((await secure.attempt("join", "x", PASSPHRASE, plain)).code, "insecure_websocket");
  const local = await secure.attempt("join", "x", PASSPHRASE, { relays: [relay.address] });
  assert.equal(local.code, undefined, local.message);
  await secure.page.close();
});

test("a relay that has no websockets there is named, and what to do", async () => {
  const port = await freePort();
  const id = relay.address.split("/p2p/")[1];
  const tab = await stage.tab("nobody");
  await tab.call("join", "x", PASSPHRASE, { relays: [`/ip4/127.0.0.1/tcp/${port}/ws/p2p/${id}`] });
  const lost = await tab.event("relay_lost");
  assert.match(lost.hint, /\/ws/);
  assert.equal((await tab.call("status")).relays[0].state, "waiting");
  await tab.page.close();
});
