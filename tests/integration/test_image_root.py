"""The Dockerfile's instructions carried out in a bare Debian, and what they make run as a pod runs it.

As a pod: user 1000, no capabilities, a root file system that cannot be written, no network but its own, and no checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.dockerfile import CAN, ROOT, stages
from tests.support.real import answer, write_lines

WHERE = os.environ.get("DVPO_TEST_IMAGE", "")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not WHERE, reason="sets up another 4 GB environment: set DVPO_TEST_IMAGE=1, or to a folder that keeps it"),
    pytest.mark.skipif(not CAN, reason="needs root and debootstrap"),
]
# How this machine reaches packages.
NETWORK = ("resolv.conf", "hosts", "pip.conf", "ssl/certs", "apt/sources.list", "apt/sources.list.d", "apt/apt.conf.d")
# What the base image brings besides Debian's smallest system.
BASE = ("ca-certificates", "python3", "python3-venv")
ISOLATED = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
DEVICES = 'mount -t proc proc "$R/proc"; mount --bind /dev "$R/dev"; '
READ_ONLY = (
    'mount --bind "$R" "$R"; mount -o remount,bind,ro "$R"; '
    + DEVICES
    + 'mount -t sysfs -o ro sys "$R/sys"; '
    + 'mount -t tmpfs -o size=2g shm "$R/dev/shm"; mount -t tmpfs tmp "$R/tmp"; mount --bind "$RUNS" "$R/runs"; '
    + "ip link set lo up; "
)
UNPRIVILEGED = "setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all"
RECIPE = """
[run]
name = "tiny"
output_dir = "/runs"
[model]
path = "/runs/model"
attention = "eager"
[value]
data = {source = "/runs/pairs.jsonl", max_prompt_tokens = 64, max_answer_tokens = 32, validation_share = 0.2}
pairs_per_step = 8
learner = {dtype = "float32", learning_rate = 3e-3, token_budget = 512}
[policy]
steps = 2
data = {source = "/runs/prompts.jsonl", max_prompt_tokens = 64}
scorer = {dtype = "float32", rows_per_call = 8}
learner = {dtype = "float32", learning_rate = 3e-3, token_budget = 512}
[policy.rollout]
prompts_per_step = 8
answers_per_prompt = 2
max_new_tokens = 12
engine = {dtype = "float32", max_model_len = 128, max_num_seqs = 16}
"""


class Image:
    """The second stage's root, its environment, and a folder that pods see as /runs."""

    def __init__(self, folder: Path) -> None:
        self.root, self.runs = folder / "image", folder / "runs"
        self.environment: dict[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin"}

    def does(self, command: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """What a command in a pod of this image prints; it begins in a login shell, as the operator's do."""
        entered = f'exec chroot "$R" {UNPRIVILEGED} /bin/bash -lc "cd /runs; $C"'
        return subprocess.run(
            [*ISOLATED, "--net", "sh", "-ec", READ_ONLY + entered],
            env=self.environment | {"R": str(self.root), "RUNS": str(self.runs), "C": command, "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    keeps = WHERE.startswith("/")
    folder = Path(WHERE) if keeps else tmp_path_factory.mktemp("image")
    folder.mkdir(parents=True, exist_ok=True)
    made = Image(folder)
    _, build, final = stages()
    for word, arguments in final:
        if word == "ENV":
            settings = dict(pair.split("=", 1) for pair in arguments.split())
            made.environment |= {name: value.replace("${PATH}", made.environment["PATH"]) for name, value in settings.items()}
    if not (folder / "complete").exists():
        make(folder, build, final)
        (folder / "complete").touch()
    yield made
    if not keeps:
        shutil.rmtree(folder)


def make(folder: Path, build: list[tuple[str, str]], final: list[tuple[str, str]]) -> None:
    """Both stages, each in a root of its own; times and sizes are printed."""
    first, second = folder / "build", folder / "image"
    suite = re.search(r"slim-(\w+)", dict(stages()[0])["ARG"])
    assert suite is not None, "another base than Debian's slim Python: change BASE with it"
    began = time.monotonic()
    # It mounts /proc in the new root: in a space of its own nothing of that is left when it is killed.
    command = [*ISOLATED, "debootstrap", "--variant=minbase", f"--include={','.join(BASE)}", suite[1], str(second)]
    subprocess.run(command, check=True, timeout=900, stdout=subprocess.DEVNULL)
    for name in NETWORK:
        source, target = Path("/etc") / name, second / "etc" / name
        if source.exists():
            subprocess.run(["cp", "-aT", "--remove-destination", str(source), str(target)], check=True)
    subprocess.run(["cp", "-a", str(second), str(first)], check=True)
    print(f"base: {time.monotonic() - began:.0f} s, {mib(second):.0f} MiB")
    carry_out(build, first)
    carry_out(final, second, first)
    (folder / "runs").mkdir(exist_ok=True)
    os.chown(folder / "runs", 1000, 1000)
    print(f"environment: {mib(second / 'opt' / 'dvpo'):.0f} MiB; image: {mib(second):.0f} MiB")
    shutil.rmtree(first)


def carry_out(stage: list[tuple[str, str]], root: Path, earlier: Path | None = None) -> None:
    """The instructions of a stage in a root; ``earlier`` is the root that COPY --from takes from."""
    passed = re.compile(r"PIP_.*|SSL_CERT_FILE|.*_proxy", re.IGNORECASE)
    environment = {name: value for name, value in os.environ.items() if passed.fullmatch(name)}
    environment |= {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    place = Path("/")
    for word, arguments in stage:
        began = time.monotonic()
        if word in ("ARG", "ENV"):
            for name, value in (pair.split("=", 1) for pair in arguments.split()):
                environment[name] = re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], value)
        elif word == "WORKDIR":
            place = Path(arguments)
            (root / arguments[1:]).mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            copied(arguments.split(), root, place, earlier)
        elif word == "RUN":
            links = environment.get("PIP_FIND_LINKS", "")
            share = f'mkdir -p "$R{links}"; mount --bind {links} "$R{links}"; ' if links.startswith("/") else ""
            entered = f'exec chroot "$R" /bin/sh -c "cd {place}; $C"'
            subprocess.run(
                [*ISOLATED, "sh", "-ec", DEVICES + share + entered],
                env=environment | {"R": str(root), "C": arguments},
                check=True,
                timeout=1800,
            )
            print(f"{arguments[:60]}...: {time.monotonic() - began:.0f} s")


def copied(words: list[str], root: Path, place: Path, earlier: Path | None) -> None:
    *names, target = words
    if names[0].startswith("--from"):
        assert earlier is not None
        (earlier / names[1][1:]).rename(root / target[1:])
        return
    for name in names:
        source = ROOT / name
        inner = root / str(place / target)[1:]
        inner = inner / name if target.endswith("/") else inner
        inner.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, inner, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, inner)


def mib(folder: Path) -> float:
    done = subprocess.run(["du", "-sxm", str(folder)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


def test_it_is_sound(image: Image) -> None:
    done = image.does("dvpo doctor --json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {check["status"] for check in json.loads(done.stdout)["checks"]} <= {"ok", "warn"}
    assert image.does("dvpo config check demo --json").returncode == 0


def test_a_login_shell_finds_its_python(image: Image) -> None:
    done = image.does("command -v dvpo ray python wget")
    assert done.stdout.split() == [f"/opt/dvpo/bin/{name}" for name in ("dvpo", "ray", "python")] + ["/usr/bin/wget"]


def test_a_pod_is_nobody_and_writes_nowhere_else(image: Image) -> None:
    done = image.does("id -u; grep CapBnd /proc/self/status; touch /runs/x /tmp/x /dev/shm/x && echo written")
    assert done.stdout.split() == ["1000", "CapBnd:", 16 * "0", "written"], done.stderr
    for place in ("/opt/dvpo/x", "/x", "/var/tmp/x"):
        assert "Read-only file system" in image.does(f"touch {place}").stderr


def test_it_holds_what_runs_the_project_and_not_what_builds_or_tests_it(image: Image) -> None:
    assert not (image.root / "opt/dvpo/bin/pytest").exists()
    assert image.does("command -v gcc cc clang").stdout == "", "the image for CPU trains without a compiler"


def test_it_trains(image: Image, tiny_model: Path) -> None:
    """Value model and policy, without a compiler, a network, a home or a checkout."""
    rng: Any = np.random.default_rng(0)
    rows = [{"prompt": f"word {i}", "chosen": answer(rng, "abcdef"), "rejected": answer(rng, "uvwxyz")} for i in range(48)]
    shutil.copytree(tiny_model, image.runs / "model", dirs_exist_ok=True)
    write_lines(image.runs / "pairs.jsonl", rows)
    write_lines(image.runs / "prompts.jsonl", [{"prompt": f"say {i}"} for i in range(24)])
    (image.runs / "recipe.toml").write_text(RECIPE)
    subprocess.run(["chmod", "-R", "a+rX", str(image.runs)], check=True)
    shutil.rmtree(image.runs / "tiny", ignore_errors=True)
    done = image.does("dvpo demo recipe.toml --json", timeout_s=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])
    assert (image.runs / "tiny").is_dir()
