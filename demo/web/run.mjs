// Starts the demo: a relay, a server for the page, and a sqlite3 shell with the same list.
//
//     node demo/web/run.mjs RELAY EXTENSION
//
// Everything is on loopback. It ends with the shell (.quit).

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const [relayProgram, extension] = process.argv.slice(2);
if (!extension) throw new Error("usage: node demo/web/run.mjs RELAY EXTENSION");
const HERE = fileURLToPath(new URL(".", import.meta.url));
const DIST = join(HERE, "../../wasm/js/dist");
const TYPES = {
  ".html": "text/html",
  ".js": "text/javascript",
  ".css": "text/css",
  ".wasm": "application/wasm",
};
const PORT = Number(process.env.PORT ?? 8377);

const work = await mkdtemp(join(tmpdir(), "wavesync-web-demo-"));
const relay = spawn(
  relayProgram,
  ["--listen", "/ip4/127.0.0.1/tcp/0/ws", "--identity", join(work, "key")],
  { stdio: ["ignore", "pipe", "ignore"] },
);
const lines = createInterface(relay.stdout);
const [address] = await Promise.race([
  once(lines, "line"),
  once(relay, "exit").then(() => Promise.reject(new Error("the relay does not start"))),
]);
lines.on("line", () => {});

const server = createServer(async (request, response) => {
  const path = normalize(new URL(request.url, "http://x").pathname);
  const file = path.startsWith("/dist/")
    ? join(DIST, path.slice(6))
    : join(HERE, path === "/" ? "index.html" : path);
  try {
    const body = await readFile(file);
    response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "text/plain" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await once(server.listen(PORT, "127.0.0.1"), "listening");

const passphrase = "tidal lantern crisp orbit";
const place = new URLSearchParams({ topic: "demo", passphrase, relay: address });
const options = JSON.stringify({
  listen: ["/ip4/127.0.0.1/tcp/0"],
  relays: [address],
  mdns: false,
  name: "shell",
});
const setup = join(work, "setup.sql");
await writeFile(
  setup,
  `.load ${extension}
CREATE TABLE item(id TEXT PRIMARY KEY, name TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0, at INTEGER NOT NULL);
INSERT INTO item VALUES ('milk', 'Milk', 0, 1), ('bread', 'Bread', 0, 2);
SELECT 'joined as ' || wavesync_join('demo', '${passphrase}', '${options}');
`,
);
console.log(`
A shared list. Open this page in two tabs:

  http://localhost:${PORT}/#${place}

and this is a sqlite3 shell with the same list. Try, here:

  INSERT INTO item VALUES ('salt', 'Salt', 0, 3);
  SELECT name, done FROM item;
  SELECT name, path, rows_behind FROM wavesync_peers;
`);
const shell = spawn("sqlite3", ["-init", setup, join(work, "shell.db")], { stdio: "inherit" });
await once(shell, "exit");
server.close();
server.closeAllConnections();
relay.kill();
await rm(work, { recursive: true, force: true, maxRetries: 5 });
