"""Commands derived from actions: path parameters are arguments, other fields are options, validated as over HTTP."""

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, fields, replace
from string import Formatter
from typing import Any, LiteralString, Protocol, TypeVar, cast, get_args, get_origin, get_type_hints
from uuid import UUID

import typer

from app.kernel import csv
from app.kernel.actions import Action, Database, Signature, declared
from app.kernel.actions.compose import Operations, make, operations
from app.kernel.actions.parameters import Parameter, flag
from app.kernel.actions.web import has_page, page_of
from app.kernel.cli import can_ask, can_show_progress, confirm, in_chunks, print_count, print_json, progress
from app.kernel.cli import group as new_group
from app.kernel.config import HttpServerSettings
from app.kernel.decoding import Decoder, fields_outside, name_outside
from app.kernel.errors import Invalid, NotFound
from app.kernel.fields import IdOf, NameOf
from app.kernel.paging import Page
from app.kernel.process import Process
from app.kernel.product import NAME
from app.kernel.queue import InvalidDeclaration
from app.kernel.text import suggestion

T = TypeVar("T")
_SHOWN = 5
_PAGE = 100
_FLAGS = {
    "as_json": ("--json", "Print JSON."),
    "as_csv": ("--csv", "Print CSV: all pages, or the one that --limit or --cursor selects."),
    "web": ("--web", "Print the address of this in the console."),
    "yes": ("--yes", "Skip the confirmation."),
    "no_input": ("--no-input", "Fail instead of asking."),
    "dry_run": ("--dry-run", "Print the number of selected rows without changing them."),
}


class RunOnce(Protocol):
    """Runs work in a process that ends with it."""

    def __call__(self, name: str, work: Callable[[Process], Awaitable[T]]) -> T:
        """Return the result of the work."""
        ...


@dataclass(frozen=True)
class _Declared:
    """An action that is a command, and its parameters."""

    feature: type[Any]
    method: str
    action: Action
    signature: Signature
    parameters: list[Parameter]

    @property
    def noun(self) -> str:
        """The name of the group of the command."""
        return self.action.command.split()[-2].replace("-", " ")


@dataclass(frozen=True)
class _Input:
    """The input of an action; `parts` are partial ids by field."""

    given: Any
    parts: dict[str, str]


def add_commands(group: typer.Typer, name: str, features: Iterable[type[Any]], run_once: RunOnce) -> None:
    """Add the commands that features declare to a group, with nested groups.

    Two actions may share a command: one for a single row, named by an argument, and one for rows that options select.
    """
    found: dict[str, list[_Declared]] = {}
    for feature in features:
        for method, action, signature in declared(feature):
            if isinstance(action, Action) and action.command.split()[:1] == [name]:
                parameters = _parameters(action, signature)
                found.setdefault(action.command, []).append(_Declared(feature, method, action, signature, parameters))
    groups = {name: group}
    for command, actions in found.items():
        within, _, verb = command.rpartition(" ")
        if within not in groups:
            groups[within] = new_group(inspect.getdoc(actions[0].feature) or "")
            group.add_typer(groups[within], name=within.removeprefix(f"{name} "))
        actions.sort(key=lambda each: bool(each.action.count))
        if len(actions) > 1 and [bool(each.action.count) for each in actions] != [False, True]:
            ids = " and ".join(each.action.id for each in actions)
            raise InvalidDeclaration(f"the command {command!r} is taken twice: by {ids}")
        groups[within].command(verb, help=_help(actions))(_function(actions, run_once))


def _parameters(action: Action, signature: Signature) -> list[Parameter]:
    if signature.input is None:
        return []
    hints = get_type_hints(signature.input, include_extras=True)
    in_path = [part[1:-1] for part in action.path.split("/") if part.startswith("{")]
    return [Parameter.of(item, hints[item.name], item.name in in_path) for item in fields(signature.input)]


def _help(actions: list[_Declared]) -> str:
    """Return the docstring of the first action, the summary of the second one, and examples."""
    texts = [inspect.getdoc(getattr(each.feature, each.method)) or each.action.id for each in actions]
    text = "\n\n".join([texts[0], *(more.partition("\n")[0] for more in texts[1:])])
    examples = [example for each in actions for example in each.action.examples]
    examples = examples or [" ".join(p.hint for p in actions[0].parameters if p.is_argument)]
    lines = [f"  {NAME} {actions[0].action.command} {example}".rstrip() for example in examples]
    return "\n".join([text, "", "\b", "Examples:", *lines])


