"""The book in a real browser: as it was built, and as a reader with a keyboard or a narrow window meets it."""

import ast
import base64
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from companion import ledger, losses, paths

pytest.importorskip("latex2mathml", reason="the extra `book` is not installed")
from companion.course import pieces

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
CODE = re.compile(r"```.*?```|(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Highlighted code, formulas and long tables repeat themselves thousands of times: axe sees each kind of token, a few
# formulas, and of a table its first rows and some of the others.
PRUNE = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll(".highlight span[class]")) {
    const kind = token.className + (token.closest("a") ? " a" : "");
    seen.has(kind) && !token.querySelector("a, span") ? token.replaceWith(token.textContent) : seen.add(kind);
  }
  document.querySelectorAll("math").forEach((formula, number) => number < 5 || formula.remove());
  for (const table of document.querySelectorAll("article table")) {
    [...table.rows].forEach((row, number) => number < 12 || number % 20 == 0 || row.remove());
  }
}"""
AXE = """async ([tags, rules]) => (await axe.run(document, {
  preload: false, resultTypes: ["violations"],
  runOnly: rules.length ? {type: "rule", values: rules} : {type: "tag", values: tags},
})).violations.map(v => `${v.id} x${v.nodes.length}: ${v.nodes[0].target} ${v.nodes[0].html.slice(0, 200)}`)"""
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
BROKEN = """[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.getAttribute("src"))"""


# ---- as it was built ----------------------------------------------------------------------------------------------


def test_it_builds_without_a_warning_and_without_the_network(site):
    assert "WARNING" not in site.log
    assert "ERROR" not in site.log
    assert {f"notebooks/{path.stem}.html" for path in NOTEBOOKS} <= set(site.pages)
    assert {"index.html", "scoreboard.html", "sources.html", "search.html", "api/losses.html"} <= set(site.pages)


def test_it_is_small(site):
    assert sum(path.stat().st_size for path in site.root.rglob("*") if path.is_file()) <= 25e6


def test_nothing_that_a_page_loads_lies_elsewhere(site):
    for page in site.pages.values():
        foreign = [url for url in page.loaded if re.match(r"(\w+:)?//", url)]
        assert not foreign, f"{page.name} loads {foreign}"
    for path in site.root.rglob("*.css"):
        foreign = re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text())
        assert not foreign, f"{path.name} loads {foreign}"


def test_all_links_and_anchors_inside_resolve(site):
    broken = []
    for page in site.pages.values():
        for url in (*page.links, *page.loaded):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            path = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if not path.is_file():
                broken.append(f"{page.name}: {url}")
            elif parts.fragment and path.suffix == ".html":
                name = path.relative_to(site.root.resolve() if path.is_absolute() else site.root).as_posix()
                if unquote(parts.fragment) not in site.pages[name].ids:
                    broken.append(f"{page.name}: {url}")
    assert not broken, f"{len(broken)} broken links: {sorted(set(broken))[:20]}"


def markdown(notebook):
    """The notebook's text as the book shows it: its cells, and what its code says in words."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield cell.source
        else:
            yield from (
                "".join(o.data["text/markdown"])
                for o in cell.get("outputs", [])
                if "text/markdown" in o.get("data", {})
            )


def formulas(text):
    """The displays in it, and how many formulas there are in lines."""
    text = CODE.sub("", text)
    displays = re.findall(r"\$\$(.+?)\$\$", text, re.S)
    text = re.sub(r"\$\$.+?\$\$", "", text, flags=re.S)
    return displays, len(re.findall(r"(?<![\\$])\$(?![\s$])(?:[^$\\]|\\.)+?(?<!\s)\$(?!\d)", text))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_is_shown_and_no_display_has_two_numbers(site, path):
    page = site.pages[f"notebooks/{path.stem}.html"]
    displays, inline = [], 0
    for text in markdown(nbformat.read(path, as_version=4)):
        found, more = formulas(text)
        displays, inline = displays + found, inline + more
    tags = [display.count("\\tag") for display in displays]
    assert max(tags, default=0) <= 1
    assert page.math == len(displays) + inline
    assert page.tags == sum(tags)
    assert "merror" not in page.text


