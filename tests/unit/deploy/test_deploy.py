"""The manifests and the Dockerfile: legal, without root, and of the versions that this repository pins."""

import ast
import re
import runpy
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

import led_sglang
from led_sglang.config.server import ENV_HOST

ROOT = Path(__file__).resolve().parents[3]
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
DOCUMENTS = [
    pytest.param(document, id=f"{file.name}:{document['kind']}/{document['metadata']['name']}")
    for file in MANIFESTS
    for document in yaml.safe_load_all(file.read_text())
]
TOOLS = ("evals", "embedded", "analysis.py", "trace.py")  # clients and training, not the server
WORKLOADS = [document for document in DOCUMENTS if document.values[0]["kind"] in ("Deployment", "StatefulSet")]


def pin(package: str) -> str:
    [version] = re.findall(rf"^{package}==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_kubernetes_knows_every_field(document: dict[str, Any]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install led_sglang[test]")
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("document", WORKLOADS)
def test_pods_need_no_root_and_find_themselves(document: dict[str, Any]) -> None:
    spec = document["spec"]
    pod = spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    assert pod["securityContext"]["runAsNonRoot"] is True
    [container] = pod["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
    names = {variable["name"] for variable in container["env"]}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(container["args"]))) <= names
    text = yaml.safe_dump(document)
    assert "secretKeyRef" in text, "the API key comes from a secret"


@pytest.mark.parametrize("document", WORKLOADS)
def test_images_carry_the_version_of_this_repository(document: dict[str, Any]) -> None:
    [container] = document["spec"]["template"]["spec"]["containers"]
    image, _, tag = container["image"].partition(":")
    assert tag == {"led-sglang": led_sglang.__version__, "led-gateway": pin("smg")}[image]


@pytest.mark.parametrize("document", WORKLOADS)
def test_arguments_are_sglangs_or_ours(document: dict[str, Any]) -> None:
    import argparse

    from sglang.srt.server_args import ServerArgs

    [container] = document["spec"]["template"]["spec"]["containers"]
    if container["image"].startswith("led-gateway"):
        return
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    known = {option for action in parser._actions for option in action.option_strings} | {"--config"}
    given = [argument.partition("=") for argument in container["args"] if argument.startswith("--")]
    assert {flag for flag, _, _ in given} <= known
    for config in re.findall(r"server_configs/[\w.-]+\.yaml", " ".join(container["args"])):
        assert (ROOT / config).is_file()


GATEWAYS = [
    document
    for document in WORKLOADS
    if document.values[0]["spec"]["template"]["spec"]["containers"][0]["image"].startswith("led-gateway")
]


@pytest.mark.parametrize("document", GATEWAYS)
def test_a_gateways_arguments_are_its_own_and_name_pods(document: dict[str, Any]) -> None:
    """Each selector is the label of some pod; a prefill server's pod tells the port that its server has."""
    import argparse

    router_args = pytest.importorskip("smg.router_args", reason="pip install led_sglang[gateway]")
    parser = argparse.ArgumentParser()
    router_args.RouterArgs.add_cli_args(parser)
    [container] = document["spec"]["template"]["spec"]["containers"]
    found = router_args.RouterArgs.from_cli_args(parser.parse_args(container["args"]))
    assert found.service_discovery and found.port == container["ports"][0]["containerPort"]
    is_disaggregated = bool(found.pd_disaggregation)
    selectors = [found.prefill_selector, found.decode_selector] if is_disaggregated else [found.selector]
    pods = [pod_of(labels) for labels in selectors]
    assert [role_of(pod) for pod in pods] == (["prefill", "decode"] if is_disaggregated else ["null"])
    if is_disaggregated:
        [port] = [flag.partition("=")[2] for flag in arguments_of(pods[0]) if "-bootstrap-port" in flag]
        assert pods[0]["metadata"]["annotations"] == {found.bootstrap_port_annotation: port}


def pod_of(labels: dict[str, str]) -> dict[str, Any]:
    """The template of the one workload that has the labels."""
    pods = [document.values[0]["spec"]["template"] for document in WORKLOADS]
    [pod] = [pod for pod in pods if labels and labels.items() <= pod["metadata"]["labels"].items()]
    found: dict[str, Any] = pod
    return found


def arguments_of(pod: dict[str, Any]) -> list[str]:
    arguments: list[str] = pod["spec"]["containers"][0]["args"]
    return arguments


def role_of(pod: dict[str, Any]) -> str:
    modes = [flag.partition("=")[2] for flag in arguments_of(pod) if flag.startswith("--disaggregation-mode")]
    return modes[0] if modes else "null"


def test_services_reach_ports_that_pods_have() -> None:
    documents = [document.values[0] for document in DOCUMENTS]
    pods = [d["spec"]["template"] for d in documents if d["kind"] in ("Deployment", "StatefulSet")]
    for service in (d for d in documents if d["kind"] == "Service"):
        wanted = {key: value for key, value in service["spec"]["selector"].items() if key == "app"}
        [pod] = [pod for pod in pods if wanted.items() <= pod["metadata"]["labels"].items()]
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_the_dockerfile_is_of_the_pinned_release_and_without_root() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(rf"^ARG SGLANG_IMAGE=lmsysorg/sglang:v{re.escape(pin('sglang'))}-", text, re.MULTILINE)
    stages = text.split("\nFROM ")
    users = re.findall(r"^USER (\S+)$", stages[-1], re.MULTILINE)
    assert users == ["10001"], "a number, for Kubernetes' runAsNonRoot"
    assert "--no-deps" in stages[-1] and "led_sglang.patches check" in stages[-1]
    assert re.search(r"^HEALTHCHECK .*\n.*127\.0\.0\.1:30000/health", text, re.MULTILINE)
    assert re.search(r'^ENTRYPOINT \["python3", "-m", "led_sglang\.launch"\]$', text, re.MULTILINE), (
        "an argument of the image would beat the same one of a user's --config file"
    )
    assert re.search(rf"^ENV {ENV_HOST}=0\.0\.0\.0$", text, re.MULTILINE)


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names}


def test_a_server_brings_no_package_but_sglangs_own() -> None:
    """So that a deployment has nothing of ours to audit; what tests and evaluations need are extras."""
    audit = runpy.run_path(str(ROOT / "scripts/audit.py"))
    assert audit["needs"]("led_sglang") == {"sglang"}
    sglangs = audit["closure"]({"sglang"})
    served = [path for path in (ROOT / "led_sglang").rglob("*.py") if path.relative_to(ROOT).parts[1] not in TOOLS]
    foreign = set.union(*map(imports_of, served)) - sys.stdlib_module_names - {"led_sglang"}
    distributions = packages_distributions()
    for name in foreign:
        assert sglangs & {audit["normalised"](found) for found in distributions[name]}, f"{name} is not SGLang's"
    assert {"torch", "numba", "starlette"} <= foreign, "the imports were not found"


def test_the_image_gets_every_file_it_copies() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    sources = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(sources).split():
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored, f".dockerignore hides {name}"
