"""What Kueue does to single pods, for tests without Kueue: an admission policy holds pods with a queue back, and the test decides as its
controllers would. Source: Kueue's `pkg/controller/jobs/pod` (webhook, controller) and `apis/kueue/v1beta1/workload_types.go`."""

import contextlib
import json

from cluster import eventually

GROUP, VERSION = "kueue.x-k8s.io", "v1beta1"
QUEUE, MANAGED, GATE, JOB_UID = f"{GROUP}/queue-name", f"{GROUP}/managed", f"{GROUP}/admission", f"{GROUP}/job-uid"
NAME = "fake-kueue-pods"
ADMISSION = "admissionregistration.k8s.io/v1"

# The kind of Kueue's workloads, without its schema.
DEFINITION = {
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"workloads.{GROUP}"},
    "spec": {"group": GROUP, "scope": "Namespaced", "names": {"kind": "Workload", "plural": "workloads", "singular": "workload", "listKind": "WorkloadList"},
             "versions": [{"name": VERSION, "served": True, "storage": True, "subresources": {"status": {}},
                           "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}]},
}
# Kueue's webhook labels the pods that it manages and holds them back.
POLICY = {
    "apiVersion": ADMISSION, "kind": "MutatingAdmissionPolicy", "metadata": {"name": NAME},
    "spec": {
        "failurePolicy": "Fail", "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}]},
        "matchConditions": [{"name": "queue", "expression": f"object.metadata.?labels[?'{QUEUE}'].hasValue()"}],
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": (
            f"Object{{metadata: Object.metadata{{labels: {{'{MANAGED}': 'true'}}}}, "
            f"spec: Object.spec{{schedulingGates: [Object.spec.schedulingGates{{name: '{GATE}'}}]}}}}")}}],
    },
}
BINDING = {"apiVersion": ADMISSION, "kind": "MutatingAdmissionPolicyBinding", "metadata": {"name": NAME}, "spec": {"policyName": NAME}}


@contextlib.contextmanager
def installed(lab):
    """Installs the kind of workloads and the admission policy, and removes them afterwards."""
    lab.apply(DEFINITION, POLICY, BINDING)
    try:
        eventually(lambda: "Workload" in lab.kubectl("api-resources", f"--api-group={GROUP}"), message="workloads are served")
        yield
    finally:
        for kind, name in [("mutatingadmissionpolicybinding", NAME), ("mutatingadmissionpolicy", NAME), ("crd", DEFINITION["metadata"]["name"])]:
            lab.kubectl("delete", kind, name)


def queue(lab, namespace, pod, message):
    """Creates the workload of a pod, which has no quota."""
    found = lab.get("-n", namespace, "pod", pod)
    assert [g["name"] for g in found["spec"].get("schedulingGates", [])] == [GATE], found["spec"]
    name, uid = f"pod-{pod}", found["metadata"]["uid"]
    lab.apply({"apiVersion": f"{GROUP}/{VERSION}", "kind": "Workload", "spec": {"queueName": found["metadata"]["labels"][QUEUE]},
               "metadata": {"name": name, "namespace": namespace, "labels": {JOB_UID: uid},
                            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}]}})
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": message}
    lab.kubectl("-n", namespace, "patch", "workload", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"conditions": [condition]}}))


def admit(lab, namespace, pod):
    """Removes the gate, as Kueue does when the workload has its quota."""
    lab.kubectl("-n", namespace, "patch", "workload", f"pod-{pod}", "--subresource=status", "--type=merge", "-p",
                json.dumps({"status": {"conditions": [{"type": kind, "status": "True"} for kind in ("QuotaReserved", "Admitted")]}}))
    lab.kubectl("-n", namespace, "patch", "pod", pod, "--type=merge", "-p", '{"spec":{"schedulingGates":null}}')


def stop(lab, namespace, pod, reason, message):
    """Ends a pod as Kueue does: the condition first, then the deletion."""
    condition = {"type": "TerminationTarget", "status": "True", "reason": reason, "message": message}
    lab.kubectl("-n", namespace, "patch", "pod", pod, "--subresource=status", "--type=strategic", "-p", json.dumps({"status": {"conditions": [condition]}}))
    lab.kubectl("-n", namespace, "delete", "pod", pod, "--wait=false")
