"""Headless Chromium for tests of pages, driven through the DevTools protocol over two pipes.

with Browser(profile_folder) as browser:
    browser.open(path, width=420)
    browser.click("nav button[data-view=items]")
    assert browser.text("h2") == "..." and browser.problems == []
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars"


class Browser:
    """One page. `problems` collects errors and warnings of the console, exceptions, and outside requests."""

    def __init__(self, profile, wait=15.0):
        self.problems, self.numbers, self.wait, self.buffer = [], itertools.count(1), wait, b""
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        command = (
            f'exec "$0" {FLAGS} --remote-debugging-pipe --user-data-dir="$1" about:blank '
            f"3<&{theirs_in} 4>&{theirs_out} 2>/dev/null"
        )
        self.process = subprocess.Popen(
            ["bash", "-c", command, PROGRAM, str(profile)], pass_fds=(theirs_in, theirs_out)
        )
        os.close(theirs_in), os.close(theirs_out)
        self.reader, self.writer, self.session = ours_in, ours_out, None
        targets = self.call("Target.getTargets")["targetInfos"]
        (page,) = [target["targetId"] for target in targets if target["type"] == "page"]
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        os.close(self.reader), os.close(self.writer)

    # ---- the protocol

    def call(self, method, **params):
        """The result of a command."""
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": number, "method": method, "params": params, **session}
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != number:
            self.note(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def receive(self):
        """The next message of the browser."""
        end = time.monotonic() + self.wait
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reader], [], [], max(end - time.monotonic(), 0))
            chunk = os.read(self.reader, 2**20) if ready else b""
            assert chunk, "the browser does not answer"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def note(self, event):
        """Remember an event that no page should cause."""
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(str(params["args"]))
            case "Log.entryAdded":
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("file:", "blob:", "data:")):
                    self.problems.append(f"request to {url}")

    # ---- what a user does

    def open(self, path, width=1280, height=900, dark=False, address=""):
        """Open a file at a width in CSS pixels, and wait until it is drawn."""
        self.call("Page.navigate", url="about:blank")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=Path(path).resolve().as_uri() + address)
        self.until("location.protocol === 'file:' && document.readyState === 'complete'")

    def run(self, expression):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression):
        """Wait until an expression is true."""
        end = time.monotonic() + self.wait
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def text(self, selector):
        """The text of the first element that a CSS selector finds."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def texts(self, selector):
        """The texts of all visible elements that a CSS selector finds."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return self.run(f"{found}.filter((one) => one.checkVisibility()).map((one) => one.innerText)")

    def click(self, selector, number=0):
        """Press and release the mouse in the middle of an element."""
        self.run(
            f"document.querySelectorAll({json.dumps(selector)})[{number}].scrollIntoView({{block: 'center'}})"
        )
        box = self.run(
            f"(() => {{ const box = document.querySelectorAll({json.dumps(selector)})[{number}]"
            ".getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, text):
        """Type into the focused element."""
        self.call("Input.insertText", text=text)

    def press(self, key):
        """Press a key: "Enter", "ArrowDown", "/"."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "ArrowDown": 40, "ArrowUp": 38}.get(key, ord(key[0]))
        values = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def screenshot(self, path):
        """Write what is visible as a PNG file."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
