"""How the book shows outputs of notebooks: images with their alt texts, tables, precomputed figures with sliders."""

import base64
import hashlib
import html
import io
import json
from pathlib import Path

import PIL.Image
from docutils import nodes
from myst_nb.core import render

FRAMES = "application/vnd.companion.frames+json"


class Outputs:
    """A MyST-NB plugin."""

    mime_priority_overrides = (("html", FRAMES, 1),)

    @staticmethod
    def handle_mime(renderer, data, inline):
        if data.mime_type in ("image/png", "image/gif"):
            # MyST-NB keeps nothing but width and height of an output's metadata, and Sphinx would say the file's name
            alt = data.output_metadata.get(data.mime_type, {}).get("alt", "")
            return [picture(renderer, data.content, data.mime_type.removeprefix("image/"), alt)]
        if data.mime_type == "text/html" and "<th></th>" in data.string:
            # pandas leaves headers empty above an index: a cell without text is no header
            data.content = data.string.replace("<th></th>", "<td></td>")
            return renderer.render_text_html(data)
        if data.mime_type == FRAMES:
            return [frames(renderer, data.content if isinstance(data.content, dict) else json.loads(data.content))]
        return None


def picture(renderer, encoded: str, kind: str, alt: str) -> nodes.image:
    """An image of an output. A PNG becomes a WebP without loss, which takes half the bytes."""
    content = base64.b64decode(encoded)
    name = hashlib.sha256(content).hexdigest()
    if kind == "png":
        smaller = io.BytesIO()
        PIL.Image.open(io.BytesIO(content)).save(smaller, "WEBP", lossless=True, method=2)
        content, kind = smaller.getvalue(), "webp"
    return nodes.image(uri=renderer.write_file([f"{name}.{kind}"], content, exists_ok=True), alt=alt)


def frames(renderer, content: dict) -> nodes.container:
    """A slider for each control above all the frames; book.css shows one, book.js the one that is asked for.

    Without the script there are no sliders, and the frame where they start is shown.
    """
    sliders = []
    for control in content["controls"]:
        values, at = [str(value) for value in control["values"]], control["start"]
        name = html.escape(control["name"])
        sliders.append(
            f'<label><span>{name}</span> <input type="range" min="0" max="{len(values) - 1}" value="{at}" '
            f'aria-valuetext="{html.escape(values[at])}" data-values="{html.escape(json.dumps(values))}"> '
            f'<span class="value" aria-hidden="true">{html.escape(values[at])}</span></label>'
        )
    start = content["start"]
    box = nodes.container(classes=["frames"])
    box += nodes.raw("", f'<div class="controls" hidden>{"".join(sliders)}</div>', format="html")
    for number, (encoded, alt) in enumerate(zip(content["frames"], content["alts"], strict=True)):
        image = picture(renderer, encoded, content["format"], alt)
        image["classes"] += ["frame", "shown"] if number == start else ["frame"]
        box += image
    return box


def slim(app, exception) -> None:
    """Maps for who debugs the theme's scripts are an eighth of the book; its templates are no pages."""
    static = Path(app.outdir, "_static")
    for path in [] if exception else [*static.rglob("*.map"), *static.glob("*macros.html")]:
        path.unlink()


def setup(app):
    app.connect("build-finished", slim)
    # MyST-NB looks for plugins among the entry points of installed packages. This one belongs to the book alone.
    found = render.load_mime_renders()
    render.load_mime_renders = lambda: [Outputs, *(plugin for plugin in found if plugin is not Outputs)]
    return {"parallel_read_safe": True, "parallel_write_safe": True}
