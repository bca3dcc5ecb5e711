#!/usr/bin/env bash
# Installs what `make test` and the demos need beyond make, a C compiler and Rust: Debian packages, the musl target,
# cargo-deny, Go. Does nothing when all is there; says at the end what is missing and what that means.
#
#   tests/install.sh              everything
#   tests/install.sh demo         only what `make demo` is nicer with
#   tests/install.sh image        only what the container image needs
#   tests/install.sh kubernetes   only what a Kubernetes cluster in namespaces needs
#   tests/install.sh kernels      only what virtual machines with other kernels need
set -euo pipefail

scope=${1:-test}
skipped=()
say() { printf 'install: %s\n' "$*"; }
skip() { skipped+=("$*"); }

# package, and a file or program that shows that it is there
demo_packages=(
  bird2:bird
)
kubernetes_packages=(
  bird2:bird
  runc:runc
  openssl:openssl
  nftables:nft
  iptables:iptables-restore
  ca-certificates:/etc/ssl/certs/ca-certificates.crt
)
kernels_packages=(
  qemu-system-x86:qemu-system-x86_64
  busybox-static:busybox
)
test_packages=(
  "${kubernetes_packages[@]}"
  "${kernels_packages[@]}"
  frr:/usr/lib/frr/bgpd
  gobgpd:gobgpd
  iproute2:ip
  ipvsadm:ipvsadm
  containernetworking-plugins:/usr/lib/cni/host-local
  shellcheck:shellcheck
)

has() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
  esac
}

