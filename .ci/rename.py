"""Rename a clone: the package, its imports, the command, the distribution, and every document that names them.

    just rename acme

The new name is a word in lower case. Refused are a tree with changes that are not committed, and names that Python, an
installed package or a part of this project has already. What is renamed is to be looked through and committed.
"""

import io
import keyword
import re
import subprocess
import sys
import tokenize
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 12  # more would leave too many lines to wrap
STRINGS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}


def main() -> None:
    """Rename the project around this file to the first argument."""
    if len(sys.argv) != 2:
        sys.exit("usage: rename NAME")
    [product] = ROOT.glob("*/kernel/product.py")
    old, new = product.parents[1].name, sys.argv[1]
    if reason := refused(old, new):
        sys.exit(f"rename: {reason}")
    names = Names(old, new)
    for file in git("ls-files", "-z").split("\0")[:-1]:
        names.change(ROOT / file)
    for file in git("ls-files", "-z", f"*/{old}[-.]*").split("\0")[:-1]:  # units of systemd
        git("mv", file, str(Path(file).with_name(new + Path(file).name.removeprefix(old))))
    git("mv", old, new)
    for command in (["check", "-q", "--select", "I", "--fix"], ["format", "-q"]):
        subprocess.run([sys.executable, "-m", "ruff", *command], cwd=ROOT, check=True)  # noqa: S603
    with (ROOT / f"docs/{new}.1").open("wb") as page:  # its lines are wrapped
        subprocess.run([sys.executable, "-m", new, "man"], cwd=ROOT, check=True, stdout=page)  # noqa: S603
    sys.stdout.write(
        f"renamed {old} to {new}; look through it with git diff, run just check, and commit it\n"
        "remove .local: the embedded database and its user had the old name, and so had API keys\n"
    )


def refused(old: str, new: str) -> str:
    """Return why the new name cannot be, empty when it can."""
    if not re.fullmatch(rf"[a-z][a-z0-9]{{1,{LONGEST - 1}}}", new):
        return f"{new!r} is no name: expected 2 to {LONGEST} lower-case letters and digits, a letter first"
    if keyword.iskeyword(new) or keyword.issoftkeyword(new) or new in sys.stdlib_module_names:
        return f"{new} is a word or a module of Python"
    if new in parts(old):
        return f"{new} is the name of a part of this project"
    if installed(new):
        return f"{new} is an installed package"
    if changes := git("status", "--porcelain"):
        count = len(changes.splitlines())
        return f"commit or stash first: {count} file{'s have' if count > 1 else ' has'} changes"
    return ""


def parts(old: str) -> set[str]:
    """Return the names of all files and folders, without endings."""
    files = [Path(file) for file in git("ls-files", "-z").split("\0")[:-1]]
    return {part.partition(".")[0] for file in files for part in file.parts} | {old}


def installed(name: str) -> bool:
    """Return whether there is such a package, or a distribution of that name."""
    try:
        distribution(name)
    except PackageNotFoundError:
        return find_spec(name) is not None
    return True


def git(*args: str) -> str:
    """Run git in the project; return what it prints."""
    done = subprocess.run(["git", *args], cwd=ROOT, check=True, capture_output=True, text=True)  # noqa: S603, S607
    return done.stdout


class Names:
    """The old names and what becomes of them."""

    def __init__(self, old: str, new: str) -> None:
        [(_, project)] = re.findall(r'(?m)^(name) = "(.+)"$', (ROOT / "pyproject.toml").read_text())
        # the word by itself or before _ and -, but not where it is a word of English, a variable or a label of others
        word = rf"(?<!the )(?<!an )(?<!authenticator )(?<![\w{{]){old}(?![A-Za-z0-9])(?!\.kubernetes)"
        self._changes = [
            (re.compile(word), new),
            (re.compile(rf"\b_{old.upper()}_COMPLETE\b"), f"_{new.upper()}_COMPLETE"),
            (re.compile(rf"\b{re.escape(project)}\b"), new),
        ]
        self._old, self._new = old, new

    def change(self, path: Path) -> None:
        """Rename in one file, if it is text."""
        if path.is_symlink() or path == Path(__file__):
            return
        try:
            before = path.read_bytes().decode()
        except UnicodeDecodeError:
            return
        after = self._python(before) if path.suffix == ".py" else self._text(before)
        if after != before:
            path.write_bytes(after.encode())

    def _text(self, text: str) -> str:
        for pattern, name in self._changes:
            text = pattern.sub(name, text)
        return text

    def _python(self, source: str) -> str:
        """Rename in imports, strings and comments: elsewhere the word is a variable."""
        lines = source.splitlines(keepends=True)
        places: list[tuple[tuple[int, int], tuple[int, int], str]] = []
        before = ""
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in STRINGS:
                places.append((token.start, token.end, self._text(token.string)))
            elif token.string == self._old and before in ("from", "import"):
                places.append((token.start, token.end, self._new))
            before = token.string
        for (row, column), (last_row, last_column), text in reversed(places):
            changed = lines[row - 1][:column] + text + lines[last_row - 1][last_column:]
            lines[row - 1 : last_row] = changed.splitlines(keepends=True)
        return "".join(lines)


if __name__ == "__main__":
    main()
