//! Queues and redirections.

use rustix::io::Errno;
use selvage_netlink::link;
use selvage_netlink::qdisc::{self, Tbf};

use crate::space::Space;

#[test]
fn queues_are_added_and_listed() {
    let (here, there) = (Space::new(), Space::new());
    let (veth, _) = here.veth("v", &there, "w");
    let mut socket = here.route();
    socket
        .apply(|batch| link::add_ifb(batch, "i", 1400, 7))
        .unwrap();
    let ifb = link::get_by_name(&mut socket, "i").unwrap();
    assert_eq!((ifb.kind.as_str(), ifb.mtu, ifb.group), ("ifb", 1400, 7));
    let slow = Tbf {
        rate: 125_000,
        burst: 20_000,
        limit: 30_000,
    };
    let fast = Tbf {
        rate: 1 << 40,
        burst: u32::MAX,
        limit: u32::MAX,
    };
    socket
        .apply(|batch| {
            qdisc::add_tbf(batch, veth, &slow);
            qdisc::add_tbf(batch, ifb.index, &fast);
            qdisc::add_ingress(batch, veth);
            qdisc::add_redirect(batch, veth, ifb.index);
        })
        .unwrap();
    let listed = qdisc::list(&mut socket).unwrap();
    let find = |index, parent| {
        let found = listed
            .iter()
            .find(|q| (q.index, q.parent) == (index, parent));
        found.map(|q| (q.kind.as_str(), q.tbf))
    };
    let as_listed = |tbf| Some(("tbf", Some(Tbf { burst: 0, ..tbf })));
    assert_eq!(find(veth, qdisc::ROOT), as_listed(slow));
    assert_eq!(find(ifb.index, qdisc::ROOT), as_listed(fast));
    assert_eq!(find(veth, qdisc::INGRESS), Some(("ingress", None)));
    assert_eq!(find(ifb.index, qdisc::INGRESS), None);
    assert_eq!(qdisc::redirects(&mut socket, veth).unwrap(), [ifb.index]);
    let again = socket.apply(|batch| qdisc::add_tbf(batch, veth, &slow));
    assert!(again.unwrap_err().is(Errno::EXIST));
    let missing = socket.apply(|batch| qdisc::add_tbf(batch, 99, &slow));
    assert!(missing.unwrap_err().is(Errno::NODEV));
}
