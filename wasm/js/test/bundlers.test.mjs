//! The package as npm packs it, bundled by Vite, webpack and esbuild without configuration, and
//! without any bundler.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";
import { Stage } from "./stage.mjs";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));
const HERE = join(PACKAGE, "test/bundlers");
let stage, work;

before(async () => {
  // Not `npm ci`: the lock has the builds for this kind of machine only, and it wants all of them.
  if (!existsSync(join(HERE, "node_modules")))
    run("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--silent"], HERE);
  stage = await Stage.open();
  work = join(HERE, "work");
  rmSync(work, { recursive: true, force: true });
  // As after npm install wavesync.
  const installed = join(work, "node_modules/wavesync");
  mkdirSync(installed, { recursive: true });
  const archive = run("npm", ["pack", "--silent", "--pack-destination", work], PACKAGE).trim();
  run("tar", ["-xzf", join(work, archive), "--strip-components=1", "-C", installed], work);
  cpSync(join(HERE, "app"), work, { recursive: true });
  writeFileSync(join(work, "package.json"), '{"private": true, "type": "module"}');
});
after(async () => {
  await stage.close();
  rmSync(work, { recursive: true, force: true });
});

function run(command, args, cwd) {
  return execFileSync(command, args, {
    cwd,
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
}

const tool = (name, args) => run(join(HERE, "node_modules/.bin", name), args, work);

/** Opens what was built; gives what the application read. */
async function opens(site, folder) {
  stage.folders = { "/": `${folder}/` };
  const page = await stage.context.newPage();
  page.on("pageerror", (error) => console.error(`${site}: ${error.stack}`));
  await page.goto(`${stage.site(site)}/`);
  await page.waitForFunction(() => window.opened);
  const count = await page.evaluate(() => window.opened);
  await page.close();
  return count;
}

test("Vite", async () => {
  tool("vite", ["build", "--logLevel", "warn"]);
  assert.equal(await opens("vite", join(work, "dist")), 1);
});

test("webpack", async () => {
  tool("webpack", [
    "--mode",
    "production",
    "--entry",
    "./main.js",
    "-o",
    "webpack",
    "--stats",
    "errors-only",
  ]);
  writeFileSync(join(work, "webpack/index.html"), '<!doctype html><script src="main.js"></script>');
  assert.equal(await opens("webpack", join(work, "webpack")), 1);
});

test("esbuild, with two files copied beside the bundle", async () => {
  tool("esbuild", [
    "main.js",
    "--bundle",
    "--format=esm",
    "--outdir=esbuild",
    "--log-level=warning",
  ]);
  for (const file of ["worker.js", "wavesync_bg.wasm"]) {
    cpSync(join(work, "node_modules/wavesync/dist", file), join(work, "esbuild", file));
  }
  cpSync(join(work, "index.html"), join(work, "esbuild/index.html"));
  assert.equal(await opens("esbuild", join(work, "esbuild")), 1);
});

test("no bundler: a module script and an import map", async () => {
  writeFileSync(
    join(work, "index.html"),
    `<!doctype html>
    <script type="importmap">{"imports": {"wavesync": "./node_modules/wavesync/dist/index.js"}}</script>
    <script type="module" src="./main.js"></script>`,
  );
  assert.equal(await opens("plain", work), 1);
});

test("React, with the hook of demo/react", async () => {
  const example = fileURLToPath(new URL("../../../demo/react/useLiveQuery.jsx", import.meta.url));
  assert.ok(readFileSync(example, "utf8").trimEnd().split("\n").length <= 60);
  cpSync(example, join(work, "useLiveQuery.jsx"));
  for (const name of ["react", "react-dom", "scheduler"]) {
    cpSync(join(HERE, "node_modules", name), join(work, "node_modules", name), { recursive: true });
  }
  writeFileSync(
    join(work, "react.jsx"),
    `import { createElement } from "react";
    import { createRoot } from "react-dom/client";
    import { List, database } from "./useLiveQuery.jsx";
    window.database = database;
    createRoot(document.body.appendChild(document.createElement("div"))).render(createElement(List));`,
  );
  tool("esbuild", [
    "react.jsx",
    "--bundle",
    "--format=esm",
    "--jsx=automatic",
    "--outdir=react",
    "--log-level=warning",
  ]);
  for (const file of ["worker.js", "wavesync_bg.wasm"]) {
    cpSync(join(work, "node_modules/wavesync/dist", file), join(work, "react", file));
  }
  writeFileSync(
    join(work, "react/index.html"),
    '<!doctype html><body><script type="module" src="react.js"></script>',
  );
  stage.folders = { "/": `${join(work, "react")}/` };
  const tabs = [await stage.context.newPage(), await stage.context.newPage()];
  for (const tab of tabs) await tab.goto(`${stage.site("react")}/`);
  await tabs[1].fill("[name=name]", "Milk");
  await tabs[1].press("[name=name]", "Enter");
  for (const tab of tabs) await tab.waitForSelector("li:text('Milk')");
  await tabs[0].click("li:text('Milk')");
  for (const tab of tabs) await tab.waitForSelector("s:text('Milk')");
  await Promise.all(tabs.map((tab) => tab.close()));
});
