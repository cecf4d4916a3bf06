"""The live page in headless Chromium: types a key, chooses the second of several models, asks by keyboard, looks at
it light, dark and narrow.

Needs aiohttp (any environment) and chromium. python bench/clients/page.py URL FOLDER [KEY]; exits 1 when no
answer comes, the numbers stand still or the console has an error. The pictures are for a person to look at.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp

SIZES = {"wide": (1280, 860), "narrow": (480, 1500)}


class Tab:
    """One page over the DevTools protocol."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number, self.errors = socket, 0, []

    async def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        while True:
            told = json.loads((await self._socket.receive()).data)
            if told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(told["params"])[:400])
            if told.get("id") == self._number:
                return told.get("result", told)

    async def value(self, code: str) -> Any:
        return (await self.call("Runtime.evaluate", expression=code))["result"].get("value")

    async def until(self, code: str, seconds: float) -> bool:
        for _ in range(int(seconds * 5)):
            if await self.value(f"Boolean({code})"):
                return True
            await asyncio.sleep(0.2)
        return False

    async def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode((await self.call("Page.captureScreenshot"))["data"]))


async def look(port: int, url: str, folder: Path, key: str) -> list[str]:
    async with aiohttp.ClientSession() as session:
        for _ in range(100):
            try:
                tabs = await (await session.get(f"http://127.0.0.1:{port}/json")).json()
                break
            except aiohttp.ClientError:
                await asyncio.sleep(0.2)
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        async with session.ws_connect(address, max_msg_size=1 << 26) as socket:
            return await visit(Tab(socket), url, folder, key)


async def visit(tab: Tab, url: str, folder: Path, key: str) -> list[str]:
    wrong = []
    for domain in ("Page", "Runtime", "Log"):
        await tab.call(f"{domain}.enable")
    await tab.call("Emulation.setDeviceMetricsOverride", width=1280, height=860, deviceScaleFactor=1, mobile=False)
    await tab.call("Page.navigate", url=url)
    await tab.until("document.getElementById('word').textContent != 'connecting'", 20)
    if key:
        if await tab.value("document.getElementById('word').textContent") != "type a key":
            wrong.append("without a key the page does not ask for one")
        tab.errors.clear()  # the 401 is told in the console, as it should be
        await tab.value("document.getElementById('key').focus()")
        await tab.call("Input.insertText", text=key)
    if not await tab.until("document.getElementById('word').textContent == 'ok'", 20):
        wrong.append("the page does not see the engine")
    if await tab.value("document.getElementById('model').options.length") > 1:
        wrong += await choose(tab)
    await tab.value("document.getElementById('text').focus()")
    await tab.call("Input.insertText", text="Why is the sky blue? Answer in three sentences.")
    await tab.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13)
    if not await tab.until("document.querySelector('.said.assistant small')", 240):
        wrong.append("no answer came")
    if not await tab.until("document.querySelectorAll('#map i.h, #map i.p, #map i.m, #map i.c, #map i.q').length", 20):
        wrong.append("the map of blocks is empty")
    await tab.until("document.querySelectorAll('#phases li').length", 20)
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await tab.call("Emulation.setEmulatedMedia", features=[feature])
        for name, (width, height) in SIZES.items():
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            await asyncio.sleep(0.7)
            await tab.picture(folder / f"page-{scheme}-{name}.png")
    return wrong + tab.errors


async def choose(tab: Tab) -> list[str]:
    """The second model, by keyboard; asked and watched from then on."""
    before = await tab.value("document.getElementById('model').value")
    await tab.value("document.getElementById('model').focus()")
    await tab.call(
        "Input.dispatchKeyEvent", type="keyDown", key="ArrowDown", code="ArrowDown", windowsVirtualKeyCode=40
    )
    await tab.call("Input.dispatchKeyEvent", type="keyUp", key="ArrowDown", code="ArrowDown", windowsVirtualKeyCode=40)
    chosen = f"document.getElementById('model').value != {json.dumps(before)}"
    return [] if await tab.until(chosen, 5) else ["the arrow key does not choose another model"]


def main() -> int:
    url, folder, key = sys.argv[1], Path(sys.argv[2]), (sys.argv[3:] or [""])[0]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=9333"]
        with subprocess.Popen([*command, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL) as it:
            try:
                wrong = asyncio.run(look(9333, url, folder, key))
            finally:
                it.terminate()
                it.wait(20)
    print("\n".join(wrong) or f"the page works; look at {folder}/*.png")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
