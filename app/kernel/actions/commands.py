"""Commands from actions: what stands in the path is an argument, the rest are options; validated as over HTTP."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from datetime import datetime
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import typer

from app.kernel.actions import Action, Doc, Signature, declared
from app.kernel.actions.columns import Columns
from app.kernel.actions.operation import ActionOperation, Call
from app.kernel.callers import operator
from app.kernel.cli import can_ask, confirm, moment, print_details, print_json, print_page
from app.kernel.cli import group as new_group
from app.kernel.decoding import Decoder, name_outside
from app.kernel.errors import Invalid
from app.kernel.paging import Page
from app.kernel.process import Process
from app.kernel.product import NAME

T = TypeVar("T")


class RunOnce(Protocol):
    """Run a one-off command: a Process for as long as the work takes."""

    def __call__(self, name: str, work: Callable[[Process], Awaitable[T]]) -> T:
        """Return what the work returns."""
        ...


def add_commands(group: typer.Typer, name: str, features: Iterable[type[Any]], run_once: RunOnce) -> None:
    """Add to a group the commands that some features declare for it, and a group for each word between."""
    groups = {name: group}
    for feature in features:
        for _, action, signature in declared(feature):
            if isinstance(action, Action) and action.command.split()[:1] == [name]:
                within, _, verb = action.command.rpartition(" ")
                if within not in groups:
                    groups[within] = new_group(inspect.getdoc(feature) or "")
                    group.add_typer(groups[within], name=within.removeprefix(f"{name} "))
                groups[within].command(verb, help=_help(feature, action))(
                    _function(feature, action, signature, run_once)
                )


def _help(feature: type[Any], action: Action) -> str:
    """Return the docstring of the method, then examples."""
    method = next(m for m in vars(feature).values() if getattr(m, "__declared__", None) is action)
    text = inspect.getdoc(method) or action.id
    examples = "\n".join(f"  {NAME} {action.command} {example}".rstrip() for example in action.examples or ("",))
    return f"{text}\n\n\b\nExamples:\n{examples}"


def _function(feature: type[Any], action: Action, signature: Signature, run_once: RunOnce) -> Callable[..., None]:
    def command(*, as_json: bool, yes: bool = False, no_input: bool = False, **options: Any) -> None:
        given = decoded(signature.input, options, _in_path(action)) if signature.input is not None else None
        if action.confirm and not yes:
            if no_input or not can_ask():
                raise typer.BadParameter("this cannot be undone; say --yes to do it", param_hint="--yes")
            confirm(action.confirm.format_map(options))

        async def work(p: Process) -> Any:
            from app.kernel.actions.compose import operations

            found: list[ActionOperation] = await operations(p, [feature])
            return await next(o for o in found if o.id == action.id)(Call(operator()), given)

        _show(action, signature, run_once(action.command, work), options, as_json=as_json)

    command.__signature__ = inspect.Signature([*_parameters(action, signature), *_common(action)])  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {}
    return command


def _show(action: Action, signature: Signature, result: Any, options: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json({**options, "done": True} if result is None else result)
    elif result is None:
        typer.echo(action.message.format_map(options) or "done")
    elif isinstance(result, Page):
        page = cast("Page[Any]", result)
        print_page(page, _columns(signature.returns))
    elif type(result).__str__ is not object.__str__:
        typer.echo(str(result))
    else:
        print_details(result)


def _columns(returns: Any) -> Columns:
    """Return the columns of what is listed."""
    [row] = get_args(returns)
    return row.columns


def _parameters(action: Action, signature: Signature) -> list[inspect.Parameter]:
    if signature.input is None:
        return []
    hints = get_type_hints(signature.input, include_extras=True)
    return [_parameter(item, hints[item.name], item.name in _in_path(action)) for item in fields(signature.input)]


def _in_path(action: Action) -> list[str]:
    return [part[1:-1] for part in action.path.split("/") if part.startswith("{")]


def _parameter(item: "Field[Any]", hint: Any, is_argument: bool) -> inspect.Parameter:
    text, choices, is_flag = _about(hint)
    required = item.default is MISSING and item.default_factory is MISSING
    name = name_outside(item.name).replace("_", "-")
    default = inspect.Parameter.empty if required else (item.default if is_flag else None)
    if choices:
        text = f"{text} One of {', '.join(choices)}."
    if not required and not is_flag and item.default not in (None, MISSING):
        text = f"{text} {item.default} unless given."
    kind: Any = bool if is_flag else (str if required else str | None)
    metavar = None if is_flag else "TIME" if _is_time(hint) else "TEXT"
    parser = _time if _is_time(hint) else None
    shown: Any = (
        typer.Argument(help=text, metavar=name.upper(), show_default=False)
        if is_argument
        else typer.Option(f"--{name}", help=text, metavar=metavar, parser=parser, show_default=False)
    )
    return inspect.Parameter(
        item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, shown]
    )


def _about(hint: Any) -> tuple[str, tuple[str, ...], bool]:
    """Return what a field means, the words that it may be, and whether it is a flag."""
    text, choices, is_flag = "", (), hint is bool
    for part in get_args(hint) if get_origin(hint) is Annotated else (hint,):
        if isinstance(part, Doc):
            text = part.text
        elif get_origin(part) is Literal:
            choices = get_args(part)
        elif get_origin(part) in (Annotated, Union, UnionType):
            for inner in get_args(part):
                if inner is not NoneType:
                    inner_text, inner_choices, inner_flag = _about(inner)
                    text, choices, is_flag = text or inner_text, choices or inner_choices, is_flag or inner_flag
        elif part is bool:
            is_flag = True
    return text, choices, is_flag


def _time(text: str) -> str:
    """Read a time, or a day, as a person writes it; return it as clients do."""
    return moment(text).isoformat()


def _is_time(hint: Any) -> bool:
    return hint is datetime or any(_is_time(part) for part in get_args(hint))


def _common(action: Action) -> list[inspect.Parameter]:
    flags = [("as_json", "--json", "Print JSON.")]
    if action.confirm:
        flags += [("yes", "--yes", "Do not ask."), ("no_input", "--no-input", "Never ask; fail instead.")]
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(option, help=text)],
        )
        for name, option, text in flags
    ]


def decoded(kind: Any, options: dict[str, Any], in_path: Sequence[str] = ()) -> Any:
    """Return the input that some options make. Raises BadParameter, which names the first that is wrong."""
    given = {name_outside(name): value for name, value in options.items() if value is not None}
    try:
        return Decoder[Any](kind).text({name: _WORDS.get(value) or str(value) for name, value in given.items()})
    except Invalid as refusal:
        name, message = refusal.fields[0] if refusal.fields else ("", str(refusal))
        shown = name.upper() if name in in_path else f"--{name.replace('_', '-')}"
        raise typer.BadParameter(message, param_hint=f"'{shown}'" if name else None) from None


_WORDS = {True: "true", False: "false"}

__all__ = ["RunOnce", "add_commands", "decoded"]
