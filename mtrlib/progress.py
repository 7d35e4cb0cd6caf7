"""One progress bar for terminals, notebooks and log files, on top of tqdm."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int, description: str, unit: str, initial: int = 0) -> tqdm:
    """A tqdm bar: in a terminal as usual; in a notebook one line of output, updated in place (no widgets, so that an
    executed notebook keeps its last state); elsewhere one line every five seconds, on standard error.

    Parameters
    ----------
    total : number of units to do.
    description : what is being done, shown first.
    unit : the unit's name, in the singular.
    initial : number of units that an earlier run has done.
    """
    from IPython import get_ipython  # takes long

    common = {"total": total, "desc": description, "unit": f" {unit}", "initial": initial}
    if hasattr(get_ipython(), "kernel"):
        return _NotebookBar(**common, mininterval=1)
    if sys.stderr.isatty():
        return tqdm(**common, leave=False)
    return _LineBar(**common, mininterval=5)


class _NotebookBar(tqdm):
    """Shows itself as one plain-text output that is updated."""

    def display(self, msg=None, pos=None):
        from IPython.display import Pretty, display, update_display

        text = Pretty(_ascii(self))
        if not hasattr(self, "_display_id"):
            self._display_id = display(text, display_id=True).display_id
        else:
            update_display(text, display_id=self._display_id)

    def close(self):
        if not self.disable:
            self.display()
        self.disable = True


class _LineBar(tqdm):
    """Writes a line of its own each time it shows itself."""

    def display(self, msg=None, pos=None):
        self.fp.write(_ascii(self) + "\n")
        self.fp.flush()

    def close(self):
        if not self.disable:
            self.display()
        self.disable = True


def _ascii(progress: tqdm) -> str:
    return tqdm.format_meter(**{**progress.format_dict, "ascii": True, "ncols": None}).replace("\r", "")
