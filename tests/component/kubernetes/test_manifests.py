"""Every object that is shipped or rendered is sound, and every fault put into one is found by a judge."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dvpo_ray.kubernetes.manifests import Tree
from dvpo_ray.kubernetes.network import METRICS
from dvpo_ray.submission.package import STOP_WAIT
from scripts.k8s_overlays import ALERTS, OVERLAYS, ROOT, generated
from tests.support.manifests import OVERLAY_NAMES, built, by_crds, by_rules, by_schema, needs_kubectl

Fault = Callable[[Tree], None]


@pytest.fixture(scope="session")
def jobs() -> dict[str, list[Tree]]:
    """The generated files, with images that are pinned."""
    return {_overlay(path): _with_image(content) for path, content in generated() if path != ALERTS}


def _overlay(path: Path) -> str:
    return str(path.parent.relative_to(OVERLAYS))


def _with_image(content: str) -> list[Tree]:
    return list(yaml.load_all(content.replace(64 * "0", "5d" * 32), Loader=yaml.CSafeLoader))


def test_generated_files_are_up_to_date() -> None:
    for path, content in generated():
        assert (ROOT / path).read_text() == content, f"{path}: run `make k8s`"


@pytest.mark.parametrize("overlay", OVERLAY_NAMES)
def test_every_overlay_builds_and_is_sound(overlay: str, tmp_path: Path) -> None:
    needs_kubectl()
    documents = built(overlay, tmp_path)
    assert by_rules(documents) == []
    assert by_schema(documents) == []
    kinds = {document["kind"] for document in documents}
    assert {"Namespace", "NetworkPolicy", "PersistentVolumeClaim", "PriorityClass", "PodDisruptionBudget", "ConfigMap"} <= kinds
    assert {document["metadata"].get("namespace", "dvpo") for document in documents} == {"dvpo"}


@pytest.mark.parametrize("overlay", OVERLAY_NAMES)
def test_every_overlay_fits_the_schemas_of_kuberay(overlay: str, tmp_path: Path) -> None:
    needs_kubectl()
    assert by_crds(built(overlay, tmp_path)) == []


def test_an_image_that_was_not_filled_in_is_found(tmp_path: Path) -> None:
    needs_kubectl()
    found = by_rules(built("cpu-demo", tmp_path, image=None))
    assert len(found) == 3 and all("placeholder" in text and "kustomize edit set image" in text for text in found)
    assert "RayJob demo, head: container ray-head: image 'registry.example/" in found[0]


def spec(job: Tree) -> Tree:
    return job["spec"]


def cluster(job: Tree) -> Tree:
    return job["spec"].get("rayClusterSpec", job["spec"])


def head(job: Tree) -> Tree:
    return cluster(job)["headGroupSpec"]


def head_pod(job: Tree) -> Tree:
    return head(job)["template"]["spec"]


def head_container(job: Tree) -> Tree:
    return head_pod(job)["containers"][0]


def worker(job: Tree, index: int = 0) -> Tree:
    return cluster(job)["workerGroupSpecs"][index]


def worker_pod(job: Tree, index: int = 0) -> Tree:
    return worker(job, index)["template"]["spec"]


def worker_container(job: Tree) -> Tree:
    return worker_pod(job)["containers"][0]


def remove(place: Tree, key: str) -> None:
    del place[key]


def started_before(job: Tree) -> None:
    """A container that runs before Ray's, sound in itself."""
    first = copy.deepcopy(head_container(job))
    first["volumeMounts"].pop()
    worker_pod(job)["initContainers"] = [first]


def hook(container: Tree) -> list[str]:
    return container["lifecycle"]["preStop"]["exec"]["command"]


def fewer_gpus(container: Tree) -> None:
    for amounts in container["resources"].values():
        amounts["nvidia.com/gpu"] = "4"


TOLERATE = {"key": "dvpo-ray/preemptible", "operator": "Exists"}
DELETE_WORKERS = {"onSuccess": {"policy": "DeleteWorkers"}, "onFailure": {"policy": "DeleteCluster"}}
DELETION_RULES = {"deletionRules": [{"condition": {"jobStatus": "FAILED"}, "policy": "DeleteSelf"}]}
RETRY, KUEUE, LARGE, INTERACTIVE = "cpu-demo", "gpu-large/kueue", "gpu-large", "gpu-small/interactive"

