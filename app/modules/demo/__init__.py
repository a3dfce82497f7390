"""A small shop that runs under a fake load with failures. Only `app demo` has this module."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="A small shop under a fake load with failures.",
    features=(Feature("shop:Shop"),),
    schedules="shop:SCHEDULES",
    serves=False,
)
