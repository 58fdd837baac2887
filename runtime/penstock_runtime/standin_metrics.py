"""The stand-in engine's numbers, in the names and the text format in which vLLM shows its own at /metrics.

Only what a router, an autoscaler or a dashboard of vLLM reads is here. Nothing here waits or knows of requests.
Sources: vLLM's metrics documentation for names and meanings; Prometheus' text exposition format.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

FINISH_REASONS = ("stop", "length", "abort", "error")
FIRST_TOKEN_BUCKETS_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    40.0,
    160.0,
    640.0,
)
LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0, 80.0)
REQUEST_BUCKETS_S = (0.3, 0.8, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 480.0, 1920.0)


class Histogram:
    """Counts by upper bound, with the sum: Prometheus' histogram."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        total = 0
        lines = [f"# TYPE {name} histogram"]
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        return [*lines, f"{name}_count{{{labels}}} {float(total)}", f"{name}_sum{{{labels}}} {self._sum}"]


@dataclass(slots=True)
class Metrics:
    """The counters; the gauges are read from the engine when they are shown."""

    model_name: str
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISH_REASONS, 0))
    time_to_first_token_s: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_BUCKETS_S))
    inter_token_latency_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BUCKETS_S))
    queue_time_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_BUCKETS_S))
    latency_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_BUCKETS_S))

    def text(self, running: int, waiting: int, cache_usage: float) -> str:
        """All of it; `cache_usage` is a share, 0 to 1."""
        labels = f'engine="0",model_name="{self.model_name}"'
        lines: list[str] = []
        gauges = {
            "num_requests_running": running,
            "num_requests_waiting": waiting,
            "kv_cache_usage_perc": cache_usage,
        }
        for name, value in gauges.items():
            lines += [f"# TYPE vllm:{name} gauge", f"vllm:{name}{{{labels}}} {float(value)}"]
        counters = {
            "prompt_tokens": self.prompt_tokens,
            "generation_tokens": self.generation_tokens,
            "prefix_cache_queries": self.prompt_tokens,
            "prefix_cache_hits": 0,
            "num_preemptions": 0,
        }
        for name, value in counters.items():
            lines += [f"# TYPE vllm:{name}_total counter", f"vllm:{name}_total{{{labels}}} {float(value)}"]
        lines.append("# TYPE vllm:request_success_total counter")
        for reason, count in self.finished.items():
            lines.append(f'vllm:request_success_total{{finished_reason="{reason}",{labels}}} {float(count)}')
        lines += self.time_to_first_token_s.lines("vllm:time_to_first_token_seconds", labels)
        lines += self.inter_token_latency_s.lines("vllm:inter_token_latency_seconds", labels)
        lines += self.queue_time_s.lines("vllm:request_queue_time_seconds", labels)
        lines += self.latency_s.lines("vllm:e2e_request_latency_seconds", labels)
        return "\n".join([*lines, ""])
