#!/usr/bin/env bash
# Linux 6.18: a conntrack dump that is filtered by an IPv6 address lists every flow but those of that address.
#
# Since Linux 5.8 a program can have the kernel filter a dump of the connection tracking table (CTA_FILTER of ctnetlink,
# include/uapi/linux/netfilter/nfnetlink_conntrack.h). The filter names parts of a tuple; flows that have them are listed.
# By an IPv4 address that is what happens. By an IPv6 address it is the reverse.
#
# Seen 2026-11-30 on Linux 6.18.44, x86-64. Three UDP flows of each family, from sources ending in 1, 2 and 3; the dump asks
# for the source that ends in 2:
#   IPv4: asked for 192.0.2.2: listed 192.0.2.2
#   IPv6: asked for 2001:db8::2: listed 2001:db8::1 2001:db8::3
#
# It needs root, python3 without any package, and a kernel with nf_conntrack_netlink. It works in a network namespace of
# its own, and fails when the kernel answers otherwise.
set -euo pipefail
echo "Linux $(uname -r)"
exec unshare --net python3 - <<'PYTHON'
import ipaddress, socket, struct, sys

REQUEST, ACK, DUMP, CREATE, EXCL = 1, 4, 0x300, 0x400, 0x200
NEW, GET = 0x100, 0x101  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
TUPLE_ORIG, TUPLE_REPLY, STATUS, TIMEOUT, FILTER = 1, 2, 3, 7, 25
TUPLE_IP, TUPLE_PROTO, PROTO_NUM, PROTO_SRC_PORT, PROTO_DST_PORT = 1, 2, 1, 2, 3
FILTER_ORIG_FLAGS, FILTER_REPLY_FLAGS, BY_SOURCE = 1, 2, 1 << 0
NESTED = 0x8000
SOURCE = {socket.AF_INET: 1, socket.AF_INET6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination is the next number


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind, *parts):
    return attribute(kind | NESTED, b"".join(parts))


def port(kind, number):
    return attribute(kind, struct.pack("!H", number))


def flow_tuple(kind, family, source, destination, sport, dport):
    addresses = nest(TUPLE_IP, attribute(SOURCE[family], source), attribute(SOURCE[family] + 1, destination))
    protocol = nest(TUPLE_PROTO, attribute(PROTO_NUM, bytes([socket.IPPROTO_UDP])),
                    port(PROTO_SRC_PORT, sport), port(PROTO_DST_PORT, dport))
    return nest(kind, addresses, protocol)


def send(sock, kind, flags, family, *attributes):
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)


def answers(sock):
    while True:
        data = sock.recv(1 << 16)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            if kind == 2:  # NLMSG_ERROR
                code = struct.unpack_from("=i", data, 16)[0]
                if code:
                    sys.exit(f"the kernel refuses: error {-code}")
                return
            if kind == 3:  # NLMSG_DONE
                return
            yield data[20:length]
            data = data[(length + 3) & ~3:]


def attributes(data):
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3:]


def source_of(message, family):
    addresses = dict(attributes(dict(attributes(message))[TUPLE_ORIG]))[TUPLE_IP]
    return ipaddress.ip_address(dict(attributes(addresses))[SOURCE[family]])


def listed(sock, family, wanted):
    send(sock, GET, REQUEST | DUMP, family,
         nest(TUPLE_ORIG, nest(TUPLE_IP, attribute(SOURCE[family], wanted.packed))),
         nest(FILTER, attribute(FILTER_ORIG_FLAGS, struct.pack("=I", BY_SOURCE)),
              attribute(FILTER_REPLY_FLAGS, struct.pack("=I", 0))))
    return sorted(source_of(message, family) for message in answers(sock))


sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)  # NETLINK_NETFILTER
sock.bind((0, 0))
seen = []
for name, family, prefix in [("IPv4", socket.AF_INET, "192.0.2.{}"), ("IPv6", socket.AF_INET6, "2001:db8::{}")]:
    server = ipaddress.ip_address(prefix.format(9)).packed
    for host in 1, 2, 3:
        client = ipaddress.ip_address(prefix.format(host)).packed
        send(sock, NEW, REQUEST | ACK | CREATE | EXCL, family,
             flow_tuple(TUPLE_ORIG, family, client, server, 4000 + host, 53),
             flow_tuple(TUPLE_REPLY, family, server, client, 53, 4000 + host),
             attribute(STATUS, struct.pack("!I", 1 << 3)), attribute(TIMEOUT, struct.pack("!I", 60)))
        list(answers(sock))
    wanted = ipaddress.ip_address(prefix.format(2))
    found = [str(address) for address in listed(sock, family, wanted)]
    print(f"{name}: asked for {wanted}: listed {' '.join(found)}")
    seen.append(found)
if seen != [["192.0.2.2"], ["2001:db8::1", "2001:db8::3"]]:
    sys.exit("this kernel answers otherwise than described above")
PYTHON
