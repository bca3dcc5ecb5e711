# make demo   three nodes, a top-of-rack router, pods and a policy, in network namespaces
# make test   everything that CI runs
# make bench  figures beside those of other daemons, in the same run
# make lint   formatting and lints only

CARGO ?= cargo
PROFILE = --profile ci --locked
export RUST_BACKTRACE ?= 1

.PHONY: all install build lint test demo bench
all: build

install:
	@tests/install.sh

build:
	$(CARGO) build $(PROFILE) --workspace --all-targets

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings

test: install lint build
	$(CARGO) test $(PROFILE) --workspace

# Thin LTO as in a release; the reference daemons and plugins from Debian.
bench: install
	$(CARGO) build --release --locked -p selvage -p selvage-tests --bin selvage --bin selvage-bench
	$(CARGO) build --profile shim --locked -p selvage-cni
	SELVAGE_BIN_DIR= target/release/selvage-bench all
