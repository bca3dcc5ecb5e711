#!/usr/bin/env bash
# The tests that touch the kernel and the system trials, on Debian's kernels in virtual machines. Prints what failed and why; all
# output is kept below TARGET/kernels.
#
#   tests/kernels/run.sh             all parts, on each kernel of KERNELS ("6.1 6.12")
#   tests/kernels/run.sh PART…       some of them:
#       netlink plugin policy bgp agent    the tests of these crates that use a kernel
#       lab e2e faults interop conformance  the system trials, without those that need Kubernetes' programs
#       e2e::NAME …                        one trial
#
# KERNELS=known: those that this machine's package sources have; one has to be there.
# Where KVM does not work the machines are emulated, and everything takes ten times as long. Deadlines are longer there
# (SELVAGE_DEADLINE_FACTOR, 10 without), and measured times mean nothing. SELVAGE_MACHINE_LIMIT is how many seconds one
# part may take (14400).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

kernels=${KERNELS:-6.1 6.12}
if [ "$kernels" = known ]; then
  kernels=$(tests/kernels/fetch.sh known | tr '\n' ' ')
  if [ -z "$kernels" ]; then
    echo "kernels: no kernel to be had here: apt-get update, and see tests/kernels/fetch.sh" >&2
    exit 1
  fi
fi
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(netlink plugin policy bgp agent lab e2e faults interop conformance)
target=$(realpath "${CARGO_TARGET_DIR:-target}")
limit=${SELVAGE_MACHINE_LIMIT:-14400}
export SELVAGE_DEADLINE_FACTOR=${SELVAGE_DEADLINE_FACTOR:-10}
# No trial starts Kubernetes here, for an emulated API server takes minutes to start: those that need it are listed as ignored,
# in CI, too.
export SELVAGE_CLUSTER_DIR=/nonexistent
unset CI
say() { printf 'kernels: %s\n' "$*" >&2; }

cargo=${CARGO:-cargo}
say "building the tests"
# Of the whole workspace, or in one call: a package alone has other features in what it stands on, which would be built anew.
"$cargo" build --quiet --profile ci --locked -p selvage -p selvage-cni -p selvage-lab
"$cargo" test --quiet --profile ci --locked --workspace --test it --test system --no-run
# A line for each program: its package's manifest, its name, where it is.
built=$("$cargo" test --profile ci --locked --workspace --test it --test system --no-run --message-format=json 2>/dev/null)
# The machines read these programs while they run: a build beside them must not change them.
programs=$target/kernels/programs
mkdir -p "$programs"
for name in selvage selvage-cni selvage-lab; do
  cp -f "$target/ci/$name" "$programs/$name"
done
export SELVAGE_BIN_DIR=$programs

# Sets `program` to a copy of a test program: the folder of its package, and the target as cargo names it.
find_test() {
  local folder=$1 name=$2 found
  found=$(sed -n "s|.*\"manifest_path\":\"$PWD/$folder/Cargo.toml\".*\"name\":\"$name\".*\"executable\":\"\([^\"]*\)\".*|\1|p" <<<"$built")
  if [ -z "$found" ]; then
    say "cargo built no test $name in $folder"
    exit 1
  fi
  program=$programs/${folder//\//-}-$name
  cp -f "$found" "$program"
}

# Sets `command` for a part.
describe() {
  case $1 in
    netlink) find_test agent/netlink it && command=("$program" --test-threads 1) ;;
    plugin) find_test cni-shim it && command=("$program") ;;
    policy) find_test policy it && command=("$program" kernel:: nft::) ;;
    bgp) find_test bgp it && command=("$program") ;;
    agent) find_test agent it && command=("$program" kernel::) ;;
    lab | e2e | faults | interop | conformance) find_test tests system && command=("$program" "$1::" --test-threads 1) ;;
    *::*) find_test tests system && command=("$program" "$1" --test-threads 1) ;;
    *)
      say "no part $1"
      exit 2
      ;;
  esac
}

# The results of a part: counts, and the names of what failed or has no result.
results() {
  local output=$1/output rc=$2
  # Both test harnesses end with "test result: … N passed; N failed; N ignored"; without that line the machine died before.
  local passed failed ignored counts
  counts=$(grep -a '^test result: ' "$output" | tail -n 1 || true)
  passed=$(sed -n 's/.* \([0-9]*\) passed.*/\1/p' <<<"$counts")
  failed=$(sed -n 's/.* \([0-9]*\) failed.*/\1/p' <<<"$counts")
  ignored=$(sed -n 's/.* \([0-9]*\) ignored.*/\1/p' <<<"$counts")
  printf '%-9s %-14s %3s passed, %s failed, %s ignored; exit status %s\n' "$3" "$4" "${passed:-?}" "${failed:-?}" "${ignored:-?}" "$rc"
  # What a test prints may stand between its name and its result: the list of those that failed comes at the end.
  grep -a -E '^test .* \.\.\. ignored' "$output" | sed 's/^test /    /' || true
  sed -n '/^failures:$/,/^test result: /p' "$output" | grep -a -E '^    [a-z_0-9:]+$' | sort -u | sed 's/$/ FAILED/' || true
}

summary=
all=0
for kernel in $kernels; do
  for part in "${parts[@]}"; do
    describe "$part"
    folder=$target/kernels/$kernel/${part//::/-}
    rm -rf "$folder"
    say "$part on $kernel: ${command[*]##*/}"
    rc=0
    tests/kernels/machine.sh "$kernel" "$limit" "$folder" tests/kernels/inside.sh "${command[@]}" || rc=$?
    [ "$rc" = 0 ] || all=1
    text=$(results "$folder" "$rc" "$kernel" "$part")
    say "$text"
    summary+="$text"$'\n'
  done
done
printf '\n%s' "$summary"
exit "$all"
