"""What may reach what. One function a rule, over all documents; each yields (what, remedy)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dvpo_ray.kubernetes.manifests import JOB, Tree, items, ray_object, tree
from dvpo_ray.kubernetes.network import API_SERVER_PORTS, METADATA
from dvpo_ray.kubernetes.operator_rules import Problem

DIRECTIONS = {"Ingress", "Egress"}
PROTOCOLS = ("UDP", "TCP")
# Who answers for names, by how a policy lets pods reach them, and on which port.
NODE_LOCAL_DNS, CLOUD_DNS = "169.254.20.10/32", METADATA
OPENSHIFT_DNS, OPENSHIFT_PORT, DNS_PORT = "openshift-dns", 5353, 53
NAMESPACE_NAME = "kubernetes.io/metadata.name"


def traffic_is_denied_by_default(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Ray's ports are many: what is not asked for must not get through."""
    for _, spec in _policies(documents):
        types = {str(one) for one in items(spec.get("policyTypes"))}
        if types == DIRECTIONS and spec.get("podSelector") == {} and not spec.get("ingress") and not spec.get("egress"):
            return
    yield "no NetworkPolicy denies all traffic", "add one with podSelector: {} and policyTypes [Ingress, Egress]"


def senders_are_named(documents: Sequence[Tree]) -> Iterator[Problem]:
    """One rule without `from` lets the whole cluster in, whatever the others deny."""
    for name, spec in _policies(documents):
        if any(not tree(rule).get("from") for rule in items(spec.get("ingress"))):
            yield f"NetworkPolicy {name} lets everyone in", "say in `from` who may come, or leave the rule out"


def receivers_are_named(documents: Sequence[Tree]) -> Iterator[Problem]:
    """A rule without `to` lets pods reach the whole world; only of the API server is the address not known."""
    for name, spec in _policies(documents):
        for rule in map(tree, items(spec.get("egress"))):
            ports = [tree(port).get("port") for port in items(rule.get("ports"))]
            if not rule.get("to") and (not ports or any(port not in API_SERVER_PORTS for port in ports)):
                yield f"NetworkPolicy {name} lets pods reach everything", "say in `to` what they may reach"


