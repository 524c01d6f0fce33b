"""Looks at built pages in a real browser: pictures of them, and which are wider than the screen.

    python docs/look.py index start results --out runs/pages
    python docs/look.py                              # every page, no pictures

Needs Chromium on the path (without it there is nothing to do), and tornado, which comes with the
extra `docs`. Each page is opened at the widths of a desktop and of a phone, in light and in dark.
"""

import argparse
import asyncio
import base64
import json
import pathlib
import shutil
import subprocess
import tempfile
import urllib.request

from tornado.websocket import websocket_connect

BUILT = pathlib.Path(__file__).resolve().parent / "_build"
WIDTHS = {"desktop": 1280, "phone": 390}
MODES = ("light", "dark")
MEASURE = """(() => {
  const root = document.documentElement;
  return {
    ready: document.readyState === "complete" && location.href,
    too_wide: root.scrollWidth - root.clientWidth,
    theme: root.dataset.theme,
    broken: [...document.images].filter(x => !x.complete || !x.naturalWidth).map(x => x.src),
  };
})()"""


class Browser:
    """One tab, driven by Chromium's debugging protocol."""

    def __init__(self, socket):
        self._socket, self._count = socket, 0

    async def call(self, method, **params):
        """Sends a command; returns its result."""
        self._count += 1
        await self._socket.write_message(
            json.dumps({"id": self._count, "method": method, "params": params})
        )
        while True:  # events come between
            message = json.loads(await self._socket.read_message())
            if message.get("id") == self._count:
                return message.get("result", {})

    async def look(self, page, width, mode, picture):
        """Opens a page; returns what `MEASURE` says."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=1000, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": mode}
        await self.call("Emulation.setEmulatedMedia", features=[feature])
        await self.call("Page.navigate", url=page.as_uri())
        found = {}
        while found.get("ready") != page.as_uri():
            await asyncio.sleep(0.05)
            reply = await self.call("Runtime.evaluate", expression=MEASURE, returnByValue=True)
            found = reply["result"].get("value", {})  # nothing while it begins
        if picture is not None:
            taken = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
            if "data" not in taken:  # longer than a picture can be
                taken = await self.call("Page.captureScreenshot")
            picture.write_bytes(base64.b64decode(taken["data"]))
        return found


async def look_at(pages, port, out):
    """Looks at all pages; returns how many are wrong."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new", method="PUT")
    with urllib.request.urlopen(request) as reply:
        address = json.load(reply)["webSocketDebuggerUrl"]
    browser = Browser(await websocket_connect(address, max_message_size=2**28))
    await browser.call("Page.enable")
    wrong = 0
    for page in pages:
        name = str(page.relative_to(BUILT).with_suffix("")).replace("/", "-")
        for kind, width in WIDTHS.items():
            for mode in MODES:
                picture = out / f"{name}-{kind}-{mode}.png" if out else None
                seen = await browser.look(page, width, mode, picture)
                if seen["too_wide"] > 0 or seen["broken"] or seen.get("theme") != mode:
                    wrong += 1
                    print(f"{name}, {kind}, {mode}: {seen}")
    print(f"{len(pages)} pages at {len(WIDTHS)} widths in {len(MODES)} modes, {wrong} wrong")
    return wrong


def every_page():
    """The pages themselves, without the files of the theme."""
    return sorted(page for page in BUILT.rglob("*.html") if "_static" not in page.parts)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Looks at built pages in a real browser.")
    parser.add_argument("pages", nargs="*", help="such as index or guide/loop; all without")
    parser.add_argument("--out", type=pathlib.Path, help="folder for pictures")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.exit(message="No Chromium on the path: nothing was looked at.\n")
    pages = [BUILT / f"{name}.html" for name in options.pages] or every_page()
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", "--disable-gpu"]
        command = [chromium, *flags, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            line = next(line for line in process.stderr if "DevTools listening" in line)
            port = line.split("127.0.0.1:")[1].split("/")[0]
            wrong = asyncio.run(look_at(pages, port, options.out))
        finally:
            process.terminate()
            process.wait()
    parser.exit(min(wrong, 1))


if __name__ == "__main__":
    main()
