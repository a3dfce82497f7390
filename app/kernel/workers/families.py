"""Families of metrics as workers send them, and their merging: counters and histograms are summed, gauges labelled."""

from collections.abc import Iterable, Mapping
from typing import Any

Sample = tuple[str, dict[str, str], float, list[Any] | None]
"""Name, labels, value, and the exemplar: labels, value and time."""
Family = tuple[str, str, str, list[Sample]]
"""Name, type, help and samples."""

_SUMMED = frozenset({"counter", "histogram"})


def summed(snapshots: Iterable[Iterable[Family]]) -> list[Family]:
    """Return the sums of counters and histograms, without the rest."""
    return _merged(family for snapshot in snapshots for family in snapshot if family[1] in _SUMMED)


def merged(workers: Mapping[str, Iterable[Family]], ended: Iterable[Family]) -> list[Family]:
    """Return the metrics of all workers: sums, also over ended workers, and gauges with the label `worker`."""
    gauges = (
        _labelled(family, worker)
        for worker, families in workers.items()
        for family in families
        if family[1] not in _SUMMED
    )
    return [*summed([ended, *workers.values()]), *_merged(gauges)]


def _labelled(family: Family, worker: str) -> Family:
    name, kind, text, samples = family
    return (
        name,
        kind,
        text,
        [(sample, {**labels, "worker": worker}, value, None) for sample, labels, value, _ in samples],
    )


def _merged(families: Iterable[Family]) -> list[Family]:
    heads: dict[str, tuple[str, str]] = {}
    found: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], Sample]] = {}
    for name, kind, text, samples in families:
        heads.setdefault(name, (kind, text))
        own = found.setdefault(name, {})
        for sample, labels, value, exemplar in samples:
            key = (sample, tuple(labels.items()))
            before = own.get(key)
            own[key] = (sample, labels, value + (before[2] if before else 0), exemplar or (before and before[3]))
    return [(name, *heads[name], list(samples.values())) for name, samples in found.items()]
