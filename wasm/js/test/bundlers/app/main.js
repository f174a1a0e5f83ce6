// What any application would write: no configuration, no path.
import { open } from "wavesync";

window.opened = open("test").then(async (db) => {
  await db.exec("CREATE TABLE IF NOT EXISTS t(v); INSERT INTO t VALUES ('bundled')");
  return (await db.get("SELECT count(*) AS n FROM t")).n;
});
