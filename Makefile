# replicator: `make help` says what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := all

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
WASM := wasm32-unknown-unknown
# A name NAME is built by the package NAME-module. chat-v1 and journal-v2 are other versions of chat and journal, for swaps.
MODULES := chat chat-v1 echo counter journal journal-v2 blocks
WASM_DIR := $(TARGET_DIR)/$(WASM)/wasm
MODULES_DIR := $(TARGET_DIR)/modules
# A panic message holds its source's path: the same module must come out of every checkout.
CARGO_DIR := $(or $(CARGO_HOME),$(HOME)/.cargo)
MODULE_FLAGS := --remap-path-prefix=$(CURDIR)=. --remap-path-prefix=$(CARGO_DIR)/registry/src=registry
NATIVE := -p replicator -p chat
# The build with a planted fault, for the tests of votes. Never built together with the real one, which would get the fault too; together
# with chat, so that the dependencies are those of the real one.
WRONG := replicator-wrong
ROUNDS ?= 50
# make faults: how often each fault is played, with which seed it begins, and which tests, by a part
# of their names; and which of the faults.
RUNS ?= 1
SEED ?= 1
TEST ?=
FAULTS ?= cuts power disks transfers
# make fuzz: for how long each target; a seed, a target and a case play that one again.
SECONDS_EACH := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),60)
TARGET ?=
CASE ?=
# SEED has a default for make faults; here a fresh one is taken unless somebody names one.
FUZZ_SEED := $(if $(filter file,$(origin SEED)),,$(SEED))

# $(call timed,what,command): runs the command, and says how long it took.
timed = @began=$$SECONDS; $(2); echo "$(1): $$((SECONDS - began)) s"

.PHONY: all help target modules build demo test torture faults fuzz verify fix bench clean

all: modules build ## Build the wasm modules, and the programs `replicator` and `chat`, into target/release
	@echo "built target/release/replicator and target/release/chat; next: make demo, or target/release/replicator --help"

help: ## Show this
	@echo "replicator: a wasm state machine, identical on several machines"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)$$/  make \1\t\2/' | expand -t 18

target:
	@if command -v rustup >/dev/null; then \
	  rustup target list --installed | grep -qx $(WASM) || rustup target add $(WASM); \
	elif [ ! -d "$$(rustc --print sysroot)/lib/rustlib/$(WASM)" ]; then \
	  echo "this Rust can't build $(WASM); install rustup, or your distribution's wasm target for Rust"; exit 1; \
	fi

modules: target ## Build the wasm modules into target/modules
	$(call timed,modules,CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS="$(MODULE_FLAGS)" $(CARGO) build --locked --profile wasm --target $(WASM) $(MODULES:%=-p %-module))
	@mkdir -p $(MODULES_DIR)
	@for m in $(MODULES); do cp $(WASM_DIR)/$${m//-/_}_module.wasm $(MODULES_DIR)/$$m.wasm; done

build:
	$(call timed,programs,$(CARGO) build --locked --release $(NATIVE))

demo: modules build ## Watch a replicated chat survive the death of its primary and the swap of its program, by majority and as a chain
	$(call timed,demo by majority,$(TARGET_DIR)/release/replicator demo --script)
	@echo
	$(call timed,demo of a chain,$(TARGET_DIR)/release/replicator demo --mode chain --script)
	@echo
	@echo "Now your turn: $(TARGET_DIR)/release/replicator demo     starts three nodes and says what to type."
	@echo "               $(TARGET_DIR)/release/replicator demo --script --nodes 5     loses two nodes at once."

test: modules build ## Run every test: unit, property, golden, and end to end with real processes
	$(call timed,the wrong program,$(CARGO) build --locked --release -p $(WRONG) -p chat)
	$(call timed,tests,$(CARGO) test --locked --release --workspace --exclude $(WRONG) --no-fail-fast)

torture: modules build ## Kill, stop and wipe nodes under load, as root fill their disks too, and account for every request: ROUNDS=50 with fresh seeds
	@for nodes in 3 3 3 5; do $(TARGET_DIR)/release/replicator torture --rounds $(ROUNDS) --nodes $$nodes; done
	@for order in backups-first parallel; do $(TARGET_DIR)/release/replicator torture --mode chain --persist-order $$order --rounds $(ROUNDS); done
	@for mode in majority chain; do $(TARGET_DIR)/release/replicator torture --mode $$mode --swap --rounds $(ROUNDS); done
	@full=--full-disk; if [ "$$(id -u)" != 0 ]; then full=; echo "SKIPPED full disks: only root can mount the small disks that are filled"; fi; \
	for mode in majority chain; do $(TARGET_DIR)/release/replicator torture --mode $$mode --wipe $$full --rounds $(ROUNDS); done

faults: modules build ## Cut links, power, disks and transfers, as root: RUNS=20 times each, FAULTS=power or TEST=primary for some
	@CARGO="$(CARGO)" RUNS=$(RUNS) SEED=$(SEED) TEST="$(TEST)" tests/faults.sh $(FAULTS)

fuzz: ## Try random and damaged modules and output lists: SECONDS=60 for each; SEED=, TARGET=loader and CASE= play one again
	@FUZZ_SECONDS=$(SECONDS_EACH) FUZZ_SEED=$(FUZZ_SEED) FUZZ_TARGET=$(TARGET) FUZZ_CASE=$(CASE) $(CARGO) test --locked --release --workspace --exclude $(WRONG) --test fuzz -- --nocapture

verify: target ## Check formatting, lints, docs, floors and licences; changes nothing
	$(CARGO) fmt --all --check
	$(call timed,clippy,$(CARGO) clippy --locked --release --workspace --exclude $(WRONG) --all-targets -- -D warnings)
	$(call timed,clippy of the wrong program,$(CARGO) clippy --locked --release -p $(WRONG) -p replicator -p chat -- -D warnings)
	./tests/floors.sh
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	  $(CARGO) deny --offline check bans licenses sources; \
	else \
	  echo "skipped: licences and bans of dependencies (cargo install cargo-deny; then make verify checks deny.toml)"; \
	fi

fix: ## Format, and apply what clippy can mend
	$(CARGO) clippy --release --workspace --exclude $(WRONG) --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

bench: modules ## Measure the machine: guest calls, session table, digest; the log; a module beside another
	$(CARGO) bench --locked -p replicator-machine
	$(CARGO) bench --locked -p replicator-storage
	$(CARGO) bench --locked -p replicator-offline

clean: ## Remove everything that was built
	$(CARGO) clean
