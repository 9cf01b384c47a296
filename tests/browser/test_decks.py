"""The slides of all notebooks in a real browser: nothing is cut off, too small, missing, or asked of a network."""

import base64
import html
import re

import nbformat
import pytest

from companion import paths

pytest.importorskip("sphinx_revealjs", reason="the extra `book` is not installed")
from companion.course import controls, pieces, slides

pytestmark = pytest.mark.browser

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
LEAST = 20  # units of the 800 that a slide is high: the smallest type, in the widest tables
MEASURE = """() => {
  const style = document.createElement("style");  // all slides at once, at the size of the stage
  style.textContent = `.reveal .slides section, .reveal .slides section[hidden]
    { display: block !important; transform: none !important; visibility: visible !important }`;
  document.head.append(style);
  return [...document.querySelectorAll(".slide")].map((slide, i) => {
    const stage = slide.getBoundingClientRect(), cut = [];
    let least = 99;
    for (const e of slide.querySelectorAll("*")) {
      if (e.closest("math") && e.localName !== "math") continue;
      const box = e.getBoundingClientRect(), name = `${e.localName}: ${e.textContent.slice(0, 40)}`;
      if (box.width && (box.right > stage.right + 1 || box.bottom > stage.bottom + 1)) cut.push(name);
      if (e.matches(".formula, pre, td, th, p") && e.scrollWidth > e.clientWidth + 1) cut.push(`inside ${name}`);
      if ([...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
        least = Math.min(least, parseFloat(getComputedStyle(e).fontSize));
    }
    if (slide.scrollHeight > slide.clientHeight + 1 || slide.scrollWidth > slide.clientWidth + 1) cut.push("the slide");
    const image = slide.querySelector("img:not(.frame), img.frame.shown");
    return {
      slide: i + 1, title: slide.firstElementChild.textContent, kind: slide.className, cut, least,
      size: [stage.width, stage.height],
      image: image && { alt: image.alt, width: image.naturalWidth, kind: image.src.slice(5, 14),
        scale: Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight) },
    };
  });
}"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    slides.build(NOTEBOOKS, folder)
    return folder


@pytest.fixture(scope="module")
def seen(out, chromium):
    """Of each deck, its slides as measured, what it asked for, and what went wrong."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page, found = context.new_page(), {}
    for path in sorted(out.glob("*.html")):
        asked, wrong = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda line, wrong=wrong: wrong.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error, wrong=wrong: wrong.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        found[path.stem] = {"slides": page.evaluate(MEASURE), "asked": asked, "wrong": wrong}
    context.close()
    return found


def named(seen, condition):
    return [f"{name}, slide {x['slide']} ({x['title']}): {x['cut']} {x['least']} {x['image']}"
            for name, deck in seen.items() for x in deck["slides"] if condition(x)]  # fmt: skip


def test_every_notebook_has_its_deck(seen):
    assert list(seen) == [path.stem for path in NOTEBOOKS]
    assert all(len(deck["slides"]) >= 8 for deck in seen.values())
    assert not named(seen, lambda x: x["size"] != [1280, 800])


def test_no_deck_asks_for_anything_of_another_place(seen, out):
    for name, deck in seen.items():
        strange = [url[:80] for url in deck["asked"] if not url.startswith((out.as_uri(), "data:", "blob:"))]
        assert not strange, f"{name}: {strange}"
        assert not deck["wrong"], f"{name}: {deck['wrong']}"


def test_nothing_is_cut_off(seen):
    assert not named(seen, lambda x: x["cut"])


def test_type_is_large_enough_for_the_last_row(seen):
    assert not named(seen, lambda x: x["least"] < (LEAST if "table" in x["kind"] else 22))


def test_figures_are_shown_at_least_about_as_large_as_in_the_notebook_and_with_their_texts(seen):
    images = [x for deck in seen.values() for x in deck["slides"] if x["image"]]
    assert len(images) > 60
    small = {x["title"]: x["image"] for x in images if x["image"]["kind"] == "image/png" and x["image"]["scale"] < 0.85}
    assert not small
    assert not [x for x in images if not x["image"]["width"] or len(x["image"]["alt"].split()) < 8]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_deck_holds_every_figure_and_no_solution(path, out):
    text = (out / f"{path.stem}.html").read_text()
    notebook = nbformat.read(path, as_version=4)
    exercises = False
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            assert slides.FOLDED.search(cell.source)
            for paragraph in cell.source.split("\n\n")[1:-1]:
                assert pieces.markdown(paragraph).strip() not in text
        exercises = exercises or (cell.cell_type == "markdown" and cell.source.startswith("## Exercises"))
        if "exercise" in tags:
            solution = cell.source.partition("### BEGIN SOLUTION")[2].partition("### END SOLUTION")[0]
            telling = max((line.strip() for line in solution.splitlines()), key=len)
            assert telling not in text
            assert html.escape(telling) not in text
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get("image/png")
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            strips = pieces.strips(base64.b64decode(data), alt, slides.ROWS) if data else []
            if data and exercises:  # it shows what comes out
                assert f"base64,{data.strip()}" not in text
            elif strips:
                assert all(f"base64,{base64.b64encode(strip).decode()}" in text for strip, _ in strips)
            elif data and len(pieces.cut(base64.b64decode(data))) == 1:
                assert f"base64,{data.strip()}" in text
            for frame in output.get("data", {}).get(controls.MIME, {}).get("frames", []):
                assert f"base64,{frame.strip()}" in text
    assert "BEGIN SOLUTION" not in text
    assert not re.search(r"\$\$|<merror|\\frac|\\sum", text)