def ports_are_named(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Without ports a rule opens all of them."""
    for name, spec in _policies(documents):
        for direction in ("ingress", "egress"):
            if any(not tree(rule).get("ports") for rule in items(spec.get(direction))):
                yield f"NetworkPolicy {name} opens every port ({direction})", "say in `ports` which"


def names_are_asked_for(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Without DNS no pod finds its head, and who answers differs: a service, a cache on the node, the cloud, OpenShift's own."""
    wanted: list[tuple[str, int, Callable[[Tree], bool]]] = [
        ("the service kube-dns", DNS_PORT, _leads_to_kube_dns),
        (f"the cache on the node ({NODE_LOCAL_DNS})", DNS_PORT, lambda peer: _leads_to(peer, NODE_LOCAL_DNS)),
        (f"the cloud's ({CLOUD_DNS})", DNS_PORT, lambda peer: _leads_to(peer, CLOUD_DNS)),
        (f"OpenShift's ({OPENSHIFT_DNS})", OPENSHIFT_PORT, lambda peer: _namespace(peer) == OPENSHIFT_DNS),
    ]
    rules = [
        rule for _, spec in _policies(documents) if spec.get("podSelector") == {} for rule in map(tree, items(spec.get("egress")))
    ]
    for what, port, leads_there in wanted:
        found = {
            str(tree(one).get("protocol", "TCP"))
            for rule in rules
            if not rule.get("to") or any(leads_there(tree(peer)) for peer in items(rule.get("to")))
            for one in items(rule.get("ports"))
            if tree(one).get("port") == port
        }
        missing = [protocol for protocol in PROTOCOLS if protocol not in found]
        if missing:
            yield (
                f"no NetworkPolicy lets all pods ask {what} for names by {' and '.join(missing)}",
                f"allow egress to it on port {port}, as k8s/base/network.yaml does",
            )


def metadata_stays_closed(documents: Sequence[Tree]) -> Iterator[Problem]:
    """A cloud gives the node's credentials to whoever asks there by HTTP."""
    for name, spec in _policies(documents):
        for rule in map(tree, items(spec.get("egress"))):
            ports = {str(tree(port).get("port")) for port in items(rule.get("ports"))}
            peers = items(rule.get("to"))
            if ports != {str(DNS_PORT)} and any(_leads_to(tree(peer), METADATA) for peer in peers):
                yield (
                    f"NetworkPolicy {name} lets pods ask {METADATA} for the node's credentials",
                    "put that address under `except`, or name narrower networks",
                )


def jobs_keep_to_themselves(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Whoever gets into the pods of one job must not get to those of another."""
    for name, spec in _policies(documents):
        for direction, key in (("ingress", "from"), ("egress", "to")):
            for peer in (tree(one) for rule in items(spec.get(direction)) for one in items(tree(rule).get(key))):
                # With another namespace it is about others' pods.
                if "podSelector" not in peer or "namespaceSelector" in peer:
                    continue
                theirs, ours = _labels(peer["podSelector"]).get(JOB), _labels(spec.get("podSelector")).get(JOB)
                if theirs is None or theirs != ours:
                    yield (
                        f"NetworkPolicy {name} lets pods of one job and of others reach each other",
                        f"select the same {JOB} on both sides, as `dvpo k8s render` does for each job",
                    )


def jobs_may_talk(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Where all traffic is denied, a job without a policy of its own never finds its head."""
    open_jobs = [
        _labels(spec.get("podSelector")).get(JOB)
        for _, spec in _policies(documents)
        if any(_labels(tree(peer).get("podSelector")).get(JOB) for rule in items(spec.get("egress")) for peer in _to(rule))
    ]
    for ray in filter(None, map(ray_object, documents)):
        for pod in ray.pods():
            if pod.pod_labels.get(JOB) not in open_jobs:
                yield (
                    f"no NetworkPolicy lets {pod.where} reach the other pods of its job",
                    f"add the one that `dvpo k8s render` makes, for the label {JOB}",
                )


def pods_are_restricted(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Kubernetes itself refuses pods that ask for more."""
    for document in documents:
        labels = tree(tree(document.get("metadata")).get("labels"))
        if document.get("kind") == "Namespace" and labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace admits any pod", "label it pod-security.kubernetes.io/enforce: restricted"


def _policies(documents: Sequence[Tree]) -> list[tuple[Any, Tree]]:
    return [
        (tree(document.get("metadata")).get("name"), tree(document.get("spec")))
        for document in documents
        if document.get("kind") == "NetworkPolicy"
    ]


def _to(rule: Any) -> list[Any]:
    return items(tree(rule).get("to"))


def _labels(selector: Any) -> Tree:
    return tree(tree(selector).get("matchLabels"))


def _namespace(peer: Tree) -> Any:
    return _labels(peer.get("namespaceSelector")).get(NAMESPACE_NAME)


def _leads_to_kube_dns(peer: Tree) -> bool:
    return _namespace(peer) == "kube-system" and _labels(peer.get("podSelector")).get("k8s-app") in (None, "kube-dns")


def _leads_to(peer: Tree, network: str) -> bool:
    block = tree(peer.get("ipBlock"))
    return _within(network, block.get("cidr")) and not any(_within(network, one) for one in items(block.get("except")))


def _within(network: str, larger: Any) -> bool:
    try:
        outer = ipaddress.ip_network(str(larger))
    except ValueError:  # a schema's matter
        return False
    inner = ipaddress.ip_network(network)
    return isinstance(outer, ipaddress.IPv4Network) and isinstance(inner, ipaddress.IPv4Network) and inner.subnet_of(outer)


# Rules of policies wherever one is among the documents, and of a namespace.
NETWORK_RULES: tuple[Callable[[Sequence[Tree]], Iterator[Problem]], ...] = (
    senders_are_named,
    receivers_are_named,
    ports_are_named,
    metadata_stays_closed,
    jobs_keep_to_themselves,
    jobs_may_talk,
)
NAMESPACE_RULES: tuple[Callable[[Sequence[Tree]], Iterator[Problem]], ...] = (
    traffic_is_denied_by_default,
    names_are_asked_for,
    pods_are_restricted,
)
