#!/usr/bin/env bash
# nft 1.0.6: a rule that looks `meta l4proto . th dport` up in a set with intervals asks the kernel to swap the octets of
# 2-octet words in the 1-octet protocol number.
#
# Fields of a concatenation that is looked up among intervals are brought into network byte order. `meta l4proto` is in host byte
# order for nft, so it writes a `byteorder` expression, of words of 2 octets over a length of 1 octet. `ip protocol` in the
# same place gets none; neither does `meta l4proto` where the set has no intervals. Linux 6.1.0-57 and 6.18.44 take the rule, and swap
# nothing; Linux 6.12.117 refuses it ("Could not process rule: Operation not supported"). So a ruleset that has been loaded for years is
# refused by that kernel.
#
# Seen 2026-11-30 with Debian 12's nftables 1.0.6-2+deb12u2 (libnftables1 of that version, libnftnl11 1.2.4-2):
#   meta l4proto, intervals:     [ byteorder reg 1 = hton(reg 1, 2, 1) ]
#   meta l4proto, no intervals:  no byteorder
#   ip protocol, intervals:      no byteorder
#
# It needs root (for a network namespace of its own) and Debian 12's package sources. Nothing is installed. It fails when nft writes
# something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
apt-get -qq -o APT::Sandbox::User=root download nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11=1.2.4-2
for package in ./*.deb; do dpkg-deb -x "$package" .; done
export LD_LIBRARY_PATH=$folder/usr/lib/x86_64-linux-gnu
nft() { unshare --net "$folder/usr/sbin/nft" "$@"; }
nft --version

# byteorder FIELD FLAGS: the byteorder expressions of the rule, or "no byteorder".
byteorder() {
  local rules="table inet t {
    set s { type inet_proto . inet_service; $2 }
    chain c { $1 . th dport @s accept; }
  }" written
  # It writes the expressions before the kernel says what it thinks of them.
  written=$(nft --debug=netlink -f - <<<"$rules" 2>&1 || true)
  grep -q 'lookup reg 1 set s' <<<"$written" || { echo "no rule was written: $written" >&2; exit 1; }
  grep -o '\[ byteorder .* \]' <<<"$written" || echo "no byteorder"
}

same=0
expect() {
  local found
  found=$(byteorder "$2" "$3")
  echo "$1: $found"
  [ "$found" = "$4" ] || same=1
}
expect "meta l4proto, intervals" "meta l4proto" "flags interval;" "[ byteorder reg 1 = hton(reg 1, 2, 1) ]"
expect "meta l4proto, no intervals" "meta l4proto" "" "no byteorder"
expect "ip protocol, intervals" "ip protocol" "flags interval;" "no byteorder"
[ "$same" = 0 ] || { echo "nft writes something else than was seen" >&2; exit 1; }