def _function(actions: list[_Declared], run_once: RunOnce) -> Callable[..., None]:
    def command(
        *,
        as_json: bool,
        as_csv: bool = False,
        web: bool = False,
        yes: bool = False,
        no_input: bool = False,
        dry_run: bool = False,
        **options: Any,
    ) -> None:
        chosen = _chosen(actions, options)
        action, wanted = chosen.action, _read(chosen, options)
        if web:
            address = run_once(action.command, lambda p: _address(p, chosen, wanted))
            return print_json({"url": address}) if as_json else typer.echo(address)
        if dry_run and not action.count:
            raise typer.BadParameter("--dry-run needs options that select rows")
        asks = bool(action.confirm) and not yes and not dry_run
        if asks and (no_input or not can_ask()):
            raise typer.BadParameter("this cannot be undone; say --yes to confirm", param_hint="--yes")
        if asks or dry_run:
            wanted, count = run_once(action.command, lambda p: _prepared(p, chosen, wanted))
            if dry_run:
                return print_count(chosen.noun, count, as_json=as_json)
            confirm(action.confirm.format_map({**fields_outside(wanted.given), "count": count}))
        if as_csv:
            if as_json:
                raise typer.BadParameter("give one of --csv and --json", param_hint="--csv")
            is_whole = all(options.get(name) is None for name in ("limit", "cursor"))
            return run_once(action.command, lambda p: _print_csv(p, chosen, wanted, is_whole=is_whole))
        given, result = run_once(action.command, lambda p: _done(p, chosen, wanted))
        _show(chosen, given, result, as_json=as_json)
        return None

    flags = {"as_json"}
    flags |= {"as_csv"} if any(get_origin(each.signature.returns) is Page for each in actions) else set()
    flags |= {"web"} if any(has_page(each.action, each.signature) for each in actions) else set()
    flags |= {"yes", "no_input"} if any(each.action.confirm for each in actions) else set()
    flags |= {"dry_run"} if any(each.action.count for each in actions) else set()
    known = [p for each in actions for p in each.parameters]
    parameters = {p.name: p.declared(is_optional=len(actions) > 1) for p in known}
    parameters |= {f"no_{p.name}": flag(f"no_{p.name}", "--none", p.about.none) for p in known if p.about.none}
    parameters |= {name: flag(name, *about) for name, about in _FLAGS.items() if name in flags}
    command.__signature__ = inspect.Signature([*parameters.values()])  # pyright: ignore[reportFunctionMemberAccess]
    command.__annotations__ = {}
    return command


def _chosen(actions: list[_Declared], options: dict[str, Any]) -> _Declared:
    """Return the action that the options select. Raises BadParameter unless it is exactly one."""
    if len(actions) == 1:
        return actions[0]
    one, many = actions
    [argument] = [p for p in one.parameters if p.is_argument]
    shared = {p.name for p in one.parameters}
    filters = [p for p in many.parameters if p.name not in {"all", "cursor", *shared}]
    named, filtered = options[argument.name] is not None, any(options[p.name] is not None for p in filters)
    if [named, filtered, bool(options["all"])].count(True) != 1:
        *first, last = [f"--{p.option}" for p in filters]
        known = f"{', '.join(first)} or {last}" if first else last
        raise typer.BadParameter(f"give one {argument.option}, or {known}, or --all", param_hint=argument.hint)
    return one if named else many


def _read(chosen: _Declared, options: dict[str, Any]) -> _Input:
    """Decode options to the input. Raises BadParameter for the first invalid option."""
    if chosen.signature.input is None:
        return _Input(None, {})
    texts: dict[str, str] = {}
    parts: dict[str, str] = {}
    for parameter in chosen.parameters:
        text = parameter.text(options)
        if text is not None and parameter.is_part(text):
            parts[parameter.name], text = text, str(UUID(int=0))
        if text is not None:
            texts[name_outside(parameter.name)] = text
    try:
        given = Decoder[Any](chosen.signature.input).text(texts)
    except Invalid as refusal:
        name, message = refusal.fields[0] if refusal.fields else ("", str(refusal))
        field, _, inside = name.partition(".")
        wrong = next((p for p in chosen.parameters if name_outside(p.name) == field), None)
        message = f"{name} {message}" if inside else message
        if wrong and wrong.id_of:
            message = f"{message}, or at least 4 of its first or last characters"
        raise typer.BadParameter(message, param_hint=f"'{wrong.hint}'" if wrong else None) from None
    none = {p.name: None for p in chosen.parameters if p.is_none(options)}
    return _Input(replace(given, **none) if none else given, parts)


