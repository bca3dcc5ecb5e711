#!/usr/bin/env bash
# Builds the programs of a Kubernetes cluster from their Go modules into a cache folder outside the tree. Does nothing when
# all programs are there. Progress goes to stderr, the folder to stdout.
#
#   tests/cluster/build.sh               what a cluster needs
#   tests/cluster/build.sh conformance   also the upstream suite, e2e.test
#   tests/cluster/build.sh plugins       the reference CNI plugins instead, for benches
#   tests/cluster/build.sh where         only the folder; builds nothing
#   tests/cluster/build.sh version       only the version of Kubernetes; builds nothing
#   tests/cluster/build.sh go            only the Go command that would be used
#
# The versions are those of go.mod, containerd/go.mod and plugins/go.mod. K8S names another version of Kubernetes: 1.36.3, v1.38.0-beta.0, or
# 1.38 for the newest one of that minor version that the Go client finds. A version that wants a newer Go gets it by the Go
# client, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

scope=${1:-cluster}
cache=${SELVAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:?neither HOME nor SELVAGE_CACHE is set}/.cache}/selvage}
say() { printf 'build.sh: %s\n' "$*" >&2; }

# PATH's, or the toolchain that tests/install.sh has put beside our folder. Best one that is new enough by itself, else one
# that fetches the toolchain of go.mod as it fetches modules (since Go 1.21).
find_go() {
  local candidate toolchain
  for toolchain in local auto; do
    for candidate in go "$cache/go/bin/go" /usr/local/go/bin/go; do
      if command -v "$candidate" >/dev/null && GOTOOLCHAIN=$toolchain GOWORK=off "$candidate" list -m >/dev/null 2>&1; then
        command -v "$candidate"
        return 0
      fi
    done
  done
  toolchain=$(awk '$1 == "go" { print $2 }' go.mod)
  say "no Go of version $toolchain or newer: run tests/install.sh kubernetes"
  return 1
}

# The version of a module that a go.mod requires, in a line of its own or in a block.
version() { awk -v module="$1" '{ sub(/^require /, "") } $1 == module && $2 ~ /^v/ { print $2; exit }' "$2"; }

# K8S as a full version.
wanted_version() {
  local wanted=v${K8S#v} found go
  case $wanted in
    v1.*.*) ;;
    v1.*)
      go=$(find_go)
      # Versions come in rising order. Alphas are not asked for.
      found=$(cd / && GOWORK=off "$go" list -m -versions k8s.io/kubernetes | tr ' ' '\n' | { grep -F "$wanted." || true; } | { grep -v -- -alpha || true; } | tail -n 1)
      if [ -z "$found" ]; then
        say "K8S=$K8S: the Go client finds no Kubernetes of that minor version"
        return 1
      fi
      wanted=$found
      ;;
    *)
      say "K8S=$K8S is no version of Kubernetes: 1.36.3, v1.38.0-beta.0 or 1.38 is meant"
      return 1
      ;;
  esac
  echo "$wanted"
}

case $scope in
  cluster | conformance | plugins | where | version) ;;
  go)
    find_go
    exit
    ;;
  *)
    echo "usage: tests/cluster/build.sh [conformance|plugins|where|version|go]" >&2
    exit 2
    ;;
esac

# Static programs.
environment=(env CGO_ENABLED=0 GOWORK=off GOTOOLCHAIN=auto)
pinned=$(version k8s.io/kubernetes go.mod)
if [ -z "${K8S:-}" ]; then
  kubernetes=$pinned
else
  kubernetes=$(wanted_version)
fi
if [ "$kubernetes" = "$pinned" ]; then
  inputs=(go.mod go.sum)
else
  inputs=(module.sh)
fi
minor=${kubernetes#v1.}
minor=${minor%%.*}
names=k8s.io/component-base/version
kubernetes_flags="-X $names.gitVersion=$kubernetes -X $names.gitMajor=1 -X $names.gitMinor=$minor -X $names.gitTreeState=clean"
plugins=$(version github.com/containernetworking/plugins plugins/go.mod)
plugins_flags="-X github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion=$plugins"
containerd=$(version github.com/containerd/containerd/v2 containerd/go.mod)
containerd_flags="-X github.com/containerd/containerd/v2/version.Version=$containerd"

# In the order of use, the control plane first.
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
case $scope in
  conformance) programs+=(e2e.test) ;;
  plugins) programs=(ptp host-local portmap bandwidth) ;;
esac

