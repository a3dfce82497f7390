"""Merging the metrics of workers."""

from hypothesis import given
from hypothesis import strategies as st

from app.kernel.workers.families import Family, merged, summed

KINDS = ["counter", "histogram", "gauge"]


def family(name: str, kind: str, values: dict[str, float]) -> Family:
    return (name, kind, "About", [(name, {"of": of}, value, None) for of, value in values.items()])


values = st.dictionaries(st.sampled_from("abc"), st.integers(0, 10**6).map(float))
snapshots = st.lists(
    st.dictionaries(st.sampled_from(KINDS), values).map(
        lambda found: [family(f"a_{kind}", kind, of) for kind, of in found.items()]
    ),
    min_size=1,
    max_size=4,
)


def samples(families: list[Family], kind: str) -> dict[tuple[str, ...], float]:
    found = [sample for _, each, _, all_of in families if each == kind for sample in all_of]
    keys = [tuple(labels.values()) for _, labels, _, _ in found]
    assert len(keys) == len(set(keys)), "a series stands twice"
    return dict(zip(keys, (value for _, _, value, _ in found), strict=True))


@given(snapshots, snapshots)
def test_counters_are_summed_over_living_and_ended_workers_and_gauges_are_kept_apart(
    living: list[list[Family]], gone: list[list[Family]]
) -> None:
    ended: list[Family] = []
    for snapshot in gone:
        ended = summed([ended, snapshot])
    workers = {str(number): snapshot for number, snapshot in enumerate(living)}
    found = merged(workers, ended)
    for kind in KINDS:
        expected: dict[tuple[str, ...], float] = {}
        for number, snapshot in [*enumerate(living), *((None, snapshot) for snapshot in gone)]:
            for key, value in samples(snapshot, kind).items():
                if kind != "gauge":
                    expected[key] = expected.get(key, 0) + value
                elif number is not None:
                    expected[(*key, str(number))] = value
        assert samples(found, kind) == expected
