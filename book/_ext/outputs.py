"""How the book shows outputs of notebooks: images with their alt texts, tables, precomputed figures with sliders."""

import base64
import hashlib
import io
import json
import re
import shutil
from pathlib import Path

import PIL.Image
from bs4 import BeautifulSoup
from docutils import nodes
from myst_nb.core import render

from companion.course import controls, pieces

ROWS = 10  # of a forest plot, in a picture


class Outputs:
    """A MyST-NB plugin."""

    mime_priority_overrides = (("html", controls.MIME, 1),)

    @staticmethod
    def handle_mime(renderer, data, inline):
        if data.mime_type in ("image/png", "image/gif"):
            # MyST-NB keeps nothing but width and height of an output's metadata, and Sphinx would say the file's name
            alt = data.output_metadata.get(data.mime_type, {}).get("alt", "")
            kind, parts = data.mime_type.removeprefix("image/"), []
            if kind == "png":  # in parts that a window or a page of paper holds, if it is long
                parts = pieces.strips(base64.b64decode(data.content), alt, ROWS)
            parts = [(base64.b64encode(part).decode(), words) for part, words in parts] or [(data.content, alt)]
            images = [picture(renderer, part, kind, words) for part, words in parts]
            return [nodes.container("", *images, classes=["picture"])]
        if data.mime_type == "text/html" and "<table" in data.string:
            data.content = table(data.string)
            return renderer.render_text_html(data)
        if data.mime_type == controls.MIME:
            return [frames(renderer, data.content if isinstance(data.content, dict) else json.loads(data.content))]
        return None


def table(text: str) -> str:
    """A table of pandas as the book shows it.

    Its head is one row, with the name of the index; a head without text is a cell; a dotted name may break after its
    dots, a number nowhere; the verdict on a claim stands beside its name, where it is seen without scrolling.
    """
    page = BeautifulSoup(text, "html.parser")
    for style in page.find_all("style", scoped=True):
        style.decompose()  # the book has its own
    for found in page.find_all("table"):
        rows = found.thead.find_all("tr") if found.thead else []
        if len(rows) == 2:
            (corner, *_), (index, *others) = (row.find_all(["th", "td"]) for row in rows)
            if not corner.get_text() and not any(other.get_text() for other in others):
                corner.replace_with(index.extract())
                rows[1].decompose()
        heads = [head.get_text() for head in found.tr.find_all(["th", "td"])]
        if {"statement", "verdict"} <= set(heads):
            found["class"] = [*found.get("class", []), "claims"]
            for row in found.find_all("tr"):
                cells = row.find_all(["th", "td"])
                for cell, head in zip(cells, heads, strict=True):
                    cell["data-column"] = head  # by which book.css knows what is left out in print
                cells[0].insert_after(cells[heads.index("verdict")].extract())
        for head in found.find_all("th"):
            if not head.get_text().strip():
                head.name, head.attrs = "td", {}
            elif head.string and re.fullmatch(r"\w+([._]\w+)+", head.string):
                name = re.sub(r"(?<=[._])(?=[^\W\d])", "<wbr/>", head.string)
                head.clear()
                head.append(BeautifulSoup(name, "html.parser"))
    return str(page)


def picture(renderer, encoded: str, kind: str, alt: str) -> nodes.image:
    """An image of an output. A PNG becomes a WebP without loss, which takes half the bytes."""
    content = base64.b64decode(encoded)
    name = hashlib.sha256(content).hexdigest()
    if kind == "png":
        smaller = io.BytesIO()
        PIL.Image.open(io.BytesIO(content)).save(smaller, "WEBP", lossless=True, quality=100, method=4)
        content, kind = smaller.getvalue(), "webp"
    return nodes.image(uri=renderer.write_file([f"{name}.{kind}"], content, exists_ok=True), alt=alt)


def frames(renderer, content: dict) -> nodes.container:
    """A slider for each control above all the frames; book.css shows one, book.js the one that is asked for.

    Without the script there are no sliders, and the frame where they start is shown.
    """
    start = content["start"]
    box = nodes.container(classes=["frames"])
    box += nodes.raw("", f'<div class="controls" hidden>{controls.sliders(content)}</div>', format="html")
    scroller = nodes.container(classes=["picture"])
    for number, (encoded, alt) in enumerate(zip(content["frames"], content["alts"], strict=True)):
        image = picture(renderer, encoded, content["format"], alt)
        image["classes"] += ["frame", "shown"] if number == start else ["frame"]
        scroller += image
    box += scroller
    return box


def empty_heads(app, pagename, templatename, context, doctree) -> None:
    """A cell without text in the head of a Markdown table is no header."""
    if "body" in context:
        context["body"] = re.sub(r'<th class="head">(<p></p>|\s)*</th>', '<td class="head"></td>', context["body"])


def slim(app, exception) -> None:
    """What no page asks for: maps for who debugs the theme's scripts, its templates, its words in other languages."""
    static = Path(app.outdir, "_static")
    if not exception:
        for path in [*static.rglob("*.map"), *static.glob("*macros.html")]:
            path.unlink()
        shutil.rmtree(static / "locales", ignore_errors=True)


def no_source(app, env, docnames) -> None:
    """Source code has pages for the package; the decorator of a property lies elsewhere."""
    env._viewcode_modules = {"functools": False} | getattr(env, "_viewcode_modules", {})


def no_entry(app) -> list:
    """Nor does the index of those pages list it."""
    app.env._viewcode_modules.pop("functools", None)
    return []


def setup(app):
    app.connect("build-finished", slim)
    app.connect("env-before-read-docs", no_source)
    app.connect("html-collect-pages", no_entry, priority=400)  # before sphinx.ext.viewcode
    app.connect("html-page-context", empty_heads)
    # MyST-NB looks for plugins among the entry points of installed packages. This one belongs to the book alone.
    found = render.load_mime_renders()
    render.load_mime_renders = lambda: [Outputs, *(plugin for plugin in found if plugin is not Outputs)]
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 5}  # another: pages are read again
