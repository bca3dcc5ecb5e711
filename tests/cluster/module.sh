#!/usr/bin/env bash
# Writes go.mod and go.sum for the programs of one version of Kubernetes, with the etcd that this version stands on.
# The committed ones are for the default version; build.sh makes those of another version in its cache folder.
#
#   tests/cluster/module.sh v1.37.2 FOLDER
#
# GO names the Go command (`go` without). FOLDER must have what the module's own packages are: etcd/ and pause/.
set -euo pipefail

kubernetes=$1
folder=$2
go=${GO:-go}
cd "$folder"

case $kubernetes in
  v1.*.*) staging=v0.${kubernetes#v1.} ;;
  *)
    echo "module.sh: $kubernetes is no version of Kubernetes: v1.MINOR.PATCH is wanted" >&2
    exit 2
    ;;
esac
# Outside of any module: the go.mod that is to be written may need a newer Go than this one.
upstream=$(cd / && GO111MODULE=on GOWORK=off "$go" mod download -json "k8s.io/kubernetes@$kubernetes" | sed -n 's/^\t"GoMod": "\(.*\)",\{0,1\}$/\1/p')
if [ ! -s "$upstream" ]; then
  echo "module.sh: the Go client cannot have k8s.io/kubernetes $kubernetes" >&2
  exit 1
fi
etcd=$(awk '$1 == "go.etcd.io/etcd/client/v3" { print $2 }' "$upstream")

{
  echo "module selvage/tests/cluster"
  echo
  awk '$1 == "go" { print "go " $2 }' "$upstream"
  echo
  echo "require ("
  echo "	go.etcd.io/etcd/server/v3 $etcd"
  echo "	k8s.io/kubernetes $kubernetes"
  echo ")"
  echo
  # Kubernetes requires the modules of its own tree at v0.0.0: they are published beside it.
  echo "replace ("
  awk -v version="$staging" '$1 ~ /^k8s\.io\// && $2 == "v0.0.0" { print "\t" $1 " => " $1 " " version }' "$upstream"
  echo ")"
  echo
  echo "tool ("
  for name in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet; do
    echo "	k8s.io/kubernetes/cmd/$name"
  done
  echo "	k8s.io/kubernetes/test/e2e"
  echo "	k8s.io/kubernetes/test/images/agnhost"
  echo ")"
} >go.mod
rm -f go.sum
"$go" mod tidy >&2
