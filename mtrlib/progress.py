"""One progress bar for terminals, notebooks and log files, on top of tqdm."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """A tqdm bar of `total` units, `initial` of which an earlier run has done; `unit` is their name in the singular.

    In a terminal as usual; in a notebook one line of output, updated in place (no widgets, so that an executed notebook
    keeps its last state); elsewhere one line every five seconds, on standard error.
    """
    from IPython import get_ipython  # takes long

    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial}
    if hasattr(get_ipython(), "kernel"):
        return _NotebookBar(**common, mininterval=1)
    return tqdm(**common, leave=False) if sys.stderr.isatty() else _LineBar(**common, mininterval=5)


class _LineBar(tqdm):
    """Writes a line of its own each time it shows itself."""

    def display(self, msg=None, pos=None):
        self.show(tqdm.format_meter(**{**self.format_dict, "ascii": True, "ncols": None}).replace("\r", ""))

    def show(self, line: str) -> None:
        self.fp.write(f"{line}\n")
        self.fp.flush()

    def close(self):
        if not self.disable:
            self.display()
        self.disable = True


class _NotebookBar(_LineBar):
    """Shows itself as one plain-text output that is updated."""

    def show(self, line: str) -> None:
        from IPython.display import Pretty, display, update_display

        if hasattr(self, "_display_id"):
            update_display(Pretty(line), display_id=self._display_id)
        else:
            self._display_id = display(Pretty(line), display_id=True).display_id
