"""What a recipe's section `[kubernetes]` adds, and to which pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dvpo_ray.config import PipelineRecipe, PolicyRecipe
from dvpo_ray.config.loading import build, to_toml
from dvpo_ray.errors import ConfigError, UserInputError
from dvpo_ray.kubernetes.manifests import Tree
from dvpo_ray.kubernetes.render import Flavour, Request, render
from tests.support.manifests import by_rules, by_schema
from tests.support.shapes import model_of

IMAGE = "registry.test/dvpo@sha256:" + "5d" * 32
POLICY = {
    "value_model": "/runs/value/value-model",
    "data": {"source": "/runs/prompts.jsonl"},
    "rollout": {"actors": 2, "engine": {"gpu_memory_utilization": 0.9}},
    "learner": {"ranks": 8, "backend": {"zero_stage": 3}, "gradient_checkpointing": True},
}
JUDGE = {"judge": {"type": "http", "url": "http://judge", "token_variable": "JUDGE_TOKEN"}}


def jobs(
    folder: Path, kubernetes: Tree, devices: str = "16xH100-80GB", rewards: Tree | None = None, **request: Any
) -> list[Tree]:
    """All objects of an 8 B policy's job."""
    file = folder / "recipe.toml"
    policy = POLICY | ({} if rewards is None else {"rewards": rewards})
    tree = {"run": {"name": "mine"}, "model": {"path": "/runs/base"}, "policy": policy, "kubernetes": kubernetes}
    file.write_text(to_toml(tree))
    request = {"model": model_of("8B", folder)} | request
    documents = list(yaml.safe_load_all(render(PolicyRecipe, str(file), [], Request(devices, IMAGE, **request))))
    assert by_rules(documents) == [] and by_schema(documents) == []
    return documents


def pods(documents: list[Tree]) -> dict[str, Tree]:
    """Pod templates by role."""
    job = documents[1]["spec"]
    cluster = job.get("rayClusterSpec", job)
    found = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return found | {"head": cluster["headGroupSpec"]["template"], "submitter": job.get("submitterPodTemplate", {})}


def container(template: Tree) -> Tree:
    return template["spec"]["containers"][0]


def variables(template: Tree) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container(template)["env"]}


