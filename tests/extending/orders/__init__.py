"""Orders: the sample module of docs/modules.md."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="Orders.",
    permissions={
        "orders:orders:read": "See orders.",
        "orders:orders:write": "Place and cancel orders.",
    },
    features=(Feature("orders:Orders", "orders", "Place, see and cancel orders."),),
    settings="settings:OrdersSettings",
    schedules="orders:SCHEDULES",
    checks="checks:CHECKS",
    personal="personal:PERSONAL",
)
