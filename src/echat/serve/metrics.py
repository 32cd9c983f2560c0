"""Prometheus metrics: numbers for the operator, no text and no audio of users."""

from __future__ import annotations

from typing import Any


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        import prometheus_client as prometheus

        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        seconds = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)

        def counter(name: str, text: str, *labels: str) -> Any:
            return prometheus.Counter(f"echat_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Any:
            return prometheus.Gauge(f"echat_{name}", text, registry=self.registry)

        self.sessions = gauge("sessions_open", "Realtime sessions that are open")
        self.sessions_total = counter("sessions_total", "Realtime sessions that were opened")
        self.sessions_ended = counter("sessions_ended_total", "Sessions that ended, by reason", "reason")
        self.busy = counter("busy_total", "Sessions and requests refused because of a limit")
        self.refused = counter(
            "refused_total", "Requests refused by the access middleware, by reason", "code"
        )
        self.errors = counter("errors_total", "Internal errors of the server", "where")
        self.responses = counter("responses_total", "Responses, by how they ended", "status")
        self.speculative_responses = counter("guesses_total", "Speculative replies, by outcome", "outcome")
        self.audio_in = counter("audio_in_seconds_total", "Audio received")
        self.audio_out = counter("audio_out_seconds_total", "Audio sent")
        self.audio_dropped = counter("audio_dropped_seconds_total", "Audio dropped for slow readers")
        self.requests = counter(
            "requests_total", "HTTP requests that computed, by path and status", "path", "status"
        )
        self.first_audio = prometheus.Histogram(
            "echat_first_audio_seconds",
            "From the end of a turn to the first audio of its answer",
            buckets=seconds,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """In the exposition format."""
        import prometheus_client as prometheus

        return prometheus.generate_latest(self.registry)
