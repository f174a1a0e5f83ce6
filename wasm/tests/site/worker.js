// The Worker that holds the database and its engine: calls of the module, as the npm package makes
// them.

import * as module from "./module/wavesync.js";

const PATH = "/test.db";
let database;

const calls = {
  async open({ memory = false } = {}) {
    await module.default();
    if (!memory) await module.poolInstall("wavesync-test");
    database = new module.Database(PATH, memory);
  },
  exec(sql) {
    const done = database.exec(sql, undefined);
    module.engineCommitted(PATH);
    return Number(done.changes);
  },
  query(sql) {
    const { rows } = database.query(sql, undefined);
    const plain = (value) => (typeof value === "bigint" ? Number(value) : value);
    return rows.map((row) => Array.from(row, plain));
  },
  join(topic, passphrase, options) {
    const site = module.engineJoin(PATH, topic, passphrase, JSON.stringify(options), false);
    module.engineOnChange(PATH, (tables) => postMessage({ change: tables }));
    module.engineOnStatus(PATH, () => postMessage({ snapshot: calls.status() }));
    return site;
  },
  leave: (forget = false) => module.engineLeave(PATH, forget),
  pause: () => module.enginePause(PATH),
  resume: () => module.engineResume(PATH),
  status: () => ({
    at: Date.now(),
    ...JSON.parse(module.engineStatus(PATH)),
    peers: JSON.parse(module.enginePeers(PATH)),
  }),
  events: (since = 0) => JSON.parse(module.engineEvents(PATH, since)),
};

onmessage = async ({ data: { number, name, parameters } }) => {
  try {
    postMessage({ number, result: await calls[name](...parameters) });
  } catch (error) {
    const { message, code, hint, stack } = error;
    postMessage({ number, error: { message: message ?? String(error), code, hint, stack } });
  }
};
