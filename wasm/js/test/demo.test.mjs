//! The demo: a list that a tab, a second tab and a sqlite3 shell share through a real relay. Takes
//! pictures of it, as a phone and as a desktop show it, into test/pictures.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Group } from "./group.mjs";
import { Stage, until } from "./stage.mjs";

const HERE = fileURLToPath(new URL(".", import.meta.url));
let stage, group;

before(async () => {
  stage = await Stage.open();
  stage.folders = { "/dist/": join(HERE, "../dist/"), "/": join(HERE, "../../../demo/web/") };
  group = await Group.open(stage.directory);
});
after(async () => {
  await group?.close();
  await stage?.close();
});

const run = (sql) => group.run(sql);
const names = (page) => page.locator("#list span").allTextContents();
const shows = (page, list) =>
  until(`the list ${list}`, async () => `${await names(page)}` === `${list}`);

test("a tab, a second tab and a sqlite3 shell share a list", async () => {
  const place = `${stage.site("demo")}/#${new URLSearchParams({
    topic: "demo",
    passphrase: "tidal lantern crisp orbit",
    relay: group.address,
    name: "browser",
  })}`;
  await run(`CREATE TABLE item(id TEXT PRIMARY KEY, name TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0, at INTEGER NOT NULL);
    INSERT INTO item VALUES ('1', 'Milk', 0, 1), ('2', 'Bread from the bakery at the corner, if they still have the one with walnuts', 1, 2);`);
  await group.join("demo", "tidal lantern crisp orbit");
  const first = await stage.context.newPage();
  await first.setViewportSize({ width: 390, height: 844 });
  await first.goto(place);
  const bread = "Bread from the bakery at the corner, if they still have the one with walnuts";
  await shows(first, ["Milk", bread]);
  const second = await stage.context.newPage();
  await second.setViewportSize({ width: 1280, height: 800 });
  await second.goto(place);
  await shows(second, ["Milk", bread]);
  // From the second tab everywhere.
  await second.fill("#name", "Apples");
  await second.press("#name", "Enter");
  await shows(first, ["Milk", "Apples", bread]);
  await until(
    "the row in the shell",
    async () =>
      `${await run("SELECT name FROM item ORDER BY done, at;")}` === `Milk,Apples,${bread}`,
  );
  // From the shell everywhere; from the first tab everywhere.
  await run("UPDATE item SET done = 1 WHERE id = '1';");
  await shows(second, ["Apples", "Milk", bread]);
  await first.getByLabel("remove Apples").click();
  await until(
    "the row gone in the shell",
    async () => (await run("SELECT count(*) FROM item;"))[0] === "2",
  );
  for (const page of [first, second]) {
    await shows(page, ["Milk", bread]);
    await until("the shell among those connected", async () =>
      /kitchen shell.*relayed/s.test(await page.locator("#peers").textContent()),
    );
    await until("in sync", async () => (await page.locator("#state").textContent()) === "in sync");
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    assert.ok(!wide, "nothing sticks out at the side");
  }
  mkdirSync(join(HERE, "pictures"), { recursive: true });
  await first.screenshot({ path: join(HERE, "pictures/phone.png") });
  await second.screenshot({ path: join(HERE, "pictures/desktop.png") });
  // The tab that has the database goes; the other one goes on, and joins again by itself.
  await first.close();
  await run("INSERT INTO item VALUES ('3', 'Salt', 0, 3);");
  await shows(second, ["Salt", "Milk", bread]);
  assert.equal(await second.locator("#role").textContent(), "has the database");
});
