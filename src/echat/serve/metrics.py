"""What the operator may know: numbers, no words and no sound."""

from __future__ import annotations

from typing import Any


class Metrics:
    """Prometheus metrics of one server, in a registry of their own."""

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
        self.busy = counter("busy_total", "Sessions turned away because the server was full")
        self.refused = counter("refused_total", "Requests turned away at the gate, by reason", "code")
        self.errors = counter("errors_total", "Failures of the server's own making", "where")
        self.responses = counter("responses_total", "Responses, by how they ended", "status")
        self.speculative_responses = counter(
            "guesses_total", "Replies begun on trial, by what became of them", "outcome"
        )
        self.audio_in = counter("audio_in_seconds_total", "Sound received")
        self.audio_out = counter("audio_out_seconds_total", "Sound sent")
        self.audio_dropped = counter("audio_dropped_seconds_total", "Sound that slow readers missed")
        self.requests = counter(
            "requests_total", "HTTP requests that computed, by path and status", "path", "status"
        )
        self.first_audio = prometheus.Histogram(
            "echat_first_audio_seconds",
            "From the end of a turn to the first sound of its answer",
            buckets=seconds,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """In the exposition format."""
        import prometheus_client as prometheus

        return prometheus.generate_latest(self.registry)
