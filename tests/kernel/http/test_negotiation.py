"""Which format of the metrics a client gets (RFC 9110, section 12.5.1)."""

import pytest

from app.kernel.http.probes import preferred
from app.kernel.telemetry.metrics import FORMATS

TEXT, OPENMETRICS = "text/plain", "application/openmetrics-text"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ([], TEXT),
        ([""], TEXT),
        (["*/*"], TEXT),
        (["application/*"], OPENMETRICS),
        ([OPENMETRICS], OPENMETRICS),
        (["Application/OpenMetrics-Text; Version=1.0.0; Q=0.5, text/plain; q=0.4"], OPENMETRICS),
        ([f"{OPENMETRICS};q=0"], TEXT),
        ([f"{OPENMETRICS}; q=0.000, */*"], TEXT),
        ([f"{OPENMETRICS};q=0, application/*"], TEXT),
        ([f"application/*;q=0, {OPENMETRICS};q=0.1"], OPENMETRICS),
        ([f"{TEXT};q=0.5, {OPENMETRICS};q=0.4"], TEXT),
        ([f"{TEXT};q=0.4, {OPENMETRICS};q=0.5"], OPENMETRICS),
        ([f"{TEXT};q=0.4", f"{OPENMETRICS};q=0.5"], OPENMETRICS),
        ([f"{OPENMETRICS}, */*"], OPENMETRICS),
        ([f"{TEXT};q=0, {OPENMETRICS}"], OPENMETRICS),
        (["text/*;q=0, */*;q=0.1"], OPENMETRICS),
        ([f"{OPENMETRICS};q=2, {OPENMETRICS};q=x, {OPENMETRICS};q=-1, {OPENMETRICS} q=1"], TEXT),
        ([f"{OPENMETRICS};version=2.0.0"], TEXT),
        ([f'{OPENMETRICS};version="1.0.0"'], OPENMETRICS),
        ([f'x/y;a="{OPENMETRICS}, {OPENMETRICS}"'], TEXT),
        ([f"x{OPENMETRICS}, {OPENMETRICS}x"], TEXT),
        (["image/png"], TEXT),
        (["*/*;q=0"], TEXT),
        ([f"{OPENMETRICS}" + " ;" * 2000 + "x"], TEXT),
        ([f"{OPENMETRICS}" + "; " * 2000], OPENMETRICS),
        (
            [
                f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,{OPENMETRICS};version=0.0.1;q=0.5",
                f"{TEXT};version=1.0.0;escaping=allow-utf-8;q=0.4,{TEXT};version=0.0.4;q=0.3,*/*;q=0.2",
            ],
            OPENMETRICS,
        ),
    ],
)
def test_metrics_are_in_the_format_that_is_accepted_most(accept: list[str], wanted: str) -> None:
    headers = [(b"accept", value.encode()) for value in accept]
    assert preferred({"headers": headers}, FORMATS) == wanted
