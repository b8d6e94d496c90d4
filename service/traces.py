"""Spans of requests and attempts for the operator's OpenTelemetry collector; off by default.

Guarantee: a span holds the route's template, method, status, times and ids of ours, and
nothing else: no path, query, header, body, statement or exception text (service.md 14.3). Only
spans are sent, to `RLDP_OTEL_ENDPOINT` alone; the log and metric signals are never opened. Of a
caller's context only `traceparent` is read, which can hold nothing but hexadecimal digits;
`tracestate` and `baggage` are free text and go nowhere.

A collector that is slow or away costs spans and never a request or an attempt: they wait in
memory, at most 2,048 of them, and are sent by a thread of their own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

EXPORT_SECONDS = 3.0  # below the time a worker has to leave
NO_EXTRA = (
    "RLDP_OTEL_ENDPOINT is set and OpenTelemetry is not installed:"
    " pip install 'rldp[otel]', or unset it."
)
REQUEST = {
    "request_id": "rldp.request_id",
    "route": "http.route",
    "method": "http.request.method",
    "status": "http.response.status_code",
}
ATTEMPT = {
    "job_id": "rldp.job_id",
    "attempt": "rldp.attempt",
    "state": "rldp.job_state",
    "code": "rldp.reason_code",
}
Fields = Mapping[str, object]


class TracesUnavailable(Exception):
    """Traces are asked for and cannot be sent; the text says what to do."""


class Traces(Protocol):
    """Told after something is over. `began` is of `time.time_ns()`."""

    def request(self, fields: Fields, began: int, parent: str | None) -> None: ...

    def attempt(self, fields: Fields, began: int) -> None: ...

    def close(self) -> None: ...


class NoTraces:
    """What a service without a collector has."""

    def request(self, fields: Fields, began: int, parent: str | None) -> None:
        """Goes nowhere."""

    def attempt(self, fields: Fields, began: int) -> None:
        """Goes nowhere."""

    def close(self) -> None:
        """Nothing to send."""


@dataclass(frozen=True)
class CollectedTraces:
    """Makes spans of the allowed fields and leaves the sending to the provider."""

    provider: TracerProvider

    def request(self, fields: Fields, began: int, parent: str | None) -> None:
        """One answered request, below the caller's own span if it sent a `traceparent`."""
        from opentelemetry.trace import SpanKind

        name = f"{fields['method']} {fields['route']}"
        is_ours = isinstance(status := fields["status"], int) and status >= 500
        self._tell(name, SpanKind.SERVER, _allowed(fields, REQUEST), began, is_ours, parent)

    def attempt(self, fields: Fields, began: int) -> None:
        """One attempt of a job at this worker; `code` says why it gave the job back."""
        from opentelemetry.trace import SpanKind

        is_failed = fields.get("state") == "failed"
        self._tell("attempt", SpanKind.CONSUMER, _allowed(fields, ATTEMPT), began, is_failed, None)

    def _tell(
        self,
        name: str,
        kind: object,
        attributes: dict[str, str | int],
        began: int,
        is_error: bool,
        parent: str | None,
    ) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        assert isinstance(kind, SpanKind)
        carried = {} if parent is None else {"traceparent": parent}
        span = self.provider.get_tracer("rldp").start_span(
            name,
            context=TraceContextTextMapPropagator().extract(carried, context=Context()),
            kind=kind,
            attributes=attributes,
            start_time=began,
        )
        if is_error:
            span.set_status(StatusCode.ERROR)
        span.end(time.time_ns())

    def close(self) -> None:
        """Sends what waits, for as long as one export may take."""
        self.provider.shutdown()


def open_traces(settings: Settings, part: str) -> Traces:
    """The traces of one process; `part` is `api` or `worker`. Starts a thread if they are on.

    Headers for the collector, a key for example, come from `OTEL_EXPORTER_OTLP_HEADERS`, the
    share that is kept from `OTEL_TRACES_SAMPLER`, as everywhere in OpenTelemetry.

    Raises:
        TracesUnavailable: the extra `otel` is not installed.
    """
    if not settings.otel_endpoint:
        return NoTraces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise TracesUnavailable(NO_EXTRA) from None
    address = f"{settings.otel_endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=address, timeout=EXPORT_SECONDS)
    resource = Resource.create({"service.name": "rldp", "rldp.part": part})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return CollectedTraces(provider)


def _allowed(fields: Fields, names: Mapping[str, str]) -> dict[str, str | int]:
    told: dict[str, str | int] = {}
    for ours, theirs in names.items():
        value = fields.get(ours)
        if isinstance(value, (str, int)):
            told[theirs] = value if isinstance(value, int) else str(value)
    return told
