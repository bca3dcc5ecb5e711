#!/usr/bin/env bash
# In the virtual machine: says where it is, and runs a test program.
set -euo pipefail

there=
for module in sctp ip_vs ip_vs_rr wireguard; do
  if /run/busybox modprobe "$module" 2>/dev/null; then
    there="$there $module"
  fi
done
read -r release </proc/sys/kernel/osrelease
echo "kernel $release; modules there:${there:- none}"
exec "$@"
