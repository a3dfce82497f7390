"""Waiting inside a service."""

import asyncio


async def pause(stop: asyncio.Event, seconds: float) -> bool:
    """Wait, but no longer than until asked to stop; return whether that was asked."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True
