//! Core's own tests in the browser (wasm/core-tests): each export of the module whose name begins
//! with `test` is one.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Stage } from "./stage.mjs";

/** Fewer than this, and the module was not made from all the files. */
const TESTS_MIN = 130;

let stage;
let page;
before(async () => {
  stage = await Stage.open();
  page = await stage.blank("core");
});
after(() => stage.close());

/** A fresh instance: a test that failed leaves its own broken. */
const load = (number) =>
  page.evaluate(async (number) => {
    const made = await import(`/core-tests/wavesync.js?${number}`);
    window.tests = await made.default();
    return Object.keys(tests).filter((name) => name.startsWith("test "));
  }, number);

test("core's tests pass", async (context) => {
  const names = await load(0);
  assert.ok(names.length >= TESTS_MIN, `${names.length} tests`);
  let failed = 0;
  for (const name of names) {
    await context.test(name.split(" ").at(-1), async () => {
      const said = [];
      const listen = (message) => said.push(message.text());
      page.on("console", listen);
      const error = await page.evaluate((name) => {
        try {
          tests[name]();
          return null;
        } catch (error) {
          return String(error);
        }
      }, name);
      page.off("console", listen);
      if (error) await load(++failed);
      assert.equal(error, null, said.join("\n"));
    });
  }
});
