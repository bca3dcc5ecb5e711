#!/usr/bin/env bash
# FRR 8.4.4 announces long-lived graceful restart (RFC 9494) as it is installed, and does not keep a neighbour's routes by it.
#
# Who sends capability 71 says that it keeps the routes of a neighbour that has sent it, too, for the time that the neighbour asks
# for. bgpd always sends it, with a stale time of 0 of its own for each family (there is no word of it in the configuration), and drops the routes
# at the end of the restart time. With `bgp long-lived-graceful-restart stale-time SECONDS` it keeps them, for as long as the neighbour asks
# for. The number is what bgpd asks of others for its own routes: whoever has no need of that must set it all the same to help others.
#
# Seen 2026-11-30 with Debian 12's frr 8.4.4-1.1~deb12u2. A neighbour that asks for a restart time of 2 s and a stale time of 4 s
# announces 10.244.1.0/24 and is gone without a word; what another neighbour, which knows the capability, hears of that prefix:
#   as it is installed:    stale times 0 0: announced, withdrawn
#   with stale-time 3600:  stale times 3600 3600: announced, last resort (65535:6), withdrawn
#
# It needs root (for namespaces of its own), python3 without any package, and Debian 12's package sources. Nothing is installed. It
# fails when bgpd does something else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
chown _apt .
apt-get -qq download frr=8.4.4-1.1~deb12u2 libyang2=2.1.30-2 libjson-c5=0.16-2 libpcre2-8-0=10.42-1
for package in ./*.deb; do dpkg-deb -x "$package" .; done
# bgpd leaves root for a user of its own, whom only the installed package makes.
cp /etc/passwd /etc/group .
grep -q ^frr: passwd || echo 'frr:x:64999:64999::/nonexistent:/usr/sbin/nologin' >>passwd
grep -q ^frr: group || echo 'frr:x:64999:' >>group
grep -q ^frrvty: group || echo 'frrvty:x:64998:frr' >>group
mkdir run
cat >peers.py <<'PYTHON'
import socket, struct, subprocess, sys, time

LONG_LIVED, LLGR_STALE = 71, b"\xff\xff\x00\x06"


def message(kind, body=b""):
    return b"\xff" * 16 + struct.pack("!HB", 19 + len(body), kind) + body


def capability(code, value):
    return bytes([code, len(value)]) + value


class Neighbour:
    def __init__(self, address, asn):
        for _ in range(200):
            self.socket = socket.socket()
            self.socket.bind((address, 0))
            try:
                self.socket.connect(("192.0.2.1", 179))
                break
            except OSError:
                time.sleep(0.1)
        self.data, self.long_lived = b"", None
        family = struct.pack("!HBB", 1, 1, 0x80)
        capabilities = (capability(1, struct.pack("!HBB", 1, 0, 1)) + capability(65, struct.pack("!I", asn))
                        + capability(64, struct.pack("!H", 2) + family)
                        + capability(LONG_LIVED, family + (4).to_bytes(3, "big")))
        options = bytes([2, len(capabilities)]) + capabilities
        identifier = socket.inet_aton(address)
        self.socket.send(message(1, struct.pack("!BHH", 4, asn, 90) + identifier + bytes([len(options)]) + options))
        kind = 0
        while kind != 4:
            kind, body = self.read()
            if kind == 1:
                self.long_lived = stale_times(body)
                self.socket.send(message(4))
            if kind == 3:
                sys.exit(f"refused: {body.hex()}")

    def read(self):
        while len(self.data) < 19 or len(self.data) < struct.unpack_from("!H", self.data, 16)[0]:
            more = self.socket.recv(4096)
            if not more:
                sys.exit("bgpd has closed the connection")
            self.data += more
        length, kind = struct.unpack_from("!HB", self.data, 16)
        body, self.data = self.data[19:length], self.data[length:]
        return kind, body

    def announce(self):
        def attribute(kind, value):
            return bytes([0x40, kind, len(value)]) + value
        asn = struct.pack("!I", 64512)
        hop = socket.inet_aton(self.socket.getsockname()[0])
        attributes = attribute(1, b"\0") + attribute(2, b"\2\1" + asn) + attribute(3, hop)
        self.socket.send(message(2, struct.pack("!HH", 0, len(attributes)) + attributes + bytes([24, 10, 244, 1])))
        self.socket.send(message(2, bytes(4)))  # End-of-RIB

    def heard(self):
        """What the next UPDATE says of the prefix."""
        while True:
            kind, body = self.read()
            if kind != 2:
                continue
            withdrawn = struct.unpack_from("!H", body)[0]
            if withdrawn:
                return "withdrawn"
            length = struct.unpack_from("!H", body, 2)[0]
            if len(body) > 4 + length:
                return "last resort (65535:6)" if LLGR_STALE in body[4:4 + length] else "announced"


def stale_times(opened):
    options, times = opened[10:], None
    while options:
        kind, length = options[0], options[1]
        inner, options = options[2:2 + length], options[2 + length:]
        while kind == 2 and inner:
            code, size = inner[0], inner[1]
            value, inner = inner[2:2 + size], inner[2 + size:]
            if code == LONG_LIVED:
                times = [int.from_bytes(value[i + 4:i + 7], "big") for i in range(0, len(value), 7)]
    return times


bgpd = subprocess.Popen(sys.argv[1:], stdout=open("bgpd.log", "w"), stderr=subprocess.STDOUT)
try:
    watching = Neighbour("192.0.2.3", 64513)
    restarting = Neighbour("192.0.2.2", 64512)
    restarting.announce()
    heard = [watching.heard()]
    restarting.socket.close()
    watching.socket.settimeout(30)
    while heard[-1] != "withdrawn":
        heard.append(watching.heard())
    times = " ".join(map(str, restarting.long_lived or ["none"]))
    print(f"stale times {times}: {', '.join(heard)}")
finally:
    bgpd.terminate()
    bgpd.wait()
PYTHON

# what LINE: what is heard of a neighbour's route, with this line in the configuration.
what() {
  cat >bgpd.conf <<CONFIGURATION
router bgp 65001
 bgp router-id 192.0.2.1
 no bgp ebgp-requires-policy
 bgp graceful-restart
 $1
 neighbor 192.0.2.2 remote-as 64512
 neighbor 192.0.2.2 passive
 neighbor 192.0.2.3 remote-as 64513
 neighbor 192.0.2.3 passive
 address-family ipv6 unicast
  neighbor 192.0.2.2 activate
CONFIGURATION
  chmod -R a+rwX .
  unshare --net --mount bash -euc '
    mount --bind passwd /etc/passwd; mount --bind group /etc/group
    ip link set lo up
    for host in 1 2 3; do ip address add 192.0.2.$host/24 dev lo; done
    LD_LIBRARY_PATH=$PWD/usr/lib/x86_64-linux-gnu/frr:$PWD/usr/lib/x86_64-linux-gnu \
      python3 peers.py usr/lib/frr/bgpd -f "$PWD/bgpd.conf" -i "$PWD/run/bgpd.pid" -z "$PWD/run/zserv.api" --vty_socket "$PWD/run" -P 0 --no_kernel'
}

same=0
expect() {
  local found
  found=$(what "$2")
  echo "$1: $found"
  [ "$found" = "$3" ] || same=1
}
expect "as it is installed" "!" "stale times 0 0: announced, withdrawn"
expect "with stale-time 3600" "bgp long-lived-graceful-restart stale-time 3600" \
  "stale times 3600 3600: announced, last resort (65535:6), withdrawn"
[ "$same" = 0 ] || { echo "bgpd does something else than was seen" >&2; exit 1; }