def test_a_forest_plot_has_eight_rows_a_slide_at_most_with_their_words_and_nothing_stands_alone(seen):
    deck = seen["14_scoreboard"]["slides"]
    parts = [x["image"]["alt"] for x in deck if x["image"] and "(part " in x["image"]["alt"]]
    assert len(parts) > 10
    assert all(alt.startswith("One row for each of") and alt.count("; ") < slides.ROWS for alt in parts)
    assert len({alt.split(". ", 1)[1] for alt in parts}) == len(parts)


def test_a_slide_that_is_too_full_is_found(out, chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto(next(iter(sorted(out.glob("*.html")))).as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    page.evaluate("document.querySelectorAll('.slide')[1].insertAdjacentHTML('beforeend', '<p>x<br>'.repeat(60))")
    page.evaluate(
        "document.querySelectorAll('.slide')[2].insertAdjacentHTML('beforeend', `<pre>${'x'.repeat(200)}</pre>`)"
    )
    measured = page.evaluate(MEASURE)
    assert [bool(x["cut"]) for x in measured[:3]] == [False, True, True]
    page.close()


def test_keys_lead_through_the_deck_and_the_notes_are_there(out, chromium):
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto((out / f"{NOTEBOOKS[-1].stem}.html").as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    shown = {page.evaluate("Reveal.getCurrentSlide().innerText")}
    page.keyboard.press("ArrowRight")
    shown.add(page.evaluate("Reveal.getCurrentSlide().innerText"))
    assert page.evaluate("Reveal.getSlideNotes().length") > 100
    for _ in range(page.evaluate("Reveal.getTotalSlides()") - 2):
        page.keyboard.press("Space")
    assert page.evaluate("Reveal.isLastSlide() && Reveal.isLastVerticalSlide()")
    assert len(shown) == 2
    page.close()


def test_an_animation_rests_where_less_motion_is_asked_for_and_plays_at_the_press_of_a_button(out, chromium):
    name = next(path for path in sorted(out.glob("*.html")) if '<img src="data:image/gif' in path.read_text())
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page = context.new_page()
    page.goto(name.as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady() && document.querySelector('.figure button')?.textContent")
    image, button = page.locator('img[src^="data:image/gif"]').first, page.locator(".figure button").first
    assert (image.evaluate("e => e.hidden"), button.inner_text()) == (True, "Play")
    assert page.locator(".figure canvas").first.get_attribute("aria-label") == image.get_attribute("alt")
    button.evaluate("e => e.click()")
    assert (image.evaluate("e => e.hidden"), button.text_content()) == (False, "Pause")
    context.close()


def test_a_slider_turns_the_figure_and_leaves_the_keys_to_the_deck(out, chromium):
    name = next(path for path in sorted(out.glob("*.html")) if 'class="turns"' in path.read_text())
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.goto(name.as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    page.evaluate(
        """() => { const at = Reveal.getIndices(document.querySelector(".turns").closest("section"));
        Reveal.slide(at.h, at.v) }"""
    )
    slider, shown = page.locator(".present .turns input").first, page.locator(".present .frame.shown")
    values = slider.evaluate("e => JSON.parse(e.dataset.values)")
    start, before = int(slider.input_value()), shown.get_attribute("alt")
    here = page.evaluate("JSON.stringify(Reveal.getIndices())")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("JSON.stringify(Reveal.getIndices())") == here
    assert slider.get_attribute("aria-valuetext") == values[start + 1]
    assert page.locator(".present .turns .value").first.text_content() == values[start + 1]
    assert shown.count() == 1
    assert shown.get_attribute("alt") != before
    slider.click()
    page.keyboard.press("Space")
    assert page.evaluate("JSON.stringify(Reveal.getIndices())") != here
    page.close()
