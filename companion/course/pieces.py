"""Pieces of notebooks for slides: text with formulas, sentences, figures in parts, rows of tables."""

import dataclasses
import html
import io
import itertools
import re
from collections.abc import Collection, Iterator

from companion.course import controls
from companion.errors import extra

with extra("course"):
    import numpy as np
    import PIL.Image

with extra("book"):
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

TAG = re.compile(r"\\tag\{([^}]*)\}")
# Without braces the letter would get an attribute that browsers ignore.
LETTER = re.compile(r"(\\math(?:bb|cal|bf|rm)) ([A-Za-z])")
# Letters alone in a group are a name, such as the index of s_{pos}: one element, or they are spelt when read aloud.
NAME = re.compile(r'<mrow>((?:<mi>[A-Za-z]</mi>){3,}|(?:<mi mathvariant="normal">[A-Za-z]</mi>){2,})</mrow>')
DISPLAY = re.compile(r"\$\$(.+?)\$\$", re.S)
PREDICT = re.compile(r"\*\*Predict, then run\.\*\*\s*(.+)", re.S)
PLUMBING = re.compile(
    r"^(def|class|import|from|for|if|with|@)\b|ledger|profile|figure|display|pd\.|groupby|training\.", re.M
)
SHORT = 45  # letters: a shorter sentence, such as "As above.", is shown with the next one
PROTECTED = re.compile(r"\$\$.+?\$\$|\$[^$]+\$|`[^`]*`|\]\([^)]*\)", re.S)
ENDS = re.compile(r"[.!?][\"'”)*_]*(?=\s)")
NO_END = re.compile(r"(?:\b(?:e\.g|i\.e|al|Eqs?|Figs?|vs|cf|Secs?|resp|approx|[A-Z])\.)$")


# A sentence that begins like this says little without the one before it.
LEANS = re.compile(r"(?:So|That|Th[eo]se|This|They|Their|It|Its|But|And|Then|Thus|Hence|Therefore|Beside it)\b|[a-z]")


@dataclasses.dataclass(eq=False)
class Slide:
    """Blocks of HTML under a title, and what the speaker may say."""

    title: str  # in Markdown, without formatting of its own but for formulas and code
    kind: str = "text"  # the class of its style: opening, text, figure, table, code
    blocks: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    seen: bool = True  # false: the sentence about this figure is still to come
    lines: float = 0  # that its text takes, about
    bare: bool = False  # a table of which nothing is said: left to the notebook
    title_html: str = ""


def mathml(tex: str, *, display: bool) -> str:
    """A formula as MathML, without its number."""
    made = convert(LETTER.sub(r"\1{\2}", TAG.sub("", tex)).strip(), display="block" if display else "inline")
    made = NAME.sub(lambda found: f"<mrow><mi>{re.sub('<[^>]+>', '', found[1])}</mi></mrow>", made)
    return re.sub("<mo>(&#x0(?:2016|007C);)</mo>", r'<mo stretchy="false">\1</mo>', made)  # \left and \right do stretch


def formula(tex: str, options: dict) -> str:
    """The same with its number behind it if it has one, for slides."""
    block = options["display_mode"]
    number = "".join(f'<span class="number">({found})</span>' for found in TAG.findall(tex))
    return f'<div class="formula">{mathml(tex, display=True)}{number}</div>' if block else mathml(tex, display=False)


READER = MarkdownIt("commonmark", {"html": True}).enable("table")
READER.use(dollarmath_plugin, renderer=formula, double_inline=True, allow_labels=False)
READER.add_render_rule(
    "math_block", lambda self, tokens, i, options, env: formula(tokens[i].content, {"display_mode": True})
)


def markdown(source: str, decks: Collection[str] = ()) -> str:
    """Text of a notebook as HTML, formulas as MathML; links lead to addresses and to slides of ``decks`` alone."""

    def linked(match: re.Match) -> str:
        target, text = html.unescape(match[1]), match[2]
        name, _, _ = target.partition("#")
        if name in decks:
            target = f"{name.removesuffix('.ipynb')}.html"
        elif not re.match(r"https?:", target):
            return text
        return f'<a href="{html.escape(target)}">{text}</a>'

    return re.sub(r'<a href="([^"]*)"[^>]*>(.*?)</a>', linked, READER.render(source), flags=re.S)


def text_of(source: str) -> str:
    """About what is read of a text: links without addresses, formulas without their commands."""
    source = re.sub(r"\]\([^)]*\)", "", re.sub(r"!\[", "", source))
    source = re.sub(
        r"\$[^$]*\$", lambda m: re.sub(r"[{}^_$\s]|\\[,;! ]", "", re.sub(r"\\[a-zA-Z]+", "x", m[0])), source
    )
    return re.sub(r"[*`\[]", "", re.sub(r"(?<=\S)\n(?!\s*(?:[-*]|\d+\.) )", " ", source)).strip()


