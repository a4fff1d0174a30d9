"""A headless Chromium that opens a page in a frame of any width and gives what a script finds there."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def found_in(page: str, script: str, place: Path, width: int = 1440, dark: bool = False):
    """Return what the body of an asynchronous function returns in a page, as JSON.

    Args:
        page: The address of the page, a file.
        script: The body of the function, which has `page` (the document), `view` (its window) and `wait(ms)`.
        place: A folder for files of the browser.
        width: The width of the page in pixels. A window of Chromium is never as narrow as a phone, a frame can be.
        dark: Whether the reader prefers dark pages.
    """
    place.mkdir(parents=True, exist_ok=True)
    frame = place / "frame.html"
    script = script_for(script, "f.contentWindow")
    frame.write_text(
        f"<body style='margin:0'><iframe id=f src='{page}' style='width:{width}px;height:900px;border:0'></iframe>"
        f"<script>f.onload = async () => {{ f.onload = null; {script} }}</script>"
    )
    return title_of(frame.as_uri(), place, width, dark)


def script_for(body: str, window: str = "window") -> str:
    """Return a script that runs the body of an asynchronous function, and makes what it returns the title."""
    return (
        f"const view = {window}, page = view.document; const wait = ms => new Promise(done => setTimeout(done, ms));"
        f"let found; try {{ found = await (async () => {{ {body} }})(); }} catch (error) {{ found = String(error); }}"
        "document.title = JSON.stringify(found);"
    )


def title_of(address: str, place: Path, width: int = 1440, dark: bool = False, milliseconds: int = 5000):
    """Return the title of a page after so many milliseconds of its own time, read as JSON."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={place / 'profile'}", f"--window-size={max(width, 500)},900"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    options += [f"--virtual-time-budget={milliseconds}", "--dump-dom", address]
    result = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=100)
    found = re.search(r"<title>(.*?)</title>", result.stdout)
    assert found, result.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
