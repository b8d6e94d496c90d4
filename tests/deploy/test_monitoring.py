"""Alerts and dashboards ask for metrics that exist, in expressions that parse."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy.parts import DEPLOY, compose_parts, kubernetes_parts

MONITORING = DEPLOY / "monitoring"
SERVICE = DEPLOY.parent / "service"
# Of Prometheus itself, and of the textfile collector that shows the gauges' file.
FOREIGN = {"up", "node_textfile_mtime_seconds"}


@cache
def groups() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((MONITORING / "rules.yml").read_text(encoding="utf-8"))
    return list(loaded["groups"])


def rules() -> list[dict[str, Any]]:
    return [rule for group in groups() for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [
        panel
        for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json"))
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
    ]


@cache
def written_metrics() -> set[str]:
    """Every `rldp_…` name in a string of the modules that write metrics."""
    found: set[str] = set()
    for path in [*SERVICE.glob("gauges*.py"), *SERVICE.glob("metrics*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"\brldp_[a-z_]+[a-z]\b", node.value))
    return found


def selectors(expression: str) -> Iterator[str]:
    """Names of the metrics that an expression reads; raises ValueError if it does not parse."""

    def visit(node: Any) -> Iterator[str]:
        if isinstance(node, promql_parser.VectorSelector):
            yield re.sub(r"_(bucket|count|sum|total)$", "", node.name)
        for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
            inner = getattr(node, name, None)
            if inner is not None and not isinstance(inner, str):
                yield from visit(inner)
        for inner in getattr(node, "args", ()):
            yield from visit(inner)

    yield from visit(promql_parser.parse(expression))


def expressions() -> list[str]:
    asked = [rule["expr"] for rule in rules()]
    return asked + [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_reader_of_expressions_finds_every_name() -> None:
    found = set(selectors("1 - avg_over_time(max by (x) (a{y='z'})[30d:5m]) / rate(b[5m]) > c"))
    assert found == {"a", "b", "c"}
    with pytest.raises(ValueError):
        list(selectors("max("))


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_exists(expression: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    names = set(selectors(expression))
    assert names
    assert names <= written_metrics() | recorded | FOREIGN


def test_no_gauge_of_the_ledger_is_unwatched() -> None:
    watched = {name for rule in rules() if "alert" in rule for name in selectors(rule["expr"])}
    shown = {name for panel in panels() for t in panel["targets"] for name in selectors(t["expr"])}
    gauges = {name for name in written_metrics() if "ledger" in name or "invariant" in name}
    assert gauges <= watched
    assert gauges <= shown


def test_every_alert_has_a_page_in_the_runbook() -> None:
    runbook = (DEPLOY / "runbook.md").read_text(encoding="utf-8")
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
        for line in re.findall(r"^#+ (.+)$", runbook, flags=re.MULTILINE)
    }
    for rule in rules():
        if "alert" in rule:
            place, _, anchor = rule["annotations"]["runbook"].partition("#")
            assert place == "deploy/runbook.md"
            assert anchor in anchors, rule["alert"]
            assert rule["labels"]["severity"] in ("page", "ticket")


def test_thresholds_are_those_of_the_code() -> None:
    from service.dispatcher import WATCH_SECONDS
    from service.ledger import guard

    told = {rule["alert"]: rule["expr"] for rule in rules() if "alert" in rule}
    assert told["WitnessStale"].endswith(f"> {guard.ALERT_SECONDS}")
    assert told["WitnessStaleSubmissionsRefused"].endswith(f"> {guard.STALE_SECONDS}")
    assert int(told["GaugesStale"].rpartition("> ")[2]) >= 3 * WATCH_SECONDS


def test_the_gauges_file_is_scraped_where_it_is_written() -> None:
    for parts in (compose_parts(), kubernetes_parts()):
        dispatcher = next(part for part in parts if part.role == "dispatcher")
        exporter = next(part for part in parts if part.role == "prom/node-exporter")
        folder = dispatcher.environment["RLDP_DATA_DIR"] + "/metrics"
        assert dispatcher.mounts[folder] == exporter.mounts["/metrics"] == "metrics"
    scrape = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = scrape["scrape_configs"]
    targets = [t for j in jobs for s in j.get("static_configs", ()) for t in s["targets"]]
    for found in (s for j in jobs for s in j.get("dns_sd_configs", ())):
        targets += [f"{name}:{found['port']}" for name in found["names"]]
    api = next(part for part in compose_parts() if part.role == "api")
    port = api.settings["RLDP_METRICS_BIND"].rpartition(":")[2]
    assert f"api:{port}" in targets and "monitoring" in api.raw["networks"]
    names = {part.place.partition(":")[2] for part in compose_parts()}
    for target in targets:
        host = target.partition(":")[0]
        assert host == "127.0.0.1" or host in names
    assert Path(MONITORING / scrape["rule_files"][0]).exists()


def test_dashboards_are_provisioned_and_explained() -> None:
    assert panels()
    for panel in panels():
        assert panel["title"] and len(panel["description"]) > 20
        assert panel["datasource"]["uid"] == "prometheus"
    source = yaml.safe_load(
        (MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text()
    )
    assert source["datasources"][0]["uid"] == "prometheus"
