"""A page in a real browser, at the widths of a desk and of a phone: Debian's Chromium, without a
window."""

import html
import json
import re
import shutil
import subprocess

import pytest

WIDTHS = (1280, 390)
FRAMES = """<!doctype html><body><pre id="told"></pre>{frames}<script>
const told = [];
addEventListener("message", (e) => {{ told.push(e.data);
  document.getElementById("told").textContent = JSON.stringify(told); }});
</script></body>"""


def look(page, folder, probe):
    """What the script `probe` posts to its parent of the page in a frame of each width, by width;
    an error in the console fails the test."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.fail("there is no chromium to open the page with: apt-get install chromium")
    script = f"\n<script>{probe}</script></body>"
    (folder / "probe.html").write_text(page.read_text().replace("</body>", script))
    frame = '<iframe src="probe.html" style="width:{}px;height:900px"></iframe>'
    text = FRAMES.format(frames="".join(frame.format(w) for w in WIDTHS))
    (folder / "frames.html").write_text(text)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1900", "--dump-dom"]
    options += ["--virtual-time-budget=60000", (folder / "frames.html").as_uri()]
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=600)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    told = json.loads(html.unescape(re.search(r'<pre id="told">(.*?)</pre>', done.stdout)[1]))
    assert sorted(one["width"] for one in told) == sorted(WIDTHS)
    return {one["width"]: one for one in told}