async def _prepared(p: Process, chosen: _Declared, wanted: _Input) -> tuple[_Input, int]:
    """Return the input with whole ids, and the number of rows that it selects."""
    given = await _with_whole_ids(p, chosen, wanted)
    if not chosen.action.count:
        return _Input(given, {}), 1
    count: int = await Operations(await operations(p, [chosen.feature]))(chosen.action.count, given)
    if not count:
        await _check_names(p, chosen, given)
    return _Input(given, {}), count


async def _done(p: Process, chosen: _Declared, wanted: _Input) -> tuple[Any, Any]:
    """Run the action; return its input and result. Raises NotFound if a name is unknown and the result is empty."""
    run, given = Operations(await operations(p, [chosen.feature])), await _with_whole_ids(p, chosen, wanted)
    if chosen.action.count:
        result = await _in_parts(run, chosen, given)
        is_empty = not any(_counts(result).values())
    else:
        result = await run(chosen.action.id, given)
        is_empty = getattr(result, "items", None) == []
    if is_empty:
        await _check_names(p, chosen, given)
    return given, result


async def _print_csv(p: Process, chosen: _Declared, wanted: _Input, *, is_whole: bool) -> None:
    """Print a list as CSV: all its pages, or one. After a maximum of rows, it prints the cursor of the next page."""
    run, given = Operations(await operations(p, [chosen.feature])), await _with_whole_ids(p, chosen, wanted)
    if is_whole and hasattr(given, "limit"):
        given = replace(given, limit=_PAGE)
    [row] = get_args(chosen.signature.returns)
    write: Callable[[str], object] = _write_harmless if sys.stdout.isatty() else sys.stdout.write
    write(csv.heading(row.columns))
    count = 0
    while True:
        page = cast("Page[Any]", await run(chosen.action.id, given))
        write(csv.lines(row.columns, page.items))
        count += len(page.items)
        if page.next_cursor is None:
            return
        if not is_whole or count >= csv.MOST_ROWS:
            sys.stdout.flush()
            sys.stderr.write(f"there may be more: --cursor {page.next_cursor}\n")
            return
        given = replace(given, cursor=page.next_cursor)


def _write_harmless(text: str) -> None:
    from app.kernel.cli.tables import harmless

    sys.stdout.write(harmless(text.replace("\r\n", "\n")))


async def _address(p: Process, chosen: _Declared, wanted: _Input) -> str:
    """Return the address of the page of a read."""
    given = await _with_whole_ids(p, chosen, wanted)
    return p.settings[HttpServerSettings].address + page_of(chosen.action, given)


async def _with_whole_ids(p: Process, chosen: _Declared, wanted: _Input) -> Any:
    whole = {
        parameter.name: await _whole_id(await make(p, Database), parameter.id_of, wanted.parts[parameter.name])
        for parameter in chosen.parameters
        if parameter.id_of is not None and parameter.name in wanted.parts
    }
    return replace(wanted.given, **whole) if whole else wanted.given


_Search = tuple[LiteralString, LiteralString, tuple[object, ...]]
# from the index, which is in order of time: a large table is not read
_AMONG_NEWEST = " ORDER BY id DESC LIMIT 100000) newest WHERE id::text LIKE %s LIMIT 6"


async def _whole_id(db: Database, of: IdOf, part: str) -> UUID:
    """Return the id that begins with some characters, or else is one of the newest and ends with them.

    Raises NotFound; Invalid if there are several.
    """
    digits = part.replace("-", "").lower()
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    end = str(UUID(digits.rjust(32, "0")))[-len(digits) - sum(len(digits) > at for at in (12, 16, 20, 24)) :]
    by_begin: _Search = ("SELECT id FROM ", " WHERE id BETWEEN %s AND %s LIMIT 6", (first, last))
    by_end: _Search = ("SELECT id FROM (SELECT id FROM ", _AMONG_NEWEST, (f"%{end}",))
    found: list[UUID] = []
    for before, then, given in (by_begin, by_end):
        for table in of.tables if not found else ():
            found += [key for (key,) in await db.all(before + table + then, given)]
    if not found:
        text = f"no {of.what} has an id that begins with {part}, and none of the newest 100,000 ends with it"
        raise NotFound(text, hint=_listed_by(of))
    if len(found) > 1:
        some = ", ".join(map(str, found[:_SHOWN])) + (", and more" if len(found) > _SHOWN else "")
        raise Invalid(f"{part} is a part of several ids: {some}; give more characters")
    return found[0]


