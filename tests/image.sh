#!/usr/bin/env bash
# Writes the container image: an archive that `ctr -n k8s.io images import`, `podman load` and `docker load` take.
# Prints where it is. The same sources give the same archive.
#
#   tests/image.sh            as it is shipped: static programs, nothing else in it
#   tests/image.sh test       the same, with assertions and quicker to link: for tests
#   tests/image.sh quick      what is built for tests already, with this machine's C library: for tests while working
#
# NAME:TAG is IMAGE, localhost/selvage:VERSION without; the time of everything in it SOURCE_DATE_EPOCH, that of the
# last commit without.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
image=${IMAGE:-localhost/selvage:$version}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

cargo=${CARGO:-cargo}
packages=(-p selvage-lab --bin selvage-lab)
if [ -n "${1:-}" ]; then
  # As tests build them: the lab alone has other features in what it stands on, which would be built anew.
  packages=(-p selvage -p selvage-cni -p selvage-lab)
fi
"$cargo" build --locked --profile ci "${packages[@]}" >&2
case ${1:-} in
  '')
    agent=$(tests/static.sh release selvage)
    options=()
    output=$target/release/selvage-image.tar
    ;;
  test)
    agent=$(tests/static.sh ci selvage)
    options=(--plain)
    output=$target/ci/selvage-image.tar
    ;;
  quick)
    agent=$target/ci/selvage
    options=(--libraries --plain)
    output=$target/ci/selvage-image.tar
    ;;
  *)
    echo "usage: tests/image.sh [test|quick]" >&2
    exit 2
    ;;
esac
# Not as an argument: there, the shell would go on when it fails.
plugin=$(tests/shim.sh)
mkdir -p "${output%/*}"
"$target/ci/selvage-lab" image --name "$image" --output "$output" "${options[@]}" \
  --program "/selvage=$agent" --program "/selvage-cni=$plugin" --entrypoint /selvage \
  --label "org.opencontainers.image.title=Selvage" \
  --label "org.opencontainers.image.description=Pod networking and BGP for one node" \
  --label "org.opencontainers.image.licenses=Apache-2.0" \
  --label "org.opencontainers.image.version=$version" \
  --label "org.opencontainers.image.revision=$revision" >&2

size=$(stat -c %s "$output")
if [ -z "${1:-}" ] && [ "$size" -gt 25000000 ]; then
  echo "image: $output has $size bytes, 25 MB is the limit" >&2
  exit 1
fi
echo "$output"
