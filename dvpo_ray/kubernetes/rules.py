"""All rules over all documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from dvpo_ray.kubernetes.manifests import Finding, PodTemplate, Tree, items, ray_object, tree
from dvpo_ray.kubernetes.operator_rules import OPERATOR_RULES, Problem
from dvpo_ray.kubernetes.pod_rules import POD_RULES, has_no_privileges, requests_equal_limits

DIRECTIONS = {"Ingress", "Egress"}
DNS = 53


def check(documents: Sequence[Tree], files: Sequence[str] = ()) -> list[Finding]:
    """Every broken rule in these documents. Rules of a namespace are looked at when the Namespace is among them.

    ``files`` says for each document where it came from, for findings to name.
    """
    named = list(zip(documents, files or [""] * len(documents), strict=True))
    found = [replace(finding, file=file) for document, file in named for finding in _of_document(document)]
    for document, file in named:
        if document.get("kind") == "Namespace":
            where = f"Namespace {tree(document.get('metadata')).get('name')}"
            problems = ((rule.__name__, problem) for rule in NAMESPACE_RULES for problem in rule(documents))
            found += [Finding(rule, where, *problem, file=file) for rule, problem in problems]
    return found


def _of_document(document: Tree) -> Iterator[Finding]:
    ray = ray_object(document)
    if ray is None:
        if str(document.get("apiVersion")).startswith("ray.io/"):
            kind, name = document.get("kind"), tree(document.get("metadata")).get("name")
            problem = ("these rules know RayJob and RayCluster alone", "render one, or look at this object yourself")
            yield Finding("kind_is_known", f"{kind} {name}", *problem)
        return
    for operator_rule in OPERATOR_RULES:
        yield from (Finding(operator_rule.__name__, ray.where, *problem) for problem in operator_rule(ray))
    pods = list(ray.pods())
    for pod in pods:
        for pod_rule in POD_RULES:
            yield from (Finding(pod_rule.__name__, pod.where, *problem) for problem in pod_rule(pod))
    if ray.autoscaling:
        # The operator adds the autoscaler as a container of the head, made of these options.
        options = {"name": "autoscaler", **tree(ray.cluster.get("autoscalerOptions"))}
        context = next((pod.spec.get("securityContext") for pod in pods if pod.role == "head"), None)
        sidecar = PodTemplate(f"{ray.where}, autoscaler", "head", {"containers": [options], "securityContext": context}, True)
        for sidecar_rule in (requests_equal_limits, has_no_privileges):
            yield from (Finding(sidecar_rule.__name__, sidecar.where, *problem) for problem in sidecar_rule(sidecar))


def traffic_is_denied_by_default(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Ray's ports are many and chosen at random: what is not asked for must not get through."""
    for spec in _policies(documents):
        types = {str(one) for one in items(spec.get("policyTypes"))}
        if types == DIRECTIONS and spec.get("podSelector") == {} and not spec.get("ingress") and not spec.get("egress"):
            return
    yield "no NetworkPolicy denies all traffic", "add one with podSelector: {} and policyTypes [Ingress, Egress]"


def senders_are_named(documents: Sequence[Tree]) -> Iterator[Problem]:
    """One rule without `from` lets the whole cluster in, whatever the others deny."""
    for document in documents:
        rules = items(tree(document.get("spec")).get("ingress")) if document.get("kind") == "NetworkPolicy" else []
        if any(not tree(rule).get("from") for rule in rules):
            name = tree(document.get("metadata")).get("name")
            yield f"NetworkPolicy {name} lets everyone in", "say in `from` who may come, or leave the rule out"


def check_dns_egress(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Without DNS no pod finds its head."""
    rules = [tree(rule) for spec in _policies(documents) for rule in items(spec.get("egress"))]
    open_ports = [(tree(port).get("protocol"), tree(port).get("port")) for rule in rules for port in items(rule.get("ports"))]
    missing = [protocol for protocol in ("UDP", "TCP") if (protocol, DNS) not in open_ports]
    if missing:
        yield f"no NetworkPolicy lets pods ask for names by {' and '.join(missing)}", f"allow egress to port {DNS}"


def pods_are_restricted(documents: Sequence[Tree]) -> Iterator[Problem]:
    """Kubernetes itself refuses pods that ask for more."""
    for document in documents:
        labels = tree(tree(document.get("metadata")).get("labels"))
        if document.get("kind") == "Namespace" and labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace admits any pod", "label it pod-security.kubernetes.io/enforce: restricted"


def _policies(documents: Sequence[Tree]) -> list[Tree]:
    return [tree(document.get("spec")) for document in documents if document.get("kind") == "NetworkPolicy"]


NAMESPACE_RULES: tuple[Callable[[Sequence[Tree]], Iterator[Problem]], ...] = (
    traffic_is_denied_by_default,
    senders_are_named,
    check_dns_egress,
    pods_are_restricted,
)
