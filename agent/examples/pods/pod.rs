//! A pod as an API server writes it: two containers with probes, environment and volumes, conditions, statuses and managed
//! fields.

use serde_json::{Value, json};

/// One of many; `number` tells it from others.
pub fn pod(number: u32) -> Value {
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