# What our rules find: (the rule that must speak, which job, the fault).
FOUND_BY_RULES: list[tuple[str, str, Fault]] = [
    ("name_is_a_short_label", RETRY, lambda job: job["metadata"].update(name="x" * 48)),
    ("name_is_a_short_label", RETRY, lambda job: job["metadata"].update(name="Demo_1")),
    ("suspension_needs_shutdown", KUEUE, lambda job: spec(job).update(shutdownAfterJobFinishes=False)),
    ("suspension_needs_shutdown", KUEUE, lambda job: spec(job).update(clusterSelector={"ray.io/cluster": "c"})),
    ("deletion_has_one_rule_book", KUEUE, lambda job: spec(job).update(deletionStrategy=DELETION_RULES)),
    ("deletion_has_one_rule_book", RETRY, lambda job: spec(job).update(shutdownAfterJobFinishes=False)),
    ("deletion_has_one_rule_book", LARGE, lambda job: spec(job).update(deletionStrategy=DELETE_WORKERS)),
    ("a_retry_goes_on", RETRY, lambda job: spec(job).update(entrypoint="dvpo demo /etc/dvpo/recipe.toml")),
    ("a_retry_goes_on", RETRY, lambda job: head_pod(job)["volumes"].pop(2)),
    ("a_retry_goes_on", RETRY, lambda job: spec(job).update(submissionMode="InteractiveMode")),
    ("the_submitter_is_ours", RETRY, lambda job: remove(spec(job), "submitterPodTemplate")),
    ("the_submitter_is_ours", RETRY, lambda job: spec(job).update(submissionMode="SidecarMode")),
    ("a_queue_wants_fixed_sizes", KUEUE, lambda job: cluster(job).update(enableInTreeAutoscaling=True)),
    ("a_queue_wants_fixed_sizes", KUEUE, lambda job: cluster(job)["workerGroupSpecs"].extend([worker(job)] * 4)),
    ("the_head_computes_nothing", RETRY, lambda job: remove(head(job)["rayStartParams"], "num-cpus")),
    ("autoscaling_is_version_2", LARGE, lambda job: remove(cluster(job)["autoscalerOptions"], "version")),
    ("autoscaling_is_version_2", LARGE, lambda job: worker_pod(job).update(restartPolicy="Always")),
    ("replicas_are_in_order", LARGE, lambda job: worker(job, 1).update(minReplicas=9)),
    ("group_names_differ", LARGE, lambda job: worker(job, 1).update(groupName="learner")),
    ("access_needs_a_token", RETRY, lambda job: cluster(job)["authOptions"].update(mode="disabled")),
    ("access_needs_a_token", RETRY, lambda job: remove(cluster(job), "authOptions")),
    ("access_needs_a_token", RETRY, lambda job: cluster(job).update(rayVersion="2.9.0")),
    ("the_dashboard_stays_inside", RETRY, lambda job: head(job).update(serviceType="LoadBalancer")),
    ("the_dashboard_stays_inside", INTERACTIVE, lambda job: head(job).update(enableIngress=True)),
    (
        "fault_tolerance_has_one_store",
        INTERACTIVE,
        lambda job: cluster(job)["gcsFaultToleranceOptions"].update(redisAddress="redis:6379"),
    ),
    (
        "fault_tolerance_has_one_store",
        INTERACTIVE,
        lambda job: job["metadata"].update(annotations={"ray.io/ft-enabled": "true"}),
    ),
    ("the_gang_is_not_preempted", LARGE, lambda job: worker_pod(job)["tolerations"].append(TOLERATE)),
    ("requests_equal_limits", RETRY, lambda job: remove(worker_container(job), "resources")),
    ("requests_equal_limits", RETRY, lambda job: worker_container(job)["resources"]["requests"].update(memory="1Gi")),
    ("requests_equal_limits", LARGE, lambda job: remove(cluster(job)["autoscalerOptions"], "resources")),
    ("runs_without_root", RETRY, lambda job: head_pod(job)["securityContext"].update(runAsUser=0)),
    ("runs_without_root", RETRY, lambda job: remove(worker_pod(job), "securityContext")),
    ("has_no_privileges", RETRY, lambda job: remove(worker_container(job), "securityContext")),
    ("has_no_privileges", RETRY, lambda job: head_pod(job).update(hostNetwork=True)),
    ("has_no_privileges", LARGE, lambda job: remove(cluster(job)["autoscalerOptions"], "securityContext")),
    ("has_no_privileges", RETRY, lambda job: head_container(job)["securityContext"].update(readOnlyRootFilesystem=False)),
    ("has_no_privileges", RETRY, lambda job: head_container(job)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"])),
    ("has_no_privileges", RETRY, lambda job: worker_pod(job)["volumes"].append({"name": "root", "hostPath": {"path": "/"}})),
    ("has_no_privileges", RETRY, lambda job: head_container(job)["ports"][1].update(hostPort=8265)),
    ("has_no_service_account", RETRY, lambda job: remove(worker_pod(job), "automountServiceAccountToken")),
    ("has_no_service_account", LARGE, lambda job: head_pod(job).update(automountServiceAccountToken=False)),
    ("image_is_pinned", RETRY, lambda job: worker_container(job).update(image="registry.test/dvpo:latest")),
    ("shared_memory_is_memory", RETRY, lambda job: worker_container(job)["volumeMounts"].pop(1)),
    ("shared_memory_is_memory", RETRY, lambda job: (worker_container(job)["volumeMounts"].pop(1), started_before(job))),
    ("shared_memory_is_memory", RETRY, lambda job: worker_pod(job)["volumes"][1]["emptyDir"].update(sizeLimit="64Gi")),
    ("environment_is_text", RETRY, lambda job: head_container(job)["env"].append({"name": "DEBUG", "value": True})),
    ("environment_is_text", RETRY, lambda job: head_container(job)["env"].append({"name": "WANDB_API_KEY", "value": "s"})),
    (
        "environment_is_text",
        RETRY,
        lambda job: head_container(job)["env"].append({"name": "aws_secret_access_key", "value": "s"}),
    ),
    ("ports_differ", RETRY, lambda job: head_container(job)["ports"].append({"name": "gcs", "containerPort": 1})),
    ("is_watched", RETRY, lambda job: remove(worker_container(job), "ports")),
    ("waits_before_it_ends", RETRY, lambda job: remove(head_container(job), "lifecycle")),
    ("waits_before_it_ends", KUEUE, lambda job: remove(worker_container(job), "lifecycle")),
    ("waits_before_it_ends", INTERACTIVE, lambda job: hook(head_container(job)).remove("--stop")),
    ("waits_before_it_ends", RETRY, lambda job: hook(worker_container(job)).append("--stop")),
    ("waits_before_it_ends", RETRY, lambda job: hook(worker_container(job)).remove("--wait-s")),
    ("waits_before_it_ends", RETRY, lambda job: hook(head_container(job)).__setitem__(slice(3), ["ray", "stop"])),
    ("grace_covers_the_hook", RETRY, lambda job: head_pod(job).update(terminationGracePeriodSeconds=60)),
    ("grace_covers_the_hook", LARGE, lambda job: remove(worker_pod(job), "terminationGracePeriodSeconds")),
    ("a_stop_waits_for_a_checkpoint", RETRY, lambda job: remove(spec(job), "runtimeEnvYAML")),
    ("a_stop_waits_for_a_checkpoint", RETRY, lambda job: spec(job).update(runtimeEnvYAML="env_vars: [")),
    ("a_stop_waits_for_a_checkpoint", RETRY, lambda job: spec(job).update(runtimeEnvYAML=f"env_vars: {{{STOP_WAIT}: 300}}")),
    ("a_stop_waits_for_a_checkpoint", KUEUE, lambda job: spec(job).update(runtimeEnvYAML=f"env_vars: {{{STOP_WAIT}: '9999'}}")),
    ("starting_has_an_end", RETRY, lambda job: remove(spec(job), "preRunningDeadlineSeconds")),
    ("starting_has_an_end", KUEUE, lambda job: spec(job).update(preRunningDeadlineSeconds=0)),
    ("variables_differ", RETRY, lambda job: head_container(job)["env"].append({"name": "HOME", "value": "/root"})),
    ("mounts_have_volumes", RETRY, lambda job: head_pod(job)["volumes"].pop(3)),
    (
        "mounts_have_volumes",
        LARGE,
        lambda job: worker_container(job)["volumeMounts"].append({"name": "tmp", "mountPath": "/runs"}),
    ),
    ("gpus_are_of_one_kind", LARGE, lambda job: remove(worker_pod(job), "nodeSelector")),
    ("gpus_are_of_one_kind", "gpu-small", lambda job: worker_pod(job).update(nodeSelector={})),
    ("belongs_to_a_job", RETRY, lambda job: worker(job)["template"]["metadata"]["labels"].pop("dvpo-ray/job")),
    ("gpus_are_enough", LARGE, lambda job: fewer_gpus(worker_container(job))),
    ("gpus_are_enough", LARGE, lambda job: cluster(job)["workerGroupSpecs"].pop(2)),
    ("gpus_are_enough", KUEUE, lambda job: worker(job, 2)["labels"].update({"dvpo-ray/role": "scorer"})),
    ("the_gang_is_kept_together", LARGE, lambda job: worker(job).update(replicas=2, maxReplicas=2)),
    ("jobs_may_talk", RETRY, lambda job: worker(job)["template"]["metadata"]["labels"].update({"dvpo-ray/job": "other"})),
]

# What is sound, though it looks like a fault.
SOUND: list[tuple[str, Fault]] = [
    ("a container that needs no shared memory before Ray's", started_before),
    ("words of models", lambda job: head_container(job)["env"].append({"name": "TOKENIZERS_PARALLELISM", "value": "false"})),
    ("where a token is", lambda job: head_container(job)["env"].append({"name": "RAY_AUTH_TOKEN_PATH", "value": "/tmp/t"})),
    ("one amount in two ways", lambda job: two_ways(worker_container(job)["resources"])),
]


def two_ways(resources: Tree) -> None:
    resources["requests"] = {"cpu": "2700m", "memory": "2e9"}
    resources["limits"] = {"cpu": "2.7", "memory": "2G"}


@pytest.mark.parametrize(("what", "change"), SOUND, ids=[row[0] for row in SOUND])
def test_rules_leave_what_is_sound_alone(jobs: dict[str, list[Tree]], what: str, change: Fault) -> None:
    documents = copy.deepcopy(jobs[RETRY])
    worker_pod(documents[1])["volumes"][1]["emptyDir"]["sizeLimit"] = "1Gi"
    change(documents[1])
    assert by_rules(documents) == [], what


def test_what_the_rules_do_not_know_is_not_passed_over(jobs: dict[str, list[Tree]]) -> None:
    service = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "serve"}, "spec": {}}
    (found,) = by_rules([service])
    assert found.startswith("RayService serve: these rules know RayJob and RayCluster alone: ")


