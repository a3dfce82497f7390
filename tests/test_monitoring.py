"""What is in `deploy/monitoring/`: that Prometheus takes it, and that it asks for what there is."""

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import ProcessCollector

from app.kernel.backup import metrics as _backups  # noqa: F401 - it registers them
from app.kernel.telemetry import metrics
from app.processes import PROCESSES
from tests.conftest import log_in, program
from tests.support.project import ROOT, Project, eventually

FOLDER = ROOT / "deploy" / "monitoring"
DASHBOARDS = sorted(FOLDER.glob("grafana/*.json"))
GUIDES = [ROOT / "docs" / "runbooks.md", ROOT / "docs" / "operating.md"]
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
TARGET = {"job", "instance"}
"""Labels that Prometheus gives to whatever it scrapes."""


def promtool(*arguments: str | Path, stdin: bytes | None = None) -> str:
    done = subprocess.run([program("promtool"), *map(str, arguments)], input=stdin, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def known() -> dict[str, set[str]]:
    """Return the names of what can be queried, each with its labels: what is exposed, scraped, or recorded."""
    found: dict[str, set[str]] = {"up": set(), "worker_up": {"worker"}, "worker_restarts_total": {"reason"}}
    for family in ProcessCollector(registry=None).collect():
        found |= {sample.name: set(sample.labels) for sample in family.samples}
    for metric in set(metrics._REGISTRY._names_to_collectors.values()):
        if isinstance(metric, metrics._Durations):
            found |= {metric.name + suffix: {*metric.labels, "le"} for suffix in ("_bucket", "_count", "_sum")}
            found[f"{metric.counter}_total"] = set(metric.labels)
            continue
        for suffix in SUFFIXES[metric._type]:
            labels = {*metric._labelnames, *(["le"] if suffix == "_bucket" else [])}
            found[metric._name + suffix] = labels
    for rule in rules():
        if "record" in rule:
            given = set().union(*(found[name] for name in queried(rule["expr"])))
            found.setdefault(rule["record"], set()).update(given, rule.get("labels", ()))
    return found


def queried(expression: str) -> dict[str, set[str]]:
    """Return the names of the metrics in an expression of PromQL, each with the labels that select from it."""
    plain = re.sub(r'"[^"]*"', '""', expression)
    plain = re.sub(r"\[[^\]]*\]", "", plain)
    plain = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", plain)
    found: dict[str, set[str]] = {}
    for name, selectors in re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\w*\s*\()\s*(?:\{([^}]*)\})?", plain):
        if name not in {"and", "or", "unless", "offset", "bool"}:
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", selectors))
        elif selectors:
            pytest.fail(f"{name} is not a metric in {expression}")
    return found


def aggregated(expression: str) -> set[str]:
    """Return the labels that an expression groups or joins by."""
    found = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",")} - {""}


def expressions() -> Iterator[tuple[str, str]]:
    """Return every expression in rules, dashboards and documents, and where it stands."""
    for rule in rules():
        yield "alerts.yaml: " + rule.get("alert", rule.get("record")), rule["expr"]
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}", target["expr"]
    for path in GUIDES:
        for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.splitlines():
                yield path.name, line.split(" #")[0]


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "alerts.yaml")


def test_alerts_fire_above_their_thresholds_and_not_below() -> None:
    files = sorted(FOLDER.glob("alerts_*test.yaml"))
    assert promtool("test", "rules", *files).count("SUCCESS") == len(files) == 2
    tested = set(re.findall(r'ALERTS\{alertname="(\w+)"', "".join(file.read_text() for file in files)))
    assert tested == {alert["alert"] for alert in alerts()}


def test_every_expression_asks_for_metrics_and_labels_that_exist() -> None:
    exposed = known()
    wrong: list[str] = []
    for where, expression in expressions():
        names = queried(expression)
        assert names or "vector" in expression, f"{where}: no metric in {expression}"
        wrong += [f"{where}: {name}" for name in names if name not in exposed]
        labels = {name: exposed.get(name, set()) | TARGET for name in names}
        wrong += [f"{where}: {name}{{{label}}}" for name in names for label in names[name] - labels[name]]
        wrong += [f"{where}: by {label}" for label in aggregated(expression) - set().union(*labels.values())]
    assert not wrong


def test_every_expression_is_promql(tmp_path: Path) -> None:
    asked = [text.replace("$job", "run-.+").replace("$__rate_interval", "5m") for _, text in expressions()]
    recorded = [{"record": f"expression:{number}", "expr": text} for number, text in enumerate(asked)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "all", "rules": recorded}]}))
    promtool("check", "rules", tmp_path / "rules.yaml")


