"""What can be turned in a figure, and its pictures for a page without a kernel behind it."""

import base64
import html
import inspect
import io
import itertools
import json
import math
import numbers
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from companion.errors import CompanionError, choose, extra

with extra("course"):
    import ipywidgets
    import numpy as np
    import PIL.Image
    from scipy.spatial import KDTree

MIME = "application/vnd.companion.frames+json"  # beside image/png: what the book makes sliders of
MOST = 2  # controls a figure: their combinations are all drawn
BYTES = 300_000  # of all pictures of a figure


@dataclass(frozen=True)
class Control:
    """One argument of a figure that a reader can set."""

    name: str  # of the argument
    values: tuple | None  # in the order of the slider; None for free text
    default: object  # the argument's own default, one of the values

    @property
    def label(self) -> str:
        return self.name.replace("_", " ")

    def widget(self) -> ipywidgets.Widget:
        """For a live kernel. It redraws when it is let go: a drawing takes longer than a movement."""
        options = {"description": self.label, "value": self.default, "continuous_update": False}
        if self.values is None:
            return ipywidgets.Text(**options)
        return ipywidgets.SelectionSlider(options=[(shown(value), value) for value in self.values], **options)


def shown(value) -> str:
    """A value as a reader sees it."""
    return str(value) if isinstance(value, str | bool) else f"{value:g}"


def read(draw: Callable, given: dict) -> list[Control]:
    """The controls of a figure, from what :func:`companion.course.figures.movable` was given.

    Raises:
        CompanionError: for more than two controls; for one that ``draw`` does not take; for one without values; where
            the default is missing or not among the values.
    """
    if len(given) > MOST:
        raise CompanionError(
            f"{len(given)} controls ({', '.join(given)}) were given: expected {MOST} at most, since a page shows every "
            "combination of their values as a picture. Leave the others at one value."
        )
    parameters, found = inspect.signature(draw).parameters, []
    for name, spec in given.items():
        default = parameters[choose(name, parameters, "control")].default
        values = None if isinstance(spec, str) else _values(name, spec)
        if default is inspect.Parameter.empty or (values is not None and default not in values):
            missing = default is inspect.Parameter.empty
            raise CompanionError(
                f"The control {name!r} {'has no default' if missing else f'starts at {default!r}'}: expected a default "
                f"of the argument among {', '.join(map(shown, values or ())) or 'texts'}. Give it in the definition of "
                "the drawing function, or add it to the values."
            )
        found.append(Control(name, values, default))
    return found


def _values(name: str, spec) -> tuple:
    """A list as it is, (low, high, step) written out, both ends included."""
    if isinstance(spec, Iterable) and not isinstance(spec, tuple):
        values = tuple(spec)
    else:
        span = isinstance(spec, tuple) and len(spec) == 3 and all(isinstance(x, numbers.Real) for x in spec)
        if not (span and all(map(math.isfinite, spec)) and spec[1] > spec[0] and spec[2] > 0):
            raise CompanionError(f"The control {name!r} is {spec!r}: expected (low, high, step), or a list of values.")
        low, high, step = spec
        values = tuple(round(low + k * step, 10) for k in range(math.floor((high - low) / step + 1e-9) + 1))
    if len(values) < 2 or len(set(values)) < len(values):
        raise CompanionError(f"The control {name!r} has {list(values)}: expected two or more values, each once.")
    return values


def freezing() -> bool:
    """Whether the notebook is being executed to be stored, with all the pictures of its movable figures."""
    return bool(os.environ.get("CONTRASTIVE_FRAMES"))


def with_few_colors(pictures: list[bytes], colors: int) -> list[bytes]:
    """PNG files of one size with a palette that they share, so that nothing changes its colour from one to the next."""
    drawn = np.stack([np.array(PIL.Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures])
    packed, where, counts = np.unique(drawn @ np.array([1 << 16, 1 << 8, 1]), return_inverse=True, return_counts=True)
    values = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)
    palette = _palette(values[counts.argsort(kind="stable")[::-1]], np.sort(counts)[::-1], colors)
    nearest = KDTree(palette).query(values)[1].astype(np.uint8)[where].reshape(drawn.shape[:3])
    files = [io.BytesIO() for _ in drawn]
    for indices, file in zip(nearest, files, strict=True):
        fewer = PIL.Image.frombytes("P", indices.shape[::-1], indices.tobytes())
        fewer.putpalette(palette.astype(np.uint8).tobytes())
        fewer.save(file, format="png", optimize=True)
    return [file.getvalue() for file in files]


