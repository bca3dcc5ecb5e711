#!/usr/bin/env bash
# Builds the CNI plugin as it is shipped: static (musl where that target is there, else gnu with crt-static), small, panic=abort.
# Prints where it is; fails if it is not static or larger than 1 MB.
set -euo pipefail
cd "$(dirname "$0")/.."

arch=$(uname -m)
target=$arch-unknown-linux-musl
if ! [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
  target=$arch-unknown-linux-gnu
  export RUSTFLAGS="-C target-feature=+crt-static"
fi
"${CARGO:-cargo}" build --locked --profile shim --target "$target" -p selvage-cni >&2
shim=${CARGO_TARGET_DIR:-target}/$target/shim/selvage-cni
if readelf --program-headers "$shim" | grep -q INTERP; then
  echo "shim: $shim asks for a dynamic loader" >&2
  exit 1
fi
size=$(stat -c %s "$shim")
if [ "$size" -gt 1048576 ]; then
  echo "shim: $shim has $size bytes, 1 MB is the limit" >&2
  exit 1
fi
echo "$shim"