# Sets for a program: the folder of its module from this folder, its package, the linker's flags, and the seconds that it takes
# on two idle cores when those before it are built.
describe() {
  module=.
  package=k8s.io/kubernetes/cmd/$1
  flags="-s -w $kubernetes_flags"
  case $1 in
    etcd) package=./etcd flags="-s -w" typical=40 ;;
    pause) package=./pause flags="-s -w" typical=1 ;;
    kube-apiserver) typical=260 ;;
    kube-controller-manager) typical=80 ;;
    kubelet) typical=30 ;;
    kubectl) typical=20 ;;
    kube-scheduler | kube-proxy) typical=10 ;;
    agnhost) package=k8s.io/kubernetes/test/images/agnhost typical=10 ;;
    e2e.test) package=k8s.io/kubernetes/test/e2e typical=60 ;;
    containerd | containerd-shim-runc-v2 | ctr)
      module=containerd package=github.com/containerd/containerd/v2/cmd/$1 flags="-s -w $containerd_flags" typical=5
      [ "$1" != containerd ] || typical=60
      ;;
    ptp) package=main/ptp typical=10 ;;
    host-local) package=ipam/host-local typical=2 ;;
    portmap | bandwidth) package=meta/$1 typical=3 ;;
  esac
  case $package in
    main/* | ipam/* | meta/*)
      module=plugins package=github.com/containernetworking/plugins/plugins/$package flags="-s -w $plugins_flags"
      ;;
  esac
}

# Builds a program. -v names each package as it is compiled.
compile() {
  local verb=(build)
  # Upstream has vetted its own packages.
  [ "$1" != e2e.test ] || verb=(test -c -vet=off)
  "${go[@]}" -C "$module" "${verb[@]}" -v -trimpath -ldflags "$flags" -o "$2" "$package"
}

# The packages that a program still lacks in Go's cache.
lacking() {
  "${go[@]}" -C "$module" list -deps -trimpath -f '{{if .Stale}}{{.ImportPath}}{{end}}' "$package"
}

# What is built, and how, names the folder.
name_folder() {
  local kind=$1 sum
  shift
  sum=$({
    cat "$@"
    declare -f compile
    printf '%s\n' "${environment[@]}"
  } | sha256sum)
  folder=$cache/$kind-${sum:0:12}
}
if [ "$scope" = plugins ]; then
  name_folder "plugins-$plugins" plugins/go.mod plugins/go.sum
  title="reference CNI plugins $plugins"
else
  name_folder "cluster-$kubernetes" "${inputs[@]}" containerd/go.mod containerd/go.sum etcd/main.go pause/main.go
  title="Kubernetes $kubernetes"
fi

case $scope in
  where)
    echo "$folder"
    exit 0
    ;;
  version)
    echo "$kubernetes"
    exit 0
    ;;
esac

# Sets `left` to the programs that are not there.
find_left() {
  local name
  left=()
  for name in "${programs[@]}"; do
    [ -x "$folder/$name" ] || left+=("$name")
  done
}

# Sets `time` to seconds in words: 75 as "1 min 15 s".
clock() {
  time="$1 s"
  [ "$1" -lt 60 ] || time="$(($1 / 60)) min $(($1 % 60)) s"
}

# Tells how far a build is: on a terminal each second in one line, else in a line each half minute.
report() {
  local what=$1 log=$2 all=$3 start=$4 last=$4 compiled time
  while sleep 1; do
    compiled=$(grep -c -v '^go: ' "$log" || true)
    clock $((SECONDS - start))
    if [ -t 2 ]; then
      printf '\r\033[Kbuild.sh: %s: %s of %s packages, %s' "$what" "$compiled" "$all" "$time" >&2
    elif [ $((SECONDS - last)) -ge 30 ]; then
      last=$SECONDS
      say "$what: $compiled of $all packages, $time"
    fi
  done
}

build() {
  # One build at a time on a machine: the second waits, and then finds all there.
  exec 9>"$folder/.lock"
  if ! flock -n 9; then
    say "waiting for another build into $folder"
    flock 9
  fi
  local name module package flags typical time
  find_left
  [ ${#left[@]} -gt 0 ] || return 0
  local found rest=0
  found=$(find_go)
  if [ "$scope" != plugins ] && [ "$kubernetes" != "$pinned" ] && [ ! -s "$folder/module/go.sum" ]; then
    say "modules of Kubernetes $kubernetes"
    rm -rf "$folder/module"
    mkdir -p "$folder/module"
    cp -r containerd etcd pause "$folder/module/"
    env GO="$found" "${environment[@]}" ./module.sh "$kubernetes" "$folder/module" 2>"$folder/.module.log" || {
      cat "$folder/.module.log" >&2
      rm -rf "$folder/module"
      say "no modules of Kubernetes $kubernetes: see above"
      return 1
    }
  fi
  [ ! -d "$folder/module" ] || cd "$folder/module"
  go=(nice -n 10 "${environment[@]}" GOFLAGS="-mod=readonly -buildvcs=false" "$found")
  for name in "${left[@]}"; do
    describe "$name"
    rest=$((rest + typical))
  done
  clock "$rest"
  say "${#left[@]} programs of $title into $folder: about $time on two idle cores"

  local log=$folder/.log number=0 start what all after
  for name in "${left[@]}"; do
    number=$((number + 1))
    describe "$name"
    rest=$((rest - typical))
    what="$number of ${#left[@]}, $name"
    start=$SECONDS
    : >"$log"
    # This fetches the modules, too.
    all=$(lacking 2>"$log" | wc -l) || {
      cat "$log" >&2
      say "$what: see above"
      return 1
    }
    : >"$log"
    clock "$typical"
    after="about $time on idle cores"
    clock "$rest"
    [ "$rest" = 0 ] || after="$after, then $time for the others"
    report "$what ($after)" "$log" "$all" "$start" &
    reporter=$!
    compile "$name" "$folder/.$name.new" 2>"$log" || {
      end_report
      # Without the names of packages.
      grep -E '^go: |[ :]' "$log" | tail -n 40 >&2 || true
      say "$what: Go cannot build it: see above"
      return 1
    }
    end_report
    mv "$folder/.$name.new" "$folder/$name"
    clock $((SECONDS - start))
    after="$time"
    clock "$rest"
    [ "$rest" = 0 ] || after="$after; left: about $time on two idle cores"
    say "$what: $after"
  done
}

reporter=
end_report() {
  [ -n "$reporter" ] || return 0
  kill "$reporter" 2>/dev/null || true
  wait "$reporter" 2>/dev/null || true
  reporter=
  [ ! -t 2 ] || printf '\r\033[K' >&2
}
trap end_report EXIT

mkdir -p "$folder"
find_left
if [ ${#left[@]} -gt 0 ]; then
  build
fi
echo "$folder"
