"""What the course pages say of the notebooks, read from the notebooks: their times, what to read first, their sources.

Every notebook begins with a cell that has these lines; a fact stands there and nowhere else. The map of what depends on
what is drawn here as an SVG, layer by layer: a notebook lies below all that it builds on.
"""

import json
import re
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The five sources by the addresses that the notebooks give for them; the survey is its three methods.
SOURCES = {
    "Lee et al.": ("2506.09781",),
    "Wang & Isola": ("2005.10242",),
    "Wang & Liu": ("2012.09740",),
    "Feeney & Hughes": ("2309.14277", "gram-blogposts.github.io"),
    "SimCLR, MoCo, CLIP": ("2002.05709", "1911.05722", "2103.00020"),
}
COLORS = dict(zip(SOURCES, ("#0072b2", "#009e73", "#d55e00", "#cc79a7", "#b58900"), strict=True))  # told apart by all


@dataclass(frozen=True)
class Notebook:
    """The head of a notebook: its name without `.ipynb`, and what its first cell says."""

    name: str
    title: str
    minutes: str
    read_first: str
    needs: tuple[str, ...]  # names of the notebooks to read first; of one that collects: all others
    collects: bool
    sources: tuple[str, ...]
    exercises: tuple[str, ...]  # headings of the exercises in code

    @property
    def number(self) -> str:
        return self.name[:2]


def _line(head: str, name: str) -> str:
    """A paragraph of the head, by the bold word it begins with, on one line."""
    found = re.search(rf"\*\*{name}\.\*\*\s*(.*?)(?=\n\s*\n|\Z)", head, re.S)
    if not found:
        raise ValueError(f"A notebook's first cell has no paragraph that begins with **{name}.**: {head[:60]!r}")
    return " ".join(found.group(1).split())


def notebooks(folder: Path = ROOT / "notebooks") -> list[Notebook]:
    """The heads of all notebooks, in the order of their numbers."""
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    found = []
    for path in paths:
        cells = [(c["cell_type"], "".join(c["source"])) for c in json.loads(path.read_text())["cells"]]
        head = cells[0][1]
        before, _, after = _line(head, "Read first").partition("Source")
        collects = before.startswith("The other notebooks")
        linked = dict.fromkeys(re.findall(r"\]\((\d\d_\w+)\.ipynb\)", before))
        needs = [other.stem for other in paths if other != path] if collects else linked
        sources = [name for name, addresses in SOURCES.items() if any(x in after for x in addresses)]
        headings = [re.match(r"### (Exercise \d+: .*)", source) for kind, source in cells if kind == "markdown"]
        found.append(
            Notebook(
                name=path.stem,
                title=head.splitlines()[0].removeprefix("# ").partition(" · ")[2],
                minutes=_line(head, "Minutes"),
                read_first=before.strip(),
                needs=tuple(needs),
                collects=collects,
                sources=tuple(sources),
                exercises=tuple(heading.group(1).strip() for heading in headings if heading),
            )
        )
    return found


def layers(found: list[Notebook]) -> list[list[str]]:
    """Names by layer: a notebook lies below all that it needs, and one that collects alone at the bottom."""
    by_name, depth = {notebook.name: notebook for notebook in found}, {}

    def of(name: str, below: tuple[str, ...] = ()) -> int:
        if name in below:
            raise ValueError(f"Notebooks need each other in a circle: {' → '.join([*below, name])}")
        if name not in depth:
            depth[name] = max((1 + of(other, (*below, name)) for other in by_name[name].needs), default=0)
        return depth[name]

    rows = [[] for _ in range(1 + max(of(name) for name in by_name))]
    for name in by_name:
        rows[depth[name]].append(name)
    return rows


WIDTH, NODE, HEIGHT, PITCH, DUMMY, GAP = 808, 190, 70, 124, 16, 13


def _routes(found: list[Notebook], rows: list[list[str]]) -> tuple[list[list[str]], dict]:
    """The layers with places for edges that pass through them, one a source and layer, and the way of every edge."""
    depth = {name: k for k, row in enumerate(rows) for name in row}
    full, routes = [list(row) for row in rows], {}
    for notebook in found:
        for other in () if notebook.collects else notebook.needs:
            through = [f"{other} in {k}" for k in range(depth[other] + 1, depth[notebook.name])]
            for k, place in enumerate(through, depth[other] + 1):
                if place not in full[k]:
                    full[k].append(place)
            routes[other, notebook.name] = [other, *through, notebook.name]
    return full, routes


