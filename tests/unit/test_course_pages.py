"""The pages of the course: what they say of notebooks, Makefile and package must be so."""

import functools
import json
import re
import sys
import unicodedata
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import yaml

from companion import losses, paths
from companion.course import profiles

BOOK = paths.ROOT / "book"
PAGES = {path.stem: path.read_text() for path in sorted((BOOK / "course").glob("*.md"))}
NOTEBOOKS = {path.name[:2]: path for path in sorted((paths.ROOT / "notebooks").glob("[0-9]*.ipynb"))}
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")


@pytest.fixture(scope="module")
def heads(frame):
    return frame.notebooks()


@pytest.fixture(scope="module")
def frame():
    sys.path.insert(0, str(BOOK / "_ext"))
    try:
        import course_frame
    finally:
        sys.path.pop(0)
    return course_frame


@functools.cache
def sources(number):
    return [(c["cell_type"], "".join(c["source"])) for c in json.loads(NOTEBOOKS[number].read_text())["cells"]]


def cells(number, kind=None):
    return [source for found, source in sources(number) if kind in (None, found)]


@functools.cache
def anchors(number):
    """Where a link into a notebook may lead: its headings, as MyST and as docutils make identifiers of them."""
    headings = re.findall(r"^#{1,4} (.*)$", "\n\n".join(cells(number, "markdown")), re.M)
    plain = (unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode() for text in headings)
    slugs = {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
    return slugs | {re.sub(r"[^a-z0-9]+", "-", text).strip("-") for text in plain}


def read_first(number):
    """Numbers of the notebooks that the first cell wants read first, straight from its text; None: all the others."""
    line = re.search(r"\*\*Read first\.\*\*(.*?)(Sources?:|\n\n|\Z)", cells(number)[0], re.S).group(1)
    if "The other notebooks" in " ".join(line.split()):
        return None
    return set(re.findall(r"\((\d\d)_\w+\.ipynb\)", line))


EDGES = {(other, number) for number in NOTEBOOKS for other in (read_first(number) or ())}
ALL = {number for number in NOTEBOOKS if read_first(number) is None}


def test_the_map_has_the_arrows_of_the_read_first_lines_and_no_others(frame, heads):
    picture = ET.fromstring(frame.svg(heads))
    arrows = {(path.get("data-from"), path.get("data-to")) for path in picture.iter() if path.get("data-from")}
    assert len(EDGES) > 15
    assert arrows == EDGES | {("all", number) for number in ALL}


def test_the_map_is_told_to_those_who_do_not_see_it(frame, heads):
    space = "{http://www.w3.org/2000/svg}"
    picture = ET.fromstring(frame.svg(heads, lambda name: f"at/{name}"))
    names = picture.get("aria-labelledby").split()
    told = {node.get("id"): node.text for node in picture if node.tag in (f"{space}title", f"{space}desc")}
    assert list(told) == names
    for start, end in EDGES:
        assert re.search(rf"\b{end} builds on [\d, ]*\b{start}\b", told[names[1]])
    boxes = {link.get("data-notebook"): link for link in picture.iter(f"{space}a")}
    assert {number: link.get("href") for number, link in boxes.items()} == {
        number: f"at/{path.stem}" for number, path in NOTEBOOKS.items()
    }
    for number, link in boxes.items():
        words = " ".join(text.text for text in link.iter() if text.text)
        title = cells(number)[0].splitlines()[0].partition(" · ")[2]
        assert words.startswith(number)
        assert title.split()[0] in words


def test_boxes_lie_below_what_they_build_on_and_not_on_each_other(frame, heads):
    space = "{http://www.w3.org/2000/svg}"
    picture = ET.fromstring(frame.svg(heads))
    _, _, width, height = map(float, picture.get("viewBox").split())
    boxes = {}
    for link in picture.iter(f"{space}a"):
        box = next(rect for rect in link.iter(f"{space}rect") if rect.get("class") == "box")
        x, y, w, h = (float(box.get(name)) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height  # noqa: PT018
        boxes[link.get("data-notebook")] = (x, y, x + w, y + h)
    for start, end in EDGES:
        assert boxes[end][1] > boxes[start][3]
    for one in boxes:
        for other in set(boxes) - {one}:
            a, b = boxes[one], boxes[other]
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1], (one, other)
    passing = [p for p in picture.iter(f"{space}path") if p.get("data-from") in NOTEBOOKS]
    for path in passing:  # where an arrow passes a layer, it runs straight down beside the boxes
        ends = {path.get("data-from"), path.get("data-to")}
        for x, high, low in re.findall(r"([\d.]+) ([\d.]+) V ([\d.]+)", path.get("d")):
            for number in set(boxes) - ends:
                left, top, right, bottom = boxes[number]
                assert not (left <= float(x) <= right and top < float(low) and bottom > float(high)), (ends, number)


def test_a_notebook_lies_in_the_layer_right_below_the_last_that_it_needs(frame, heads):
    depth = {name[:2]: k for k, row in enumerate(frame.layers(heads)) for name in row}
    assert set(depth) == set(NOTEBOOKS)
    for number in set(NOTEBOOKS) - ALL:
        assert depth[number] == max((1 + depth[start] for start, end in EDGES if end == number), default=0)


def test_the_exercises_of_a_notebook_are_all_its_headings_of_exercises(frame, tmp_path):
    head = "# 01 · A\n\n**Minutes.** 1.\n\n**Read first.** Nothing."
    texts = [head, "### Exercise 1: one", "### Reading questions", "### Exercise 12: more \n\nWrite."]
    made = {"cells": [{"cell_type": "markdown", "source": [text]} for text in texts]}
    (tmp_path / "01_a.ipynb").write_text(json.dumps(made))
    (found,) = frame.notebooks(tmp_path)
    assert found.exercises == ("Exercise 1: one", "Exercise 12: more")


def test_a_circle_of_notebooks_is_told(frame, heads):
    one, two, *_ = heads
    with pytest.raises(ValueError, match="circle: 00_start_here → 01"):
        frame.layers([replace(one, needs=(two.name,)), replace(two, needs=(one.name,))])


def test_the_sources_of_the_map_are_those_of_the_citation_file(frame, heads):
    cited = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())["references"]
    arxiv = {i["value"].removeprefix("arXiv:") for source in cited for i in source.get("identifiers", [])}
    known = {x for addresses in frame.SOURCES.values() for x in addresses if x[0].isdigit()}
    assert known == arxiv
    by_number = {notebook.number: set(notebook.sources) for notebook in heads}
    assert by_number["08"] == {"Lee et al."}
    assert by_number["12"] == {"Feeney & Hughes"}
    assert by_number["13"] == {"Lee et al."}
    assert by_number["14"] == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = LINK.findall(PAGES[page])
    assert links
    for target, anchor in links:
        path = (BOOK / "course" / target).resolve()
        if target in ("../scoreboard.md", "../api/losses.md", "../api/diagnose.md") and not (BOOK / "conf.py").exists():
            continue  # pages of the book that are made elsewhere
        assert path.is_file(), target
        if anchor and path.suffix == ".ipynb":
            assert anchor in anchors(path.name[:2]), f"{target}#{anchor}"


