#!/usr/bin/env bash
# Builds the CNI plugin as it is shipped: static, small, panic=abort.
# Prints where it is; fails if it is not static or too large: 1 MiB with musl, 2 MiB with glibc, which brings more of itself.
set -euo pipefail
cd "$(dirname "$0")/.."

shim=$(tests/static.sh shim selvage-cni)
size=$(stat -c %s "$shim")
case $shim in
  *-musl/*) limit=1048576 ;;
  *) limit=2097152 ;;
esac
if [ "$size" -gt "$limit" ]; then
  echo "shim: $shim has $size bytes, $limit is the limit" >&2
  exit 1
fi
echo "$shim"