def _crossings(full: list[list[str]], links: set[tuple[str, str]]) -> int:
    """How many pairs of pieces of edges cross."""
    count = 0
    for above, below in pairwise(full):
        pairs = sorted((above.index(a), below.index(b)) for a, b in links if a in above and b in below)
        count += sum(a < c and b > d for i, (a, b) in enumerate(pairs) for c, d in pairs[i + 1 :])
    return count


def _ordered(full: list[list[str]], links: set[tuple[str, str]]) -> list[list[str]]:
    """Every layer put in an order with few crossings: by the mean place of what lies above, then below, and again."""
    best = [list(row) for row in full]
    rows = [list(row) for row in full]
    for sweep in range(12):
        down = sweep % 2 == 0
        for k in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            other = rows[k - 1 if down else k + 1]
            beside = {x: [other.index(a if b == x else b) for a, b in links if x in (a, b) and ({a, b} & {*other})]
                      for x in rows[k]}  # fmt: skip
            place = {x: sum(y) / len(y) if y else rows[k].index(x) for x, y in beside.items()}
            rows[k].sort(key=place.__getitem__)
        if _crossings(rows, links) < _crossings(best, links):
            best = [list(row) for row in rows]
    return best


def _places(rows: list[list[str]], links: set[tuple[str, str]]) -> dict[str, float]:
    """The middle of every place on the horizontal axis: near its neighbours, nothing on top of another."""

    def wide(x: str) -> int:
        return DUMMY if " in " in x else NODE

    def apart(row: list[str], wanted: dict[str, float], side: int) -> dict[str, float]:
        """The places of a row as near to the wanted ones as there is room, from the left (1) or from the right (-1)."""
        found, edge = {}, 4.0 if side > 0 else WIDTH - 4.0
        for name in row[::side]:
            half = side * wide(name) / 2
            found[name] = (max if side > 0 else min)(wanted[name], edge + half)
            edge = found[name] + half + side * GAP
        return found

    x = {}
    for row in rows:
        left = (WIDTH - sum(map(wide, row)) - GAP * (len(row) - 1)) / 2
        for name in row:
            x[name] = left + wide(name) / 2
            left += wide(name) + GAP
    for _ in range(100):
        for row in rows:
            for name in row:
                beside = [x[a if b == name else b] for a, b in links if name in (a, b)] + [WIDTH / 2]
                x[name] = (x[name] + sum(beside) / len(beside)) / 2
            least, most = apart(row, x, 1), apart(row, x, -1)
            between = {name: (least[name] + most[name]) / 2 for name in row}  # what both ways of making room agree on
            x |= apart(row, apart(row, between, 1), -1)
    return x


def _words(title: str, length: int = 21) -> list[str]:
    """A title in at most two lines, without what follows a colon if it is too long for them."""
    for text in (title, title.partition(":")[0]):
        lines = [""]
        for word in text.split():
            if lines[-1] and len(lines[-1]) + 1 + len(word) > length:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        if len(lines) <= 2:
            break
    return lines


def _box(notebook: Notebook, x: float, y: float, wide: float, link: str) -> str:
    """A notebook as a box that links to it: number and title, a stripe a source, and as many names as there is room."""
    stripes = [
        f'<rect x="{x:.0f}" y="{y + k * HEIGHT / len(notebook.sources):.1f}" width="6" '
        f'height="{HEIGHT / len(notebook.sources):.1f}" fill="{COLORS[name]}"/>'
        for k, name in enumerate(notebook.sources)
    ]
    lines = [notebook.title] if notebook.collects else _words(notebook.title)
    spans = "".join(
        f'<tspan x="{x + 14:.0f}" y="{y + 43 + 16 * k:.0f}">{escape(line)}</tspan>' for k, line in enumerate(lines)
    )
    return (
        f'<a href="{escape(link)}" data-notebook="{notebook.number}">'
        f'<rect class="box" x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{HEIGHT}"/>{"".join(stripes)}'
        f'<text class="number" x="{x + 14:.0f}" y="{y + 22:.0f}">{notebook.number}</text>'
        + "".join(
            f'<text class="source" x="{x + aside:.0f}" y="{y + down:.0f}">{escape(name)}</text>'
            for name, (aside, down) in zip(notebook.sources[: 3 - len(lines)], ((44, 21), (14, 61)), strict=False)
        )
        + f"<text>{spans}</text></a>"
    )


