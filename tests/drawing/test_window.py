# SPDX-License-Identifier: Apache-2.0
"""The window of `muntin predict --show`, on a screen that is not there to be seen (Xvfb)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import closing

import pytest
from PIL import Image, ImageGrab

from muntin.drawing.window import Window
from muntin.errors import ConfigError

pytest.importorskip("tkinter")
linux = pytest.mark.skipif(sys.platform != "linux", reason="X11 is of Linux")


@pytest.fixture
def screen(monkeypatch):
    """A screen of 320 x 240 pixels."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs Xvfb")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "320x240x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=(write,), stderr=subprocess.DEVNULL) as server:
        os.close(write)
        with os.fdopen(read) as lines:
            monkeypatch.setenv("DISPLAY", f":{lines.readline().strip()}")
            yield os.environ["DISPLAY"]
        server.terminate()


@linux
def test_images_are_seen_until_a_key_closes_it(screen):
    with closing(Window("camera0")) as window:
        for colour in ((200, 30, 40), (20, 160, 60)):
            window.show(Image.new("RGB", (2000, 1500), colour))
            window._root.update_idletasks()
            seen = ImageGrab.grab(xdisplay=screen)
            shares = {found: count / (320 * 240) for count, found in seen.getcolors(100_000)}
            assert shares.get(colour, 0) > 0.6, "as large as the screen allows"
        assert not window.closed
        window._root.event_generate("<Escape>")
        window._root.update()
        assert window.closed
        window.show(Image.new("RGB", (20, 20)))


@linux
def test_no_screen_is_one_line(monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ConfigError, match="--out"):
        Window("clip.mp4")
