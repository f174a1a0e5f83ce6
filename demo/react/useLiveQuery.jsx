// wavesync with React: a hook, and a list that uses it.
import { useEffect, useState } from "react";
import { open } from "wavesync";

/** One database for the whole application. */
export const database = open("react").then(async (db) => {
  await db.exec(`CREATE TABLE IF NOT EXISTS item(
    id TEXT PRIMARY KEY, name TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0)`);
  return db;
});

/** The rows of a query, now and whenever a tab or another member has changed them. */
export function useLiveQuery(sql, ...params) {
  const [state, setState] = useState({ rows: [], loading: true, error: null });
  const key = JSON.stringify(params);
  useEffect(() => {
    let stop = () => {};
    let gone = false;
    const fail = (error) => gone || setState({ rows: [], loading: false, error });
    database.then((db) => {
      if (gone) return;
      const give = (rows) => setState({ rows, loading: false, error: null });
      stop = db.liveQuery(sql, JSON.parse(key), give, fail);
    }, fail);
    return () => {
      gone = true;
      stop();
    };
  }, [sql, key]);
  return state;
}

export function List() {
  const { rows, loading, error } = useLiveQuery("SELECT id, name, done FROM item ORDER BY name");
  const run = async (sql, ...params) => (await database).exec(sql, params);
  const add = (event) => {
    event.preventDefault();
    run("INSERT INTO item(id, name) VALUES (?, ?)", crypto.randomUUID(), event.target.name.value);
    event.target.reset();
  };
  if (error)
    return (
      <p role="alert">
        {error.message}: {error.hint}
      </p>
    );
  if (loading) return <p>opening…</p>;
  return (
    <form onSubmit={add}>
      <input name="name" aria-label="new item" required /> <button>Add</button>
      <ul>
        {rows.map(({ id, name, done }) => (
          <li key={id} onClick={() => run("UPDATE item SET done = NOT done WHERE id = ?", id)}>
            {done ? <s>{name}</s> : name}
          </li>
        ))}
      </ul>
    </form>
  );
}
