// A shared list: every tab of this page, and every sqlite3 shell that joined, shows the same one.
// The address of the page says whom to sync with: #topic=…&passphrase=…&relay=…
import { open } from "/dist/index.js";

const $ = (id) => document.getElementById(id);
const say = (text, bad = false) => {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
};
const fail = ({ message, hint }) => say(hint ? `${message}: ${hint}` : message, true);

const db = await open("shopping").catch((error) => {
  fail(error);
  throw error;
});
window.db = db;
await db.exec(`CREATE TABLE IF NOT EXISTS item(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0, at INTEGER NOT NULL)`);

db.liveQuery("SELECT id, name, done FROM item ORDER BY done, at, id", [], show, fail);

$("add").onsubmit = (event) => {
  event.preventDefault();
  const row = [crypto.randomUUID(), $("name").value.trim(), Date.now()];
  if (row[1]) db.exec("INSERT INTO item(id, name, at) VALUES (?, ?, ?)", row).catch(fail);
  $("name").value = "";
};

function show(rows) {
  $("empty").hidden = rows.length > 0;
  $("list").replaceChildren(
    ...rows.map(({ id, name, done }) => {
      const item = document.createElement("li");
      const [label, box, text, remove] = ["label", "input", "span", "button"].map((tag) =>
        document.createElement(tag),
      );
      item.classList.toggle("done", done === 1);
      box.type = "checkbox";
      box.checked = done === 1;
      box.onchange = () =>
        db.exec("UPDATE item SET done = ? WHERE id = ?", [box.checked, id]).catch(fail);
      text.textContent = name;
      remove.textContent = "✕";
      remove.ariaLabel = `remove ${name}`;
      remove.onclick = () => db.exec("DELETE FROM item WHERE id = ?", [id]).catch(fail);
      label.append(box, text);
      item.append(label, remove);
      return item;
    }),
  );
}

function showStatus({ status, peers }) {
  if (status.last_error) say(`${status.last_error}: ${status.hint}`, true);
  else if (!status.joined) say("not synced");
  else if (peers.length === 0) say("waiting for others…");
  else if (status.rows_behind > 0) say("syncing…");
  else say("in sync");
  $("behind").textContent = status.rows_behind ?? "–";
  const relays =
    typeof status.relays === "string" ? JSON.parse(status.relays) : (status.relays ?? []);
  $("relay").textContent = relays.map(({ state }) => state).join(", ") || "none";
  $("peers").replaceChildren(
    ...peers.map((peer) => {
      const row = document.createElement("tr");
      const rtt = peer.rtt_ms === null ? "–" : `${peer.rtt_ms} ms`;
      for (const text of [peer.name || peer.peer_id.slice(-8), peer.path, rtt, peer.rows_behind]) {
        row.insertCell().textContent = text;
      }
      return row;
    }),
  );
  if (peers.length === 0) $("peers").insertRow().insertCell().textContent = "nobody";
}

const showRole = (leads) => {
  $("role").textContent = leads ? "has the database" : "passes its requests to another tab";
};
showRole(db.leads);
db.on("role", showRole);
db.on("status", showStatus);

const wish = new URLSearchParams(location.hash.slice(1));
if (wish.has("relay") && !(await db.status()).joined) {
  say("joining…");
  const options = {
    topic: wish.get("topic"),
    passphrase: wish.get("passphrase"),
    relays: [wish.get("relay")],
  };
  await db.join({ ...options, name: wish.get("name") ?? "browser" }).catch(fail);
}
showStatus({ status: await db.status(), peers: await db.peers() });
