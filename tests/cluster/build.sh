#!/usr/bin/env bash
# Builds the programs of a Kubernetes cluster from their Go modules, at the versions of go.mod, into a cache folder outside
# the tree. Does nothing when all is there. Progress goes to stderr, the folder to stdout.
#
#   tests/cluster/build.sh               what a cluster needs
#   tests/cluster/build.sh conformance   also the upstream suite, e2e.test
#   tests/cluster/build.sh where         only the folder; builds nothing
#   tests/cluster/build.sh go            only the Go command that would be used
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

scope=${1:-cluster}
cache=${SELVAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:?neither HOME nor SELVAGE_CACHE is set}/.cache}/selvage}
key=$(cat go.mod go.sum containerd/go.mod containerd/go.sum build.sh etcd/main.go pause/main.go | sha256sum | cut -c1-12)
folder=$cache/cluster-$key

# PATH's, or the toolchain that tests/install.sh has put beside our folder.
find_go() {
  local candidate
  for candidate in go "$cache/go/bin/go" /usr/local/go/bin/go; do
    if command -v "$candidate" >/dev/null && GOTOOLCHAIN=local "$candidate" list -m >/dev/null 2>&1; then
      command -v "$candidate"
      return 0
    fi
  done
  echo "build.sh: no Go of version $(awk '$1 == "go" { print $2 }' go.mod) or newer: run tests/install.sh kubernetes" >&2
  return 1
}

case $scope in
  cluster | conformance) ;;
  where)
    echo "$folder"
    exit 0
    ;;
  go)
    find_go
    exit
    ;;
  *)
    echo "usage: tests/cluster/build.sh [conformance|where|go]" >&2
    exit 2
    ;;
esac

# The version of a module that a go.mod requires, in a line of its own or in a block.
version() { awk -v module="$1" '{ sub(/^require /, "") } $1 == module && $2 ~ /^v/ { print $2; exit }' "$2"; }
kubernetes=$(version k8s.io/kubernetes go.mod)
minor=${kubernetes#v1.}
minor=${minor%%.*}
names=k8s.io/component-base/version
kubernetes_flags="-X $names.gitVersion=$kubernetes -X $names.gitMajor=1 -X $names.gitMinor=$minor -X $names.gitTreeState=clean"
containerd_flags="-X github.com/containerd/containerd/v2/version.Version=$(version github.com/containerd/containerd/v2 containerd/go.mod)"

# In the order of use: the control plane first.
programs=(
  etcd
  kube-apiserver
  kube-controller-manager
  kube-scheduler
  kubectl
  kubelet
  kube-proxy
  containerd
  containerd-shim-runc-v2
  ctr
  pause
  agnhost
)
[ "$scope" = conformance ] && programs+=(e2e.test)

compile() {
  local name=$1 output=$2
  local flags="-s -w $kubernetes_flags"
  case $name in
    etcd | pause) "${go[@]}" build -trimpath -ldflags "-s -w" -o "$output" "./$name" ;;
    containerd | containerd-shim-runc-v2 | ctr)
      "${go[@]}" -C containerd build -trimpath -ldflags "-s -w $containerd_flags" -o "$output" "github.com/containerd/containerd/v2/cmd/$name"
      ;;
    agnhost) "${go[@]}" build -trimpath -ldflags "$flags" -o "$output" k8s.io/kubernetes/test/images/agnhost ;;
    e2e.test) "${go[@]}" test -c -trimpath -ldflags "$flags" -o "$output" k8s.io/kubernetes/test/e2e ;;
    *) "${go[@]}" build -trimpath -ldflags "$flags" -o "$output" "k8s.io/kubernetes/cmd/$name" ;;
  esac
}

missing() {
  local name
  for name in "${programs[@]}"; do
    [ -x "$folder/$name" ] || echo "$name"
  done
}

build() {
  # One build at a time on a machine: the second waits, and then finds all there.
  exec 9>"$folder/.lock"
  flock 9
  local name start left
  mapfile -t left < <(missing)
  [ ${#left[@]} -gt 0 ] || return 0
  local found
  found=$(find_go)
  # Static programs, and no other toolchain than the one found.
  go=(nice -n 10 env CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-mod=readonly\ -buildvcs=false GOWORK=off "$found")
  echo "build.sh: ${#left[@]} programs of Kubernetes $kubernetes into $folder (from nothing: ten minutes on two cores)" >&2
  for name in "${left[@]}"; do
    start=$SECONDS
    printf 'build.sh: %-24s ' "$name" >&2
    compile "$name" "$folder/.$name.new"
    mv "$folder/.$name.new" "$folder/$name"
    echo "$((SECONDS - start)) s" >&2
  done
}

mkdir -p "$folder"
if [ -n "$(missing)" ]; then
  build
fi
echo "$folder"
