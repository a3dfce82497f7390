"""A module that counts what is done for it. `Deployment` puts it into a copy of the project."""

from app.kernel.module import Module

MODULE = Module(package=__name__, summary="Counts.", schedules="jobs:SCHEDULES", handlers="jobs:handlers")
