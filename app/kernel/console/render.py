"""The templates. Jinja2 is loaded with this file, when the first page of the console is asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, ChoiceLoader, Environment, FileSystemLoader, StrictUndefined

from app.kernel.console import cells, charts
from app.kernel.console.requests import address
from app.kernel.http.assets import Assets
from app.kernel.product import NAME, VERSION
from app.kernel.text import size_text

_TEMPLATES = Path(__file__).parent / "templates"


def environment(folders: Mapping[str, Path], assets: Assets, *, may_change: bool) -> Environment:
    """Return the templates of the console, and of each module those that begin with its name."""
    loaders: list[BaseLoader] = [FileSystemLoader(folder) for folder in (_TEMPLATES, *folders.values())]
    made = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=may_change,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    known: dict[str, Any] = {
        "address": address,
        "asset": assets.url,
        "cell": cells.cell,
        "charts": charts,
        "product": NAME,
        "record": cells.record,
        "short": cells.short,
        "size_text": size_text,
        "state": cells.state,
        "version": VERSION,
        "when": cells.when,
    }
    made.globals.update(known)
    return made