def sentences(text: str) -> list[str]:
    """The sentences of a text, of which the last may be unfinished; what stands in formulas or code ends none."""
    text = " ".join(text.split())
    masked = PROTECTED.sub(lambda match: "x" * len(match[0]), text)
    starts = [0]
    for end in ENDS.finditer(masked):
        so_far = masked[starts[-1] : end.end()]
        if NO_END.search(so_far) or so_far.count("(") != so_far.count(")") or so_far.count("*") % 2:
            continue
        starts.append(end.end() + 1)
    ends = [*starts[1:], len(text) + 1]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=True) if text[start:end].strip()]


def sentence(text: str) -> str:
    """The first sentence of a text, and of a very short one the next too."""
    said = ""
    for found in sentences(text):
        said = f"{said} {found}".strip()
        if len(said) >= SHORT:
            break
    return said


def lead(text: str, before: str = "") -> str:
    """The last sentence of a text, with those that it leans on, two at most; the first may stand in the text before."""
    found = sentences(text)
    if not found:
        return ""
    found, at = [*sentences(before), *found], -1
    while LEANS.match(found[at]) and -at < min(len(found), 3):
        at -= 1
    return " ".join(found[at:])


def paragraphs(source: str) -> Iterator[str]:
    """Blocks of a text that blank lines separate; an item of a list is one; a display formula is never torn."""
    held = []
    for block in re.split(r"\n\s*\n", source.strip()):
        held.append(block)
        joined = "\n\n".join(held)
        if joined.count("$$") % 2 == 0 and joined.count("```") % 2 == 0:
            yield from (part for part in re.split(r"\n(?=(?:\d+\.|[-*]) )", joined) if part.strip())
            held = []
    yield from held


def leading(body: str) -> str:
    """The sentence of a text that leads to the output below it: its last, unless that asks or is of another page."""
    before, last = ["", "", *paragraphs(body)][-2:]
    said = lead(DISPLAY.split(last)[-1], "" if DISPLAY.search(before + last) else before)
    strange = PREDICT.match(last) or LEANS.match(said) or re.match(r"[(#!-]|\d+\.|```", said)
    return "" if strange or said.endswith("?") or ".ipynb" in said else said


def short_code(cell: dict) -> str:
    """What a short cell prints that computes, without plumbing; nothing of any other."""
    printed = "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout").rstrip()
    lines, out = cell.source.splitlines(), printed.splitlines()
    short = out and len(lines) <= 6 and len(out) <= 6 and max(map(len, lines + out)) <= 84
    return "" if PLUMBING.search(cell.source) or not short else printed


