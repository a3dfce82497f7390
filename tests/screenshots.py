"""Pictures of the console and of the reference, for README.md and docs/console.md: `just screenshots`.

They show `app demo`. Pictures are reduced to a palette, which makes them a third as large; the browser does that.
"""

import base64
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.demo import USER, browser, context, demo, navigation, sign_in
from tests.support.project import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

IMAGES = ROOT / "docs" / "images"
ALSO = {"docs": "/docs#platform-pause-queue"}
IN_README = ("overview", "dead-letter-causes", "errors", "queues")


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        browser() as running,
        demo(sys.executable, dict(os.environ), Path(folder) / "demo") as shown,
    ):
        page = context(running, 1440, "light").new_page()
        sign_in(page, shown.url, USER, shown.password)
        page.wait_for_selector("nav.side")
        places = {link.rpartition("/")[2]: link for link in navigation(page)} | ALSO
        for name, link in places.items():
            take(page, shown.url + link, name)
        for name in ("jobs", "errors", "dead-letters"):
            page.goto(f"{shown.url}{places[name]}")
            first = page.locator("main table tbody a").first
            if first.count():
                take(page, shown.url + str(first.get_attribute("href")), f"{name}-one")
        cookies = page.context.storage_state()
        for width, scheme in ((1440, "dark"), (390, "light")):
            other = context(running, width, scheme, storage_state=cookies).new_page()
            for name in IN_README:
                take(other, shown.url + places[name], f"{name}-{scheme if width > 600 else 'phone'}")
    total = sum(file.stat().st_size for file in IMAGES.glob("*.png"))
    print(f"{len(list(IMAGES.glob('*.png')))} pictures, {total / 1e6:.2f} MB")


def take(page: "Page", url: str, name: str) -> None:
    """Take a picture of the upper part of a page."""
    page.goto(url)
    page.wait_for_timeout(300)  # for the first live update, and for what the address opens
    picture = base64.b64encode(page.screenshot()).decode()
    (IMAGES / f"{name}.png").write_bytes(reduced(page, picture))


_REDUCE = """
async picture => {
  const bytes = Uint8Array.from(atob(picture), c => c.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], {type: "image/png"}));
  const {width, height} = bitmap;
  const canvas = new OffscreenCanvas(width, height).getContext("2d");
  canvas.drawImage(bitmap, 0, 0);
  const {data} = canvas.getImageData(0, 0, width, height);
  const colour = at => data[at] << 16 | data[at + 1] << 8 | data[at + 2];
  const counts = new Map();
  for (let at = 0; at < data.length; at += 4) counts.set(colour(at), (counts.get(colour(at)) || 0) + 1);
  const palette = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 64).map(([found]) => found);
  const distance = (a, b) => [16, 8, 0].reduce((sum, by) => sum + ((a >> by & 255) - (b >> by & 255)) ** 2, 0);
  const nearest = new Map();
  for (const found of counts.keys()) {
    let best = 0;
    palette.forEach((each, at) => { if (distance(each, found) < distance(palette[best], found)) best = at; });
    nearest.set(found, best);
  }
  let places = "";
  for (let at = 0; at < data.length; at += 4) places += String.fromCharCode(nearest.get(colour(at)));
  return {width, height, palette, places: btoa(places)};
}
"""


def reduced(page: "Page", picture: str) -> bytes:
    """Return a picture with its 64 most frequent colours, as a PNG with a palette (ISO/IEC 15948)."""
    found = page.evaluate(_REDUCE, picture)
    width, height, places = found["width"], found["height"], base64.b64decode(found["places"])
    rows = b"".join(b"\0" + places[at * width : (at + 1) * width] for at in range(height))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0),
        b"PLTE": b"".join(colour.to_bytes(3, "big") for colour in found["palette"]),
        b"IDAT": zlib.compress(rows, 9),
        b"IEND": b"",
    }
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


if __name__ == "__main__":
    main()
