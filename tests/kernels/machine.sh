#!/usr/bin/env bash
# Runs a command as root in a virtual machine with one of Debian's kernels, on this machine's files.
#
#   tests/kernels/machine.sh 6.1|6.12 SECONDS FOLDER COMMAND [ARGUMENT…]
#
# The files of this machine are there read-only; what the command writes is gone with the virtual machine, but for what it writes
# into FOLDER, which has the same path inside. FOLDER/output is what it prints (standard error, too), FOLDER/console what the
# kernel says. The command starts in this folder, with PATH, HOME, CI, SELVAGE_* and RUST_* of this environment. It has no network but loopback, and no
# standard input. The exit status is the command's; 124 when it was still running after SECONDS, 125 when the machine did not
# start or died.
#
# SELVAGE_MACHINE_ACCEL is what qemu runs it with: kvm, or tcg (emulation, ten times slower). Without it, KVM is tried once and
# the result kept beside the kernels: some hosts offer a /dev/kvm with which an ordinary kernel does not boot.
# SELVAGE_MACHINE_CPUS (2) and SELVAGE_MACHINE_MEMORY (MiB, 3072) are its size.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
series=$1 limit=$2 folder=$3
shift 3
say() { printf 'kernels: %s\n' "$*" >&2; }

if ! command -v qemu-system-x86_64 >/dev/null; then
  say "no qemu-system-x86_64: tests/install.sh kernels"
  exit 125
fi
kernel=$("$here/fetch.sh" "$series")
mkdir -p "$folder"
folder=$(realpath "$folder")

# A share of a folder by 9p, with this tag.
share() {
  local tag=$1 path=$2
  shift 2
  options+=(-fsdev "local,id=$tag,path=$path,security_model=none$*" -device "virtio-9p-pci,fsdev=$tag,mount_tag=$tag")
}

# boot ACCEL SECONDS FOLDER: until the machine powers itself off.
boot() {
  local accel=$1 seconds=$2 run=$3 cpu=host options=()
  share root / ",readonly=on,multidevs=remap"
  share modules "$kernel/modules" ",readonly=on"
  share run "$run"
  if [ "$accel" = tcg ]; then
    accel=tcg,thread=multi
    # Walking a fifth level of page tables is work for an emulator.
    cpu=max,la57=off
  fi
  timeout --kill-after=5 "$seconds" nice -n "${SELVAGE_MACHINE_NICE:-5}" qemu-system-x86_64 -M q35,usb=off,smbus=off,sata=off -accel "$accel" -cpu "$cpu" \
    -smp "${SELVAGE_MACHINE_CPUS:-2}" -m "${SELVAGE_MACHINE_MEMORY:-3072}" \
    -nodefaults -no-user-config -display none -nic none -no-reboot \
    -kernel "$kernel/image" -initrd "$kernel/initramfs.gz" \
    -append "console=ttyS0 loglevel=5 panic=-1 mitigations=off no_timer_check nowatchdog random.trust_cpu=on" \
    -serial "file:$run/console" -device virtio-rng-pci "${options[@]}" </dev/null
}

accel=${SELVAGE_MACHINE_ACCEL:-}
known=${kernel%/*}/accel
if [ -z "$accel" ] && [ -r "$known" ]; then
  accel=$(cat "$known")
fi
if [ -z "$accel" ]; then
  accel=tcg
  if [ -w /dev/kvm ]; then
    say "trying KVM, once, for half a minute at most"
    trial=$(mktemp -d)
    printf 'echo up >/run/machine/up\n/run/busybox poweroff -f\n' >"$trial/start"
    boot kvm 30 "$trial" >/dev/null 2>&1 || true
    [ ! -e "$trial/up" ] || accel=kvm
    rm -rf "$trial"
  fi
  echo "$accel" >"$known"
fi

rm -f "$folder"/{status,output,console}
: >"$folder/output"
{
  declare -px PATH HOME
  variables=$(compgen -e)
  for name in $variables; do
    case $name in
      CI | LANG | LC_ALL | SELVAGE_* | RUST_*) declare -p "$name" ;;
    esac
  done
  printf 'cd %q\n' "$PWD"
  printf '%q ' "$@"
  echo
} >"$folder/command"
cat >"$folder/start" <<EOS
b=/run/busybox
\$b mount -t proc proc /proc
\$b mount -t sysfs sys /sys
\$b mkdir -p /dev/pts /dev/shm
\$b mount -t devpts devpts /dev/pts
\$b mount -t tmpfs -o mode=1777 shm /dev/shm
\$b ln -sf /proc/self/fd /dev/fd
\$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
# Programs of this machine read other forms of the tables of modules than busybox writes.
\$b ln -s \$b /run/modprobe
echo /run/modprobe >/proc/sys/kernel/modprobe
\$b ip link set lo up
\$b hostname $series
ulimit -n 20000
\$b mkdir -p '$folder'
\$b mount --bind /run/machine '$folder'
bash /run/machine/command >/run/machine/output 2>&1 </dev/null
echo \$? >/run/machine/status
\$b sync
\$b poweroff -f
EOS

tail -n +1 -f --pid=$$ "$folder/output" &
follower=$!
trap 'kill "$follower" 2>/dev/null || true' EXIT
rc=0
boot "$accel" "$limit" "$folder" >&2 || rc=$?
sleep 1
if [ -s "$folder/status" ]; then
  exit "$(cat "$folder/status" || true)"
fi
if [ "$rc" = 124 ] || [ "$rc" = 137 ]; then
  say "not done after its $limit s"
  exit 124
fi
tail -n 25 "$folder/console" >&2 || true
say "the machine did not start, or died (qemu: $rc): the end of its console is above"
exit 125
