# make demo   three nodes, a top-of-rack router, pods and a policy, in network namespaces (ARGS=--check: without asking)
# make test   everything that CI runs
# make demo-kubernetes   the same on a real Kubernetes cluster, in namespaces, and a KUBECONFIG to play with
# make conformance       upstream's NetworkPolicy suite on such a cluster, over IPv4 and over IPv6: half an hour
#                        (both take another Kubernetes by K8S=1.36.3, or K8S=1.38 for the newest of a minor version, betas too)
# make test-kernels      the trials and the tests that touch the kernel, on Debian's kernels 6.1 and 6.12 in virtual machines: an hour
#                        or two where they are emulated (KERNELS=6.1 and PARTS="netlink faults" choose)
# make bench  figures beside those of other daemons, in the same run
# make soak   a day of a cluster in fast motion against a naive model: an hour, or ARGS="--minutes 5 --seed 7"
# make image  the container image, as an archive (no container engine needed)
# make lint   formatting, lints, licences

CARGO ?= cargo
# One profile and one target for all of it: built once.
PROFILE = --profile ci --locked
BIN = $(or $(CARGO_TARGET_DIR),target)
export RUST_BACKTRACE ?= 1

# The version of Kubernetes for tests/cluster/build.sh; empty for the one in tests/cluster/go.mod.
export K8S
# The kernels of `make test-kernels`.
export KERNELS ?= 6.1 6.12

.PHONY: all install build lint test shim image test-image unit kernels cluster-programs system test-kernels demo demo-kubernetes conformance bench soak crds
all: build

install:
	@tests/install.sh

build:
	$(CARGO) build $(PROFILE) --workspace --all-targets

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(PROFILE) --workspace --no-deps
	shellcheck -o check-extra-masked-returns .ci/run tests/*.sh tests/*/*.sh
	$(CARGO) deny --locked --log-level error check licenses bans sources

# The programs of a Kubernetes cluster come after cargo: their linker wants 2 GB.
test: install lint build shim unit kernels test-image cluster-programs system

# The plugin as it is shipped.
shim:
	@tests/shim.sh

# The container image, from static programs and nothing else: IMAGE=NAME:TAG names it.
image:
	@tests/install.sh image
	@tests/image.sh

# The same with assertions, for the trials on a Kubernetes cluster.
test-image:
	@tests/image.sh test >/dev/null

unit:
	$(CARGO) test $(PROFILE) --workspace --exclude selvage-tests

# etcd, Kubernetes and containerd, once, into a folder outside the tree.
# The short part of test-kernels.
kernels:
	KERNELS=known tests/kernels/run.sh netlink

cluster-programs:
	@tests/cluster/build.sh >/dev/null

# Of the whole workspace: a package alone has other features in what it stands on, which would be built anew.
system:
	$(CARGO) test $(PROFILE) --workspace --test system

demo:
	@tests/install.sh demo
	$(CARGO) build $(PROFILE) -p selvage -p selvage-cni -p selvage-lab
	@$(BIN)/ci/selvage lab up tests/lab/demo.yaml $(ARGS)

# Kubelets need root; what is built is the user's own.
AS_ROOT = $(if $(filter 0,$(shell id -u)),,sudo) env SELVAGE_CLUSTER_DIR="$$programs"
CLUSTER = --image "$$image" --manifests manifests/overlays/mesh
# The pages of the guide are about the default version.
SUMMARY = $(if $(K8S),$(BIN)/conformance-$(K8S),docs/src/conformance)

test-kernels:
	@tests/install.sh kernels
	tests/kernels/run.sh $(PARTS)

demo-kubernetes:
	@tests/install.sh kubernetes
	@programs=$$(tests/cluster/build.sh) && image=$$(tests/image.sh quick) && \
	$(AS_ROOT) $(BIN)/ci/selvage lab kubernetes up --nodes 3 --router 65001 $(CLUSTER) --tour tests/lab/demo-kubernetes $(ARGS)

conformance:
	@tests/install.sh kubernetes
	@programs=$$(tests/cluster/build.sh conformance) && image=$$(tests/image.sh quick) && \
	$(AS_ROOT) $(BIN)/ci/selvage lab kubernetes conformance $(CLUSTER) --summary $(SUMMARY)-ipv4.md $(ARGS) && \
	$(AS_ROOT) $(BIN)/ci/selvage lab kubernetes conformance $(CLUSTER) --ipv6-first --summary $(SUMMARY)-ipv6.md $(ARGS)

# Thin LTO as in a release; the reference daemons from Debian, the reference plugins from Debian and from their module.
bench: install
	$(CARGO) build --release --locked -p selvage -p selvage-tests -p selvage-lab --bin selvage --bin selvage-bench --bin selvage-lab --example policy
	@tests/cluster/build.sh plugins >/dev/null
	shim=$$(tests/shim.sh) && cp "$$shim" $(BIN)/release/
	$(BIN)/release/selvage-bench $(or $(ARGS),all)
	$(BIN)/release/selvage-lab run -- $(BIN)/release/examples/policy

# As it is shipped, with the programs beside it.
soak:
	@tests/install.sh
	$(CARGO) build --release --locked -p selvage -p selvage-cni -p selvage-lab -p selvage-tests --bins
	$(BIN)/release/selvage-soak $(ARGS)

# The definitions of our objects, from the Rust types; a test says when they are not current.
crds: build
	$(BIN)/ci/selvage crds --directory manifests/crds
