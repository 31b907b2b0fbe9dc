# SPDX-License-Identifier: Apache-2.0
"""A window on the screen that shows one image after the other (tkinter, a part of Python)."""

from __future__ import annotations

from PIL import Image

from muntin.errors import ConfigError

_SHARE_OF_SCREEN = 0.9


class Window:
    """A window for the frames of a video; q, Escape or its button ends it, `close` takes it away.

    Args:
        title: What it is called.

    Attributes:
        closed: Whether the user has ended it, so that nothing more is shown.

    Raises:
        ConfigError: There is no screen, or Python has no tkinter.
    """

    def __init__(self, title: str) -> None:
        try:
            import tkinter
        except ImportError as error:
            message = (
                "--show needs tkinter, which this Python lacks. Install it (Debian and Ubuntu: apt "
                "install python3-tk), or write files with --out."
            )
            raise ConfigError(message) from error
        try:
            self._root = tkinter.Tk(className="muntin")
        except tkinter.TclError as error:
            message = f"--show needs a screen, got: {error}. Write files with --out instead."
            raise ConfigError(message) from error
        self.closed = False
        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._root.protocol("WM_DELETE_WINDOW", self._end)
        for key in ("q", "<Escape>"):
            self._root.bind(key, lambda event: self._end())

    def show(self, image: Image.Image) -> None:
        """Show an image in place of the last one; one larger than the screen is scaled down."""
        from PIL import ImageTk

        if self.closed:
            return
        width, height = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
        image = image.copy()
        image.thumbnail((width * _SHARE_OF_SCREEN, height * _SHARE_OF_SCREEN))
        shown = ImageTk.PhotoImage(image, master=self._root)
        self._label.configure(image=shown)
        self._shown = shown  # tkinter holds no reference
        self._root.update()  # keys and clicks as well

    def close(self) -> None:
        """Take it from the screen."""
        self._root.destroy()

    def _end(self) -> None:
        self.closed = True