as_root=
if [ "$EUID" != 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=sudo
  elif command -v sudo >/dev/null && [ -t 0 ]; then
    as_root=sudo
  else
    as_root=none
  fi
fi

# Packages start their daemons; the tests start their own, in namespaces. Where there is no systemd, a policy file keeps
# them from starting at all, and is taken away again.
policy=/usr/sbin/policy-rc.d
stop_services() {
  [ -d /run/systemd/system ] || return 0
  for service in bird frr gobgpd; do
    if systemctl is-active --quiet "$service" 2>/dev/null; then
      say "stopping Debian's $service (the tests start their own in namespaces)"
      $as_root systemctl disable --now "$service" >/dev/null 2>&1 || skip "could not stop $service: it may hold port 179 of the machine, which no test uses"
    fi
  done
}

install_packages() {
  local missing=() entry
  for entry in "$@"; do
    has "${entry#*:}" || missing+=("${entry%%:*}")
  done
  if [ ${#missing[@]} = 0 ]; then
    return 0
  fi
  if ! command -v apt-get >/dev/null; then
    skip "packages ${missing[*]}: no apt-get here; install them in your system's own way"
    return 0
  fi
  if [ "$as_root" = none ]; then
    skip "packages ${missing[*]}: neither root nor sudo; run: apt-get install ${missing[*]}"
    return 0
  fi
  say "apt-get install ${missing[*]}"
  local made_policy=
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
    made_policy=yes
  fi
  local failed=
  local apt="$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3"
  # The lists may be there and fresh; only when a package is not known are they fetched.
  if ! $apt install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
    $apt update || true
    $apt install -y --no-install-recommends "${missing[@]}" >/dev/null || failed=yes
  fi
  if [ -n "$made_policy" ]; then
    $as_root rm -f "$policy"
  fi
  for entry in "$@"; do
    has "${entry#*:}" || skip "package ${entry%%:*}: apt-get could not install it"
  done
  [ -z "$failed" ] || say "apt-get reported an error"
}

install_musl() {
  local target sysroot
  target=$(uname -m)-unknown-linux-musl
  sysroot=$(rustc --print sysroot)
  if [ -d "$sysroot/lib/rustlib/$target" ]; then
    return 0
  fi
  if command -v rustup >/dev/null && rustup target add "$target" >/dev/null 2>&1; then
    say "added the Rust target $target"
    return 0
  fi
  skip "Rust target $target: cannot be had here; static programs are linked with glibc instead, and are larger"
}

install_components() {
  local component
  for component in rustfmt clippy; do
    cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 && continue
    if command -v rustup >/dev/null && rustup component add "$component" >/dev/null 2>&1; then
      say "added the Rust component $component"
    else
      skip "Rust component $component: not there, and rustup could not add it"
    fi
  done
}

install_deny() {
  if cargo deny --version >/dev/null 2>&1; then
    return 0
  fi
  say "cargo install cargo-deny (builds for two to three minutes)"
  # Not into the project's own target folder, which CI may keep.
  env -u CARGO_TARGET_DIR cargo install --quiet --locked cargo-deny || skip "cargo-deny: could not be built; licences and advisories are not checked"
}

# The Go toolchain as Go itself fetches it: a zip from the module proxy, by a sum of our own since no Go is there to check it.
go_version=1.26.8
go_sums=(
  x86_64:amd64:30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7
)
cache=${SELVAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/selvage}

# The module proxy that the environment, a Go client (here too old a one) or its configuration file names.
module_proxy() {
  local proxy=${GOPROXY:-} file=${GOENV:-${XDG_CONFIG_HOME:-$HOME/.config}/go/env}
  if [ -z "$proxy" ] && command -v go >/dev/null; then
    proxy=$(go env GOPROXY 2>/dev/null) || proxy=
  fi
  if [ -z "$proxy" ] && [ -r "$file" ]; then
    proxy=$(sed -n 's/^GOPROXY=//p' "$file")
  fi
  # A list: the first that is a proxy.
  printf '%s\n' "${proxy//[,|]/$'\n'}" | grep -m 1 '://' || true
}

install_go() {
  local entry machine arch sum found proxy
  local advice="install Go $go_version or newer (https://go.dev/doc/install) and put it into PATH"
  if found=$("${0%/*}/cluster/build.sh" go 2>/dev/null) && [ -n "$found" ]; then
    return 0
  fi
  machine=$(uname -m)
  for entry in "${go_sums[@]}"; do
    if [ "${entry%%:*}" = "$machine" ]; then
      entry=${entry#*:}
      arch=${entry%%:*}
      sum=${entry#*:}
    fi
  done
  if [ -z "${sum:-}" ]; then
    skip "Go: $advice; this script has it for ${go_sums[*]%%:*} only"
    return 0
  fi
  proxy=$(module_proxy)
  if [ -z "$proxy" ]; then
    skip "Go: not there, and no module proxy is set up that has it: $advice, or set GOPROXY"
    return 0
  fi
  install_packages curl:curl unzip:unzip
  local module="golang.org/toolchain@v0.0.1-go$go_version.linux-$arch"
  local new="$cache/.go-$go_version.$$"
  say "Go $go_version from ${proxy#*//}"
  rm -rf "$new"
  mkdir -p "$new"
  if curl -fsSL --retry 3 -o "$new/go.zip" "$proxy/${module%@*}/@v/${module#*@}.zip" &&
    echo "$sum  $new/go.zip" | sha256sum --check --status; then
    unzip -q "$new/go.zip" -d "$new"
    # A module has no executables.
    chmod -R u+x "$new/$module/bin" "$new/$module/pkg/tool"
    rm -rf "$cache/go-$go_version"
    mv "$new/$module" "$cache/go-$go_version"
    ln -sfn "go-$go_version" "$cache/go"
  else
    skip "Go $go_version: not to be had from $proxy, or not what it should be: $advice"
  fi
  rm -rf "$new"
}

if ! command -v cargo >/dev/null; then
  say "no cargo in PATH: install Rust from https://rustup.rs first"
  exit 1
fi
if ! command -v cc >/dev/null; then
  say "no C compiler: apt-get install gcc libc6-dev"
  exit 1
fi

case $scope in
  demo)
    install_packages "${demo_packages[@]}"
    ;;
  image)
    install_musl
    ;;
  kubernetes)
    install_packages "${kubernetes_packages[@]}"
    install_go
    install_musl
    ;;
  kernels)
    install_packages "${kernels_packages[@]}"
    ;;
  test)
    install_packages "${test_packages[@]}"
    install_go
    install_components
    install_musl
    install_deny
    ;;
  *)
    say "usage: tests/install.sh [demo|image|kubernetes|kernels|test]"
    exit 2
    ;;
esac
stop_services

if [ ${#skipped[@]} = 0 ]; then
  say "all there"
  exit 0
fi
for line in "${skipped[@]}"; do
  say "SKIPPED $line"
done
# In CI every part must be there, or a green run would not mean what it says.
if [ "${CI:-}" = true ] && [ "$scope" = test ]; then
  for line in "${skipped[@]}"; do
    case $line in "Rust target "*) ;; *) exit 1 ;; esac
  done
fi
