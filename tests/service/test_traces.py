"""Spans as a collector receives them: what is in them, and that nothing else ever is."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import ValidationError

from service.app import create_app
from service.cli.children import require_traces
from service.settings import Settings
from service.traces import NoTraces, TracesUnavailable, open_traces
from tests.service.jobs import world as jw
from tests.service.ledger import world as lw
from tests.service.worker.test_supervisor import supervisor

CANARY = "qzcanaryxk"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Collector:
    """Keeps every request it gets; `delay` is how long it takes to answer."""

    url: str = ""
    raw: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    delay: float = 0

    def spans(self) -> list[Any]:
        found = [ExportTraceServiceRequest.FromString(body) for body in self.raw]
        return [
            span
            for request in found
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


def told(span: Any) -> dict[str, object]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        """Answers as a collector that takes everything."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(collector.delay)
            collector.raw.append(body)
            collector.paths.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield collector
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


def serve(tmp_path: Path, endpoint: str) -> TestClient:
    settings = Settings(data_dir=tmp_path / "traced", otel_endpoint=endpoint)
    return TestClient(create_app(settings), raise_server_exceptions=False)


class TestRequests:
    def test_a_span_holds_template_method_status_and_id(
        self, tmp_path: Path, collector: Collector
    ) -> None:
        with serve(tmp_path, f"{collector.url}/") as client:
            answer = client.get(f"/v1/fine_tuning/jobs/{CANARY}?{CANARY}={CANARY}")
            client.get("/healthz")
        first, second = collector.spans()
        assert set(collector.paths) == {"/v1/traces"}
        assert first.name == "GET /v1/fine_tuning/jobs/{job_id}"
        assert told(first) == {
            "http.request.method": "GET",
            "http.route": "/v1/fine_tuning/jobs/{job_id}",
            "http.response.status_code": 401,
            "rldp.request_id": answer.headers["x-request-id"],
        }
        assert second.name == "GET /healthz"
        assert 0 < first.end_time_unix_nano - first.start_time_unix_nano < 60e9

    def test_it_stands_below_the_callers_span(self, tmp_path: Path, collector: Collector) -> None:
        with serve(tmp_path, collector.url) as client:
            client.get("/healthz", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            client.get("/healthz")
        below, alone = collector.spans()
        assert (below.trace_id.hex(), below.parent_span_id.hex()) == (TRACE, PARENT)
        assert alone.trace_id.hex() != TRACE and alone.parent_span_id == b""

    def test_nothing_of_the_caller_is_in_it(self, tmp_path: Path, collector: Collector) -> None:
        headers = dict.fromkeys(
            ("x-request-id", "user-agent", "authorization", "baggage", "x-any"), CANARY
        )
        headers |= {
            "tracestate": f"{CANARY}={CANARY}",
            "traceparent": f"00-{TRACE}-{PARENT}-01",
        }
        with serve(tmp_path, collector.url) as client:
            for path in (f"/v1/{CANARY}", f"/{CANARY}?{CANARY}", f"/v1/files/{CANARY}/content"):
                client.get(path, headers=headers)
                client.request(CANARY.upper(), path, headers=headers)
            body = {"model": CANARY, CANARY: CANARY}
            client.post("/v1/fine_tuning/jobs", json=body, headers=headers)
            client.get("/healthz", headers={"traceparent": CANARY})
        assert len(collector.spans()) == 8
        assert not any(CANARY.encode() in raw.lower() for raw in collector.raw)

    def test_an_accident_is_an_error_without_its_text(
        self, tmp_path: Path, collector: Collector
    ) -> None:
        settings = Settings(data_dir=tmp_path / "traced", otel_endpoint=collector.url)
        app = create_app(settings)

        @app.get("/boom")
        def boom() -> None:
            raise RuntimeError(CANARY)

        with TestClient(app, raise_server_exceptions=False) as client:
            assert client.get("/boom").status_code == 500
        (span,) = collector.spans()
        assert span.status.code == 2 and span.status.message == "" and not span.events
        assert CANARY.encode() not in collector.raw[0]

    def test_a_collector_that_is_away_or_hangs_costs_no_request(
        self, tmp_path: Path, collector: Collector
    ) -> None:
        collector.delay = 20
        for endpoint in ("http://127.0.0.1:9", collector.url):
            with serve(tmp_path, endpoint) as client:
                began = time.monotonic()
                assert [client.get("/healthz").status_code for _ in range(20)] == [200] * 20
                assert time.monotonic() - began < 10
        collector.delay = 0


def test_an_attempt_tells_its_job_its_end_and_why(tmp_path: Path, collector: Collector) -> None:
    settings = Settings(data_dir=tmp_path / "data", otel_endpoint=collector.url)
    with lw.sqlite_database(tmp_path) as db:
        world = lw.open_world(db)
        settings.data_dir.mkdir()
        settings = settings.model_copy(update={"database_url": str(db.engine.url)})
        traces = open_traces(settings, "worker")
        ids = []
        for kind in ("train", "exit-1"):
            claim = jw.claimed_job(world)
            watching = supervisor(world, settings, kind, claim)
            watching.traces = traces
            watching.run()
            ids.append(claim.job_id)
        traces.close()
    done, crashed = (told(span) for span in collector.spans())
    assert done == {"rldp.job_id": ids[0], "rldp.attempt": 1, "rldp.job_state": "succeeded"}
    assert crashed == {
        "rldp.job_id": ids[1],
        "rldp.attempt": 1,
        "rldp.job_state": "recovering",
        "rldp.reason_code": "trainer_crashed",
    }


class TestSettings:
    def test_they_are_off_by_default_and_load_nothing(self, tmp_path: Path) -> None:
        traces = open_traces(Settings(data_dir=tmp_path), "api")
        assert isinstance(traces, NoTraces)

    @pytest.mark.parametrize("url", ["collector:4318", "ftp://x", "http://", "http://x/?a=b"])
    def test_an_address_must_be_one(self, url: str) -> None:
        with pytest.raises(ValidationError):
            Settings(otel_endpoint=url)

    def test_without_the_extra_it_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
        settings = Settings(data_dir=tmp_path, otel_endpoint="http://127.0.0.1:9")
        with pytest.raises(TracesUnavailable, match=r"rldp\[otel\]"):
            open_traces(settings, "api")
        with pytest.raises(typer.BadParameter, match="RLDP_OTEL_ENDPOINT"):
            require_traces(settings)
