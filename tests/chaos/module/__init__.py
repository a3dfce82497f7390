"""A module that counts what is done for it. `Deployment` puts it into a copy of the project."""

from app.kernel.module import Feature, Module

MODULE = Module(
    package=__name__,
    summary="Counts.",
    features=(Feature("jobs:Handlers"),),
    providers="jobs:PROVIDERS",
    schedules="jobs:SCHEDULES",
    serves=False,
)
