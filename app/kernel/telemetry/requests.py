"""Traces through `requests`, which Apprise sends with."""

import functools
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY  # pyright: ignore[reportPrivateUsage] - as exporters set
from opentelemetry.trace import SpanKind

from app.kernel.telemetry import traces

_NOT_TRACED = _SUPPRESS_INSTRUMENTATION_KEY


@functools.cache
def trace_requests() -> None:
    """Make a span of each HTTP request that is sent through `requests` and continue the current trace there.

    OpenTelemetry's own instrumentation writes the URL and the texts of exceptions into its spans, and those of webhooks
    are secrets. Safe to repeat.
    """
    inner = requests.Session.send

    def send(self: requests.Session, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        if context.get_value(_NOT_TRACED):
            return inner(self, request, **kwargs)
        host, method = urlsplit(request.url or "").hostname or "", request.method or ""
        attributes = {"http.request.method": method, "server.address": host}
        with traces.span(method, SpanKind.CLIENT, **attributes) as made:
            request.headers.update(traces.outgoing())
            response = inner(self, request, **kwargs)
            if made is not None:
                made.set_attribute("http.response.status_code", response.status_code)
        return response

    requests.Session.send = send
