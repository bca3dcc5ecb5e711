#!/usr/bin/env bash
# Installs what `make test` and `make demo` need beyond make, a C compiler and Rust: Debian packages, the musl target,
# cargo-deny. Does nothing when all is there; says at the end what is missing and what that means.
#
#   tests/install.sh          everything
#   tests/install.sh demo     only what `make demo` is nicer with
set -euo pipefail

scope=${1:-test}
skipped=()
say() { printf 'install: %s\n' "$*"; }
skip() { skipped+=("$*"); }

# package, and a file or program that shows that it is there
demo_packages=(
  bird2:bird
)
test_packages=(
  bird2:bird
  frr:/usr/lib/frr/bgpd
  gobgpd:gobgpd
  nftables:nft
  iproute2:ip
  containernetworking-plugins:/usr/lib/cni/host-local
  ca-certificates:/etc/ssl/certs/ca-certificates.crt
)

has() {
  case $1 in
    /*) [ -e "$1" ] ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
  esac
}

as_root=
if [ "$(id -u)" != 0 ]; then
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
  local target
  target="$(uname -m)-unknown-linux-musl"
  if [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    return 0
  fi
  if command -v rustup >/dev/null && rustup target add "$target" >/dev/null 2>&1; then
    say "added the Rust target $target"
    return 0
  fi
  skip "Rust target $target: cannot be had here; the plugin is linked statically with gnu (crt-static) instead"
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
  test)
    install_packages "${test_packages[@]}"
    install_components
    install_musl
    install_deny
    ;;
  *)
    say "usage: tests/install.sh [demo|test]"
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
