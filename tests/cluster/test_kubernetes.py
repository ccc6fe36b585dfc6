"""The files for Kubernetes, as far as they can be held to anything here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
import yaml

from loraloom.cli.main import application
from loraloom.cluster.ray_node import NODE_VARIABLE, SLOT

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples/kubernetes/raycluster.yaml"


FIELDS: dict[str, dict[str, type]] = {
    "spec": {
        "headGroupSpec": dict, "workerGroupSpecs": list, "rayVersion": str, "enableInTreeAutoscaling": bool,
        "autoscalerOptions": dict, "headServiceAnnotations": dict, "suspend": bool,
    },
    "headGroupSpec": {
        "serviceType": str, "headService": dict, "enableIngress": bool, "rayStartParams": dict,
        "template": dict,
    },
    "workerGroupSpecs": {
        "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int, "numOfHosts": int,
        "rayStartParams": dict, "template": dict, "scaleStrategy": dict,
    },
    "autoscalerOptions": {
        "resources": dict, "image": str, "imagePullPolicy": str, "env": list, "envFrom": list,
        "volumeMounts": list, "securityContext": dict, "idleTimeoutSeconds": int, "upscalingMode": str,
    },
}  # fmt: skip
"""The fields of a RayCluster in KubeRay's API ray.io/v1 and their types, since its version 1.1
(ray-operator/apis/ray/v1/raycluster_types.go)."""
AS_STUBS = """#!/bin/sh
for word; do printf '%s\\n' "$word"; done
"""


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text("utf-8"))["spec"]


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def head_container(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["headGroupSpec"]["template"]["spec"]["containers"][0]


def test_ray_has_the_version_that_is_pinned(spec: dict[str, Any]) -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned is not None and spec["rayVersion"] == pinned[1]
    assert f'cluster = ["ray=={pinned[1]}"]' in (ROOT / "pyproject.toml").read_text("utf-8")


def test_every_worker_has_what_workers_are_counted_by(spec: dict[str, Any]) -> None:
    for group in spec["workerGroupSpecs"]:
        resources = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert resources == {SLOT: 1}
    assert "resources" not in spec["headGroupSpec"]["rayStartParams"]


def test_every_field_is_one_of_kuberays(spec: dict[str, Any]) -> None:
    whole = yaml.safe_load(FILE.read_text("utf-8"))
    assert (whole["apiVersion"], whole["kind"]) == ("ray.io/v1", "RayCluster")
    options, head = spec["autoscalerOptions"], spec["headGroupSpec"]
    tables = [("spec", spec), ("autoscalerOptions", options), ("headGroupSpec", head)]
    tables += [("workerGroupSpecs", group) for group in spec["workerGroupSpecs"]]
    for name, table in tables:
        for key, value in table.items():
            assert type(value) is FIELDS[name][key], f"{name}.{key}"
    for group in groups(spec):
        assert all(type(value) is str for value in group["rayStartParams"].values())


def test_every_container_has_probes_that_its_image_can_answer(spec: dict[str, Any]) -> None:
    for group in groups(spec):
        (container,) = group["template"]["spec"]["containers"]
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["exec"]["command"][0] == "python3"
    script = head_container(spec)["livenessProbe"]["exec"]["command"][1]
    assert f"COPY docker/healthcheck.py {script}" in (ROOT / "Dockerfile").read_text("utf-8")
    probe = spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["livenessProbe"]
    asked = [sys.executable, *probe["exec"]["command"][1:]]
    runs_ray = "raylet" in {process.name() for process in psutil.process_iter()}
    assert (subprocess.run(asked, check=False).returncode == 0) == runs_ray


def test_everything_that_talks_to_ray_has_the_secret(spec: dict[str, Any]) -> None:
    containers = [group["template"]["spec"]["containers"][0] for group in groups(spec)]
    for env in [spec["autoscalerOptions"]["env"], *(container["env"] for container in containers)]:
        known = {entry["name"]: entry for entry in env}
        assert known["RAY_AUTH_MODE"]["value"] == "token"
        assert known["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "loraloom", "key": "cluster"}


def test_pods_know_their_name_and_where_models_are_kept(spec: dict[str, Any]) -> None:
    for group in groups(spec):
        env = {entry["name"]: entry for entry in group["template"]["spec"]["containers"][0]["env"]}
        assert env["POD_NAME"]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        node = json.loads(env[NODE_VARIABLE]["value"])
        assert node.keys() == {"cache"} and Path(node["cache"]).parent == Path("/tmp"), (
            "anybody may write there"
        )


def test_volumes_that_are_mounted_are_there(spec: dict[str, Any]) -> None:
    for group in groups(spec):
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes


def test_the_volumes_are_claimed_and_the_images_user_may_write_to_them(spec: dict[str, Any]) -> None:
    first, second, fill = yaml.safe_load_all((FILE.parent / "volumes.yaml").read_text("utf-8"))
    assert {first["kind"], second["kind"], fill["kind"]} == {"PersistentVolumeClaim", "Pod"}
    modes = {claim["metadata"]["name"]: claim["spec"]["accessModes"] for claim in (first, second)}
    (user,) = re.findall(r"^ARG UID=(\d+)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    pods = [group["template"]["spec"] for group in groups(spec)]
    for pod in [*pods, fill["spec"]]:
        assert pod["securityContext"]["fsGroup"] == int(user)
        for volume in pod["volumes"]:
            assert volume["persistentVolumeClaim"]["claimName"] in modes
    shared = {v["persistentVolumeClaim"]["claimName"] for v in pods[1]["volumes"]}
    assert all(modes[name] == ["ReadWriteMany"] for name in shared)
    head = {m["mountPath"] for m in pods[0]["containers"][0]["volumeMounts"]}
    assert head == {
        *re.findall(r'^VOLUME \["(.+)", "(.+)"\]', (ROOT / "Dockerfile").read_text("utf-8"), re.M)[0]
    }


def test_what_the_page_names_is_there(spec: dict[str, Any]) -> None:
    page = (ROOT / "docs/cluster.md").read_text("utf-8")
    for name in re.findall(r"examples/kubernetes/[\w.]+", page):
        assert (ROOT / name).is_file()
    asked = re.search(r"kubectl create secret generic (\w+) (.*)", page.replace("\\\n", " "))
    assert asked is not None
    keys = {*re.findall(r"--from-literal=(\w+)=", asked[2])}
    refs = [entry["valueFrom"]["secretKeyRef"] for group in groups(spec)
            for entry in group["template"]["spec"]["containers"][0]["env"]
            if "secretKeyRef" in entry.get("valueFrom", {})]  # fmt: skip
    assert {ref["name"] for ref in refs} == {asked[1]} and {ref["key"] for ref in refs} == keys
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(spec)}
    assert images <= {*re.findall(r"docker build -t (\S+)", page)}
    ports = {port["containerPort"] for port in head_container(spec)["ports"]}
    name = yaml.safe_load(FILE.read_text("utf-8"))["metadata"]["name"]
    forwarded = re.search(rf"port-forward service/{name}-head-svc (\d+):(\d+)", page)
    assert forwarded is not None and int(forwarded[2]) in ports


@pytest.mark.skipif(sys.platform == "win32", reason="the scripts are bash's")
def test_the_scripts_pass_rays_options_on_as_kuberay_says_them(spec: dict[str, Any], tmp_path: Path) -> None:
    for name in ("ray", "loraloom"):
        stub = tmp_path / name
        stub.write_text(AS_STUBS)
        stub.chmod(0o755)
    for group in groups(spec):
        (container,) = group["template"]["spec"]["containers"]
        # So KubeRay joins them: the values as they are, for a shell to read.
        parameters = "  ".join(f"--{name}={value}" for name, value in group["rayStartParams"].items())
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "POD_IP": "10.0.0.9", "POD_NAME": "gpu-x7",
            "KUBERAY_GEN_RAY_START_CMD": f"ray start  --address=head:6379  {parameters} ",
        }  # fmt: skip
        command = [*container["command"], *container["args"]]
        script = "".join(command[2:]).replace("ulimit -n 65536", "true")
        done = subprocess.run(
            [*command[:2], script], env=environment, capture_output=True, text=True, check=True
        )
        said = done.stdout.split("\n")
        assert {"start", "--address=head:6379"} <= {*said}, done
        if "resources" in group["rayStartParams"]:
            assert {'--resources={"loraloom": 1}', "--node-name=gpu-x7"} <= {*said}


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_rays_autoscaler_understands_it(spec: dict[str, Any]) -> None:
    """By the code that KubeRay's autoscaler container runs."""
    code = (
        "import json, sys; from ray.autoscaler._private.kuberay import autoscaling_config as found;"
        "cluster = json.load(sys.stdin); cluster['metadata']['namespace'] = 'default';"
        "print(json.dumps(found._derive_autoscaling_config_from_ray_cr(cluster)))"
    )
    asked = json.dumps(yaml.safe_load(FILE.read_text("utf-8")))
    said = subprocess.run(
        [sys.executable, "-c", code], input=asked, capture_output=True, text=True, check=True
    )
    config = json.loads(said.stdout.splitlines()[-1])
    (gpu,) = (found for found in config["available_node_types"].values() if found["max_workers"])
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)
    assert {key: gpu["resources"][key] for key in ("CPU", "GPU", SLOT)} == {"CPU": 1, "GPU": 1, SLOT: 1}
    script = head_container(spec)["args"][0]
    assert int(re.findall(r"--cluster-most (\d+)", script)[0]) == config["max_workers"]


def test_the_servers_options_are_options(spec: dict[str, Any]) -> None:
    script = head_container(spec)["args"][0]
    line = shlex.split(script[script.index("loraloom serve") :])
    command: Any = typer.main.get_command(application("serve"))
    known = {name for p in command.commands["serve"].params for name in p.opts}
    assert {word for word in line if word.startswith("--")} <= known


@pytest.mark.heavy
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_rays_options_are_options(spec: dict[str, Any]) -> None:
    code = "from ray.scripts.scripts import start; print(*(name for p in start.params for name in p.opts))"
    known = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    for group in groups(spec):
        assert {f"--{name}" for name in group["rayStartParams"]} <= {*known}  # some are hidden from its help
