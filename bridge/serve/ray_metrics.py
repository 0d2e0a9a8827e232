"""Figures handed to Ray's own metrics, so that Ray's Prometheus and Grafana show them."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from squadron.bridge.metrics.families import COUNTERS, GAUGES, MetricFamily
from squadron.bridge.metrics.figures import Figures


class RayMetrics:
    """Counters by what was added since the last time, and gauges as they are.

    No histograms: the sums that Ray makes of them are wrong (ray #53740). Of each there are two counters, its
    count and its seconds.
    """

    def __init__(self, before: Figures) -> None:
        """Make one; what was counted `before` was handed over by an earlier bridge, whose counters Ray keeps."""
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}
        for family in COUNTERS:
            self._note(family, before, to_ray=False)

    def __call__(self, figures: Figures) -> None:
        """Hand over what is new, and all gauges: one that is not set for 20 s vanishes from Ray."""
        for family in COUNTERS:
            self._note(family, figures, to_ray=True)
        for family in GAUGES.values():
            for labels, (value, *_) in figures.of(family).items():
                if family.name not in self._gauges:
                    self._gauges[family.name] = Gauge(family.name, family.help, family.labels)
                self._gauges[family.name].set(value, dict(zip(family.labels, labels, strict=True)))

    def _note(self, family: MetricFamily, figures: Figures, *, to_ray: bool) -> None:
        for labels, numbers in figures.of(family).items():
            # Ray adds `_total` itself.
            amounts = {family.name.removesuffix("_total"): numbers[0]}
            if family.kind == "histogram":
                amounts = {f"{family.name}_sum": numbers[0], f"{family.name}_count": sum(numbers[1:])}
            for name, amount in amounts.items():
                added = amount - self._told.get((name, labels), 0.0)
                if added <= 0:
                    continue
                self._told[name, labels] = amount
                if to_ray:
                    if name not in self._counters:
                        self._counters[name] = Counter(name, family.help, family.labels)
                    self._counters[name].inc(added, dict(zip(family.labels, labels, strict=True)))
