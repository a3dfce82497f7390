"""The manifests in `deploy/kubernetes`: valid, restricted, and in agreement with the code and the settings."""

import functools
import shlex
import subprocess
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.kernel.config import HttpServerSettings, OperationsSettings, ProcessSettings, load
from app.kernel.config.settings import schema
from app.modules import modules
from app.processes import PROCESSES, sections
from tests.conftest import program
from tests.support.project import ROOT
from tests.test_cli import parse

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = ["base", "overlays/staging", "overlays/production"]
ROLES = sorted(set(PROCESSES) - {"run-all-in-one"})
VARIABLES = {setting.variable for section in sections() for setting in schema(section)}
Manifest = dict[str, Any]
built = pytest.mark.parametrize("kustomization", KUSTOMIZATIONS)


@functools.cache
def manifests(kustomization: str) -> list[Manifest]:
    command = [program("kubectl"), "kustomize", str(FOLDER / kustomization)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(kustomization: str, kind: str) -> dict[str, Manifest]:
    return {each["metadata"]["name"]: each for each in manifests(kustomization) if each["kind"] == kind}


def pods(kustomization: str) -> Iterator[tuple[Manifest, Manifest]]:
    """Yield each template of a pod, and its only container."""
    for each in manifests(kustomization):
        if template := each.get("spec", {}).get("template"):
            [container] = template["spec"]["containers"]
            yield template, container


def environment(kustomization: str, container: Manifest) -> dict[str, str]:
    """Return the variables of a container; secrets from files have a value that is good enough."""
    found: dict[str, str] = {}
    for source in container["envFrom"]:
        found |= of_kind(kustomization, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    for variable in container.get("env", []):
        name = variable["name"]
        mounts = [
            mount for mount in container["volumeMounts"] if variable["value"].startswith(mount["mountPath"] + "/")
        ]
        assert name.endswith("_FILE"), name
        assert len(mounts) == 1, name
        found[name.removesuffix("_FILE")] = "7f2c9e1ab04d8835f61c2b9e07ad4418"
    return found


@built
def test_kubernetes_takes_every_manifest(kustomization: str) -> None:
    found = manifests(kustomization)
    assert len(found) > 15
    for each in found:
        kubernetes_validate.validate(each, "1.36", strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(names) == len(set(names))
    namespaces = {each["metadata"].get("namespace") for each in found if each["kind"] != "Namespace"}
    assert namespaces == ({None} if kustomization == "base" else {f"app-{kustomization.rpartition('/')[2]}"})
    assert of_kind(kustomization, "Secret") == {}


@built
def test_every_pod_is_restricted(kustomization: str) -> None:
    """The profile `restricted` of the pod security standards, and a read-only root."""
    found = list(pods(kustomization))
    assert len(found) == len(ROLES) + 1
    for template, container in found:
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] in of_kind(kustomization, "ServiceAccount")
        assert spec["enableServiceLinks"] is False
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert (security["runAsUser"], security["runAsGroup"]) == (10001, 10001)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {kind for volume in spec["volumes"] for kind in volume} == {"name", "secret", "emptyDir"}
        assert not any("hostPort" in port for port in container.get("ports", []))
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]


@built
def test_every_process_is_deployed_as_its_settings_say(kustomization: str) -> None:
    deployments = of_kind(kustomization, "Deployment")
    assert sorted(deployments) == ROLES
    for name, deployment in deployments.items():
        template = deployment["spec"]["template"]
        [container] = template["spec"]["containers"]
        given = environment(kustomization, container)
        assert set(given) <= VARIABLES | {"APP_ENV"}, name
        settings = load(ROOT, sections(), {"APP_ENV": "production", **given})
        assert container["args"] == [name]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        expected = {"operations": settings[OperationsSettings].port}
        if PROCESSES[name].listens == "http_server":
            expected["http"] = settings[HttpServerSettings].port
        assert ports == expected, name
        assert settings[OperationsSettings].expose == "separate"
        probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert {probe["port"] for probe in probes.values()} == {"operations"}
        assert [probe["path"] for probe in probes.values()] == ["/health", "/health", "/ready"]
        limits = settings[ProcessSettings]
        assert template["spec"]["terminationGracePeriodSeconds"] == limits.drain_delay + limits.grace + 15
        assert given["POSTGRES_MIGRATE"] == "false"
    [job] = of_kind(kustomization, "Job").values()
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert parse(container["args"]) == "migrate up"
    assert set(environment(kustomization, container)) <= VARIABLES | {"APP_ENV"}


@built
def test_selectors_find_what_they_are_for(kustomization: str) -> None:
    labels = {template["metadata"]["labels"]["app.kubernetes.io/component"]: template["metadata"]["labels"]
              for template, _ in pods(kustomization)}  # fmt: skip

    def selected(selector: dict[str, str]) -> set[str]:
        return {name for name, given in labels.items() if selector.items() <= given.items()}

    for name, deployment in of_kind(kustomization, "Deployment").items():
        assert selected(deployment["spec"]["selector"]["matchLabels"]) == {name}
        [spread] = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert name in selected(spread["labelSelector"]["matchLabels"])
        assert "app.kubernetes.io/component" in spread["matchLabelKeys"]
    for name, budget in of_kind(kustomization, "PodDisruptionBudget").items():
        assert selected(budget["spec"]["selector"]["matchLabels"]) == {name}
    assert sorted(of_kind(kustomization, "PodDisruptionBudget")) == ROLES
    apis = {name for name in ROLES if PROCESSES[name].listens == "http_server"}
    services = of_kind(kustomization, "Service")
    assert set(services) == apis
    for name, service in services.items():
        assert selected(service["spec"]["selector"]) == {name}
    scaled = of_kind(kustomization, "HorizontalPodAutoscaler")
    for name, scaler in scaled.items():
        assert scaler["spec"]["scaleTargetRef"]["name"] == name
        assert scaler["spec"]["minReplicas"] == 2
        assert "replicas" not in of_kind(kustomization, "Deployment")[name]["spec"]  # or each rollout would undo it
    assert set(scaled) == set(ROLES) - {"run-backup-agent", "run-cron-manager"}
    policies = of_kind(kustomization, "NetworkPolicy")
    reached = {name: selected(policy["spec"]["podSelector"]["matchLabels"]) for name, policy in policies.items()}
    everything = set(labels)
    assert reached == {
        "app-default-deny": everything,
        "app-egress": everything,
        "app-metrics": everything,
        "app-http": apis,
    }
    assert policies["app-default-deny"]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(policies["app-default-deny"]["spec"])
    for rule in policies["app-egress"]["spec"]["egress"]:
        blocks = [ip_network(each["ipBlock"]["cidr"]) for each in rule["to"] if "ipBlock" in each]
        assert all(block.is_private for block in blocks) or [port["port"] for port in rule["ports"]] == [443]


@built
def test_the_ingress_leads_every_route_to_the_process_that_has_it(kustomization: str) -> None:
    [ingress] = of_kind(kustomization, "Ingress").values()
    [rule] = ingress["spec"]["rules"]
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    paths = {path["path"]: path["backend"]["service"]["name"] for path in rule["http"]["paths"]}
    for module in modules():
        for path in routes(module):
            found = [name for prefix, name in paths.items() if path == prefix or path.startswith(f"{prefix}/")]
            assert found == [f"run-{module.name}-http"], path


def routes(module: Any) -> set[str]:
    from app.kernel.actions import Action, declared

    kinds = module.feature_classes()
    return {work.path for kind in kinds for _, work, _ in declared(kind) if isinstance(work, Action) and work.path}


def test_the_guide_names_commands_that_exist() -> None:
    text = (ROOT / "deploy" / "README.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("kubectl ")]
    assert len(lines) >= 4
    for line in lines:
        for word in shlex.split(line, comments=True):
            if word.startswith("deploy/"):
                assert (ROOT / word).exists(), line
