#!/usr/bin/env bash
# Builds a program that needs nothing but the kernel: with musl where that target is there, else with gnu and crt-static.
# Prints where it is; fails if it is not static. No path of this machine is in it, so that it is the same wherever it is built.
#
#   tests/static.sh PROFILE PACKAGE
set -euo pipefail
cd "$(dirname "$0")/.."

profile=$1 package=$2
arch=$(uname -m)
target=$arch-unknown-linux-musl
sysroot=$(rustc --print sysroot)
flags="--remap-path-prefix=$PWD=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo --remap-path-prefix=$sysroot=/rust"
if [ -d "$sysroot/lib/rustlib/$target" ]; then
  # ring and mimalloc bring C; it needs no more of musl than its own headers.
  compiler=CC_${target//-/_}
  command -v "$arch-linux-musl-gcc" >/dev/null || export "$compiler=${CC:-cc}"
else
  echo "static: no Rust target $target here (tests/install.sh adds it where rustup can): $package is linked with glibc instead, and is larger" >&2
  target=$arch-unknown-linux-gnu
  flags="$flags -C target-feature=+crt-static"
fi
RUSTFLAGS="$flags" "${CARGO:-cargo}" build --locked --profile "$profile" --target "$target" -p "$package" --bin "$package" >&2
program=${CARGO_TARGET_DIR:-target}/$target/$profile/$package
if readelf --program-headers "$program" | grep -q INTERP; then
  echo "static: $program asks for a dynamic loader" >&2
  exit 1
fi
echo "$program"
