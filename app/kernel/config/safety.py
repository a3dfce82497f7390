"""Detects secrets that are easy to guess, and settings that make a process reachable from other machines.

The estimate is an upper bound: repetition, sequences, keyboard runs and words reduce it.
"""

import base64
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from urllib.parse import urlsplit

from app.kernel.addresses import is_loopback

BITS = 40
"""Minimum `bits` of a key. 16 random bytes have 75 or more, sentences 40 to 100, patterns less."""
_MARKS = ("everybodyknows", "atleast256bitslong")
"""Digests of the published secrets, in case their files are missing, and of jwt.io's."""
_SHORTEST_PART = 8
_PLACEHOLDERS = re.compile(
    "secret|master|password|passwd|passphrase|production|staging|please|change|replace|example|default|insecure|random"
    "|private|super|token|admin|local|test|auth|your|this|with|key|app|openssl|base64|before|todo|nobody"
)
_REFERENCE = re.compile(r"secret://.*|\$\{.*\}|\$\(.*\)|\{\{.*\}\}|<.*>", re.DOTALL)
_LOOK_ALIKES = str.maketrans(
    "0134578i@$!|\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455", "oleastblasllaeopcyxls"
)
_DECODERS: tuple[Callable[[str], bytes], ...] = (
    bytes.fromhex,
    lambda text: base64.b64decode(
        text + "=" * (-len(text) % 4), altchars=b"-_" if set(text) & set("-_") else b"+/", validate=True
    ),
    lambda text: base64.b32decode(text + "=" * (-len(text) % 8), casefold=True),
)
_ENGLISH = (
    "th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri ro ic "
    "ne ea ra ce li ch ll be ma si om ur ca el ta la ns di fo ho pe ec pr no ct us ac ot il tr ly nc et ut ss so rs un "
    "lo wa ge ie wh ee wi em ad ol rt po we na ul ni ts mo ow pa im mi ai sh ir su id os iv ia am fi ci vi pl ig tu ev "
    "ld ry"
)
_COMMON_PAIRS = frozenset(_ENGLISH.split())
_ORDERS = (
    "qwertyuiopasdfghjklzxcvbnm",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik9ol0p",
    "!qaz@wsx#edc$rfv%tgb^yhn&ujm*ik<(ol>)p",
    "0123456789abcdef",
)


def why_guessable(secret: str, published: Iterable[str], *, key: bool) -> str:
    """Return why a value is refused as a secret, or an empty text. A `key` must also be hard to guess."""
    written = _written(secret)
    known = [(_written(text), _bare(text)) for text in (*published, *_MARKS) if _written(text)]
    readings = list(_readings(secret))
    if any(text == written or (len(bare) >= _SHORTEST_PART and bare in _bare(reading))
           for text, bare in known for reading in readings):  # fmt: skip
        return "a published default"
    if _REFERENCE.fullmatch(secret.strip()):
        return "a placeholder, not a secret"
    if len(set(written)) < 2:
        return "not a secret: it is blank, or a repeated character"
    if key and min(map(bits, readings)) < BITS:
        return "too easy to guess"
    return ""


def _readings(secret: str) -> Iterator[str]:
    """Yield the secret, its reverse, and its text when decoded from hexadecimal, base64 or base32."""
    yield secret
    yield secret[::-1]
    bare = "".join(secret.split()).rstrip("=")
    for decode in _DECODERS:
        try:
            content = decode(bare)
        except ValueError:
            continue
        if content.isascii() and (text := content.decode().strip()).isprintable():  # random bytes are not text
            yield text
            yield text[::-1]
        elif len({(after - before) % 256 for before, after in pairwise(content)}) <= 2:
            yield ""  # a repeated byte, or a sequence


def bits(secret: str) -> float:
    """Return an estimate of the entropy of a secret, in bits."""
    text = _PLACEHOLDERS.sub(" ", _written(secret))
    scales = [
        [ord(character) for character in text],
        *([_place(order, character) for character in text] for order in _ORDERS),
    ]
    seen: set[str] = set()
    fresh = 0
    for place, character in enumerate(text):
        three = text[max(0, place - 2) : place + 1]
        expected = three in seen or three[-2:] in _COMMON_PAIRS or any(_counts(scale, place) for scale in scales)
        if place >= 2:
            seen.add(three)
        fresh += not expected and character != " "
    return fresh * math.log2(max(1, len(set(text))))


def exposure(tree: Mapping[str, Mapping[str, object]]) -> str:
    """Return why other machines can reach the process or its data, or an empty text."""
    databases = (_text(tree, "postgres", key) for key in ("host", "direct_host", "replica_hosts"))
    for host in ",".join(databases).split(","):
        text = host.strip()
        name = text if text.count(":") > 1 else text.partition(":")[0]
        if text and not text.startswith(("/", "@")) and not is_loopback(name):
            return f"the database at {text} is not on this machine"
    for section in ("http_server", "operations"):
        host = _text(tree, section)
        if host and not is_loopback(host):
            return f"{section}.host {host} is not a loopback address"
    return ""


def is_here(url: str) -> bool:
    """Return whether a URL names a host that only this machine can reach."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    except ValueError:  # its owner refuses it, or does not mind
        return False
    return is_loopback(host) or host in ("0.0.0.0", "::")  # noqa: S104 - compared, not listened on


def _text(tree: Mapping[str, Mapping[str, object]], section: str, key: str = "host") -> str:
    host = tree.get(section, {}).get(key)
    return host if isinstance(host, str) else ""  # other types are refused, and may be a misplaced secret


def _written(secret: str) -> str:
    """Return the visible characters of a secret in normal form and lower case."""
    plain = unicodedata.normalize("NFKC", secret).casefold()
    return "".join(character for character in plain if character.isprintable() and not character.isspace())


def _bare(text: str) -> str:
    """Return letters and digits; look-alikes become one character."""
    return "".join(character for character in _written(text).translate(_LOOK_ALIKES) if character.isalnum())


def _place(order: str, character: str) -> int:
    place = order.find(character)
    return 10_000 + ord(character) if place < 0 else place


def _counts(scale: list[int], place: int) -> bool:
    """Return whether a character continues a sequence of stride one, two or three: 123, a1b2c3, 001122."""
    for stride in (1, 2, 3):
        if place >= 2 * stride:
            step = scale[place] - scale[place - stride]
            if abs(step) <= 2 and step == scale[place - stride] - scale[place - 2 * stride]:
                return True
    return False
