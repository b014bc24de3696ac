"""Rules of objects that are not Ray's: what stands beside a job. One function a rule; each yields (what, remedy)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from dvpo_ray.kubernetes.manifests import Tree, items, tree
from dvpo_ray.kubernetes.operator_rules import Problem

WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Pod")
GRAFANA = re.compile(r"(^|/)grafana(-oss|-enterprise)?([:@]|$)")
PASSWORD, NO_ADMIN = "GF_SECURITY_ADMIN_PASSWORD", "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"


def grafana_has_a_password(document: Tree) -> Iterator[Problem]:
    """Unless it is told otherwise, Grafana's administrator is admin with the password admin."""
    spec = tree(document.get("spec"))
    pod = spec if document.get("kind") == "Pod" else tree(tree(spec.get("template")).get("spec"))
    for container in map(tree, items(pod.get("containers"))):
        if not GRAFANA.search(str(container.get("image"))):
            continue
        variables = {str(tree(one).get("name")): tree(one) for one in items(container.get("env"))}
        if variables.get(NO_ADMIN, {}).get("value") == "true" or f"{PASSWORD}__FILE" in variables:
            continue
        given = variables.get(PASSWORD)
        if given is None:
            yield f"container {container.get('name')}: Grafana's administrator has the default password", _remedy()
        elif "valueFrom" not in given:
            yield f"container {container.get('name')}: Grafana's password stands in the manifest", _remedy()


def _remedy() -> str:
    return f"set {PASSWORD} from a Secret (valueFrom.secretKeyRef), or {NO_ADMIN} to 'true' where nobody needs to sign in"


WORKLOAD_RULES: tuple[Callable[[Tree], Iterator[Problem]], ...] = (grafana_has_a_password,)