LESSON = re.compile(r"^## Lesson (\d+): (.*?)(?=^## |\Z)", re.M | re.S)
ROW = re.compile(r"^\| (\d+) \| (.*?) \|", re.M)
WAYS = {"show", "predict", "do", "discuss"}


def test_twelve_lessons_of_ninety_minutes_in_an_order_that_can_be_followed():
    lessons = LESSON.findall(PAGES["syllabus"])
    assert [int(number) for number, _ in lessons] == list(range(1, 13))
    seen = []
    for _, text in lessons:
        head = text.partition("| minutes |")[0]
        given = re.findall(r"\((?:\.\./)+notebooks/(\d\d)_\w+\.ipynb\)", head)
        assert given
        for number in given:
            assert {start for start, end in EDGES if end == number} <= {*seen, *given}, number
        seen += given
        rows = ROW.findall(text)
        assert sum(int(minutes) for minutes, _ in rows) == 90, text[:40]
        assert {way for _, way in rows} <= WAYS
        assert {"show", "predict", "do", "discuss"} - {way for _, way in rows} <= {"discuss", "predict"}
        assert re.search(r"```\{course-exercises\} ([\d ]+)\n", text).group(1).split() == given
        assert "Homework" in text
        for number in given:  # exercises that are named are there
            named = re.findall(
                rf"[Ee]xercises? ([\d, ]+(?:(?:and|to) \d)?)(?: of {number})?(?= of {number}|[^o])", text
            )
            most = sum(source.startswith("### Exercise ") for source in cells(number, "markdown"))
            if most and len(given) == 1:
                assert max(int(k) for part in named for k in re.findall(r"\d", part)) <= most, (number, named)
    assert sorted(seen) == list(NOTEBOOKS)


def test_an_hour_has_sixty_minutes_and_a_day_no_gaps():
    hour, day = re.search(r"^## One hour(.*?)^## One day(.*)", PAGES["syllabus"], re.M | re.S).groups()
    assert sum(int(minutes) for minutes, _ in ROW.findall(hour)) == 60
    times = re.findall(r"^\| (\d+):(\d\d) \| (\d+):(\d\d) \|", day, re.M)
    spans = [(60 * int(a) + int(b), 60 * int(c) + int(d)) for a, b, c, d in times]
    assert spans[0][0] == 9 * 60
    assert spans[-1][1] == 17 * 60
    assert all(start < end for start, end in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))


def test_the_short_ways_hold_all_that_is_to_be_read_first():
    ways = re.findall(r"^- \*\*.*?: (\d\d(?:, \d\d)+)", PAGES["map"], re.M)
    assert len(ways) == 5
    for way in ways:
        numbers = way.split(", ")
        for k, number in enumerate(numbers):
            assert {start for start, end in EDGES if end == number} <= set(numbers[:k]), (way, number)


