"""All figures of an environment at one moment, as they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from squadron.bridge.metrics.families import Cells, MetricFamily, Numbers

#: Name, values of its labels, and how much.
Gauge = tuple[str, tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Figures:
    """What was counted, by agent, and what was looked up."""

    counted: Mapping[str, Cells] = field(default_factory=dict)
    gauges: Sequence[Gauge] = ()

    def of(self, family: MetricFamily) -> dict[tuple[str, ...], Numbers]:
        """The numbers of one metric, by the values of its labels."""
        if not family.of:
            return {labels: (value,) for name, labels, value in self.gauges if name == family.name}
        found: dict[tuple[str, ...], Numbers] = {}
        for agent, cells in self.counted.items():
            for (kind, *labels), numbers in cells.items():
                if kind == family.of:
                    values = family.values(agent, labels)
                    found[values] = tuple(map(sum, zip_longest(found.get(values, ()), numbers, fillvalue=0)))
        if family.scale != 1:
            return {values: tuple(each * family.scale for each in numbers) for values, numbers in found.items()}
        return found
