# The way in. Each target installs what it needs from Debian's packages and says so; run as root.

.PHONY: help setup setup-bench setup-lintian setup-test fmt fmt-check lint lintian test steady soak sim sim-faults vm-test demo bench callers
.PHONY: mutants deb
.PHONY: cargo-deb

help:
	@echo "make demo     one run of everything attachd does, on real block devices"
	@echo "make test     all tests"
	@echo "make steady   all tests RUNS times beside a load on every processor (not part of CI)"
	@echo "make soak     everything at random for MINUTES, each word held against the world (not part of CI)"
	@echo "make sim      the engine in a simulated world, for STEPS steps of each of SEEDS (7,8,9)"
	@echo "make sim-faults  shows that the simulation finds faults that are put into the engine (not part of CI)"
	@echo "make vm-test  the tests in a virtual machine (VM_TESTS='name ...' for some)"
	@echo "make callers  docs/callers.md written from tests/callers/rows"
	@echo "make bench    measurements side by side, written to docs/benchmarks.md"
	@echo "make deb      the Debian package"
	@echo "make lintian  the same, held against Debian's policy"
	@echo "make lint     formatting and lints, as CI checks them"
	@echo "make fmt      put the formatting right"
	@echo "make mutants  cargo-mutants over identity, evidence and decide (not part of CI)"

setup:
	@tools/setup

setup-bench setup-lintian setup-test:
	@tools/setup $(@:setup-%=%)

fmt:
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: setup fmt-check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	cargo clippy --test vm --test soak --all-features -- -D warnings

# The tests kill the daemon at named points, which a release does not have. The service tests build and install the package.
test: cargo-deb setup-test
	cargo test --workspace --features kill-points -- --show-output

# A test that fails one time in ten is broken. TESTS='--test crash' for some.
steady: cargo-deb setup-test
	tools/steady $(or $(RUNS),10) $(TESTS)

# SEED=... for the same dice again.
soak: setup
	ATTACHD_SOAK_MINUTES=$(or $(MINUTES),2) $(if $(SEED),ATTACHD_SOAK_SEED=$(SEED)) cargo test --release --test soak

# The same seed is the same history. What fails says how it is repeated; ATTACHD_SIM_LINES=500 shows more of it.
sim: setup
	ATTACHD_SIM_SEEDS=$(or $(SEEDS),1,2,3) ATTACHD_SIM_STEPS=$(or $(STEPS),100000) \
	    cargo test --lib engine::sim::histories_as_wished -- --ignored --nocapture

sim-faults: setup
	tools/sim-faults

# In Debian guests under QEMU, with the package of a release. One guest at a time: it has two processors, too.
# What is measured and what fails shows at once: it takes half an hour.
vm-test: cargo-deb
	cargo test --release --test vm -- --test-threads=1 --nocapture $(VM_TESTS)

cargo-deb: setup
	@cargo deb --version >/dev/null 2>&1 || { echo "installing by cargo: cargo-deb"; cargo install cargo-deb --locked; }

deb: cargo-deb
	cargo deb

lintian: setup-lintian deb
	lintian --allow-root --fail-on error,warning target/debian/attachd_*.deb

demo: setup
	cargo build --release --bins
	cargo run --release --quiet --example demo

# The page of today's callers, from the data that the test replays.
callers: setup
	UPDATE=1 cargo test --features kill-points --test callers -- the_page_of_the_callers

bench: setup-bench
	cargo bench --bench attach

mutants: setup
	@command -v cargo-mutants >/dev/null || { echo "installing by cargo: cargo-mutants"; cargo install cargo-mutants --locked; }
	cargo mutants --no-shuffle --cargo-arg=--lib \
	    --file src/identity.rs --file src/device/evidence.rs --file src/engine/decide.rs