def test_what_is_for_all_pods_is_in_all_and_what_is_for_a_role_in_its_own(tmp_path: Path) -> None:
    everywhere = {
        "node_selector": {"pool": "research"},
        "tolerations": {"dedicated": {"key": "dedicated", "value": "ml", "effect": "NoSchedule"}},
        "image_pull_secrets": ["registry"],
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
        "labels": {"team": "alignment"},
        "env": {"NCCL_DEBUG": "WARN"},
    }
    rollout = {"node_selector": {"pool": "spot"}, "env": {"VLLM_LOGGING_LEVEL": "INFO"}}
    found = pods(jobs(tmp_path, {"all": everywhere, "rollout": rollout}))
    for role, template in found.items():
        spec = template["spec"]
        assert spec["nodeSelector"]["pool"] == ("spot" if role == "rollout" else "research")
        assert {"key": "dedicated", "operator": "Equal", "value": "ml", "effect": "NoSchedule"} in spec["tolerations"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert template["metadata"]["labels"]["team"] == "alignment"
        assert template["metadata"]["annotations"] == everywhere["annotations"]
        assert ("NCCL_DEBUG" in variables(template)) == (role != "submitter")
        assert ("VLLM_LOGGING_LEVEL" in variables(template)) == (role == "rollout")


def test_volumes_devices_and_places_of_the_learner_alone(tmp_path: Path) -> None:
    learner = {
        "volumes": {
            "scratch": {"path": "/scratch", "empty_gib": 100},
            "data": {"path": "/data", "claim": "datasets", "sub_path": "rlhf"},
            "certificates": {"path": "/etc/company", "config_map": "certificates"},
        },
        "resources": {"rdma/hca_shared_devices": 1},
        "node_affinity": {
            "zone": {"key": "topology.kubernetes.io/zone", "values": ["a"]},
            "fast": {"key": "network", "values": ["infiniband"], "weight": 50},
        },
        "pod_affinity": {"rack": {"topology_key": "rack"}, "alone": {"topology_key": "kubernetes.io/hostname", "apart": True}},
        "spread": {"hosts": {"topology_key": "kubernetes.io/hostname", "required": True}},
        "service_account": "trainer",
        "priority_class": "urgent",
        "runtime_class": "nvidia",
        "scheduler": "volcano",
        "secret_env": {"LICENCE": "licences:key"},
        "env_secrets": ["more"],
        "env_config_maps": ["settings"],
    }
    found = pods(jobs(tmp_path, {"learner": learner}))
    spec, first = found["learner"]["spec"], container(found["learner"])
    volumes = {one["name"]: one for one in spec["volumes"]}
    assert volumes["scratch"]["emptyDir"] == {"sizeLimit": "100Gi"}
    assert volumes["data"]["persistentVolumeClaim"] == {"claimName": "datasets"}
    assert volumes["certificates"]["configMap"] == {"name": "certificates"}
    mounts = {one["name"]: one for one in first["volumeMounts"]}
    assert mounts["data"] == {"name": "data", "mountPath": "/data", "subPath": "rlhf", "readOnly": True}
    assert "readOnly" not in mounts["scratch"]
    assert (
        first["resources"]["limits"]["rdma/hca_shared_devices"]
        == first["resources"]["requests"]["rdma/hca_shared_devices"]
        == "1"
    )
    affinity = spec["affinity"]
    (term,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    keys = [one["key"] for one in term["matchExpressions"]]
    assert keys == ["dvpo-ray/preemptible", "topology.kubernetes.io/zone"], "all conditions in one term, which all must hold"
    assert affinity["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"] == 50
    ours = {"matchLabels": {"dvpo-ray/job": "mine", "ray.io/group": "learner"}}
    assert affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"] == ours
    assert affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["topologyKey"].endswith("hostname")
    assert spec["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "DoNotSchedule"
    assert (spec["serviceAccountName"], spec["priorityClassName"]) == ("trainer", "urgent")
    assert (spec["runtimeClassName"], spec["schedulerName"]) == ("nvidia", "volcano")
    assert variables(found["learner"])["LICENCE"] == {"secretKeyRef": {"name": "licences", "key": "key"}}
    assert first["envFrom"] == [{"secretRef": {"name": "more"}}, {"configMapRef": {"name": "settings"}}]
    for role in ("head", "scorer", "rollout", "submitter"):
        assert "serviceAccountName" not in found[role]["spec"] and "envFrom" not in container(found[role])


def test_the_section_does_not_go_into_the_runs_recipe(tmp_path: Path) -> None:
    documents = jobs(tmp_path, {"all": {"node_selector": {"a.b/c": "d"}}})
    assert "kubernetes" not in documents[0]["data"]["recipe.toml"]


def test_gpus_are_of_one_kind(tmp_path: Path) -> None:
    found = pods(jobs(tmp_path, {}))
    for role in ("learner", "scorer", "rollout"):
        assert found[role]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert "nodeSelector" not in found["head"]["spec"]
    gke = {"gpu_label": "cloud.google.com/gke-accelerator", "gpu_product": "nvidia-h100-80gb"}
    assert pods(jobs(tmp_path, gke))["learner"]["spec"]["nodeSelector"] == {gke["gpu_label"]: gke["gpu_product"]}
    with pytest.raises(UserInputError, match=r"what it says of a H100-80GB is not known here: set kubernetes\.gpu_product"):
        jobs(tmp_path, {"gpu_label": gke["gpu_label"]})


def test_roles_that_share_a_pod_add_to_it_and_must_agree(tmp_path: Path) -> None:
    small = {"model": model_of("0.1B", tmp_path), "devices": "8xL4-24GB"}
    policy = {"kubernetes": {"scorer": {"env": {"A": "1"}}, "learner": {"env": {"B": "2"}}}}
    tree = {"model": {"path": "/runs/base"}, "policy": {"value_model": "/runs/v", "data": {"source": "/runs/p.jsonl"}}} | policy
    file = tmp_path / "shared.toml"
    file.write_text(to_toml(tree))
    request = Request(str(small["devices"]), IMAGE, model=Path(str(small["model"])))
    found = pods(list(yaml.safe_load_all(render(PolicyRecipe, str(file), [], request))))
    assert {"A", "B"} <= set(variables(found["worker"])) and "A" not in variables(found["head"])
    with pytest.raises(UserInputError, match=r"kubernetes\.scorer\.env\.B is '3', that of another role '2'"):
        render(PolicyRecipe, str(file), ['kubernetes.scorer.env.B="3"'], request)


def test_tokens_reach_the_pods_that_read_them_and_no_others(tmp_path: Path) -> None:
    found = pods(jobs(tmp_path, {}, rewards=JUDGE, secret="keys"))
    assert container(found["head"])["envFrom"] == [{"secretRef": {"name": "keys"}}], "the driver has trackers and stores"
    assert variables(found["scorer"])["JUDGE_TOKEN"] == {"secretKeyRef": {"name": "keys", "key": "JUDGE_TOKEN"}}
    for role in ("learner", "rollout", "submitter"):
        assert "JUDGE_TOKEN" not in variables(found[role]) and "envFrom" not in container(found[role])
    assert "envFrom" not in container(found["scorer"]), "the key of a tracker is no scorer's matter"
    own = {"scorer": {"secret_env": {"JUDGE_TOKEN": "judge:token"}}}
    assert variables(pods(jobs(tmp_path, own, rewards=JUDGE))["scorer"])["JUDGE_TOKEN"]["secretKeyRef"]["name"] == "judge"
    with pytest.raises(UserInputError, match=r"policy\.rewards\.judge\.token_variable = 'JUDGE_TOKEN': no pod of the scorers"):
        jobs(tmp_path, {}, rewards=JUDGE)


def test_who_loads_models_of_the_hub_gets_its_token(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(to_toml({"model": {"path": "org/base"}, "policy": POLICY}))
    request = Request("16xH100-80GB", IMAGE, model=model_of("8B", tmp_path), secret="keys")
    found = pods(list(yaml.safe_load_all(render(PolicyRecipe, str(file), [], request))))
    for role in ("learner", "scorer", "rollout"):
        reference = variables(found[role])["HF_TOKEN"]["secretKeyRef"]
        assert reference == {"name": "keys", "key": "HF_TOKEN", "optional": True}


def test_a_job_reaches_its_own_pods_and_what_is_named(tmp_path: Path) -> None:
    egress = {"judge": {"namespace": "judges", "ports": [8000]}, "web": {"cidr": "0.0.0.0/0", "ports": [443]}}
    documents = jobs(tmp_path, {"egress": egress}, flavour=Flavour.KUEUE)
    (policy,) = [one for one in documents if one["kind"] == "NetworkPolicy"]
    own = {"podSelector": {"matchLabels": {"dvpo-ray/job": "mine"}}}
    assert policy["spec"]["podSelector"] == own["podSelector"]
    first, judge, web = policy["spec"]["egress"]
    assert first["to"] == policy["spec"]["ingress"][0]["from"] == [own] and first["ports"]
    assert judge["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "judges"}
    assert web["to"] == [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}], "credentials of nodes stay there"
    ranges = [(one["port"], one.get("endPort", one["port"])) for one in first["ports"]]
    for template in documents[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        start = template["rayStartParams"]
        for name in (
            "node-manager-port",
            "object-manager-port",
            "dashboard-agent-grpc-port",
            "min-worker-port",
            "max-worker-port",
        ):
            assert any(low <= int(start[name]) <= high for low, high in ranges), name


def test_only_an_autoscaling_head_may_ask_kubernetes(tmp_path: Path) -> None:
    elastic = POLICY | {"scorer": {"max_actors": 4}}
    file = tmp_path / "elastic.toml"
    file.write_text(to_toml({"model": {"path": "/runs/base"}, "policy": elastic}))
    request = Request("16xH100-80GB", IMAGE, model=model_of("8B", tmp_path))
    documents = list(yaml.safe_load_all(render(PolicyRecipe, str(file), [], request)))
    names = [one["metadata"]["name"] for one in documents if one["kind"] == "NetworkPolicy"]
    assert names == ["run-pods", "run-autoscaler"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"al": {}}, r"kubernetes\.al: unknown key; did you mean 'kubernetes\.all'"),
        ({"all": {"env": {"WANDB_API_KEY": "x"}}}, r"kubernetes\.all\.env: 'WANDB_API_KEY' would stand in the manifest"),
        ({"all": {"env": {"RAY_AUTH_TOKEN_PATH": "/x"}}}, "is set by the project or the operator"),
        ({"all": {"secret_env": {"A": "no-key"}}}, r"kubernetes\.all\.secret_env\.A"),
        ({"all": {"labels": {"ray.io/cluster": "x"}}}, "label 'ray.io/cluster' is set by"),
        ({"all": {"volumes": {"tmp": {"path": "/x", "empty_gib": 1}}}}, "volume 'tmp' is one of the project's own"),
        ({"all": {"volumes": {"x": {"path": "/dev/shm", "empty_gib": 1}}}}, "is within what is mounted already"),
        ({"all": {"volumes": {"x": {"path": "/x", "claim": "a", "secret": "b"}}}}, r"got \['claim', 'secret'\]"),
        ({"all": {"resources": {"nvidia.com/gpu": 1}}}, "resource 'nvidia.com/gpu' follows from the plan"),
        ({"all": {"node_affinity": {"x": {"key": "a"}}}}, "operator = 'In' with 0 values: give at least one"),
        ({"egress": {"x": {"cidr": "10.0.0.1/8", "ports": [1]}}}, "is no network: 10.0.0.1/8 has host bits set"),
        ({"egress": {"x": {"ports": [1]}}}, "give either cidr or namespace"),
        ({"stop_wait_s": 5}, r"kubernetes\.stop_wait_s"),
        ({"all": {"tolerations": {"x": {"key": "a", "effect": "Never"}}}}, r"kubernetes\.all\.tolerations\.x\.effect"),
    ],
)
def test_mistakes_are_named(section: Tree, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(PolicyRecipe, {"policy": POLICY, "kubernetes": section})


def test_what_is_added_may_not_break_a_rule(tmp_path: Path) -> None:
    preemptible = {"learner": {"tolerations": {"spot": {"key": "dvpo-ray/preemptible"}}}}
    with pytest.raises(UserInputError, match=r"adds to pods breaks rules: .*group learner tolerates preemptible nodes"):
        jobs(tmp_path, preemptible)


def test_a_stop_has_time_for_the_planned_checkpoint(tmp_path: Path) -> None:
    def times(kubernetes: Tree, **request: Any) -> tuple[int, list[str], int]:
        job = jobs(tmp_path, kubernetes, **request)[1]["spec"]
        spec = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        wait = int(yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        return wait, command, spec["terminationGracePeriodSeconds"]

    wait, command, grace = times({})
    assert wait > 12 * 8e9 / 100e6, "a checkpoint of an 8 B model, at what one thread writes"
    assert command == ["dvpo", "jobs", "drain", "--wait-s", str(wait + 30), "--stop"] and grace == wait + 90
    assert times({"stop_wait_s": 120})[0] == 120
    workers = pods(jobs(tmp_path, {"stop_wait_s": 120}))
    hooks = {role: container(workers[role])["lifecycle"]["preStop"]["exec"]["command"][3:] for role in ("learner", "rollout")}
    assert hooks == {"learner": ["--wait-s", "150"], "rollout": ["--wait-s", "150", "--alone-s", "60"]}


def test_a_small_models_job_has_at_least_five_minutes() -> None:
    text = render(PipelineRecipe, "demo", [], Request("cpu:2:16:bf16", IMAGE))
    assert "RAY_JOB_STOP_WAIT_TIME_S: '300'" in text and "preRunningDeadlineSeconds: 3600" in text
