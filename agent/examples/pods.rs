//! What a pod of the Kubernetes API costs: time to read it, and memory in the store.
//!
//! `cargo run --release -p selvage --example pods [PODS]`. The pods are as an API server writes them: two containers with
//! probes, environment and volumes, conditions, statuses and managed fields. Memory is what the process grows by.

use std::{error::Error, fs, time::Instant};

use selvage::objects::{Kind, Mode, Object, Pod, parse};
use selvage::source::ObjectEvent;
use selvage::store::Store;
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

fn main() -> Result<(), Failure> {
    let pods: u32 = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    let texts: Vec<String> = (0..50).map(|n| pod(n).to_string()).collect();
    let size: usize = texts.iter().map(String::len).sum::<usize>() / texts.len();
    println!("{size} bytes of JSON a pod, {pods} pods");

    let text = |n: u32| texts.get(n as usize % texts.len()).ok_or("none");
    let began = Instant::now();
    for n in 0..pods {
        Pod::from_json(text(n)?).ok_or("a pod that cannot be read")?;
    }
    report("read straight from the bytes", began, pods);
    let began = Instant::now();
    let slow = (pods / 10).max(1);
    for n in 0..slow {
        parse(&serde_json::from_str::<Value>(text(n)?)?, Mode::Api).map_err(|_| "refused")?;
    }
    report("read by way of a value, for comparison", began, slow);

    let mut store = Store::default();
    let before = resident()?;
    let began = Instant::now();
    for n in 0..pods {
        // Another pod each time: names, addresses and labels of its own.
        let text = text(n)?
            .replace("web-7c9f8b6d54-x0", &format!("web-7c9f8b6d54-x{n}"))
            .replace(
                "10.244.0.7",
                &format!("10.{}.{}.{}", n >> 16, n >> 8 & 255, n & 255),
            );
        let pod = Pod::from_json(&text).ok_or("a pod that cannot be read")?;
        store.apply([ObjectEvent::Applied(Object::Pod(pod.into()))]);
    }
    report("read and stored, with making it up", began, pods);
    let grown = resident()?.saturating_sub(before);
    println!(
        "{:>8} bytes a pod in the store ({} pods)",
        grown / u64::from(pods),
        store.count(Kind::Pod)
    );
    Ok(())
}

fn report(what: &str, began: Instant, times: u32) {
    let each = began.elapsed().as_secs_f64() * 1e6 / f64::from(times);
    println!("{each:>8.1} µs a pod {what}");
}

fn resident() -> Result<u64, Failure> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).ok_or("statm")?.parse()?;
    Ok(pages * 4096)
}

fn pod(number: u32) -> Value {
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.org/team/{name}:1.27.3@sha256:{number:064x}"),
            "args": ["--config=/etc/app/config.yaml", "--log-level=info", "--listen=:8080"],
            "ports": [{"name": format!("{name}-http"), "containerPort": 8080, "protocol": "TCP"}],
            "env": (0..8).map(|i| json!({"name": format!("SETTING_{i}"), "value": format!("value of setting {i}")})).collect::<Vec<_>>(),
            "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "failureThreshold": 3},
            "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 5, "failureThreshold": 3},
            "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}, {"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent",
        })
    };
    let fields = |manager: &str, more: Value| json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-11-24T08:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": more});
    let field = |depth: u32| {
        (0..depth).fold(
            json!({}),
            |inner, i| json!({format!("f:field{i}"): inner, format!("f:other{i}"): {}, ".": {}}),
        )
    };
    let condition = |name: &str| json!({"type": name, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-24T08:00:01Z"});
    let status = |name: &str| {
        json!({"name": name, "ready": true, "restartCount": 0, "started": true,
            "image": name, "imageID": format!("sha256:{number:064x}"), "containerID": format!("containerd://{number:064x}"),
            "state": {"running": {"startedAt": "2026-11-24T08:00:02Z"}}, "lastState": {}})
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "web-7c9f8b6d54-x0", "generateName": "web-7c9f8b6d54-", "namespace": format!("team-{}", number % 7),
            "uid": format!("3f0c7a4e-1111-4222-8333-{number:012}"), "resourceVersion": "123456789", "creationTimestamp": "2026-11-24T08:00:00Z",
            "labels": {"app.kubernetes.io/name": "web", "app.kubernetes.io/instance": format!("web-{number}"), "pod-template-hash": "7c9f8b6d54", "team": "shop"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8080", "checksum/config": format!("{number:064x}"),
                "kubectl.kubernetes.io/restartedAt": "2026-11-20T08:00:00Z"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7c9f8b6d54", "uid": "u", "controller": true, "blockOwnerDeletion": true}],
            "managedFields": [fields("kube-controller-manager", field(24)), fields("kubelet", field(16))],
        },
        "spec": {
            "containers": [container("web"), container("sidecar")], "nodeName": format!("node-{}", number % 30), "serviceAccountName": "default",
            "volumes": [{"name": "config", "configMap": {"name": "web", "defaultMode": 420}},
                {"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}], "defaultMode": 420}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
        },
        "status": {
            "phase": "Running", "hostIP": "192.0.2.10", "podIP": "10.244.0.7", "podIPs": [{"ip": "10.244.0.7"}, {"ip": "fd00:10:244::7"}],
            "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady"), condition("PodScheduled")],
            "containerStatuses": [status("web"), status("sidecar")],
            "qosClass": "Burstable", "startTime": "2026-11-24T08:00:00Z",
        },
    })
}
