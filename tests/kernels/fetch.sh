#!/usr/bin/env bash
# Unpacks one of Debian's kernels into the cache folder; nothing is installed. Does nothing when it is there.
# Prints the folder: `image`, `initramfs.gz`, `modules` (of the network and what it stands on, uncompressed), `release`.
#
#   tests/kernels/fetch.sh 6.1|6.12
#   tests/kernels/fetch.sh known      prints those of them that are there or that this machine's package sources have
#
# Remove the folder to get the newest kernel of that series.
set -euo pipefail

series=$1
cache=${SELVAGE_CACHE:-${XDG_CACHE_HOME:-${HOME:?neither HOME nor SELVAGE_CACHE is set}/.cache}/selvage}
folder=$cache/kernels/$series
say() { printf 'kernels: %s\n' "$*" >&2; }

if [ -e "$folder/release" ]; then
  echo "$folder"
  exit 0
fi
# The newest of the series with ordinary settings; nothing where there is none.
packages() {
  apt-cache pkgnames "linux-image-$series." |
    { grep -E -- '-amd64$' || true; } | { grep -v -E -- '-(rt|cloud)-' || true; } | sort -V | tail -n 1
}
if [ "$series" = known ]; then
  for series in 6.1 6.12; do
    if [ -e "$cache/kernels/$series/release" ]; then
      echo "$series"
      continue
    fi
    package=$(packages)
    if [ -n "$package" ]; then echo "$series"; else say "no package of a kernel $series is known here"; fi
  done
  exit 0
fi
for program in apt-get dpkg-deb busybox xz; do
  if ! command -v "$program" >/dev/null; then
    say "no $program: kernels come as Debian's packages; tests/install.sh kernels installs what can be installed"
    exit 1
  fi
done
mkdir -p "$cache/kernels"
new=$(mktemp -d "$cache/kernels/.$series.XXXXXX")
trap 'rm -rf "$new"' EXIT

package=$(packages)
if [ -z "$package" ]; then
  # As root the lists can be fetched; without, whoever owns the machine does.
  apt-get -qq update >/dev/null 2>&1 || true
  package=$(packages)
fi
if [ -z "$package" ]; then
  say "no package of a kernel $series for amd64 is known here (apt-get update; Debian 12 has 6.1, and 6.12 in its backports)"
  exit 1
fi
say "$package into $folder"
cd "$new"
# The download is no secret, and its folder is not open to apt's own user.
apt-get -qq -o APT::Sandbox::User=root -o Acquire::Retries=3 download "$package" >&2
dpkg-deb -x "$package"_*.deb tree
release=$(cd tree/boot && echo vmlinuz-*)
release=${release#vmlinuz-}
mv "tree/boot/vmlinuz-$release" image
mv "tree/boot/config-$release" config

# Of the modules, what a network, a file system by 9p and a virtual machine may ask for.
from=tree/lib/modules/$release
[ -d "$from" ] || from=tree/usr/lib/modules/$release
to=root/lib/modules/$release
for part in arch crypto fs/9p fs/netfs fs/overlayfs fs/fscache lib net virt drivers/block drivers/char drivers/crypto drivers/net drivers/virtio; do
  [ -d "$from/kernel/$part" ] || continue
  mkdir -p "$to/kernel/${part%/*}"
  mv "$from/kernel/$part" "$to/kernel/$part"
done
rm -rf "$to"/kernel/drivers/net/{ethernet,wireless,usb,can,fddi,arcnet,hamradio} "$to"/kernel/net/{bluetooth,wireless,mac80211,can}
mv "$from"/modules.builtin "$from"/modules.builtin.modinfo "$from"/modules.order "$to/"
find "$to" -name '*.ko.xz' -exec xz -d {} +
busybox depmod -b root "$release"

# What starts the machine: busybox, and the modules by which it reaches this machine's files.
first=(virtio_pci 9pnet_virtio 9p overlay)
mkdir -p "initramfs/bin" "initramfs/lib/modules/$release"
cp "$(command -v busybox || true)" initramfs/bin/busybox
cp "$to"/modules.dep "$to"/modules.builtin "initramfs/lib/modules/$release/"
for module in "${first[@]}"; do
  # "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko …": a module and those that it needs.
  files=$(sed -n "s|^\(.*/$module\.ko\):|\1 |p" "$to/modules.dep")
  for file in $files; do
    mkdir -p "initramfs/lib/modules/$release/${file%/*}"
    cp "$to/$file" "initramfs/lib/modules/$release/$file"
  done
done
{
  echo "first='${first[*]}'"
  cat <<'INIT'
# This machine's files, read-only below a memory file system: whatever is written is gone with the virtual machine. The folder
# of the run is shared for writing, at /run/machine.
export PATH=/bin
busybox --install -s /bin
mkdir -p /proc /sys /dev /below /above /new
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $first; do modprobe "$module"; done
shared=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,cache=loose,$shared root /below &&
  mount -t tmpfs -o size=75%,mode=755 above /above &&
  mkdir /above/files /above/work &&
  mount -t overlay -o lowerdir=/below,upperdir=/above/files,workdir=/above/work overlay /new &&
  mkdir -p /new/run /new/proc /new/sys /new/dev &&
  mount -t tmpfs -o mode=755 run /new/run &&
  mkdir /new/run/machine /new/run/modules &&
  mount -t 9p -o $shared run /new/run/machine &&
  mount -t 9p -o ro,cache=loose,$shared modules /new/run/modules || poweroff -f
modules=/new/lib/modules
[ -d /new/usr/lib ] && modules=/new/usr/lib/modules
mkdir -p "$modules"
rm -rf "$modules/$(uname -r)"
ln -s /run/modules "$modules/$(uname -r)"
cp /bin/busybox /new/run/busybox
umount /proc
mount --move /dev /new/dev
exec switch_root /new /run/busybox sh /run/machine/start
INIT
} >initramfs/init.tail
{ echo '#!/bin/busybox sh'; sed 's|^busybox --install|/bin/busybox --install|' initramfs/init.tail; } >initramfs/init
rm initramfs/init.tail
chmod 755 initramfs/init
(cd initramfs && find . | busybox cpio -o -H newc 2>/dev/null | gzip -1) >initramfs.gz
mv "$to" modules
rm -rf tree root initramfs "$package"_*.deb
# Last: it says that all is there.
echo "$release" >release
rm -rf "$folder"
mv -T "$new" "$folder"
echo "$folder"
