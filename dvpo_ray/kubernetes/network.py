"""What the pods of a job may reach: each other, on the ports that Ray and the collectives use, and what its recipe names."""

from __future__ import annotations

import ipaddress

from dvpo_ray.config.kubernetes import EgressSection
from dvpo_ray.kubernetes.manifests import JOB, PART_OF, Tree

# Of Ray's ports those that it would choose at random are given, so that the policy can name them.
GCS, DASHBOARD, CLIENT, METRICS = 6379, 8265, 10001, 8080
FIXED_PORTS = {
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "dashboard-agent-grpc-port": 6382,
    "runtime-env-agent-port": 6383,
}
WORKER_PORTS = (10002, 19999)
# Where torch.distributed, NCCL and Gloo meet: what Linux gives who asks for any port.
EPHEMERAL_PORTS = (32768, 60999)
HEAD_PORTS = {"gcs": GCS, "dashboard": DASHBOARD, "client": CLIENT, "metrics": METRICS}
API_SERVER_PORTS = (443, 6443)
# Clouds give credentials to whoever asks here.
METADATA = "169.254.169.254/32"


def start_params() -> dict[str, str]:
    """Ray's start parameters that hold its processes to these ports, on head and workers alike."""
    workers = {"min-worker-port": WORKER_PORTS[0], "max-worker-port": WORKER_PORTS[1]}
    return {name: str(port) for name, port in (FIXED_PORTS | workers).items()}


def network_policies(job: str, egress: dict[str, EgressSection], autoscaling: bool) -> list[Tree]:
    """A policy of the job's pods, and where its cluster autoscales one that lets its head ask Kubernetes for pods."""
    ours = {"podSelector": {"matchLabels": {JOB: job}}}
    ports = [_port(GCS), _port(DASHBOARD), _port(CLIENT), _port(min(FIXED_PORTS.values()), max(FIXED_PORTS.values()))]
    ports += [_port(*WORKER_PORTS), _port(*EPHEMERAL_PORTS)]
    rules = [{"to": [ours], "ports": ports}, *(_egress(place) for place in egress.values())]
    spec = ours | {"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [ours], "ports": ports}], "egress": rules}
    found = [_policy(f"{job}-pods", job, spec)]
    if autoscaling:
        head = {"podSelector": {"matchLabels": {JOB: job, "ray.io/node-type": "head"}}}
        # Where the API server is differs from cluster to cluster.
        to_api = {"policyTypes": ["Egress"], "egress": [{"ports": [_port(port) for port in API_SERVER_PORTS]}]}
        found.append(_policy(f"{job}-autoscaler", job, head | to_api))
    return found


def _egress(place: EgressSection) -> Tree:
    ports = [_port(port) for port in place.ports]
    if place.namespace is not None:
        return {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}}}], "ports": ports}
    assert place.cidr is not None
    network = ipaddress.ip_network(place.cidr)
    block: Tree = {"cidr": place.cidr}
    if (
        isinstance(network, ipaddress.IPv4Network)
        and network.prefixlen < 16
        and ipaddress.IPv4Network(METADATA).subnet_of(network)
    ):
        block["except"] = [METADATA]
    return {"to": [{"ipBlock": block}], "ports": ports}


def _port(first: int, last: int | None = None) -> Tree:
    return {"protocol": "TCP", "port": first} | ({"endPort": last} if last is not None else {})


def _policy(name: str, job: str, spec: Tree) -> Tree:
    metadata = {"name": name, "labels": PART_OF | {JOB: job}}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