def test_a_name_in_a_formula_is_one_element_and_no_number_is_torn(site):
    pages = {name: page.text for name, page in site.pages.items() if name.startswith("notebooks/")}
    assert any("<mi>pos</mi>" in text for text in pages.values())
    assert not [name for name, text in pages.items() if "<mi>p</mi><mi>o</mi><mi>s</mi>" in text]
    assert not [name for name, text in pages.items() if re.search(r"<wbr/?>\d", text)]


def test_who_goes_on_from_the_index_begins_with_the_first_notebook(site):
    page, read = "index.html", []
    for _ in range(3):
        found = re.search(r'class="right-next"\s+href="([^"#]+)', site.pages[page].text)
        page = (site.pages[page].path.parent / found[1]).resolve().relative_to(site.root.resolve()).as_posix()
        read.append(page)
    assert read == ["notebooks/00_start_here.html", "course/map.html", "notebooks/01_similarity_functions.html"]


def alts(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            frames = output.get("data", {}).get("application/vnd.companion.frames+json")
            if frames:
                yield from frames["alts"]
                continue
            for mime in ("image/png", "image/gif"):
                if mime in output.get("data", {}):
                    alt, data = output.metadata[mime]["alt"], base64.b64decode(output["data"][mime])
                    strips = pieces.strips(data, alt, 10) if mime == "image/png" else []
                    yield from (words for _, words in strips) if strips else [alt]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_images_keep_the_alt_texts_of_the_notebook(site, path):
    shown = [alt for _, alt in site.pages[f"notebooks/{path.stem}.html"].images]
    expected = [" ".join(alt.split()) for alt in alts(nbformat.read(path, as_version=4))]
    assert [" ".join((alt or "").split()) for alt in shown] == expected
    assert all(expected)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_downloaded_is_the_committed_notebook(site, path):
    page = site.pages[f"notebooks/{path.stem}.html"]
    (link,) = {url for url in page.links if url.endswith(".ipynb")}
    assert (page.path.parent / link).read_bytes() == path.read_bytes()
    assert Path(link).name == path.name


def test_every_claim_has_its_row_and_its_cell(site):
    board = site.pages["scoreboard.html"]
    assert set(ledger.load()) <= board.ids
    for claim in ledger.load().values():
        cell = f"notebooks/{claim.notebook}.html#claim-{re.sub('[._]', '-', claim.id.lower())}"
        assert cell in board.links


def test_a_claim_leads_to_the_cell_that_files_it(site):
    text = site.pages["notebooks/08_small_batch_variance.html"].text
    after = text.split('id="claim-lee2025-table1-trend"')[1]
    code = re.sub(r"<[^>]+>", "", after.split("</pre>")[0])
    assert "lee2025.table1.trend" in code
    assert "ledger.check" in code


def test_functions_in_the_table_of_losses_lead_to_their_entries(site):
    links = set(site.pages["course/losses.html"].links)
    names = [name for name in losses.__all__ if callable(getattr(losses, name)) and name != "unchecked"]
    missing = {f"../api/losses.html#companion.losses.{name}" for name in names} - links
    assert not missing
    assert any(link.endswith("#companion.losses.families.info_nce_family") for link in links)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_that_only_draws_or_words_is_closed_at_first_and_no_other(site, path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    taught = [c for c in cells if not {"exercise", "check"} & set(c.metadata.get("tags", []))]
    draws = [c for c in taught if re.search(r"figures\.(show|say|movable|panels)\(", c.source)]
    closed = [c for c in draws if not re.search(r"(\bcheck|\btraining\.\w+|\bruns|\brecorded)\(", c.source)]
    assert site.pages[f"notebooks/{path.stem}.html"].text.count("Show this code") == len(closed) < len(taught)


def test_only_exercises_offer_a_solution_to_show(site):
    for path in NOTEBOOKS:
        tags = [cell.metadata.get("tags", []) for cell in nbformat.read(path, as_version=4).cells]
        shown = site.pages[f"notebooks/{path.stem}.html"].text.count("Show a solution")
        assert shown == sum("exercise" in found for found in tags)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_losses_in_code_lead_to_their_pages(site, path):
    used = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            used |= {
                node.func.attr for node in ast.walk(ast.parse(re.sub(r"^[%!].*", "", cell.source, flags=re.M)))
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("losses.")
                and node.func.attr in losses.__all__ and isinstance(node.func.value, ast.Name)
            }  # fmt: skip
    links = site.pages[f"notebooks/{path.stem}.html"].links
    assert not {name for name in used if f"../api/losses.html#companion.losses.{name}" not in links}


def test_without_a_repository_there_are_no_launch_buttons(site):
    for page in site.pages.values():
        assert not [url for url in page.links if "mybinder" in url or "colab.research" in url]


# ---- every page, visited ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def visits(site, chromium):
    """What the browser says of each page from file://, in a wide and in a narrow window, in light and in dark.

    Pages of source code are alike but for the code: a few of them stand for all.
    """
    import axe_playwright_python

    script = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    context = chromium.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion="reduce"
    )
    page, asked, errors, found = context.new_page(), [], [], {}
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    code = [name for name in site.pages if name.startswith("_modules/")]
    for name in [*(name for name in site.pages if name not in code), *code[::20]]:
        asked.clear(), errors.clear()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        page.goto(site.uri(name), wait_until="load")
        page.evaluate("document.fonts.ready")
        found[name] = {"broken": page.evaluate(BROKEN)}
        page.set_viewport_size({"width": 390, "height": 844})
        found[name]["wide"] = page.evaluate(WIDE)
        page.set_viewport_size({"width": 1280, "height": 900})
        page.add_style_tag(content="* { transition: none !important; }")
        page.evaluate(PRUNE), page.evaluate(script)
        found[name] |= {"light": page.evaluate(AXE, [RULES, []])}
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        page.evaluate("document.documentElement.dataset.theme = 'dark'")  # as the theme's button does
        found[name]["dark"] = page.evaluate(AXE, [RULES, ["color-contrast", "link-in-text-block"]])
        found[name]["foreign"] = [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
        found[name]["errors"] = list(errors)
    context.close()
    return found


@pytest.mark.parametrize("what", ["foreign", "errors", "broken", "light", "dark"])
def test_no_page_has_faults(visits, what):
    """Requests to elsewhere; errors of scripts; images that do not load; violations that axe finds."""
    faults = {name: found[what] for name, found in visits.items() if found[what]}
    assert not faults, "\n".join(f"{name}: {texts[:3]}" for name, texts in faults.items())


def test_no_page_scrolls_sideways_on_a_phone(visits):
    assert not [name for name, found in visits.items() if found["wide"]]


# ---- by hand ------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(chromium):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


@pytest.mark.parametrize(
    ("words", "expected"), [("nt_xent", "api/losses.html"), ("variance", "notebooks/08_small_batch")]
)
def test_search_finds(served, page, words, expected):
    page.goto(f"{served}/search.html?q={words}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_function(
        "document.querySelector('#search-results .search-summary, #search-results p.search-summary')", timeout=10_000
    )
    links = page.eval_on_selector_all("#search-results li a", "links => links.map(a => a.getAttribute('href'))")
    assert any(expected in link for link in links), links[:10]


def test_sliders_move_by_arrow_keys_and_one_frame_is_shown(site, page):
    page.goto(site.uri("notebooks/99_small.html"))
    box = page.locator(".frames")
    frames, sliders = box.locator("img.frame:visible"), box.locator("input[type=range]")

    def shown():
        assert frames.count() == 1
        return frames.get_attribute("alt")

    assert shown() == "triplet at margin 0.5"
    sliders.nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert shown() == "triplet at margin 1.0"
    assert sliders.nth(1).get_attribute("aria-valuetext") == "1"
    sliders.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert shown() == "lifted at margin 1.0"
    assert sliders.nth(0).get_attribute("aria-valuetext") == "lifted"
    assert box.get_by_label("margin").count() == 1


def test_the_new_picture_of_a_slider_is_announced(site, page):
    page.goto(site.uri("notebooks/99_small.html"))
    said = page.locator(".frames [aria-live=polite]")
    assert said.text_content() == ""  # nothing has moved yet
    page.locator(".frames input[type=range]").nth(1).focus()
    page.keyboard.press("ArrowRight")
    assert said.text_content() == "triplet at margin 1.0"
    assert said.bounding_box()["width"] <= 1


@pytest.mark.parametrize("width", [390, 1100, 1280, 1440])
def test_the_contents_open_in_a_dialog_where_there_is_no_room_for_them_beside_the_text(site, page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(site.uri("notebooks/09_auxiliary_loss.html"))
    dialog, heading = page.locator("dialog.bd-sidebar-secondary"), page.locator("h2").last.inner_text().split("\n")[0]
    for leave in ("Escape", "link"):
        page.locator(".bd-header-article .secondary-toggle").click()
        page.wait_for_timeout(400)
        box = dialog.bounding_box()
        assert box["width"] > 150
        assert box["x"] + box["width"] <= width
        link = dialog.get_by_role("link", name=heading.rstrip("#"), exact=True)
        assert link.count() == 1
        page.keyboard.press("Escape") if leave == "Escape" else link.click()
        page.wait_for_timeout(400)
        assert not dialog.is_visible()
    assert page.evaluate("scrollY") > 1000
    page.locator("article p a").first.focus()  # nothing of the page is inert
    assert page.evaluate("document.activeElement.closest('article') !== null")


@pytest.mark.parametrize(("width", "expected"), [(390, 3), (1100, 1)])  # pages, search and contents; contents
def test_every_dialog_that_a_button_of_the_header_opens_is_seen_and_closes(site, page, width, expected):
    page.set_viewport_size({"width": width, "height": 844})
    page.goto(site.uri("notebooks/09_auxiliary_loss.html"))
    opened = 0
    buttons = [b for b in page.query_selector_all(".bd-header-article button") if b.is_visible()]
    for button in buttons:
        button.click()
        page.wait_for_timeout(400)
        if page.locator("dialog[open]").count():
            opened += 1
            assert page.locator("dialog[open]").is_visible(), button.get_attribute("class")
        page.keyboard.press("Escape")
        page.wait_for_timeout(400)
        assert not page.locator("dialog[open]").count(), button.get_attribute("class")
    assert opened == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_follows_the_scheme_that_the_reader_prefers(site, chromium, scheme):
    context = chromium.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(site.uri("index.html"))
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    context.close()


def test_without_scripts_the_first_picture_is_shown_and_no_slider(site, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(site.uri("notebooks/99_small.html"))
    assert page.locator(".frames img.frame:visible").count() == 1
    assert page.locator(".frames input:visible").count() == 0
    context.close()


def test_without_scripts_too_a_phone_names_the_columns_of_the_scoreboard(site, chromium):
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(site.uri("scoreboard.html"))
    heads = page.locator(".scoreboard thead th").all_text_contents()
    label = "cells => cells.map(cell => [cell.dataset.label, getComputedStyle(cell, '::before').content])"
    for row in (1, 100):
        found = page.locator(f".scoreboard tbody tr:nth-child({row}) td").evaluate_all(label)
        assert found == [[head, f'"{head}"'] for head in heads[1:]]
    context.close()


def test_solutions_are_closed_and_enter_opens_them(site, page):
    page.goto(site.uri("notebooks/99_small.html"))
    boxes = page.locator("article details").filter(has_not_text="Show this code")
    assert boxes.count() == 2
    for number, words in enumerate(("return a + b", "Because")):
        box = boxes.nth(number)
        assert box.get_attribute("open") is None
        assert not box.get_by_text(words).first.is_visible()
        box.locator("summary").focus()
        page.keyboard.press("Enter")
        assert box.get_by_text(words).first.is_visible()
    for path in NOTEBOOKS:
        assert not re.search(r"<details[^>]* open", site.pages[f"notebooks/{path.stem}.html"].text.split("<article")[1])


def test_animations_can_be_paused_and_rest_for_who_wants_less_motion(site, chromium):
    name = "notebooks/08_small_batch_variance.html"
    for motion, first, then in (("no-preference", "Pause", "Play"), ("reduce", "Play", "Pause")):
        context = chromium.new_context(reduced_motion=motion)
        page = context.new_page()
        page.goto(site.uri(name))
        button = page.locator("article button.animation-control").first
        assert button.inner_text() == f"{first} the animation"
        assert page.locator('article img[src$=".gif"]').first.is_visible() == (first == "Pause")
        button.focus()
        page.keyboard.press("Enter")
        assert button.inner_text() == f"{then} the animation"
        assert page.locator("article canvas").first.is_visible() == (then == "Play")
        context.close()


def test_the_scoreboard_sorts_and_filters_by_keyboard(site, page):
    page.goto(site.uri("scoreboard.html"))
    names = "rows => rows.filter(row => !row.hidden).map(row => row.id)"
    before = page.eval_on_selector_all(".scoreboard tbody tr", names)
    assert len(before) == len(ledger.load())
    page.locator(".scoreboard thead button", has_text="n").last.focus()
    button = page.locator(".scoreboard thead th", has_text=re.compile("^n$")).locator("button")
    for order in ("ascending", "descending"):
        button.focus()
        page.keyboard.press("Enter")
        assert page.locator(f'.scoreboard th[aria-sort="{order}"]').inner_text() == "n"
        numbers = page.eval_on_selector_all(".scoreboard tbody tr", "rows => rows.map(row => row.cells[5].textContent)")
        filled = [int(number) for number in numbers if number]
        assert filled == sorted(filled, reverse=order == "descending")
        assert numbers == [str(number) for number in filled] + [""] * (len(numbers) - len(filled))
    page.locator(".scoreboard-filter select").select_option("not reproduced")
    some = page.eval_on_selector_all(".scoreboard tbody tr", names)
    assert 0 < len(some) < len(before)
    page.locator(".scoreboard-filter select").select_option("")
    words = page.get_by_label("Words")
    words.press_sequentially("queue variance")  # in any order, anywhere in the row
    some = page.eval_on_selector_all(".scoreboard tbody tr", names)
    assert "companion.queue.variance" in some
    assert len(some) < len(before)
    words.fill("variance  queue ")
    assert page.eval_on_selector_all(".scoreboard tbody tr", names) == some
    page.goto(site.uri("scoreboard.html") + "#lee2025.table1.trend")
    assert page.locator("tr:target").get_attribute("id") == "lee2025.table1.trend"


def test_who_comes_back_to_the_scoreboard_finds_it_filtered(served, page):
    page.goto(f"{served}/scoreboard.html")
    page.get_by_label("Words").press_sequentially("queue")
    shown = page.locator(".scoreboard tbody tr:visible").count()
    page.goto(f"{served}/index.html")
    page.go_back()
    page.wait_for_function("document.querySelector('.scoreboard-filter input').value === 'queue'")
    page.wait_for_timeout(100)
    assert 0 < shown < len(ledger.load())
    assert page.locator(".scoreboard tbody tr:visible").count() == shown
    assert page.get_by_role("status").inner_text().startswith(f"{shown} of ")


def test_a_verdict_is_seen_beside_its_claim_without_scrolling(site, page):
    page.goto(site.uri("notebooks/10_simclr_moco.html"))
    table = page.locator(".output.text_html table.claims").last
    assert table.locator("thead tr").first.locator("th, td").all_inner_texts()[1] == "verdict"
    right = table.locator("tbody td").first.bounding_box()
    box = page.locator(".output.text_html").last.bounding_box()
    assert right["x"] + right["width"] <= box["x"] + box["width"]
    for name in table.locator("tbody th").all_inner_texts():
        for line in name.split("\n")[:-1]:
            assert line.endswith((".", "_")), name


def test_a_claim_and_its_verdict_are_seen_together_in_every_window(site, page):
    for width, height in ((360, 740), (640, 450), (1280, 900)):
        page.set_viewport_size({"width": width, "height": height})
        page.goto(site.uri("scoreboard.html"))
        for number in (0, 60):
            row = page.locator(".scoreboard tbody tr").nth(number)
            row.scroll_into_view_if_needed()
            claim, verdict = (row.locator(part).bounding_box() for part in ("th a", ".verdict"))
            assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in (claim, verdict)), width
            assert abs(verdict["y"] - claim["y"]) < 0.7 * height, width
        assert page.get_by_role("row").count() == len(ledger.load()) + 1
        label = row.locator("td").nth(2).evaluate("cell => getComputedStyle(cell, '::before').content")
        assert label == ('"verdict"' if width < 700 else "none")


def test_the_heads_of_the_scoreboard_stay_in_sight_and_do_not_cover_what_a_link_leads_to(site, page):
    page.goto(site.uri("scoreboard.html") + "#lee2025.table1.trend")
    page.wait_for_timeout(200)
    head, row = page.locator(".scoreboard thead th").first.bounding_box(), page.locator("tr:target").bounding_box()
    assert 0 <= head["y"] < head["y"] + head["height"] <= row["y"] + 1
    assert row["y"] + row["height"] <= 900


def test_formulas_are_seen_from_their_beginning(site, page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(site.uri("notebooks/09_auxiliary_loss.html"))
    left = "getBoundingClientRect().left"
    starts = f"boxes => boxes.map(box => box.firstElementChild.{left} - box.{left})"
    found = page.eval_on_selector_all("div.math", starts)
    assert found
    assert min(found) >= 0


def test_what_goes_on_beyond_an_edge_fades_there_and_a_figure_with_sliders_is_seen_as_a_whole(site, page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(site.uri("notebooks/08_small_batch_variance.html"))
    box = page.locator(".picture:not(.frames .picture)").first
    faded = lambda: [name in box.get_attribute("class") for name in ("more-left", "more-right")]  # noqa: E731
    mask = "box => getComputedStyle(box).maskImage"
    box.scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    assert faded() == [False, True]
    assert "gradient" in box.evaluate(mask)
    box.evaluate("box => { box.scrollLeft = box.scrollWidth }")
    page.wait_for_timeout(200)
    assert faded() == [True, False]
    assert page.locator(".frames .picture").first.evaluate("box => box.scrollWidth <= box.clientWidth")


def test_short_tables_of_the_text_fit_a_phone_and_break_no_name(site, page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(site.uri("course/instructor.html"))
    narrow = page.locator(".pst-scrollable-table-container:not(:has(th:nth-child(4)))")
    assert narrow.count()
    assert narrow.first.evaluate("box => box.scrollWidth <= box.clientWidth")
    torn = """codes => codes.filter(code => !/[\\s/-]/.test(code.textContent) && code.getClientRects().length > 1)
      .map(code => code.textContent)"""
    for name in ("course/instructor.html", "course/losses.html", "course/rerun.html"):
        page.goto(site.uri(name))
        assert not page.eval_on_selector_all(".pst-scrollable-table-container code", torn), name


def test_wide_figures_keep_a_legible_size_on_a_phone(site, page):
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("index.html", "notebooks/08_small_batch_variance.html"):
        page.goto(site.uri(name))
        sizes = "boxes => boxes.map(b => [b.querySelector('img, canvas').parentElement.scrollWidth, b.tabIndex])"
        found = page.eval_on_selector_all(".picture:not(.frames .picture)", sizes)
        assert found
        assert all(width >= 600 and index == 0 for width, index in found), found


def test_what_scrolls_sideways_is_reached_by_keyboard(site, page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(site.uri("notebooks/08_small_batch_variance.html"))
    unreached = page.evaluate("""[...document.querySelectorAll("article *")].filter(e =>
      e.scrollWidth > e.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.tabIndex < 0
      && !e.querySelector("a, button, input, [tabindex='0']")).map(e => e.outerHTML.slice(0, 120))""")
    assert not unreached


def test_what_scrolls_has_a_name_as_long_as_it_does(site, page):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(site.uri("notebooks/08_small_batch_variance.html"))
    unnamed = """[...document.querySelectorAll("article [tabindex='0']")]
      .filter(box => !box.role || !box.ariaLabel).map(box => box.outerHTML.slice(0, 120))"""
    page.wait_for_timeout(500)
    assert not page.evaluate(unnamed)
    assert page.locator("div.math[role=group]").first.get_attribute("aria-label") == "Formula, scrolls sideways"
    page.set_viewport_size({"width": 1600, "height": 900})
    page.wait_for_timeout(500)
    assert page.locator("div.math[role], div.math[aria-label]").count() == 0


# ---- on paper -----------------------------------------------------------------------------------------------------


def printed(site, page, name):
    """The page as it is laid out on A4, with margins of 12 mm."""
    page.set_viewport_size({"width": 703, "height": 1000})
    page.emulate_media(media="print")
    page.goto(site.uri(name))
    page.evaluate("document.fonts.ready")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_table_is_cut_off_on_paper(site, page, path):
    printed(site, page, f"notebooks/{path.stem}.html")
    widths = "tables => tables.map(table => [table.className, table.getBoundingClientRect().right])"
    assert not [x for x in page.eval_on_selector_all("article table", widths) if x[1] > 703]
    claims = page.locator("table.claims").last
    if claims.count():
        heads = set(claims.locator("thead :is(th, td):visible").all_inner_texts())
        assert {"claim", "verdict", "statement", "accepted", "here"} <= heads
        assert not {"kind", "source", "prediction", "holm"} & heads


def test_no_picture_is_longer_than_a_page(site, page):
    printed(site, page, "notebooks/14_scoreboard.html")
    heights = "images => images.map(image => image.getBoundingClientRect().height)"
    found = page.eval_on_selector_all(".picture img", heights)
    assert len(found) > 10
    assert max(found) < 1000


def test_a_page_in_the_dark_is_printed_in_the_colours_of_the_light(site, chromium):
    context = chromium.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(site.uri("index.html"))
    page.evaluate("addEventListener('beforeprint', () => (window.then = document.documentElement.dataset.theme))")
    page.pdf()
    assert page.evaluate("[window.then, document.documentElement.dataset.theme]") == ["light", "dark"]
    context.close()


def test_pages_break_between_rows_and_not_through_code_and_repeat_a_head_that_can_be_read(site, page):
    broken = "part => getComputedStyle(part).breakInside"
    printed(site, page, "notebooks/08_small_batch_variance.html")
    assert page.locator(".cell_input").first.evaluate(broken) == "avoid"
    printed(site, page, "scoreboard.html")
    assert page.locator(".scoreboard table").evaluate(broken) == "auto"
    assert page.locator(".scoreboard tbody tr").first.evaluate(broken) == "avoid"
    assert not page.locator(".scoreboard thead button:visible").count()
    names = "heads => heads.map(head => getComputedStyle(head, '::before').content)"
    assert page.eval_on_selector_all(".scoreboard thead th", names)[:2] == ['"claim"', '"source"']
