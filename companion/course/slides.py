"""Slides of notebooks, by rule: ``python -m companion.course.slides NOTEBOOK …``.

A heading begins a slide, with its first sentence and its formulas; below it stand a slide for each figure and table,
with the first sentence of what we see there, one for each prediction to make and each exercise, and one for each short
cell of code that prints a few lines. All prose is in the speaker's notes (key S). Nothing is loaded from a network.
"""

import base64
import html
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from companion import paths, store
from companion.course import controls, pieces
from companion.course.deck import LINE, LINES, Deck
from companion.course.pieces import DISPLAY, PREDICT, Slide, paragraphs, sentence, text_of
from companion.course.student import opened, program
from companion.errors import CompanionError, extra

with extra("course"):
    from nbformat import NotebookNode

with extra("book"):
    import jinja2
    import sphinx_revealjs

REVEAL = Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs"
NEEDED = (
    "LICENSE",
    "dist/reset.css",
    "dist/reveal.css",
    "dist/reveal.js",
    "plugin/notes/notes.js",
    "plugin/zoom/zoom.js",
)
FONT = paths.ROOT / "book" / "_static"  # whose font for formulas the slides take
TEMPLATE = Path(__file__).parent / "slides.html.j2"

TABLE_LINES, TABLE_LINE = 15, 92
PARTS = 4  # of a figure, at most, but for strips of rows, each of which stands for itself
ROWS = 8  # of a forest plot, on a slide
TABLE_SLIDES = 3  # a longer table is for reading, not for showing
LOW = 0.55  # height / width up to which a figure leaves room for a sentence below it

SEE = re.compile(r"\*\*(?:What we see|How to read it)\.\*\*\s*(.+)", re.S)
LEARN = re.compile(r"\*\*What you will learn\.\*\*\s*(.+)", re.S)
FOLDED = re.compile(r"<details>.*?</details>", re.S)
PICTURE = re.compile(r"^!\[([^\]]*)\]\(([^)]+)\)\s*$")
VERDICT = re.compile(r"^([\w.]+\.[\w.*]+): (.+)$", re.M)


def prose(deck: Deck, source: str) -> None:
    """What of a text under a heading is shown: its first sentence, and formulas, each after the sentence before it."""
    deck.last.notes.append(deck.html(source))
    seen = SEE.search(source)
    told = seen[1].removeprefix("As above.").strip() if seen else ""  # a slide has nothing above it
    if told and not deck.last.seen:
        first, *others = paragraphs(told)
        said = sentence(first)
        announces = not first.startswith("- ") and said in (" ".join(first.split()), f"{said.rstrip(':')}:")
        items = [x for x in others if x.startswith("- ")]
        show(deck, said, items if announces and others and others[0] in items else [])
    predict = PREDICT.match(source.strip())
    if predict:
        deck.below("predict", "Predict, then run")
        deck.flow(predict[1])
        return
    fresh = deck.last.kind in ("opening", "text") and not deck.last.blocks
    said, read, listed = "", ["", deck.said], False  # the last two texts since a formula
    for part in paragraphs(source):
        picture = PICTURE.match(part)
        if picture and (deck.here / picture[2]).is_file():
            figure(deck, (deck.here / picture[2]).read_bytes(), "png", picture[1])
            continue
        if listed and re.match(r"[-*|] ", part):  # a list or a table, which the first sentence announces
            deck.flow(part)
            continue
        learn = LEARN.match(part)
        if learn:
            deck.flow(learn[1])
            fresh = False
        elif len(deck.stacks) == 1 and len(deck.stacks[0]) == 1 and part.startswith("**"):
            continue  # claims, minutes and what to read first are in the notes
        torn = DISPLAY.split(part)
        for text, formula in zip(torn[::2], [*torn[1::2], None], strict=True):
            if fresh and text.strip():
                said = sentence(text)
                deck.flow(said)
                listed, fresh = said.endswith(":"), False
            if text.strip():
                read.append(text.strip())
            if formula:
                leading = pieces.lead(read[-1], read[-2]).removeprefix(said).strip()
                deck.flow((f"{leading}\n\n" if leading else "") + f"$${formula}$$")
                read = ["", ""]