async def _check_names(p: Process, chosen: _Declared, given: Any) -> None:
    """Raise NotFound, with the nearest name, if an option has an unknown name."""
    for parameter in chosen.parameters:
        name = getattr(given, parameter.name, None)
        if parameter.name_of is None or name is None:
            continue
        known: list[str] = await (await make(p, parameter.name_of.known)).names(await make(p, Database))
        if known and name not in known:
            text = f"there is no {parameter.name_of.what} {name}{suggestion(name, known)}"
            raise NotFound(text, hint=_listed_by(parameter.name_of))


def _listed_by(of: IdOf | NameOf) -> str:
    return f"{NAME} {of.listed_by}" if of.listed_by else ""


async def _in_parts(run: Operations, chosen: _Declared, given: Any) -> Any:
    """Run an action until `next_cursor` is None; return its last result with the sums of all counts.

    Shows progress on a terminal. When interrupted, it prints the number of changed rows and a cursor.
    """
    action, done = chosen.action, dict[str, int]()
    total = await run(action.count, given) if can_show_progress() else None
    last: Any = None

    def step(cursor: str | None) -> Awaitable[Any]:
        return run(action.id, replace(given, cursor=cursor))

    with progress(chosen.noun, total) as advance:
        try:
            async for last in in_chunks(step, given.cursor):
                for name, count in _counts(last).items():
                    done[name] = done.get(name, 0) + count
                    advance(count)
        except BaseException:
            if last is not None:
                sys.stderr.write(f"{_stopped(chosen.noun, sum(done.values()), last)}\n")
            raise
    return replace(last, **done)


def _stopped(noun: str, count: int, last: Any) -> str:
    if last.next_cursor is None:
        return f"stopped after all {count} {noun}"
    at = f", at {last.next_from.isoformat()}" if getattr(last, "next_from", None) else ""
    return f"stopped after {count} {noun}{at}; continue with --cursor {last.next_cursor}"


def _counts(result: Any) -> dict[str, int]:
    return {name: value for name, value in fields_outside(result).items() if name.endswith("_count")}


def _show(chosen: _Declared, given: Any, result: Any, *, as_json: bool) -> None:
    action, words = chosen.action, {**fields_outside(given), **fields_outside(result)}
    if as_json:
        print_json(_for_programs(action, given, result))
    elif isinstance(result, Page):
        _show_page(chosen, given, cast("Page[Any]", result))
    elif result is not None and type(result).__str__ is not object.__str__:
        typer.echo(str(result))
    elif result is None or action.message:
        typer.echo(action.message.format_map(words) or "done")
    else:
        from app.kernel.cli.tables import print_details

        print_details(result)
    if isinstance(result, Page) and any(getattr(row, "failed", False) for row in cast("Page[Any]", result).items):
        raise typer.Exit(1)


def _for_programs(action: Action, given: Any, result: Any) -> Any:
    """Return the output of --json: the result, or the input if there is none; counts for a batched change."""
    if action.count:
        words = [name for _, name, _, _ in Formatter().parse(action.message) if name]
        known = {**fields_outside(given), **fields_outside(result)}
        return {**{name: value for name, value in known.items() if name in words}, **_counts(result)}
    return {**fields_outside(given), "done": True} if result is None else result


def _show_page(chosen: _Declared, given: Any, page: Page[Any]) -> None:
    from app.kernel.cli.tables import print_page

    [row] = get_args(chosen.signature.returns)
    print_page(page, row.columns)
    sys.stdout.flush()  # what cannot be written is the only thing to say then
    notes = [note for p in chosen.parameters if (note := p.note(given))]
    if not page.items:
        is_filtered = any(p.is_filter(given) for p in chosen.parameters)
        found = f"no {chosen.noun} match these options" if is_filtered else f"no {chosen.noun}"
        more = [chosen.action.empty] if chosen.action.empty and not is_filtered else []
        sys.stderr.write("; ".join([found, *more, *notes]) + "\n")
    elif sys.stdout.isatty():
        sys.stderr.writelines(f"{note}\n" for note in notes)


__all__ = ["RunOnce", "add_commands"]