# What the schemas of KubeRay find.
FOUND_BY_CRDS: list[tuple[str, str, Fault]] = [
    ("a misspelt field", RETRY, lambda job: spec(job).update(backofLimit=3)),
    ("a number as text", RETRY, lambda job: spec(job).update(backoffLimit="3")),
    ("a number where text must be", RETRY, lambda job: head(job)["rayStartParams"].update({"num-cpus": 0})),
    ("an unquoted environment variable", RETRY, lambda job: head_container(job)["env"].append({"name": "A", "value": 1})),
    ("a duplicate port", RETRY, lambda job: head_container(job)["ports"].append({"name": "again", "containerPort": 6379})),
    ("a list where one object must be", RETRY, lambda job: head(job).update(template=[])),
    ("a group without a name", RETRY, lambda job: remove(worker(job), "groupName")),
    ("an unknown mode of authentication", RETRY, lambda job: cluster(job)["authOptions"].update(mode="password")),
    ("an unknown version of the autoscaler", LARGE, lambda job: cluster(job)["autoscalerOptions"].update(version="v3")),
    ("two kinds of deletion", RETRY, lambda job: spec(job).update(deletionStrategy=DELETE_WORKERS | DELETION_RULES)),
    ("a size that is none", INTERACTIVE, lambda job: worker_container(job)["resources"]["limits"].update(memory="lots")),
]