def test_every_symbol_stands_in_the_notebook_that_it_links_to():
    rows = re.findall(r"^\| (\$.*?) \|(.*)\[\d\d\]\(\S*?/(\d\d)_\w+\.ipynb\S*\) \|$", PAGES["glossary"], re.M)
    assert len(rows) == PAGES["glossary"].count("\n| $")
    assert len(rows) > 30
    for symbols, _, number in rows:
        text = re.sub(r"\s+", " ", "\n".join(cells(number, "markdown")))
        for symbol in re.findall(r"\$(.*?)\$", symbols):
            letter = re.escape(symbol)
            alone = rf"(?<![\\A-Za-z]){letter}(?![A-Za-z])" if symbol[0].isalpha() else rf"{letter}(?![A-Za-z])"
            formulas = " ".join(re.findall(r"\$+(.*?)\$+", text)) + " " + text.translate(GREEK)
            assert re.search(alone, formulas) or symbol.lstrip("\\") in text.split(), (symbol, number)


GREEK = str.maketrans(
    {"γ": r"\gamma ", "ε": r"\varepsilon ", "τ": r"\tau ", "λ": r"\lambda ", "φ": r"\phi ", "ψ": r"\psi ", "μ": r"\mu "}
)


def test_no_symbol_means_two_things():
    symbols = [
        s for row in re.findall(r"^\| (\$.*?) \|", PAGES["glossary"], re.M) for s in re.findall(r"\$(.*?)\$", row)
    ]
    assert len(symbols) == len(set(symbols))


STANDARD = {"e", "i", "j", "k", "l", "x", "L", "U", "V", r"\pi"}  # Euler's number, indices, an argument, a loss, views
PASSING = {"c", r"\alpha", r"\rho"}  # named where they stand, for one paragraph: an angle, an exponent, a length


def test_a_letter_in_the_formulas_of_two_notebooks_stands_in_the_table():
    table = " ".join(re.findall(r"^\| (\$.*?) \|", PAGES["glossary"], re.M))
    used = {number: letters("\n".join(cells(number, "markdown"))) for number in NOTEBOOKS}
    shared = {letter for one, other in combinations(NOTEBOOKS, 2) for letter in used[one] & used[other]}
    assert shared > {"u", "m", r"\tau"}
    assert not shared - letters(table) - STANDARD - PASSING
    assert not PASSING & letters(re.sub("c_[12]|W_c", "", table))


def letters(text):
    """The variables in the formulas of a text: Greek letters with their backslash, Latin ones without; no words."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    formulas = " ".join("".join(pair) for pair in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", text, re.S))
    formulas = re.sub(
        r"\\(text|mathrm|operatorname|mathbb|mathcal|tag) ?(\{[^}]*\}|\w)|_\{(pos|neg|align|uniform|VRNS|arc|euc)\}",
        " ",
        formulas,
    )
    return set(re.findall(rf"\\(?:{GREEK_LETTERS})(?![A-Za-z])|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", formulas))


GREEK_LETTERS = "alpha|beta|gamma|delta|varepsilon|theta|kappa|lambda|mu|xi|pi|rho|sigma|tau|phi|varphi|psi|Sigma"


def test_terms_are_in_order_and_each_links_to_where_it_is_introduced():
    block = re.search(r"```\{glossary\}\n(.*?)\n```", PAGES["glossary"], re.S).group(1)
    entries = [entry for entry in block.split("\n\n") if entry.strip()]
    terms = [[line for line in entry.splitlines() if not line.startswith(" ")] for entry in entries]
    assert [names[0].lower() for names in terms] == sorted(names[0].lower() for names in terms)
    assert all("ipynb" in entry for entry in entries)


def test_what_is_typed_exists():
    makefile = (paths.ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    asked = {word for text in PAGES.values() for word in re.findall(r"(?:`|^ {4})make ([a-z]+)", text, re.M)}
    to_come = {"book", "student", "slides", "serve"} - targets  # until the book's own targets are there
    assert asked - to_come <= targets, asked - targets
    for text in PAGES.values():
        for name in re.findall(r"PROFILE ?= ?\"?([a-z]+)\b", text):
            assert name in (*profiles.NAMES, "auto")
        for number in re.findall(r"NOTEBOOKS=\"?([\d ]+)", text):
            assert set(number.split()) <= set(NOTEBOOKS)
        for claim in re.findall(r"CLAIMS=([\w.]+)", text):
            ledger = (paths.ROOT / "companion" / "ledger" / "claims.yaml").read_text()
            assert re.search(rf"^- id: {re.escape(claim)}[.\n]", ledger, re.M), claim  # itself, or those below it
        for name in re.findall(r"`losses\.(\w+)|\blosses\.(\w+)\(", text):
            assert hasattr(losses, name[0] or name[1]), name


def test_the_parts_of_the_readme_that_pages_show_are_marked_there():
    readme = (paths.ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 260
    for text in PAGES.values():
        for part in re.findall(r"```\{course-readme\} (\w+)", text):
            inside = re.search(rf"<!-- {part} -->(.*)<!-- /{part} -->", readme, re.S).group(1)
            assert inside.strip()
            assert "![" not in inside  # pictures stay in the README
    for page in PAGES:
        assert f"book/course/{page}.md" in readme
