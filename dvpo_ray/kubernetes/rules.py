"""All rules over all documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dvpo_ray.kubernetes.manifests import Finding, PodTemplate, Tree, ray_object, tree
from dvpo_ray.kubernetes.network_rules import NAMESPACE_RULES, NETWORK_RULES
from dvpo_ray.kubernetes.operator_rules import OPERATOR_RULES
from dvpo_ray.kubernetes.pod_rules import POD_RULES, has_no_privileges, requests_equal_limits
from dvpo_ray.kubernetes.recipe_rules import RECIPE_RULES
from dvpo_ray.kubernetes.stop_rules import STOP_POD_RULES, STOP_RULES
from dvpo_ray.kubernetes.workload_rules import WORKLOAD_RULES, WORKLOADS


def check(documents: Sequence[Tree], files: Sequence[str] = ()) -> list[Finding]:
    """Every broken rule in these documents. Rules about several objects look at those that are among them: policies where there
    is one, those of a namespace where the Namespace is there.

    ``files`` says for each document where it came from, for findings to name.
    """
    named = list(zip(documents, files or [""] * len(documents), strict=True))
    found = [replace(finding, file=file) for document, file in named for finding in _of_document(document, documents)]
    for document, file in named:
        if document.get("kind") == "Namespace":
            where = f"Namespace {tree(document.get('metadata')).get('name')}"
            problems = ((rule.__name__, problem) for rule in NAMESPACE_RULES for problem in rule(documents))
            found += [Finding(rule, where, *problem, file=file) for rule, problem in problems]
    policies = [file for document, file in named if document.get("kind") == "NetworkPolicy"]
    if policies:
        problems = ((rule.__name__, problem) for rule in NETWORK_RULES for problem in rule(documents))
        found += [Finding(rule, "the network", *problem, file=policies[0]) for rule, problem in problems]
    return found


def _of_document(document: Tree, documents: Sequence[Tree]) -> Iterator[Finding]:
    ray = ray_object(document)
    if ray is None:
        yield from _of_another(document)
        return
    for rule in (*OPERATOR_RULES, *STOP_RULES):
        yield from (Finding(rule.__name__, ray.where, *problem) for problem in rule(ray))
    for recipe_rule in RECIPE_RULES:
        yield from (Finding(recipe_rule.__name__, ray.where, *problem) for problem in recipe_rule(ray, documents))
    pods = list(ray.pods())
    for pod in pods:
        for pod_rule in (*POD_RULES, *STOP_POD_RULES):
            yield from (Finding(pod_rule.__name__, pod.where, *problem) for problem in pod_rule(pod))
    if ray.autoscaling:
        # The operator adds the autoscaler as a container of the head, made of these options.
        options = {"name": "autoscaler", **tree(ray.cluster.get("autoscalerOptions"))}
        context = next((pod.spec.get("securityContext") for pod in pods if pod.role == "head"), None)
        sidecar = PodTemplate(f"{ray.where}, autoscaler", "head", {"containers": [options], "securityContext": context}, True)
        for sidecar_rule in (requests_equal_limits, has_no_privileges):
            yield from (Finding(sidecar_rule.__name__, sidecar.where, *problem) for problem in sidecar_rule(sidecar))


def _of_another(document: Tree) -> Iterator[Finding]:
    kind, name = document.get("kind"), tree(document.get("metadata")).get("name")
    if str(document.get("apiVersion")).startswith("ray.io/"):
        problem = ("these rules know RayJob and RayCluster alone", "render one, or look at this object yourself")
        yield Finding("kind_is_known", f"{kind} {name}", *problem)
    if kind in WORKLOADS:
        for rule in WORKLOAD_RULES:
            yield from (Finding(rule.__name__, f"{kind} {name}", *problem) for problem in rule(document))