def _palette(values: np.ndarray, counts: np.ndarray, colors: int) -> np.ndarray:
    """(colors, 3) of the (k, 3) values, most frequent first: half of them areas, half far off, small marks."""
    chosen, distance = [], np.full(len(values), np.inf)

    def choose_color(k: int) -> None:
        chosen.append(k)
        np.minimum(distance, ((values - values[k]) ** 2).sum(axis=1), out=distance)

    while len(chosen) < colors // 2 and distance.max() > 36:
        choose_color(int(np.argmax(distance > 36)))  # the first, so the most frequent, that no chosen one is near to
    while len(chosen) < min(colors, len(values)):
        choose_color(int(np.argmax(distance * np.log1p(counts))))
    return values[chosen]


def bundle(
    controls: list[Control], picture: Callable[..., bytes], alt: Callable[..., str], colors: int
) -> tuple[dict, dict]:
    """Data and metadata of one output with a picture for every combination of the controls' values.

    It holds, as ``image/png``, the picture at the defaults, for whatever shows notebooks; and beside it, under
    :data:`MIME`, all of them, row-major over the controls, the first one outermost::

        {"format": "png", "frames": [base64, …], "alts": [text, …], "start": index of the default,
         "controls": [{"name": text, "values": [value, …], "start": index}, …]}

    Args:
        controls: with values.
        picture: (one keyword argument a control) → the bytes of a PNG file.
        alt: (the same) → what the picture shows.
        colors: of the palette that all pictures share.

    Raises:
        CompanionError: if the pictures differ in size, or have more than 300 kB together.
    """
    points = [
        dict(zip([c.name for c in controls], values, strict=True))
        for values in itertools.product(*(c.values for c in controls))
    ]
    pictures = [picture(**point) for point in points]
    sizes = {PIL.Image.open(io.BytesIO(data)).size for data in pictures}
    if len(sizes) > 1:
        raise CompanionError(
            f"The pictures of this figure have the sizes {', '.join(f'{w} × {h}' for w, h in sorted(sizes))}: expected "
            "one size for all, so that nothing jumps. Make every figure with the same `height` and `figsize`."
        )
    pictures = with_few_colors(pictures, colors)
    if (total := sum(map(len, pictures))) > BYTES:
        raise CompanionError(
            f"The {len(pictures)} pictures of this figure have {total / 1000:.0f} kB together: expected "
            f"{BYTES / 1000:.0f} kB at most. Give fewer values, fewer `colors`, or a smaller figure."
        )
    frames, alts = [base64.b64encode(data).decode() for data in pictures], [alt(**point) for point in points]
    start = points.index({c.name: c.default for c in controls})
    told = [{"name": c.label, "values": list(c.values), "start": c.values.index(c.default)} for c in controls]
    frozen = {"format": "png", "frames": frames, "alts": alts, "start": start, "controls": told}
    return {"image/png": frames[start], MIME: frozen, "text/plain": alts[start]}, {"image/png": {"alt": alts[start]}}


def sliders(content: dict) -> str:
    """Of what :func:`bundle` holds under :data:`MIME`: a native slider for each control, as HTML; what it moves is left
    to a script of the page."""
    found = []
    for control in content["controls"]:
        values, at = [shown(value) for value in control["values"]], control["start"]
        found.append(
            f"<label><span>{html.escape(control['name'])}</span> "
            f'<input type="range" min="0" max="{len(values) - 1}" value="{at}" '
            f'aria-valuetext="{html.escape(values[at])}" data-values="{html.escape(json.dumps(values))}"> '
            f'<span class="value" aria-hidden="true">{html.escape(values[at])}</span></label>'
        )
    return "".join(found)
