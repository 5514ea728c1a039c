"""The node's numbers as Prometheus text."""

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector
from typing_extensions import override

from ..messages.metrics import FAMILIES, Family, Kind
from .port import MetricsPort

CONTENT_TYPE: Final = "text/plain; version=0.0.4"


class _NodeCollector(Collector):
    """Reads the numbers at each scrape. Families without a sample are left out."""

    def __init__(self, metrics: MetricsPort) -> None:
        self._metrics = metrics

    @override
    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.kind is Kind.HISTOGRAM:
                yield from self._histogram(family)
                continue
            kind = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in sorted(self._metrics.read(family).items()):
                metric.add_metric(labels, value)
            if metric.samples:
                yield metric

    def _histogram(self, family: Family) -> Iterator[Metric]:
        values = self._metrics.read(family)
        metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels in sorted({key[:-1] for key in values}):
            bounds = [*(str(bound) for bound in family.bounds), "inf"]
            buckets = [(_bound(bound), values[*labels, bound]) for bound in bounds]
            metric.add_metric(labels, buckets=buckets, sum_value=values[*labels, "sum"])
        if metric.samples:
            yield metric


def _bound(text: str) -> str:
    return "+Inf" if text == "inf" else text


def exposition(metrics: MetricsPort) -> bytes:
    """Return all numbers in Prometheus's text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(metrics))
    return generate_latest(registry)
