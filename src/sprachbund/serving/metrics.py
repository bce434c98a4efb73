"""Counters of a service, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Meters:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = self._counter("requests", "Requests answered.", "route", "status")
        self.request_s = self._histogram("request_seconds", "Seconds from request to end of answer.", "route")
        self.first_text_s = self._histogram("first_text_seconds", "Seconds from upload to the first segment.")
        self.audio_s = self._counter("audio_seconds", "Seconds of audio taken in.", "kind")
        self.in_progress = self._gauge("requests_in_progress", "Recordings at work or waiting.")
        self.waiting_spans = self._gauge("waiting_spans", "Spans of speech that wait for a model.", "model")
        self.batch_spans = self._histogram("batch_spans", "Spans in a pass of a model.", sizes=_SIZES)
        self.batch_recordings = self._histogram("batch_recordings", "Recordings in a pass.", sizes=_SIZES)
        self.live_sessions = self._gauge("live_sessions", "Live sessions open.")
        self.live_batch = self._histogram("live_batch_sessions", "Live sessions in a step.", sizes=_SIZES)
        self.live_delay_s = self._histogram("live_delay_seconds", "Seconds from audio to the text it needed.")
        self.overloads = self._counter("live_overloads", "Times a live session had too much audio waiting.")
        self.models_loaded = self._gauge("models_loaded", "Models in memory.")

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"sprachbund_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(f"sprachbund_{name}", about, labels, registry=self.registry)

    def _histogram(
        self, name: str, about: str, *labels: str, sizes: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(f"sprachbund_{name}", about, labels, buckets=sizes, registry=self.registry)