@pytest.mark.parametrize(
    ("rule", "which", "fault"), FOUND_BY_RULES, ids=[f"{i}-{row[0]}" for i, row in enumerate(FOUND_BY_RULES)]
)
def test_rules_find_faults(jobs: dict[str, list[Tree]], rule: str, which: str, fault: Fault) -> None:
    documents = jobs[which]
    assert by_rules(documents) == []
    faulty = copy.deepcopy(documents)
    fault(faulty[1])
    found = by_rules(faulty)
    assert any(text.endswith(f"[{rule}]") for text in found), found


@pytest.mark.parametrize(("what", "which", "fault"), FOUND_BY_CRDS, ids=[row[0] for row in FOUND_BY_CRDS])
def test_schemas_find_faults(jobs: dict[str, list[Tree]], what: str, which: str, fault: Fault) -> None:
    faulty = copy.deepcopy(jobs[which])
    assert by_crds(faulty) == []
    fault(faulty[1])
    assert by_crds(faulty) != [], what
    by_rules(faulty)  # wrong shapes do not trip our rules up


@pytest.mark.parametrize("overlay", OVERLAY_NAMES)
def test_prometheus_reads_every_node_once(overlay: str, tmp_path: Path) -> None:
    """Of two monitors each would count the head, and sums over counters would be twice what they are."""
    needs_kubectl()
    documents = built(overlay, tmp_path)
    monitors = [one for one in documents if one["kind"] in ("PodMonitor", "ServiceMonitor")]
    assert [one["kind"] for one in monitors] == ([] if overlay == "cpu-demo" else ["PodMonitor"])
    job = next(one for one in documents if one["kind"] in ("RayJob", "RayCluster"))
    templates = [head(job)["template"], *(group["template"] for group in cluster(job)["workerGroupSpecs"])]
    ports = {
        port["containerPort"] for pod in templates for port in pod["spec"]["containers"][0]["ports"] if port["name"] == "metrics"
    }
    for monitor in monitors:
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        assert all(wanted <= pod["metadata"]["labels"].items() for pod in templates)
        assert [end["port"] for end in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    (rule,) = _policies(documents)["metrics"]["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == ports == {METRICS}


NATIVE_FAULTS: list[tuple[str, Fault]] = [
    ("PodDisruptionBudget", lambda one: one["spec"].update(minAvailble=1)),
    ("PodDisruptionBudget", lambda one: one["spec"].update(selector="all")),
    ("ConfigMap", lambda one: one["data"].update({"recipe.toml": 1})),
    ("NetworkPolicy", lambda one: one["spec"].update(policyTypes="Ingress")),
    ("PriorityClass", lambda one: one.update(value="high")),
    ("PersistentVolumeClaim", lambda one: one["spec"].update(accessMode="ReadWriteMany")),
    ("Namespace", lambda one: one["metadata"].update(labels=["restricted"])),
]


@pytest.mark.parametrize(("kind", "fault"), NATIVE_FAULTS, ids=[row[0] for row in NATIVE_FAULTS])
def test_native_schemas_find_faults(tmp_path: Path, kind: str, fault: Fault) -> None:
    needs_kubectl()
    documents = built("cpu-demo", tmp_path)
    fault(next(document for document in documents if document["kind"] == kind))
    assert by_schema(documents) != []


OURS = {"matchLabels": {"app.kubernetes.io/part-of": "dvpo-ray"}}


def _egress(documents: list[Tree], policy: str, rule: int = 0) -> Tree:
    return _policies(documents)[policy]["spec"]["egress"][rule]


def _spec_of(documents: list[Tree]) -> Tree:
    return _policies(documents)["gpu-large-pods"]["spec"]


def _policies(documents: list[Tree]) -> dict[str, Tree]:
    return {one["metadata"]["name"]: one for one in documents if one["kind"] == "NetworkPolicy"}


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ("traffic_is_denied_by_default", lambda documents: documents.remove(_policies(documents)["deny-all"])),
        (
            "traffic_is_denied_by_default",
            lambda documents: _policies(documents)["deny-all"]["spec"].update(policyTypes=["Ingress"]),
        ),
        ("senders_are_named", lambda documents: _policies(documents)["operator"]["spec"]["ingress"][0].pop("from")),
        ("receivers_are_named", lambda documents: _spec_of(documents)["egress"].append({"ports": [{"port": 80}]})),
        ("receivers_are_named", lambda documents: _egress(documents, "gpu-large-autoscaler")["ports"][0].update(port=80)),
        ("ports_are_named", lambda documents: _policies(documents)["operator"]["spec"]["ingress"][0].pop("ports")),
        ("ports_are_named", lambda documents: _egress(documents, "gpu-large-pods").pop("ports")),
        ("names_are_asked_for", lambda documents: _egress(documents, "names")["ports"][0].update(protocol="TCP")),
        ("names_are_asked_for", lambda documents: _egress(documents, "names")["to"].pop(0)),
        ("names_are_asked_for", lambda documents: _egress(documents, "names")["to"].pop(1)),
        ("names_are_asked_for", lambda documents: _egress(documents, "names")["to"].pop(2)),
        ("names_are_asked_for", lambda documents: _policies(documents)["names"]["spec"]["egress"].pop(1)),
        ("names_are_asked_for", lambda documents: _egress(documents, "names", 1)["ports"].pop(0)),
        ("names_are_asked_for", lambda documents: _policies(documents)["names"]["spec"].update(podSelector=OURS)),
        (
            "metadata_stays_closed",
            lambda documents: _egress(documents, "gpu-large-pods")["to"].append({"ipBlock": {"cidr": "0.0.0.0/0"}}),
        ),
        ("jobs_keep_to_themselves", lambda documents: _egress(documents, "gpu-large-pods")["to"].append({"podSelector": {}})),
        (
            "jobs_keep_to_themselves",
            lambda documents: _policies(documents)["gpu-large-pods"]["spec"]["ingress"][0]["from"].append({"podSelector": OURS}),
        ),
        ("jobs_may_talk", lambda documents: documents.remove(_policies(documents)["gpu-large-pods"])),
        (
            "pods_are_restricted",
            lambda documents: next(one for one in documents if one["kind"] == "Namespace")["metadata"].pop("labels"),
        ),
    ],
)
def test_rules_of_a_namespace_find_faults(tmp_path: Path, rule: str, fault: Callable[[list[Tree]], Any]) -> None:
    needs_kubectl()
    documents = built("gpu-large", tmp_path)
    fault(documents)
    assert {text.rpartition("[")[2] for text in by_rules(documents)} == {f"{rule}]"}


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("the_recipe_is_there", "steps = 200"),
        ("the_recipe_is_there", "[policy.rollout]"),
        ("gpus_are_enough", "ranks = 8"),
        ("gpus_are_enough", "actors = 4"),
        ("tokens_reach_the_scorers", "[cluster]"),
    ],
)
def test_a_recipe_that_its_pods_do_not_fit_is_found(jobs: dict[str, list[Tree]], rule: str, text: str) -> None:
    """The recipe in the ConfigMap was edited after the job was rendered."""
    changes = {
        "steps = 200": "stepps = 200",
        "[policy.rollout]": "[policy.rollout",
        "ranks = 8": "ranks = 16",
        "actors = 4": "actors = 5",
        "[cluster]": "[policy.rewards.judge]\ntype = 'http'\nurl = 'http://judge'\ntoken_variable = 'JUDGE_TOKEN'\n[cluster]",
    }
    documents = copy.deepcopy(jobs[LARGE])
    recipe = documents[0]["data"]
    assert text in recipe["recipe.toml"]
    recipe["recipe.toml"] = recipe["recipe.toml"].replace(text, changes[text])
    found = by_rules(documents)
    assert [one.rpartition("[")[2] for one in found] == [f"{rule}]"], found


