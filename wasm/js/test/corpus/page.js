//! In a tab: statements as the sqlite3 shell runs them, through the package's `db`.

let transaction;

/** Each value as the bytes that the shell prints: SQLite turns numbers into text, not JavaScript. */
function asText(sql, columns) {
  const names = columns.map((_, index) => `c${index}`);
  const texts = names.map(
    (name) => `CASE typeof(${name}) WHEN 'blob' THEN ${name} ELSE CAST(${name} AS TEXT) END`,
  );
  const body = sql.trim().replace(/;$/, "");
  return `WITH _shell(${names}) AS MATERIALIZED (${body}\n) SELECT ${texts} FROM _shell`;
}

async function rows(runner, sql, params) {
  const statement = await runner.prepare(sql);
  const reads = statement.readonly && /^\s*(SELECT|VALUES|WITH)\b/i.test(sql);
  const text = reads ? asText(sql, statement.columns) : sql;
  // By position: columns may have the same name.
  const found = await runner.call("query", [text, params.length ? params : undefined]);
  return found.rows.map((row) => row.map(encoded));
}

const encoded = (value) =>
  value instanceof Uint8Array ? { base64: value.toBase64() } : value === null ? null : `${value}`;

function begin() {
  return new Promise((begun, failed) => {
    const ended = db.transaction(
      (runner) =>
        new Promise((commit, rollback) => {
          transaction = { runner, commit, rollback, ended: () => ended };
          begun();
        }),
    );
    ended.catch(failed);
  });
}

async function end(commit) {
  const { commit: done, rollback, ended } = transaction;
  transaction = undefined;
  if (commit) {
    done();
    await ended();
  } else {
    rollback(new Error("ROLLBACK"));
    await ended().catch(() => {});
  }
  return [];
}

async function run(sql, params) {
  if (!transaction && /^\s*BEGIN\b/i.test(sql)) return begin().then(() => []);
  if (transaction && /^\s*(COMMIT|END)\b/i.test(sql)) return end(true);
  if (transaction && /^\s*ROLLBACK\s*(TRANSACTION\s*)?;/i.test(sql)) return end(false);
  return rows(transaction?.runner ?? db, sql, params);
}

/** Runs one statement. Gives its rows, or what is wrong with it. */
window.shell = async (sql, params) => {
  try {
    return { result: await run(sql, params.map((param) => Uint8Array.fromBase64(param))) };
  } catch ({ message, hint }) {
    return { error: hint ? `${message}; ${hint}` : message };
  }
};

/** Calls the package, as above. */
window.attempt = async (body, argument) => {
  try {
    return { result: await body(argument) };
  } catch ({ message, hint }) {
    return { error: hint ? `${message}; ${hint}` : message };
  }
};

window.exported = async () => (await db.export()).toBase64();
window.imported = (bytes) => db.import(Uint8Array.fromBase64(bytes));
