"""Progress that a person sees and a stored notebook does not."""

import os
import sys

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain


class Lines(plain):
    """A bar as a line every few seconds, for a terminal on which several notebooks report."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:
            self.fp.write(f"{self}\n")

    def close(self) -> None:
        super().close()
        self.fp.close()


def bar(total: int, description: str, unit: str) -> plain:
    """A progress bar with the remaining time.

    It goes to the terminal or, in JupyterLab, below the running cell, and leaves nothing behind.
    ``CONTRASTIVE_PROGRESS`` overrides that: ``off``, or the path of a terminal to write lines to (the notebook runner
    sets it, since a kernel that papermill starts has no terminal of its own).
    """
    where = os.environ.get("CONTRASTIVE_PROGRESS", "")
    options = {"total": total, "desc": description, "unit": unit, "leave": False, "dynamic_ncols": True}
    if where == "off":
        return plain(disable=True, **options)
    if where:
        options["desc"] = f"{os.environ.get('CONTRASTIVE_NOTEBOOK', '')} {description}".strip()
        terminal = open(where, "a", buffering=1)  # noqa: SIM115 - the bar closes it
        return Lines(file=terminal, mininterval=5, maxinterval=5, ncols=100, **(options | {"dynamic_ncols": False}))
    return tqdm(disable=False if _in_notebook() else not sys.stderr.isatty(), **options)


def live() -> bool:
    """Whether a person works in this notebook: in a kernel that no runner has told where to draw its progress."""
    return _in_notebook() and not os.environ.get("CONTRASTIVE_PROGRESS")


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None
