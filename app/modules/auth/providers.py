"""What auth provides to features. Imports what a provider needs when it is opened, not before."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from app.kernel.actions.compose import Providers
from app.kernel.process import Process
from app.modules.auth.portal import Portal


@asynccontextmanager
async def portal(p: Process) -> AsyncGenerator[Portal]:
    """Provide the portal."""
    from app.modules.auth import wiring

    yield await p.use(wiring.portal)


PROVIDERS: Providers = {Portal: portal}