def cut(data: bytes, low: float = 0.62) -> list[tuple[bytes, float]]:
    """A figure as PNG files, each with its height / width: one, unless it is higher than wide.

    Then it is cut, where a band of blank rows goes across all of it, into parts lower than ``low`` of the width.
    """
    image = PIL.Image.open(io.BytesIO(data))
    width, height = image.size
    if height <= width:
        return [(data, height / width)]
    pixels = np.asarray(image.convert("RGB"))
    blank = (pixels == pixels[:1, :1]).all(axis=(1, 2))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], blank.view(np.int8), [0]])))
    bands = [(end - start, (start + end) // 2) for start, end in edges.reshape(-1, 2)]
    top, parts = 0, []
    while height - top > low * width:
        within = [(size, middle) for size, middle in bands if top + 0.3 * low * width < middle <= top + low * width]
        if not within:
            return [(data, height / width)]
        widest = max(size for size, _ in within)
        at = max(middle for size, middle in within if size >= 0.7 * widest)
        parts.append((top, at))
        top = at
    made = []
    for first, end in [*parts, (top, height)]:
        buffer = io.BytesIO()
        image.crop((0, first, width, end)).save(buffer, format="png", optimize=True)
        made.append((buffer.getvalue(), (end - first) / width))
    return made


def strips(data: bytes, alt: str, most: int) -> list[tuple[bytes, str]]:
    """A picture of more than ``most`` rows, such as a forest plot, in strips of so many at most, as PNG files: each
    below the head of the whole, and with the words for its rows. Of any other picture none.

    Rows end with a thin line across the picture; ``alt`` is a sentence and, between semicolons, words for each row.
    """
    image = PIL.Image.open(io.BytesIO(data))
    sentence, _, rest = alt.removesuffix(".").partition(". ")
    words = rest.split("; ")
    if len(words) <= most:
        return []
    drawn = np.asarray(image.convert("RGB")).astype(int) @ [1 << 16, 1 << 8, 1]
    ends = []
    for at, row in enumerate(drawn):
        _, counts = np.unique(row[row != drawn[0, 0]], return_counts=True)
        if counts.max(initial=0) > 0.9 * len(row):
            ends.append(at + 1)
    if len(ends) != len(words):
        return []
    top, made = max(0, 2 * ends[0] - ends[1]), []
    starts = [top, *ends[:-1]]
    bounds = np.linspace(0, len(ends), -(-len(ends) // most) + 1).round().astype(int)
    for first, last in itertools.pairwise(bounds):
        strip = image.crop((0, starts[first] - top, image.width, ends[last - 1]))
        strip.paste(image.crop((0, 0, image.width, top)))
        buffer = io.BytesIO()
        strip.save(buffer, format="png", optimize=True)
        made.append((buffer.getvalue(), f"{sentence}. {'; '.join(words[first:last])}."))
    return made


def frames(content: dict) -> str:
    """The pictures of a figure with controls, of which one is shown, below a slider for each control."""
    images = []
    for number, (encoded, alt) in enumerate(zip(content["frames"], content["alts"], strict=True)):
        images.append(
            f'<img class="frame{" shown" if number == content["start"] else ""}" alt="{html.escape(alt)}" '
            f'src="data:image/{content["format"]};base64,{encoded.strip()}">'
        )
    return f'<div class="turns" data-prevent-swipe>{controls.sliders(content)}</div>{"".join(images)}'


def rows_of(source: str, line: float) -> tuple[str, float, list[tuple[str, float]], float]:
    """Of a table in HTML that may be ``line`` letters wide: its head, and the lines that this takes; the groups of its
    rows, none of which tears a cell, with theirs; and the letters that its columns cannot do without."""
    source = re.sub(r'\s(?:style|border|class|valign)="[^"]*"', "", source)
    source = source.replace("<th></th>", "<td></td>")  # pandas leaves headers empty above an index
    head = re.search(r"<thead>(.*?)</thead>", source, re.S)
    body = re.search(r"<tbody>(.*?)</tbody>", source, re.S)
    above = [(row, cells_of(row)) for row in re.findall(r"<tr>.*?</tr>", head[1] if head else "", re.S)]
    rows = [(row, cells_of(row)) for row in re.findall(r"<tr>.*?</tr>", body[1] if body else source, re.S)]
    count = max((sum(spans for _, spans in cells) for _, cells in [*above, *rows]), default=0)
    words, whole = [0] * count, [0] * count  # letters of the longest word of each column, and of its longest cell
    for found, breaks in ((above, r"\s+"), (rows, r"[\s_]+")):
        for _, cells in found:
            at = count - sum(spans for _, spans in cells)  # fewer lie beside a cell that goes on
            for text, spans in cells:
                if spans == 1:
                    words[at] = max(words[at], *(len(word) + 2 for word in re.split(breaks, text)))
                    whole[at] = max(whole[at], len(text) + 2)
                at += spans
    # As browsers do: what the longest words leave is shared in the proportion in which columns would use it.
    share = min(1, max(0, line - sum(words)) / max(1, sum(whole) - sum(words)))
    widths = [word + share * (cell - word) for word, cell in zip(words, whole, strict=True)]

    def lines(row: list[tuple[str, int]]) -> float:
        most, at = 1, count - sum(spans for _, spans in row)
        for text, spans in row:
            most = max(most, -(-len(text) // max(1, sum(widths[at : at + spans]) - 2)))
            at += spans
        return most

    groups, held = [], 0
    for row, cells in rows:
        if held > 0:
            groups[-1] = (groups[-1][0] + row, groups[-1][1] + lines(cells))
            held -= 1
        else:
            groups.append((row, lines(cells)))
            held = max([int(n) for n in re.findall(r'rowspan="(\d+)"', row)], default=1) - 1
    return head[1] if head else "", sum(lines(cells) for _, cells in above), groups, sum(words)


def cells_of(row: str) -> list[tuple[str, int]]:
    """What the cells of a row of a table say, and how many columns each spans."""
    found = []
    for tag, cell in re.findall(r"<t[hd]([^>]*)>(.*?)</t[hd]>", row, re.S):
        spans = re.search(r'colspan="(\d+)"', tag)
        found.append((html.unescape(re.sub(r"<[^>]+>", "", cell)).strip(), int(spans[1]) if spans else 1))
    return found


def filled(rows: list[tuple[str, float]], first: float, most: float) -> tuple[list[list[str]], float]:
    """Rows of a table for one slide after the other, and the lines that are left on the last."""
    chunks, room = [[]], first
    for row, lines in rows:
        if chunks[-1] and room < lines:
            chunks.append([])
            room = most
        chunks[-1].append(row)
        room -= lines
    return chunks, room


def finished(stacks: list[list[Slide]]) -> list[list[Slide]]:
    """A heading with nothing under it is no slide, where others follow: they bear its title. One with a sentence alone
    has it in large type."""
    for stack in stacks:
        for at in range(len(stack) - 1, 0, -1):
            if stack[at].bare:
                stack[at - 1].notes += ["<p>(Here the notebook has a table.)</p>", *stack.pop(at).notes]
        if not stack[0].blocks and len(stack) > 1:
            empty = stack.pop(0)
            stack[0].notes[:0] = empty.notes
        if stack[0].kind == "text" and stack[0].lines < 4.5:
            stack[0].kind = "lead"
    return stacks