STYLE = """
.course-map-frame { overflow-x: auto; margin-bottom: 1rem; }
.course-map { width: 100%; min-width: 40rem; height: auto; font-family: inherit; }
.course-map .box { fill: var(--pst-color-surface, #f4f4f4); stroke: var(--pst-color-text-muted, #666); }
.course-map text { fill: var(--pst-color-text-base, #111); font-size: 13px; }
.course-map .number { font-weight: 700; font-size: 16px; }
.course-map .source { fill: var(--pst-color-text-muted, #555); font-size: 11px; }
.course-map .edge { fill: none; stroke: var(--pst-color-text-muted, #666); stroke-width: 1.5; }
.course-map .tip { fill: var(--pst-color-text-muted, #666); }
.course-map a { text-decoration: none; }
.course-map a:hover .box, .course-map a:focus-visible .box { stroke: var(--pst-color-link, #0b5cad); stroke-width: 3; }
"""


def svg(found: list[Notebook], link=lambda name: f"{name}.html") -> str:
    """The map as an SVG: a box a notebook, an arrow from what is read first to what builds on it.

    Args:
        found: the notebooks, from :func:`notebooks`.
        link: where the box of a notebook leads, from its name.
    """
    rows = layers(found)
    full, routes = _routes(found, rows)
    links = {piece for route in routes.values() for piece in pairwise(route)}
    full = _ordered(full, links)
    x, depth = _places(full, links), {name: k for k, row in enumerate(full) for name in row}
    top = {name: 4 + PITCH * k for name, k in depth.items()}
    parts = []
    for (start, end), route in routes.items():
        path, at, y = f"M {x[start]:.0f} {top[start] + HEIGHT}", x[start], top[start] + HEIGHT
        last = sorted((x[way[-2]], way[0]) for (_, other), way in routes.items() if other == end)
        aside = 36 * (last.index((x[route[-2]], start)) - (len(last) - 1) / 2)  # arrows arrive beside each other
        for b in route[1:]:
            into, middle = top[b] - (8 if b == end else 0), (y + top[b]) / 2
            there = x[b] + (aside if b == end else 0)
            path += f" C {at:.0f} {middle:.0f}, {there:.0f} {middle:.0f}, {there:.0f} {into:.0f}"
            at, y = there, top[b] + HEIGHT
            path += "" if b == end else f" V {y}"
        parts.append(
            f'<path class="edge" data-from="{start[:2]}" data-to="{end[:2]}" marker-end="url(#course-tip)" d="{path}"/>'
        )
    for notebook in found:
        if notebook.collects:
            parts.append(
                f'<path class="edge" data-from="all" data-to="{notebook.number}" marker-end="url(#course-tip)" '
                f'd="M {WIDTH / 2:.0f} {top[notebook.name] - PITCH + HEIGHT + 22} V {top[notebook.name] - 8}"/>'
                f'<text class="source" x="{WIDTH / 2 + 12:.0f}" y="{top[notebook.name] - 18}">all of them</text>'
            )
        left, wide = (4, WIDTH - 8) if notebook.collects else (x[notebook.name] - NODE / 2, NODE)
        parts.append(_box(notebook, left, top[notebook.name], wide, link(notebook.name)))
    tall = 8 + HEIGHT + PITCH * (len(full) - 1)
    return (
        f'<svg class="course-map" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" role="group" '
        'aria-labelledby="course-map-title course-map-text">'
        '<title id="course-map-title">What depends on what</title>'
        f'<desc id="course-map-text">{escape(in_words(found))}</desc><style>{STYLE}</style>'
        '<defs><marker id="course-tip" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto" markerUnits="userSpaceOnUse"><path class="tip" d="M 0 0 L 8 4 L 0 8 z"/></marker></defs>'
        + "".join(parts)
        + "</svg>"
    )


def in_words(found: list[Notebook]) -> str:
    """What the arrows of the map say, for those who do not see it."""
    said = []
    for notebook in found:
        needs = "all others" if notebook.collects else ", ".join(name[:2] for name in notebook.needs) or "nothing"
        said.append(f"{notebook.number} builds on {needs}")
    return f"{len(found)} boxes, one a notebook, joined by arrows. {'; '.join(said)}. Each box links to its notebook."
