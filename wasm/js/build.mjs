//! Makes dist/ from src/ and the module that `make wasm` has built.
//!
//!     node build.mjs [DIRECTORY with wavesync.js and wavesync_bg.wasm]

import { cpSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

process.chdir(fileURLToPath(new URL(".", import.meta.url)));
const module = process.argv[2] ?? "../pkg";

const { version } = JSON.parse(readFileSync("package.json", "utf8"));
if (!readFileSync("src/version.ts", "utf8").includes(`"${version}"`)) {
  throw new Error("src/version.ts and package.json have different versions");
}
rmSync("dist", { recursive: true, force: true });
rmSync("generated", { recursive: true, force: true });
mkdirSync("generated");
cpSync(`${module}/wavesync.js`, "generated/wavesync.js");
execFileSync("node_modules/.bin/tsc", ["--noEmit"], { stdio: "inherit" });
execFileSync("node_modules/.bin/tsc", ["--emitDeclarationOnly"], { stdio: "inherit" });
const common = { bundle: true, format: "esm", target: "es2022", legalComments: "none" };
// The Worker is one file, so that it can also be copied or served as it is.
await build({ ...common, entryPoints: ["src/worker.ts"], outfile: "dist/worker.js", minify: true });
await build({ ...common, entryPoints: ["src/index.ts"], outfile: "dist/index.js" });
cpSync(`${module}/wavesync_bg.wasm`, "dist/wavesync_bg.wasm");
