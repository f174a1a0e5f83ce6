-- The books of a garden club: who rents which plot, what was sown, what was picked, who has the
-- wheelbarrow, and how the weather was. Made up for the demo and the tests; every run of this text
-- makes the same rows, by arithmetic and word lists. INTEGER, TEXT and composite keys, foreign
-- keys, WITHOUT ROWID, REAL, BLOB and NULL are all in it.
BEGIN;

CREATE TABLE member(
  member_id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  joined TEXT NOT NULL,
  phone TEXT
);

CREATE TABLE plot(
  plot_code TEXT PRIMARY KEY,
  square_metres REAL NOT NULL,
  soil TEXT NOT NULL,
  has_shed INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE tenancy(
  plot_code TEXT NOT NULL REFERENCES plot(plot_code),
  year INTEGER NOT NULL,
  member_id INTEGER NOT NULL REFERENCES member(member_id),
  rent_cents INTEGER NOT NULL CHECK(rent_cents > 0),
  PRIMARY KEY(plot_code, year)
);

CREATE TABLE crop(
  crop TEXT PRIMARY KEY,
  family TEXT NOT NULL,
  sow_month INTEGER NOT NULL,
  weeks INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE variety(
  crop TEXT NOT NULL REFERENCES crop(crop),
  variety TEXT NOT NULL,
  heirloom INTEGER NOT NULL,
  seeds BLOB,
  PRIMARY KEY(crop, variety)
) WITHOUT ROWID;

CREATE TABLE planting(
  planting_id INTEGER PRIMARY KEY,
  plot_code TEXT NOT NULL,
  year INTEGER NOT NULL,
  crop TEXT NOT NULL,
  variety TEXT NOT NULL,
  sown TEXT NOT NULL,
  metres REAL NOT NULL,
  FOREIGN KEY(plot_code, year) REFERENCES tenancy(plot_code, year),
  FOREIGN KEY(crop, variety) REFERENCES variety(crop, variety)
);
CREATE INDEX planting_by_plot ON planting(plot_code, year);

CREATE TABLE harvest(
  planting_id INTEGER NOT NULL REFERENCES planting(planting_id),
  picked TEXT NOT NULL,
  grams INTEGER NOT NULL CHECK(grams > 0),
  remark TEXT,
  PRIMARY KEY(planting_id, picked)
) WITHOUT ROWID;

CREATE TABLE tool(
  tool_id INTEGER PRIMARY KEY,
  name TEXT NOT NULL,
  bought INTEGER NOT NULL,
  price REAL
);

CREATE TABLE loan(
  tool_id INTEGER NOT NULL REFERENCES tool(tool_id),
  lent TEXT NOT NULL,
  member_id INTEGER NOT NULL REFERENCES member(member_id),
  returned TEXT,
  PRIMARY KEY(tool_id, lent)
);

CREATE TABLE weather(
  day TEXT PRIMARY KEY,
  low REAL NOT NULL,
  high REAL NOT NULL,
  rain_mm REAL
);

-- 48 members: two word lists of coprime lengths, so that no name comes twice.
WITH RECURSIVE
  n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 47),
  first(k, w) AS (SELECT key, value FROM json_each('["Ada","Björn","Chiara","Devi","Emeka",
    "Françoise","Goran","Hana","Ivo","Jiří","Kwame","Lotte","Małgorzata"]')),
  last(k, w) AS (SELECT key, value FROM json_each('["Aldersey","Brook","Crabapple","Dovecote",
    "Elmhurst","Fernsby","Gorse","Hollyoak","Ivyleaf","Juniper","O''Bracken"]'))
INSERT INTO member
SELECT i + 1, first.w || ' ' || last.w,
  date('2009-03-01', '+' || (i * 97 % 5200) || ' days'),
  CASE WHEN i % 5 = 3 THEN NULL ELSE printf('0555 %03d %03d', i * 389 % 1000, i * 617 % 1000) END
FROM n JOIN first ON first.k = i % 13 JOIN last ON last.k = i % 11;

-- 40 plots, A01 to D10.
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 39)
INSERT INTO plot
SELECT printf('%s%02d', char(65 + i / 10), i % 10 + 1), 80.0 + (i * 37 % 90) + 0.25 * (i % 4),
  json_extract('["clay","loam","sand","peat","chalk"]', '$[' || (i * 7 % 5) || ']'), i % 3 = 0
FROM n;

-- Five years of tenancies; some plots lay fallow.
WITH RECURSIVE y(year) AS (SELECT 2021 UNION ALL SELECT year + 1 FROM y WHERE year < 2025)
INSERT INTO tenancy
SELECT plot_code, year, (p.rowid * 11 + (year - 2021) / (1 + p.rowid % 3) * 17) % 48 + 1,
  CAST(square_metres * 21 AS INTEGER) + (year - 2021) * 50
FROM plot p, y WHERE (p.rowid * 13 + year) % 17 <> 0 ORDER BY 1, 2;

INSERT INTO crop VALUES
  ('beetroot', 'amaranth', 4, 12), ('broad bean', 'legume', 2, 18), ('carrot', 'umbellifer', 4, 14),
  ('chard', 'amaranth', 5, 9), ('courgette', 'gourd', 5, 10), ('garlic', 'allium', 10, 36),
  ('kale', 'brassica', 6, 16), ('leek', 'allium', 3, 26), ('lettuce', 'daisy', 4, 8),
  ('parsnip', 'umbellifer', 3, 30), ('pea', 'legume', 3, 13), ('potato', 'nightshade', 4, 16),
  ('pumpkin', 'gourd', 5, 18), ('radish', 'brassica', 3, 5), ('runner bean', 'legume', 5, 12),
  ('tomato', 'nightshade', 3, 20);

-- Four varieties of each crop, with the pattern of the seed packet as a blob.
WITH
  kind(k, w) AS (SELECT key, value FROM json_each('["Early","Late","Giant","Dwarf","Striped",
    "Golden","Purple","Crimson"]')),
  maker(k, w) AS (SELECT key, value FROM json_each('["Abbot","Duchess","Lantern","Orkney","Sailor",
    "Thimble","Windmill"]')),
  c(n, crop) AS (SELECT row_number() OVER (ORDER BY crop), crop FROM crop),
  four(m) AS (VALUES (0), (1), (2), (3))
INSERT INTO variety
SELECT crop, kind.w || ' ' || maker.w, (n + m) % 3 = 0,
  CASE WHEN (n + m) % 4 = 1 THEN NULL ELSE CAST(char(1 + n, 0, 200 + m) AS BLOB) END
FROM c, four JOIN kind ON kind.k = (n * 3 + m * 5) % 8 JOIN maker ON maker.k = (n + m * 2) % 7;

-- Four beds for each tenancy.
WITH
  t(n, plot_code, year) AS
    (SELECT row_number() OVER (ORDER BY plot_code, year), plot_code, year FROM tenancy),
  v(n, crop, variety) AS
    (SELECT row_number() OVER (ORDER BY crop, variety) - 1, crop, variety FROM variety),
  bed(b) AS (VALUES (0), (1), (2), (3))
INSERT INTO planting(plot_code, year, crop, variety, sown, metres)
SELECT plot_code, year, crop, variety,
  date(printf('%d-%02d-01', year, sow_month), '+' || ((t.n * 5 + b * 3) % 24) || ' days'),
  1.5 + (t.n * 7 + b * 11) % 9 * 0.5
FROM t, bed JOIN v ON v.n = (t.n * 23 + b * 17) % 64 JOIN crop USING(crop)
ORDER BY year, t.n, b;

-- Up to four pickings of each bed; slugs had the others.
WITH pick(p) AS (VALUES (0), (1), (2), (3))
INSERT INTO harvest
SELECT planting_id, date(sown, '+' || (weeks * 7 + p * 6) || ' days'),
  150 + (planting_id * 131 + p * 977) % 2900,
  CASE (planting_id * 3 + p) % 29 WHEN 0 THEN 'slugs had half of it' WHEN 7 THEN 'best of the show'
    WHEN 13 THEN 'shared with B04' WHEN 19 THEN 'a bit woody' END
FROM planting JOIN crop USING(crop), pick WHERE (planting_id + p * 3) % 5 < 3;

INSERT INTO tool(name, bought, price) VALUES
  ('wheelbarrow', 2012, 89.5), ('long ladder', 2009, 140.0), ('tiller', 2018, 620.0),
  ('hedge trimmer', 2020, 179.99), ('apple press', 2015, NULL), ('water pump', 2021, 233.25),
  ('cold frame', 2011, 45.0), ('broadfork', 2019, 118.0), ('scythe', 1987, NULL),
  ('soil sieve', 2016, 22.75), ('fruit picker', 2014, 31.0), ('canopy tent', 2022, 305.0);

WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 179)
INSERT INTO loan
SELECT i % 12 + 1, datetime('2024-02-03 09:30', '+' || (i * 83) || ' hours'), i * 29 % 48 + 1,
  CASE WHEN i > 171 THEN NULL
    ELSE datetime('2024-02-03 18:00', '+' || (i * 83 + i % 4 * 24) || ' hours') END
FROM n;

-- Two years of the rain gauge; it froze over now and then.
WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 730)
INSERT INTO weather
SELECT date('2024-01-01', '+' || i || ' days'),
  round(9.0 - abs(i % 365 - 200) / 14.0 + (i * 7919 % 61) / 10.0, 1),
  round(17.5 - abs(i % 365 - 200) / 13.0 + (i * 104729 % 83) / 10.0, 1),
  CASE WHEN i * 31 % 43 = 0 THEN NULL WHEN i * 17 % 5 < 3 THEN 0.0
    ELSE (i * 6151 % 237) / 10.0 END
FROM n;

COMMIT;
