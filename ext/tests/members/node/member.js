// node member.js LIBRARY DATABASE NAME OPTIONS COUNT: see ../meet.py.
const Database = require('better-sqlite3');

const [library, database, name, options, count] = process.argv.slice(2);
const db = new Database(database, { timeout: 5000 });
db.loadExtension(library);
const ask = (sql, ...values) => db.prepare(sql).pluck().get(...values);

async function until(sql, expected) {
  const start = Date.now();
  while (ask(sql) < expected) {
    if (Date.now() - start > 60000) throw new Error('in vain: ' + sql);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

(async () => {
  ask("SELECT wavesync_join('hosts', 'correct horse battery staple', ?)", options);
  await until("SELECT count(*) FROM sqlite_schema WHERE name = 'seen'", 1);
  db.prepare('INSERT INTO seen VALUES (?, sqlite_version())').run(name);
  await until('SELECT count(*) FROM seen', Number(count));
  await until('SELECT wavesync_wait(1000)', 1);
  db.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