def show(deck: Deck, text: str, items: list[str]) -> None:
    """The sentence of what we see: below a low figure or a short table, else on a slide of its own; with a list, if it
    announces one."""
    slide = deck.last
    slide.seen = True
    if slide in deck.tables or re.search(r"\btables?\b", text):
        for part in deck.tables:
            part.bare = False
        # a sentence above it that is no announcement would be one too many
        if slide in deck.tables and re.search(r"[^:]</p>\s*$", deck.tables[0].blocks[0]):
            deck.tables[0].blocks.pop(0)
            slide.lines -= 1.2 * (slide is deck.tables[0])
    if items:
        deck.below("text")
        deck.flow(text, *items)
        return
    lines = -(-len(text_of(text)) // LINE)
    if slide.lines + 1.3 * lines > (LINES if slide.kind == "table" else 5):
        slide = deck.below("text")
    slide.blocks.append(f'<div class="seen">{deck.html(text)}</div>')


def figure(deck: Deck, data: bytes, kind: str, alt: str) -> None:
    """A figure fills its slide; one that is higher than wide goes to several, cut between its rows or where nothing is
    drawn."""
    strips = pieces.strips(data, alt, ROWS) if kind == "png" else []
    parts = [(part, LINES, words) for part, words in strips]
    if not strips:
        found = pieces.cut(data) if kind == "png" else [(data, LOW)]
        parts = [(part, ratio, alt) for part, ratio in found]
    if not strips and len(parts) > PARTS:
        deck.last.notes.append("<p>(A figure that is too high for slides: see the notebook.)</p>")
        return
    for number, (piece, ratio, words) in enumerate(parts, start=1):
        slide = deck.below("figure")
        part = f" (part {number} of {len(parts)})" if len(parts) > 1 else ""
        encoded = base64.b64encode(piece).decode()
        slide.blocks.append(f'<img src="data:image/{kind};base64,{encoded}" alt="{html.escape(words + part)}">')
        slide.seen, slide.lines = False, 0 if ratio <= LOW else LINES


def turned(deck: Deck, content: dict) -> None:
    """A figure with controls: all its pictures, and sliders that show one."""
    slide = deck.below("figure")
    slide.blocks.append(pieces.frames(content))
    slide.seen, slide.lines = False, 1


def table(deck: Deck, source: str) -> None:
    """A table on up to three slides, below the sentence before it. A wider or longer one is left to the notebook, and
    so is one that no sentence leads or comes back to."""
    head, above, rows, least = pieces.rows_of(source, TABLE_LINE)
    if least > TABLE_LINE:
        return deck.last.notes.append("<p>(A table that is too wide for a slide: see the notebook.)</p>")
    said = deck.said if len(text_of(deck.said)) <= 2.5 * LINE else ""
    asked = deck.last.kind == "predict"
    most = TABLE_LINES - max(2, above)
    chunks, room = pieces.filled(rows, most - 1.4 * -(-len(text_of(said)) // LINE), most)
    if len(chunks) > TABLE_SLIDES:
        return deck.last.notes.append("<p>(A table that is too long for slides: see the notebook.)</p>")
    deck.tables = []
    for chunk in chunks:
        slide = deck.below("table")
        slide.bare = not (said or asked)
        deck.tables.append(slide)
        if said and chunk is chunks[0]:
            slide.blocks.append(deck.html(said))
        slide.blocks.append(f"<table><thead>{head}</thead><tbody>{''.join(chunk)}</tbody></table>")
    slide.seen, slide.lines = False, 0.85 * (TABLE_LINES - room)
    return None


def code(deck: Deck, cell: NotebookNode) -> None:
    """A short cell that computes and prints is a slide: the formula as code."""
    printed = pieces.short_code(cell)
    if printed:
        slide = deck.below("code")
        slide.blocks.append(f"<pre><code>{html.escape(cell.source)}</code></pre>")
        slide.blocks.append(f"<pre><samp>{html.escape(printed)}</samp></pre>")


def claims(deck: Deck, printed: str) -> None:
    """The verdicts of a notebook, as they stand in its output."""
    rows = VERDICT.findall(printed)
    for first in range(0, len(rows), 13):
        body = "".join(
            f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows[first : first + 13]
        )
        slide = Slide("The claims of this notebook", "table", [f"<table><tbody>{body}</tbody></table>"])
        slide.notes.append("<p>Verdicts that chance could turn stand in the notebook's table alone.</p>")
        if first:
            deck.stacks[-1].append(slide)
        else:
            deck.stacks.append([slide])


def outputs(deck: Deck, cell: NotebookNode) -> None:
    code(deck, cell)
    for output in cell.outputs:
        data = output.get("data", {})
        if data.get(controls.MIME, {}).get("frames"):
            turned(deck, data[controls.MIME])
            data = {}
        for kind in ("png", "gif"):
            if f"image/{kind}" in data:
                alt = output.metadata.get(f"image/{kind}", output.metadata).get("alt", "")
                raw = base64.b64decode(data[f"image/{kind}"])
                figure(deck, raw, kind, alt)
        if "<table" in data.get("text/html", ""):
            table(deck, data["text/html"])
        if data:
            deck.said = ""
        if "text/markdown" in data:
            prose(deck, data["text/markdown"])


def deck_of(notebook: NotebookNode, here: Path, decks: set[str]) -> Deck:
    """The slides of a notebook that lies in the folder ``here``; ``decks`` are the notebooks that have slides too."""
    deck = Deck(here, decks)
    exercises = False
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags or "exercise" in tags or "check" in tags:
            continue
        if cell.cell_type == "code":
            printed = "".join(output.get("text", "") for output in cell.outputs)
            if "nbval-check-output" in tags and "erdicts" in printed:
                claims(deck, printed)
            elif deck.stacks and not deck.skipping and not exercises:
                outputs(deck, cell)
            continue
        for part in re.split(r"(?m)^(?=#{1,3} )", FOLDED.sub("", cell.source)):
            heading = re.match(r"(#{1,3}) (.+)\n*", part)
            if heading and len(heading[1]) < 3:
                deck.start(heading[2])
                exercises = heading[2] == "Exercises"
            elif heading and not deck.skipping:
                deck.below("exercise" if exercises else "text", heading[2])
                deck.said = ""
                deck.section = heading[2] if not exercises else "Exercises"
            body = part[heading.end() :] if heading else part
            if deck.skipping or not body.strip() or not deck.stacks:
                continue
            if exercises:
                deck.flow(*(x for x in paragraphs(body) if not x.startswith("Next: ")))
            else:
                prose(deck, body)
                deck.said = pieces.leading(body) if deck.stacks[1:] else ""
    deck.finish()
    return deck


def build(notebooks: Sequence[Path], out: Path) -> list[Path]:
    """Write a deck for each notebook into the folder ``out``, and what they share into ``out``/reveal; all are made
    before one is written.

    Raises:
        CompanionError: if a notebook cannot be read or has no heading to begin with, or ``out`` cannot be written.
    """
    decks = {path.name for path in notebooks} | {f"{path.stem}.ipynb" for path in out.glob("[!.]*.html")}
    environment = jinja2.Environment(autoescape=False, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    font = next((path.name for path in FONT.glob("*math.woff2")), "")
    made = {}
    for path in notebooks:
        deck = deck_of(opened(path), path.parent, decks)
        if not deck.stacks:
            raise CompanionError(f"{path.name} has no heading: expected a title in its first cell.")
        title = html.escape(deck.stacks[0][0].title)
        stacks = pieces.finished(deck.stacks)
        for slide in (slide for stack in stacks for slide in stack):
            slide.title_html = re.sub(r"^<p>|</p>\s*$", "", deck.html(slide.title))
        made[out / f"{path.stem}.html"] = template.render(title=title, stacks=stacks, font=font)
    for path, page in made.items():
        store.write(path, page)
    for name in NEEDED:
        (out / "reveal" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REVEAL / name, out / "reveal" / name)
    for path in FONT.glob("*-math*"):
        shutil.copyfile(path, out / "reveal" / path.name)  # with its licence
    return list(made)


def main() -> int:
    return program(build, "Write the slides of notebooks.", "slides", "{count} decks: {out}/")


if __name__ == "__main__":
    sys.exit(main())
