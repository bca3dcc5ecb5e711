#!/usr/bin/env bash
# Builds the CNI plugin as it is shipped: static, small, panic=abort.
# Prints where it is; fails if it is not static or larger than 1 MB.
set -euo pipefail
cd "$(dirname "$0")/.."

shim=$(tests/static.sh shim selvage-cni)
size=$(stat -c %s "$shim")
if [ "$size" -gt 1048576 ]; then
  echo "shim: $shim has $size bytes, 1 MB is the limit" >&2
  exit 1
fi
echo "$shim"
