"""What Prometheus reads: declared series only, from closed labels, on a port of its own."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import httpx
import pytest
import typer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service import gauges
from service.cli.children import serve_metrics
from service.database import Database
from service.jobs.lifecycle import STATES
from service.metrics import OPERATIONS, UndeclaredMetric
from service.settings import Settings
from tests.service.hospital import open_hospital
from tests.service.ledger import world as w
from tests.service.ledger.test_endpoints import open_desk

Samples = dict[str, dict[tuple[str, ...], float]]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def parsed(text: str) -> Samples:
    """Samples by name and by label values, in the order of the labels' names."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def of_rows(db: Database) -> Samples:
    return parsed(generate_latest(gauges.registry_of(db)).decode())


def test_a_scrape_tells_of_ledger_queue_and_requests(tmp_path: Path) -> None:
    with open_hospital(tmp_path) as hospital:
        desk = open_desk(hospital)
        desk.get("/v1/budgets/{population}", query="canary-in-a-query")
        desk.get("/v1/nowhere/canary-in-a-path")
        port = free_port()
        stop = gauges.serve(hospital.app.state.metrics, "127.0.0.1", port)
        try:
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        finally:
            stop()
        budget = desk.get("/v1/budgets/{population}").json()
    told = parsed(text)
    assert "canary" not in text
    used = (int(budget["held_pico"]) + int(budget["spent_pico"])) / int(budget["limit"]["pico"])
    assert told["rldp_budget_used_ratio"] == {("train", desk.world.population): used}
    assert told["rldp_windows_total"] == {("charged",): 2, ("done",): 2, ("abandoned",): 0}
    assert told["rldp_jobs"] == dict.fromkeys(((state,) for state in STATES), 0)
    assert told["rldp_database_up"] == {(): 1}
    counted = told["rldp_http_seconds_count"]
    assert counted["GET", "/v1/budgets/{population_id}", "400"] >= 1
    assert counted["GET", "(none)", "404"] == 1


def test_every_series_is_declared_and_every_declaration_is_told(tmp_path: Path) -> None:
    told = {*gauges.READERS, "rldp_database_up", "rldp_http_seconds"}
    assert told == set(OPERATIONS)
    with pytest.raises(UndeclaredMetric):
        gauges._family("rldp_patients", [((), 3)])
    with w.sqlite_database(tmp_path) as db:
        w.sign_log(w.open_world(db), tmp_path)
        found = of_rows(db)
    absent = {"rldp_witness_age_seconds", "rldp_queue_wait_seconds"}
    absent |= {"rldp_worker_heartbeat_age_seconds"}  # nobody cosigned, queues or works
    names = {name + "_total" if OPERATIONS[name].kind == "counter" else name for name in told}
    assert set(found) == names - absent - {"rldp_http_seconds"}


def test_the_process_tells_nothing_of_itself(tmp_path: Path) -> None:
    """The library's own registry would add memory and file counts."""
    with w.sqlite_database(tmp_path) as db:
        assert all(name.startswith("rldp_") for name in of_rows(db))


def test_a_database_that_does_not_answer_is_told_and_nothing_else(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'no-tables.db'}")
    assert of_rows(db) == {"rldp_database_up": {(): 0}}
    db.dispose()


class TestBinding:
    def test_the_embedded_service_tells_this_host_only(self) -> None:
        with pytest.raises(typer.BadParameter, match="127\\.0\\.0\\.1 only"):
            serve_metrics(Settings(metrics_bind="0.0.0.0:9464"), CollectorRegistry())
        with pytest.raises(typer.BadParameter, match="RLDP_METRICS_BIND must be host:port"):
            serve_metrics(Settings(metrics_bind="9464"), CollectorRegistry())

    def test_empty_is_off(self) -> None:
        serve_metrics(Settings(metrics_bind=""), CollectorRegistry())

    def test_a_port_taken_is_an_error_in_production_alone(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            bind = f"127.0.0.1:{taken.getsockname()[1]}"
            with caplog.at_level(logging.WARNING, logger="service.cli.children"):
                serve_metrics(Settings(metrics_bind=bind), CollectorRegistry())
            assert "no metrics: port taken" in caplog.text
            production = Settings(
                environment="production",
                database_url="postgresql://db/x",
                witnesses=Path("w"),
                witness_quorum=1,
                metrics_bind=bind,
            )
            with pytest.raises(typer.BadParameter, match="taken"):
                serve_metrics(production, CollectorRegistry())
