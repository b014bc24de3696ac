"""What a recipe's section `[kubernetes]` adds to pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dvpo_ray.config.kubernetes import KubernetesSection, NodeTermSection, PodSection, PodTermSection, VolumeSection
from dvpo_ray.errors import UserInputError
from dvpo_ray.kubernetes.manifests import JOB, Tree

ROLES = ("learner", "scorer", "rollout")
# The operator's label of a pod's group.
GROUP = "ray.io/group"
# What a pod without Ray, which hands the job over, has no use for.
OF_WORKING_PODS = ("env", "secret_env", "env_secrets", "env_config_maps", "volumes", "resources", "spread", "pod_affinity")


def section_of(kubernetes: KubernetesSection, role: str) -> PodSection:
    """What the pods of a role get: that of all pods, and on top of it the role's own. Pods that all actors share (``role`` is
    empty) get those of every role.

    Raises:
        UserInputError: roles that share pods want different things.
    """
    if role == "submitter":
        left_out = {name: PodSection.model_fields[name].get_default() for name in OF_WORKING_PODS}
        return kubernetes.all.model_copy(update=left_out)
    roles = {name: getattr(kubernetes, name) for name in ([role] if role else ROLES)}
    return _merged(kubernetes.all, _shared(roles))


def _shared(roles: Mapping[str, PodSection]) -> PodSection:
    first, *others = roles
    found = roles[first]
    for name in others:
        for field in PodSection.model_fields:
            for key, (mine, other) in _disagreements(getattr(found, field), getattr(roles[name], field)):
                path = f"{field}.{key}" if key else field
                raise UserInputError(
                    f"kubernetes.{name}.{path} is {other!r}, that of another role {mine!r}, and all actors share a pod here: say "
                    "the same of both, or plan for more devices than a node has, which gives each role pods of its own"
                )
        found = _merged(found, roles[name])
    return found


def _disagreements(mine: Any, other: Any) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(mine, Mapping):
        yield from ((key, (mine[key], other[key])) for key in mine if key in other and mine[key] != other[key])
    elif not isinstance(mine, list) and mine is not None and other is not None and mine != other:
        yield "", (mine, other)


def _merged(base: PodSection, top: PodSection) -> PodSection:
    update: dict[str, Any] = {}
    for name in PodSection.model_fields:
        under, over = getattr(base, name), getattr(top, name)
        if isinstance(under, Mapping):
            update[name] = {**under, **over}
        elif isinstance(under, list):
            update[name] = list(dict.fromkeys([*under, *over]))
        else:
            update[name] = under if over is None else over
    # A variable's value is said in one of two places: what is said on top counts.
    for name, other in (("env", "secret_env"), ("secret_env", "env")):
        here, there = getattr(top, name), getattr(top, other)
        update[name] = {key: value for key, value in update[name].items() if key in here or key not in there}
    return base.model_copy(update=update)


def add(template: Tree, section: PodSection, job: str, group: str) -> None:
    """Put a section into a pod template, whose first container is Ray's. ``group`` is the operator's name of its group."""
    metadata, spec = template["metadata"], template["spec"]
    metadata["labels"] |= section.labels
    if section.annotations:
        metadata["annotations"] = dict(section.annotations)
    _add_to_container(spec["containers"][0], section)
    spec["volumes"] += [{"name": name} | _source(volume) for name, volume in section.volumes.items()]
    if section.node_selector:
        spec["nodeSelector"] = spec.get("nodeSelector", {}) | section.node_selector
    tolerations = [_toleration(one.model_dump(exclude_none=True)) for one in section.tolerations.values()]
    _extend(spec, "tolerations", tolerations)
    _extend(spec, "imagePullSecrets", [{"name": name} for name in section.image_pull_secrets])
    ours = {"matchLabels": {JOB: job, GROUP: group}}
    _extend(spec, "topologySpreadConstraints", [_spread(one.model_dump(), ours) for one in section.spread.values()])
    for term in section.node_affinity.values():
        _add_node_term(spec.setdefault("affinity", {}), term)
    for pods in section.pod_affinity.values():
        _add_pod_term(spec.setdefault("affinity", {}), pods, ours)
    given = {
        "serviceAccountName": section.service_account,
        "priorityClassName": section.priority_class,
        "runtimeClassName": section.runtime_class,
        "schedulerName": section.scheduler,
    }
    spec |= {key: value for key, value in given.items() if value is not None}


def _add_to_container(container: Tree, section: PodSection) -> None:
    variables: dict[str, Tree] = {one["name"]: one for one in container["env"]}
    variables |= {name: {"name": name, "value": value} for name, value in section.env.items()}
    for name, place in section.secret_env.items():
        secret, _, key = place.partition(":")
        variables[name] = {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
    container["env"] = list(variables.values())
    sources = [{"secretRef": {"name": name}} for name in section.env_secrets]
    _extend(container, "envFrom", sources + [{"configMapRef": {"name": name}} for name in section.env_config_maps])
    container["volumeMounts"] += [_mount(name, volume) for name, volume in section.volumes.items()]
    more = {name: str(count) for name, count in section.resources.items()}
    container["resources"] = {kind: amounts | more for kind, amounts in container["resources"].items()}


def _extend(tree: Tree, key: str, more: Sequence[Tree]) -> None:
    if more:
        tree[key] = [*tree.get(key, []), *more]


def _source(volume: VolumeSection) -> Tree:
    if volume.claim is not None:
        return {"persistentVolumeClaim": {"claimName": volume.claim}}
    if volume.secret is not None:
        return {"secret": {"secretName": volume.secret}}
    if volume.config_map is not None:
        return {"configMap": {"name": volume.config_map}}
    return {"emptyDir": {"sizeLimit": f"{volume.empty_gib}Gi"}}


def _mount(name: str, volume: VolumeSection) -> Tree:
    found: Tree = {"name": name, "mountPath": volume.path}
    if volume.sub_path is not None:
        found["subPath"] = volume.sub_path
    return found | ({"readOnly": True} if volume.read_only and volume.empty_gib is None else {})


def _toleration(given: Tree) -> Tree:
    return {"key": given["key"], "operator": "Equal" if "value" in given else "Exists"} | given


def _spread(given: Tree, ours: Tree) -> Tree:
    how = "DoNotSchedule" if given["required"] else "ScheduleAnyway"
    return {
        "maxSkew": given["max_skew"],
        "topologyKey": given["topology_key"],
        "whenUnsatisfiable": how,
        "labelSelector": ours,
    }


def _add_node_term(affinity: Tree, term: NodeTermSection) -> None:
    wanted = {"key": term.key, "operator": term.operator} | ({"values": list(term.values)} if term.values else {})
    of_nodes = affinity.setdefault("nodeAffinity", {})
    if term.weight is None:
        required = of_nodes.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {"nodeSelectorTerms": []})
        # Of several terms one is enough: all conditions go into the same.
        terms = required["nodeSelectorTerms"] or [{"matchExpressions": []}]
        required["nodeSelectorTerms"] = [{"matchExpressions": [*one["matchExpressions"], wanted]} for one in terms]
    else:
        wish = {"weight": term.weight, "preference": {"matchExpressions": [wanted]}}
        _extend(of_nodes, "preferredDuringSchedulingIgnoredDuringExecution", [wish])


def _add_pod_term(affinity: Tree, term: PodTermSection, ours: Tree) -> None:
    selector = {"matchLabels": dict(term.labels)} if term.labels else ours
    wanted = {"topologyKey": term.topology_key, "labelSelector": selector}
    of_pods = affinity.setdefault("podAntiAffinity" if term.apart else "podAffinity", {})
    if term.weight is None:
        _extend(of_pods, "requiredDuringSchedulingIgnoredDuringExecution", [wanted])
    else:
        wish = {"weight": term.weight, "podAffinityTerm": wanted}
        _extend(of_pods, "preferredDuringSchedulingIgnoredDuringExecution", [wish])
