# Everything that is built, checked and shown here. `make` alone lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# The profile of the extension that is built: release (what is shipped) or dev (quicker to rebuild).
PROFILE ?= release
# How many seeds the simulator runs.
SEEDS ?= 10000
# How many random scripts are compared with the reference model, and with the oracle of constraints.
CASES ?= 240
# A database for `make demo`; the bundled garden club when empty.
DB ?=

CARGO ?= cargo
# A step of the tests that takes longer hangs; it is ended, and fails. (Seconds.)
STEP_MAX ?= 2400
BOUNDED := timeout --verbose -k 10 $(STEP_MAX)
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
BUILT := $(TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
WASM := wasm32-unknown-unknown
# Packages that can share one set of features. The extension and the browser build choose how
# SQLite is linked and are always built apart; what bindgen needs would have libp2p built once more.
TESTED := $(addprefix -p wavesync-,core transport net relay)

RELAY_BUILD = $(CARGO) build --locked -p wavesync-relay
# By then its own tests have built it, with all the features that they share.
test: RELAY_BUILD = test -x $(TARGET_DIR)/debug/wavesync-relay
# The last line of each step of the tests: how long it took, where that is asked.
TOOK := true
test: TOOK = steps=$(TARGET_DIR)/steps; last=$$(tail -n 1 $$steps | cut -d' ' -f1); now=$$(date +%s); \
  echo "$$now $@ took $$((now - last)) s" | tee -a $$steps | cut -d' ' -f2-

# In the order written, also under -j: cargo uses all cores by itself.
.NOTPARALLEL:
.PHONY: help setup ext wasm core-tests browser browser-sql relay demo demo-web fmt clippy deny unit sim groups fuzz-short sim-quick ext-test sql kill faults check test soak fuzz bench bench-sync bench-contention clean begin-test

help: ## this list
	@echo "wavesync: any SQLite database, synced peer to peer"
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' Makefile | expand -t 18
	@echo
	@echo "  make demo DB=path.db shows the same with a copy of your own database"
	@echo "  make ext PROFILE=dev builds faster; make sim SEEDS=100 runs fewer seeds"
	@echo "  make sql ONLY='keys burst' runs the scenarios whose names contain these words"

setup: ## install what is missing (Debian, as root or with sudo); says what and why
	@scripts/setup.sh

ext: | setup ## build the extension: ./wavesync.so
	$(CARGO) build --locked --profile $(PROFILE) -p wavesync
	@# Without debug information (it stays in $(BUILT)), and moved into place: a process that has
	@# the old one loaded keeps it.
	@for name in wavesync.so libwavesync.so; do \
	  strip --strip-debug -o .$$name.new $(BUILT)/libwavesync.so; mv -f .$$name.new $$name; done
	@$(TOOK)
	@echo "built ./wavesync.so ($$(du -h wavesync.so | cut -f1)): in sqlite3, .load ./wavesync"

wasm: | setup ## build the browser module into wasm/pkg, the npm package into wasm/js/dist; says how large it is, and what is too much
	CARGO="$(CARGO)" scripts/web.sh
	cd wasm/js && npm ci --no-audit --no-fund --silent && npm run --silent build
	@$(TOOK)

core-tests: | setup ## core's own tests as a module for the browser, into wasm/core-tests/pkg
	scripts/wasm.sh $(CARGO) build --locked --profile simulator -p wavesync-core-tests --target $(WASM)
	$(CARGO) run --locked -q -p wavesync-bindgen -- $(TARGET_DIR)/$(WASM)/simulator/wavesync_core_tests.wasm wasm/core-tests/pkg
	@$(TOOK)

browser: wasm core-tests relay ext ## the browser build in Chromium, with a relay and sqlite3 shells
	cd wasm/tests && npm ci --no-audit --no-fund --silent
	WAVESYNC_RELAY="$(abspath $(TARGET_DIR)/debug/wavesync-relay)" WAVESYNC_EXT="$(abspath wavesync)" \
	  $(BOUNDED) npm test --silent --prefix wasm/tests
	WAVESYNC_RELAY="$(abspath $(TARGET_DIR)/debug/wavesync-relay)" WAVESYNC_EXT="$(abspath wavesync)" \
	  $(BOUNDED) npm test --silent --prefix wasm/js
	@$(TOOK)

browser-sql: wasm relay ext ## the scenarios of sql-tests with databases in tabs of Chromium (ONLY='keys burst')
	WAVESYNC_RELAY="$(abspath $(TARGET_DIR)/debug/wavesync-relay)" CARGO="$(CARGO)" \
	  $(BOUNDED) node wasm/js/test/corpus/run.mjs $(ONLY)
	@$(TOOK)

relay: | setup ## build the relay
	$(RELAY_BUILD)

demo: ext ## two sqlite3 shells converge (DB=path: on a copy of your database)
	@demo/run.sh $(if $(DB),"$(DB)")
	@$(TOOK)

demo-web: wasm relay ext ## a shared list: two tabs of a browser and a sqlite3 shell
	@node demo/web/run.mjs $(TARGET_DIR)/debug/wavesync-relay ./wavesync

fmt: | setup ## is the code formatted?
	$(CARGO) fmt --all --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	@$(TOOK)

clippy: | setup ## lints, warnings are errors
	@# In one call: else libp2p is checked, and built, anew for the features that each package wants.
	$(CARGO) clippy --locked -q $(TESTED) -p wavesync-sql-tests --all-targets -- -D warnings
	@$(CARGO) clippy --locked -q -p wavesync-bindgen --all-targets -- -D warnings
	@$(CARGO) clippy --locked -q -p wavesync-core --all-targets --features mutants -- -D warnings
	@echo "clippy wavesync"
	@$(CARGO) clippy --locked -q -p wavesync --all-targets -- -D warnings
	@echo "clippy wavesync-wasm"
	@# In the profiles in which they are built later, which then find the tools and SQLite compiled.
	@CARGO="$(CARGO)" scripts/web.sh clippy
	@scripts/wasm.sh $(CARGO) clippy --locked -q --profile simulator -p wavesync-core-tests --target $(WASM) -- -D warnings
	@$(TOOK)

deny: | setup ## licences, banned crates, advisories
	@scripts/deny.sh
	@$(TOOK)

unit: | setup ## unit, property and network tests of core, transport, net and relay
	$(BOUNDED) $(CARGO) test --locked $(TESTED)
	$(BOUNDED) $(CARGO) test --locked -p wavesync-bindgen
	@$(TOOK)

sim: | setup ## the simulator, the reference model, the oracle of constraints: many seeds, every property, planted mutants
	SEEDS=$(SEEDS) CASES=$(CASES) $(CARGO) test --locked --profile simulator -p wavesync-core --features mutants \
	  --lib $(addprefix --test ,auth seals self_check identity start_over collect resync turns simulator model constraints)

groups: | setup ## what a write costs in groups of 2 to 1,000 members (minutes)
	GROUP_SIZES=2,10,100,1000 $(CARGO) test --locked --profile simulator -p wavesync-core --test groups -- --nocapture

fuzz: | setup ## bytes of others, bent by a fuzzer (TIME=60 for each target, ONLY='frame apply', KEEP=1)
	TIME="$(TIME)" KEEP="$(KEEP)" scripts/fuzz.sh $(ONLY)

fuzz-short: | setup
	@# Where the fuzzer is installed, as much of it as fits into the tests.
	@if $(CARGO) fuzz --version >/dev/null 2>&1; then TIME=60 scripts/fuzz.sh; \
	  else echo "fuzz: SKIPPED, cargo-fuzz is not installed (make fuzz installs it)"; fi
	@$(TOOK)

sim-quick: ## the simulator as far as make test runs it (TEST_SEEDS=2000)
	@$(BOUNDED) $(MAKE) sim SEEDS=$(or $(TEST_SEEDS),2000)
	@$(TOOK)

ext-test: | setup ## load the extension into real hosts (shell, Python, apsw, old SQLite)
	$(BOUNDED) ext/tests/load.sh
	@$(TOOK)

sql: ext ## scenarios in real sqlite3 shells, and what the documents show
	$(BOUNDED) $(CARGO) test --locked -p wavesync-sql-tests -- $(ONLY)
	@$(TOOK)

kill: ext ## processes that sync are killed by SIGKILL (KILLS=200 SEED=1)
	KILLS="$(KILLS)" SEED="$(SEED)" $(BOUNDED) /usr/bin/python3 ext/tests/kill.py ./wavesync.so
	@$(TOOK)

faults: | setup ## each call of SQLite under a sync fails once and for ever (FAULTS=40 of each kind; hours)
	FAULTS=$(or $(FAULTS),all) $(CARGO) test --locked --profile simulator -p wavesync-core --test faults -- --nocapture

check: fmt clippy ## the quick part, before every commit
	$(CARGO) test --locked -p wavesync-core --lib

begin-test:
	@mkdir -p $(TARGET_DIR)
	@date "+%s begin" >$(TARGET_DIR)/steps

# The same random cases each time; `make unit` tries others.
test: export PROPTEST_RNG_SEED = 1
test: begin-test fmt clippy deny unit fuzz-short sim-quick ext-test sql kill demo browser browser-sql ## everything, in this order
	@cut -d' ' -f2- $(TARGET_DIR)/steps
	@echo "make test: all of it passed"

soak: ## what takes hours: 1,000 kills, every call of SQLite that can fail (KILLS=1000 FAULTS=all)
	@$(MAKE) kill KILLS=$(or $(KILLS),1000) STEP_MAX=14400
	@$(MAKE) faults

bench: | setup ## what it costs beside plain SQLite (ONLY='fold merge' KEYS=int ROWS=1000000 ROUNDS=3)
	ONLY="$(ONLY)" KEYS="$(KEYS)" ROWS="$(ROWS)" ROUNDS="$(ROUNDS)" \
	  $(CARGO) bench --locked -q -p wavesync-core --bench bench

bench-sync: ext relay ## what a sync costs end to end, between two sqlite3 shells (ONLY='rows blob' ROWS=100000)
	ONLY="$(ONLY)" ROWS="$(ROWS)" /usr/bin/python3 scripts/bench-sync.py ./wavesync.so $(TARGET_DIR)/debug/wavesync-relay

bench-contention: ext ## what a program that writes and the engine cost each other
	/usr/bin/python3 scripts/bench-contention.py .

clean: ## remove what was built
	$(CARGO) clean
	rm -f wavesync.so libwavesync.so