def test_grafanas_default_password_is_refused() -> None:
    def grafana(*env: Tree, image: str = "grafana/grafana:12.1.0") -> list[str]:
        container = {"name": "grafana", "image": image, "env": list(env)}
        spec = {"template": {"spec": {"containers": [container]}}}
        return by_rules([{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "grafana"}, "spec": spec}])

    name = "GF_SECURITY_ADMIN_PASSWORD"
    (found,) = grafana()
    assert found.startswith("Deployment grafana: container grafana: Grafana's administrator has the default password: set GF_")
    assert "stands in the manifest" in grafana({"name": name, "value": "admin"})[0]
    assert grafana({"name": name, "valueFrom": {"secretKeyRef": {"name": "grafana", "key": "password"}}}) == []
    assert grafana({"name": "GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION", "value": "true"}) == []
    assert grafana(image="registry.test/grafana-agent:1") == []


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything stands in a tree."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@given(data=st.data())
def test_rules_take_any_shape(jobs: dict[str, list[Tree]], data: st.DataObject) -> None:
    """What is of the wrong shape is for the schemas; the rules must look at the rest."""
    documents = copy.deepcopy(jobs[data.draw(st.sampled_from([LARGE, KUEUE, INTERACTIVE]))])
    for _ in range(data.draw(st.integers(1, 4))):
        *way, last = data.draw(st.sampled_from(sorted(places(documents), key=str)))
        node: Any = documents
        for key in way:
            node = node[key]
        node[last] = data.draw(st.sampled_from([None, True, 0, -1, "", "x", [], {}, [[]], [{}], {"a": {}}, [None], [1]]))
    by_rules([document for document in documents if isinstance(document, dict)])
