"""A real browser without a window: Debian's `chromium`, spoken to over its own DevTools protocol.

with Browser(profile_folder) as browser:
    page = browser.open(path.as_uri(), width=390)
    page.ask("document.title"); page.errors; page.requests; page.screenshot(file)
"""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import websocket

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KEYS = {
    "Enter": {"windowsVirtualKeyCode": 13, "text": "\r"},
    "Tab": {"windowsVirtualKeyCode": 9},
}
START = 60  # seconds that the browser may take to start on a busy machine


class Browser:
    """The running program; `profile` is an empty folder for what it writes."""

    def __init__(self, profile: Path):
        self.profile = Path(profile)

    def __enter__(self):
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--remote-debugging-port=0", "--no-first-run", f"--user-data-dir={self.profile}"]
        self.process = subprocess.Popen([PROGRAM, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told, end = self.profile / "DevToolsActivePort", time.monotonic() + START
        while not (told.exists() and told.read_text().count("\n")):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError("the browser did not start")
            time.sleep(0.05)
        self.port = told.read_text().splitlines()[0]
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=30)

    def open(self, address: str, width: int = 1200, height: int = 900) -> "Page":
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Page(json.load(answer)["webSocketDebuggerUrl"], address, width, height)


class Page:
    """One tab, loaded. errors: what the console and uncaught exceptions said; requests: every address asked for."""

    def __init__(self, socket: str, address: str, width: int, height: int):
        self.socket = websocket.create_connection(socket, timeout=60, suppress_origin=True)
        self.errors, self.requests, self.loaded, self._number = [], [], False, 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=address)
        while not self.loaded:
            self._hear(json.loads(self.socket.recv()))

    def ask(self, expression: str):
        """The value of a JavaScript expression, awaited if it is a promise."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.1)

    def press(self, key: str) -> None:
        """A key that is pressed where the focus is: "Enter", "Tab"."""
        told = {"key": key, "code": key, **KEYS[key]}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, **told)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        found = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        self._call("Page.close")
        self.socket.close()

    def _call(self, method: str, **params):
        self._number += 1
        self.socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._hear(message)

    def _hear(self, message: dict) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(params["args"])
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