def test_the_search_for_metrics_finds_what_does_not_exist() -> None:
    expression = 'sum by (job) (rate(a_total{b="x(y",c!~".+"}[5m])) / on (d) e:f offset 5m > 1 unless max(g)'
    assert queried(expression) == {"a_total": {"b", "c"}, "e:f": set(), "g": set()}
    assert aggregated(expression) == {"job", "d"}


def test_every_metric_that_an_alert_asks_for_has_a_panel() -> None:
    recorded = {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}

    def measured(expression: str) -> set[str]:
        names = queried(expression)
        return set().union(*(measured(recorded[name]) if name in recorded else {family(name)} for name in names))

    shown = {family(name) for where, expression in expressions() if ".json: " in where for name in queried(expression)}
    assert set().union(*(measured(alert["expr"]) for alert in alerts())) - shown == set()


def family(name: str) -> str:
    return re.sub("_(bucket|count|sum)$", "", name)


def test_every_alert_has_a_section_in_the_runbooks_and_every_section_an_alert() -> None:
    sections = re.findall(r"^## (.+)$", GUIDES[0].read_text(), re.MULTILINE)
    named = [alert["alert"] for alert in alerts()]
    assert sections == list(dict.fromkeys(named))
    for alert in alerts():
        assert alert["annotations"]["runbook_url"].partition("/runbooks#")[2] == alert["alert"].lower()
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert alert["annotations"]["summary"]


def test_targets_are_processes_with_their_operations_ports() -> None:
    scraped = {"run-all-in-one": {"8081"}}
    for target in yaml.safe_load((FOLDER / "targets.yaml").read_text()):
        scraped[target["labels"]["job"]] = {address.rpartition(":")[2] for address in target["targets"]}
    ports = {name: {"8081"} for name in PROCESSES}
    assert scraped.items() <= ports.items()


def test_every_process_has_a_memory_limit_and_is_missed_when_it_stops(tmp_path: Path) -> None:
    alone = [name for name in PROCESSES if name != "run-all-in-one"]
    firing = 'ALERTS{alertname="ProcessMissing",alertstate="firing"}'
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": f'up{{job="{name}"}}', "values": "1x4 0x6"} for name in PROCESSES],
            "promql_expr_test": [
                {"expr": "job:memory_limit_bytes > bool 0", "eval_time": "4m", "exp_samples": samples_of(PROCESSES)},
                {"expr": f"group by (job) ({firing})", "eval_time": "4m", "exp_samples": []},
                {"expr": f"group by (job) ({firing})", "eval_time": "7m", "exp_samples": samples_of(PROCESSES)},
            ],
        },
        {
            "interval": "1m",
            "input_series": [{"series": f'up{{job="{name}"}}', "values": "1x4 0x6"} for name in alone]
            + [{"series": 'up{job="run-all-in-one"}', "values": "1x10"}],
            "promql_expr_test": [{"expr": firing, "eval_time": "7m", "exp_samples": []}],
        },
    ]
    rules = {"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(rules))
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "tests.yaml")


def samples_of(names: Iterable[str]) -> list[dict[str, Any]]:
    return [{"labels": f'{{job="{name}"}}', "value": 1} for name in names]


def test_the_collector_receives_where_the_settings_say_and_uses_what_it_configures() -> None:
    text = (FOLDER / "otel-collector.yaml").read_text()
    collector = yaml.safe_load(text)
    protocols = collector["receivers"]["otlp"]["protocols"]
    for protocol in ("http", "grpc"):
        said = rf"otlp_protocol: {protocol} +telemetry.otlp_endpoint: http://{protocols[protocol]['endpoint']}\n"
        assert re.search(said, text)
    for pipeline in collector["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(collector[kind])
    default = yaml.safe_load((ROOT / "settings" / "default.yaml").read_text())["telemetry"]
    assert default["otlp_protocol"] in protocols
    assert protocols["http"]["endpoint"] in (ROOT / "settings" / "default.yaml").read_text()


def test_what_a_process_exposes_is_as_prometheus_wants_it(project: Project) -> None:
    running = project.start("run-all-in-one")
    client = log_in(project, running)
    assert client.get("/ready").status_code == 200
    assert client.post("/auth/v1/login", json={"username": "nobody", "password": "wrong"}).status_code == 401
    assert client.post("/platform/v1/schedules/platform.heartbeat/trigger").status_code == 200

    def worked() -> str:
        exposed = client.get("/metrics").text
        assert re.search(r'^jobs_total\{outcome="done",task="platform.heartbeat"\}', exposed, re.MULTILINE)
        return exposed

    exposed = eventually(worked)
    promtool("check", "metrics", stdin=exposed.encode())
    sampled = set(re.findall(r"^([a-z_]+)[ {]", exposed, re.MULTILINE))
    assert {name for name in sampled if not name.endswith("_created")} <= set(known())
    for sample in ('route="/ready",status="200"', 'route="/auth/v1/login",status="401"', 'state="max"'):
        assert sample in exposed
