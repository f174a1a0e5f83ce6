#!/usr/bin/env node
//! Speaks like the sqlite3 shell, as far as the scenarios of sql-tests need it. Each of its
//! statements runs in a tab of Chromium, through the package; `run.mjs` has the browser.

import { readFileSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { resolve } from "node:path";
import { createInterface } from "node:readline";
import { isComplete, split } from "./statements.mjs";

const file = process.argv.at(-1);
const socket = connect(process.env.WAVESYNC_TABS);
const answers = [];
createInterface(socket).on("line", (line) => answers.shift()(JSON.parse(line, revive)));
socket.on("error", (error) => fail(`the browser: ${error.message}`));

let nothing = "";
let failed = false;

/** Bytes travel as base64. */
function revive(key, value) {
  return value?.base64 === undefined ? value : Buffer.from(value.base64, "base64");
}

function ask(request) {
  const bytes = (key, value) =>
    value?.type === "Buffer" ? { base64: Buffer.from(value.data).toString("base64") } : value;
  socket.write(`${JSON.stringify(request, bytes)}\n`);
  return new Promise((done) => answers.push(done));
}

async function call(request) {
  const { result, error } = await ask(request);
  if (error) throw new Error(error);
  return result;
}

function fail(message) {
  print(`Error: ${message}`);
  failed = true;
}

function print(line) {
  process.stdout.write(Buffer.isBuffer(line) ? line : `${line}\n`);
}

/** A value as the list mode prints it: text and blobs up to their first NUL. */
function shown(value) {
  if (value === null) return Buffer.from(nothing);
  const bytes = Buffer.from(value);
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}

/** The table-valued function of the shell, in plain SQL. */
const series = (_, from, to) =>
  `(WITH RECURSIVE n(value) AS (SELECT ${from} UNION ALL SELECT value + 1 FROM n ` +
  `WHERE value < ${to}) SELECT value FROM n)`;

/** What the shell's own functions do is done here. */
async function run(sql) {
  const params = [];
  let text = sql.replace(/generate_series\((\d+), (\d+)\)/gi, series);
  const written = /^\s*SELECT writefile\('([^']*)', ([^]*)\)( > 0)?( FROM [^]*)?;\s*$/i.exec(text);
  if (written) text = `SELECT ${written[2]}${written[4] ?? ""};`;
  text = text.replace(/readfile\('([^']*)'\)/gi, (_, path) => {
    params.push(readFileSync(path));
    return "?";
  });
  const rows = await call({ call: "run", sql: text, params });
  if (!written) {
    for (const row of rows) {
      const cells = row.flatMap((value, index) => [...(index ? [Buffer.from("|")] : []), shown(value)]);
      print(Buffer.concat([...cells, Buffer.from("\n")]));
    }
    return;
  }
  const bytes = Buffer.from(rows[0][0] ?? "");
  writeFileSync(written[1], bytes);
  print(written[3] ? String(Number(bytes.length > 0)) : String(bytes.length));
}

async function batch(text) {
  for (const sql of split(text)) await run(sql);
}

async function command(line) {
  const [name, ...words] = line.trim().split(/\s+/);
  const rest = words.join(" ").replace(/^(["'])([^]*)\1$/, "$2");
  switch (name) {
    case ".print":
      return print(rest);
    case ".nullvalue":
      nothing = rest;
      return;
    case ".read":
      return batch(readFileSync(rest, "utf8"));
    case ".timeout":
    case ".load":
    case ".mode":
      // The package waits for other tabs and has everything built in; rows are printed as a list.
      return;
    case ".quit":
      await call({ call: "close" });
      process.exit(failed ? 1 : 0);
      break;
    default:
      fail(`unknown command or invalid arguments: ${line}`);
  }
}

await call({ call: "open", file: resolve(file) });
let pending = "";
for await (const line of createInterface(process.stdin)) {
  try {
    if (!pending && line.startsWith(".")) {
      await command(line);
      continue;
    }
    pending += `${line}\n`;
    if (!isComplete(pending)) continue;
    const text = pending;
    pending = "";
    await batch(text);
  } catch (error) {
    fail(`near line 1: ${error.message}`);
  }
}
await call({ call: "close" });
process.exit(failed ? 1 : 0);
