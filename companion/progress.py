"""Progress bars that a person sees and a stored notebook does not."""

import os
import sys

from tqdm.auto import tqdm


def bar(total: int, description: str, unit: str) -> tqdm:
    """A progress bar with the remaining time.

    It goes to the terminal or, in JupyterLab, below the running cell, and leaves nothing behind.
    ``CONTRASTIVE_PROGRESS`` overrides that: ``off``, or the path of a terminal to draw on (the notebook runner sets
    it, since a kernel that papermill starts has no terminal of its own).
    """
    where = os.environ.get("CONTRASTIVE_PROGRESS", "")
    options = {"total": total, "desc": description, "unit": unit, "leave": False, "dynamic_ncols": True}
    if where == "off":
        return tqdm(disable=True, **options)
    if where:
        from tqdm import tqdm as plain  # a widget cannot be drawn on a terminal

        return plain(file=open(where, "w"), **options)
    return tqdm(disable=False if _in_notebook() else not sys.stderr.isatty(), **options)


def live() -> bool:
    """Whether a person works in this notebook: in a kernel that no runner has told where to draw its progress."""
    return _in_notebook() and not os.environ.get("CONTRASTIVE_PROGRESS")


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython") and sys.modules["IPython"].get_ipython()
    return getattr(shell, "kernel", None) is not None
