"""The rules by which a notebook becomes slides, on small notebooks made up for it."""

import base64
import io
import re

import nbformat
import numpy as np
import PIL.Image
import pytest
from nbformat import v4

from companion import paths
from companion.errors import CompanionError

pytest.importorskip("sphinx_revealjs", reason="the extra `book` is not installed")
from companion.course import controls, pieces, slides

HEAD = "<thead><tr><th></th><th>a</th></tr></thead>"


def png(width=90, height=30, blank=()):
    """Noise, with white bands at the rows of ``blank``."""
    pixels = np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)
    pixels[:1] = 255
    for row in blank:
        pixels[row : row + 6] = 255
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def shows(*outputs, source="figures.show(figure)", tags=()):
    return v4.new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def figure(data=None, alt="A figure of which this is the text", **more):
    encoded = base64.b64encode(data or png()).decode()
    return v4.new_output("display_data", {"image/png": encoded} | more, metadata={"image/png": {"alt": alt}})


def deck(*cells, decks=()):
    made = [v4.new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    made.insert(0, v4.new_markdown_cell("# 01 · Small\n\n**What you will learn.** Much.\n\n**Minutes.** `cpu` 1."))
    return pieces.finished(slides.deck_of(v4.new_notebook(cells=made), paths.ROOT, set(decks)).stacks)[1:]


def test_a_heading_is_a_slide_with_its_first_sentence_and_its_formulas_and_the_prose_is_in_the_notes():
    text = "## The idea\n\nFirst of all. Then more.\n\nWith $n$ of them,\n\n$$ a = \\frac bc . $$\n\nThe end."
    ((slide,),) = deck(text)
    shown = "".join(slide.blocks)
    assert slide.title == "The idea"
    assert "First of all. Then more." in shown  # a very short sentence is shown with the next
    assert "The end" not in shown
    assert "The end" in "".join(slide.notes)
    assert shown.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 1
    assert shown.index("of them,") < shown.index('display="block"')


def test_a_figure_is_a_slide_below_with_what_we_see_and_its_text():
    see = "**What we see.** It falls, and this sentence is longer than a few words. It rises."
    ((heading, below),) = deck("## The idea\n\nA sentence that says what all of this is about.", shows(figure()), see)
    assert heading.blocks
    assert below.kind == "figure"
    assert 'alt="A figure of which this is the text"' in below.blocks[0]
    assert "It falls" in below.blocks[1]
    assert "It rises" not in below.blocks[1]
    assert "It rises" in "".join(below.notes)


def test_a_figure_with_controls_has_a_slider_for_each_and_all_its_pictures():
    given = [{"name": "size", "values": [1, 2], "start": 1}, {"name": "<kind>", "values": ["a", "b"], "start": 0}]
    content = {"format": "png", "frames": list("wxyz"), "alts": list("1234"), "start": 2, "controls": given}
    ((_, below),) = deck(
        "## The idea\n\nA sentence that says what it is about.", shows(figure(**{controls.MIME: content}))
    )
    assert below.kind == "figure"
    (made,) = below.blocks
    assert re.findall(r'class="frame( shown)?" alt="(.)" src="data:image/png;base64,(.)"', made) == [
        ("", "1", "w"), ("", "2", "x"), (" shown", "3", "y"), ("", "4", "z"),
    ]  # fmt: skip
    assert re.findall(r'max="(\d)" value="(\d)" aria-valuetext="(.)"', made) == [("1", "1", "2"), ("1", "0", "a")]
    assert "&lt;kind&gt;" in made


def small_table(rows=3):
    body = "".join(f"<tr><th>{k}</th><td>{k}</td></tr>" for k in range(rows))
    return shows(v4.new_output("display_data", {"text/html": f"<table>{HEAD}<tbody>{body}</tbody></table>"}))


def test_a_table_stands_below_the_sentence_before_it():
    ((_, below),) = deck("## The idea\n\nA sentence that says what it is about.\n\nMore. Side by side:", small_table())
    assert below.kind == "table"
    assert "Side by side:" in below.blocks[0]
    assert "More" not in below.blocks[0]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("A picture.", "Nothing.", 0),
        ("A picture.", "**What we see.** In the table two columns are alike, and one is not.", 1),
        ("**Predict, then run.** Which of the two will be the larger one?", "Nothing.", 1),
    ],
)
def test_a_table_without_a_sentence_is_left_to_the_notebook(before, after, expected):
    drawn = [shows(figure())] if before == "A picture." else []  # the sentence led to the picture
    (slides_,) = deck("## The idea\n\nA sentence that says what it is about.", before, *drawn, small_table(), after)
    assert sum(slide.kind == "table" for slide in slides_) == expected
    assert sum("the notebook has a table" in note for slide in slides_ for note in slide.notes) == 1 - expected


def test_a_table_of_the_text_that_its_first_sentence_announces_is_shown():
    table = "| source | its part |\n|---|---|\n| one | the first |\n| two | the second |"
    ((slide,),) = deck(f"## The idea\n\nTwo sources tell one story about similarities:\n\n{table}\n\nMore.")
    assert "tell one story" in slide.blocks[0]
    assert slide.blocks[1].count("<tr>") == 3
    assert "More" not in "".join(slide.blocks)


@pytest.mark.parametrize(("rows", "kept"), [(3, True), (300, False)])
def test_a_sentence_that_announces_what_is_left_to_the_notebook_is_left_there_too(rows, kept):
    body = "<tr><th>x</th><td>1</td></tr>" * rows
    table = shows(v4.new_output("display_data", {"text/html": f"<table>{HEAD}<tbody>{body}</tbody></table>"}))
    (stack,) = deck("## The idea\n\nFive sources tell one story about similarities, and here they are:", table)
    shown = "".join(block for slide in stack for block in slide.blocks)
    assert ("here they are" in shown) == kept == ("<table>" in shown)
    assert "here they are" in "".join(stack[0].notes)


@pytest.mark.parametrize(("before", "kept"), [("The two, side by side:", True), ("The ledger takes the first.", False)])
def test_above_a_table_of_which_we_say_what_we_see_only_an_announcement_stays(before, kept):
    see = "**What we see.** It falls, and this sentence is longer than a few words."
    ((_, below),) = deck(f"## The idea\n\nA sentence that says what it is about.\n\n{before}", small_table(), see)
    assert (before in below.blocks[0]) == kept
    assert "It falls" in below.blocks[-1]


def test_a_sentence_before_a_formula_may_lean_on_the_text_of_another_cell():
    first = "## The idea\n\nA sentence that says what it is about.\n\nOne is random, one is"
    ((idea,),) = deck(
        first, shows(source="x = 1"), "then trained, and both are\n\n$$ a = b . $$\n\nSo it goes on:\n\n$$ c $$"
    )
    shown = "".join(idea.blocks)
    assert "One is random, one is then trained, and both are" in shown
    assert shown.count("both are") == 1  # a formula ends what the next one can lean on


def test_a_list_right_below_the_one_sentence_of_what_we_see_is_shown_with_it():
    see = "**What we see.** Read it one by one.\n\n- The first.\n- The second."
    ((_, below, listed),) = deck("## The idea\n\nA sentence that says what all of this is about.", shows(figure()), see)
    assert len(below.blocks) == 1
    assert "".join(listed.blocks).count("<li>") == 2


def test_a_prediction_stands_before_the_figure_that_answers_it():
    ((_, asked, below),) = deck(
        "## The idea\n\nA sentence that says what it is about.",
        "**Predict, then run.** Up or down, and why?",
        shows(figure()),
    )
    assert (asked.kind, asked.title, below.kind) == ("predict", "Predict, then run", "figure")
    assert "Up or down" in asked.blocks[0]


def test_an_exercise_is_a_slide_with_its_task_and_no_solution():
    stack = deck(
        "## Exercises",
        "### Exercise 1: twice\n\nWrite `twice(x)`.\n\n$$ 2x $$",
        shows(source="### BEGIN SOLUTION\nreturn 2 * x\n### END SOLUTION", tags=["exercise"]),
        shows(v4.new_output("stream", text="Exercise 1: correct.\n"), source="assert twice(2) == 4", tags=["check"]),
        "### Reading questions\n\n1. Why?\n2. How?",
        v4.new_markdown_cell(
            "<details><summary>Solutions</summary>\n\n1. So.\n\n</details>", metadata={"tags": ["solution"]}
        ),
    )
    ((task, questions),) = stack
    assert task.title == "Exercise 1: twice"
    assert "<code>twice(x)</code>" in "".join(task.blocks)
    whole = "".join(block for slide in (task, questions) for block in (*slide.blocks, *slide.notes))
    assert "So." not in whole
    assert "2 * x" not in whole
    assert "assert" not in whole
    assert whole.count("<li>") == 2


def test_long_texts_go_on_below():
    items = "\n".join(f"{k}. " + "A question that takes a line or two of the slide. " * 3 for k in range(1, 9))
    ((first, second, *_),) = deck("## Exercises", f"### Reading questions\n\n{items}")
    assert first.lines <= slides.LINES
    assert second.lines <= slides.LINES
    assert first.title == "Reading questions"


def test_references_are_left_out_and_verdicts_are_a_table():
    printed = "Verdicts that must come out again:\na2020.first: reproduced\nb2021.second: not reproduced\n"
    ((slide,),) = deck(
        "## The claims of this notebook", shows(v4.new_output("stream", text=printed), tags=["nbval-check-output"]),
        "## References\n\n- A book.",
    )  # fmt: skip
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", slide.blocks[0]) == [
        "a2020.first", "reproduced", "b2021.second", "not reproduced",
    ]  # fmt: skip


def test_short_code_that_prints_is_a_slide_and_plumbing_is_not():
    printed = v4.new_output("stream", text="0.5\n")
    ((_, code),) = deck(
        "## The idea\n\nA sentence that says what it is about.",
        shows(printed, source="x = 1 / 2\nprint(x)"),
        shows(printed, source="ledger.check(x)\nprint(x)"),
        shows(printed, source="for x in y:\n    print(x)"),
    )
    assert code.kind == "code"
    assert "x = 1 / 2" in code.blocks[0]


@pytest.mark.parametrize(("rows", "expected"), [(5, 1), (20, 2), (60, 0)])
def test_long_tables_are_split_and_very_long_ones_left_to_the_notebook(rows, expected):
    body = "".join(f"<tr><th>{k}</th><td>{k}</td></tr>" for k in range(rows))
    output = v4.new_output("display_data", {"text/html": f"<table>{HEAD}<tbody>{body}</tbody></table>"})
    ((heading, *below),) = deck("## The idea\n\nA sentence that says what it is about.", shows(output))
    assert len(below) == expected
    assert sum("".join(slide.blocks).count("<tr>") - 1 for slide in below) == (rows if expected else 0)
    assert ("too long for slides" in "".join(heading.notes)) == (not expected)


def test_rows_that_share_a_cell_stay_together():
    body = '<tr><th rowspan="2">a</th><td>1</td></tr><tr><td>2</td></tr><tr><th>b</th><td>3</td></tr>'
    _, _, rows, _ = pieces.rows_of(f"<table>{HEAD}<tbody>{body}</tbody></table>", 92)
    assert [row.count("<tr>") for row, _ in rows] == [2, 1]


@pytest.mark.parametrize(("columns", "lines"), [(3, 1), (5, 2), (9, 3)])
def test_cells_of_a_wide_table_take_more_lines(columns, lines):
    row = f"<tr>{'<td>0.6183 [0.5925, 0.6442]</td>' * columns}</tr>"
    head, above, rows, least = pieces.rows_of(f"<table><thead>{row}</thead><tbody>{row * 2}</tbody></table>", 92)
    assert (head, above, rows) == (row, lines, [(row, lines)] * 2)
    assert least == columns * len("[0.5925,  ")


@pytest.mark.parametrize(
    ("head", "row", "expected"),
    [
        # 30 letters in two columns that share them, as pandas groups columns
        ('<tr><td></td><th colspan="2">a group of columns, thirty long</th></tr><tr><td></td><th>x</th><th>y</th></tr>',
         "<tr><th>row</th><td>12345 67890 12345</td><td>12345 67890 12345</td></tr>", (2, 1, 5 + 7 + 7)),
        # a line of the head that is broken, and words of a row that may be broken at _, but not those of the head
        ("<tr><th>one_name</th></tr>", "<tr><td>one_word_of_the_row</td></tr>", (1, 2, 10)),
        ("<tr><th>a b c d e f g h</th></tr>", "<tr><td>1</td></tr>", (2, 1, 3)),
        ("<tr><th>&lt;&gt;&amp;</th></tr>", "<tr><td> 1 </td></tr>", (1, 1, 5)),
    ],
)  # fmt: skip
def test_lines_of_a_table_by_the_widths_of_its_columns(head, row, expected):
    line = {5 + 7 + 7: 60, 10: 14, 3: 10, 5: 9}[expected[2]]
    _, above, ((_, lines),), least = pieces.rows_of(f"<table><thead>{head}</thead><tbody>{row}</tbody></table>", line)
    assert (above, lines, least) == expected


def test_a_head_of_several_lines_leaves_room_for_fewer_rows():
    head = f"<thead><tr><th>{'name ' * 60}</th></tr></thead>"  # four lines
    output = v4.new_output(
        "display_data", {"text/html": f"<table>{head}<tbody>{'<tr><td>1</td></tr>' * 13}</tbody></table>"}
    )
    ((_, *below),) = deck(SAID, shows(output))
    assert ["".join(slide.blocks).count("<td>") for slide in below] == [9, 4]


def test_rows_beside_a_cell_that_goes_on_lie_in_the_columns_behind_it():
    first = '<tr><th rowspan="2">word word word</th><td>x</td></tr>'
    body = f"<tbody>{first}<tr><td>{'word ' * 12}</td></tr></tbody>"
    _, _, ((_, lines),), _ = pieces.rows_of(f"<table>{body}</table>", 30)
    share = (30 - 6 - 6) / (16 - 6 + 61 - 6)
    assert lines == -(-14 // (4 + share * 10)) + -(-59 // (4 + share * 55))


def test_a_figure_that_is_higher_than_wide_is_cut_where_nothing_is_drawn():
    parts = pieces.cut(png(100, 150, blank=(50, 97)))
    heights = [PIL.Image.open(io.BytesIO(part)).size[1] for part, _ in parts]
    assert sum(heights) == 150
    assert heights[:2] == [53, 47]
    assert all(ratio <= 0.62 for _, ratio in parts)
    assert len(pieces.cut(png(100, 99, blank=(50,)))) == 1
    assert len(pieces.cut(png(100, 150))) == 1  # no place to cut it


def rows_of_a_picture(count):
    """A head of red, and rows of blue shades, each with a grey line as its last."""
    pixels = np.full((12 + 10 * count, 60, 3), 255, dtype=np.uint8)
    pixels[4:10, 5:20] = [200, 0, 0]
    for row in range(count):
        top = 12 + 10 * row
        pixels[top + 2 : top + 8, 5:20] = [0, 0, 10 * row + 10]
        pixels[top + 9, 1:-1] = 230
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()


def test_a_long_plot_of_rows_goes_to_strips_each_with_the_head_and_the_words_for_its_rows():
    names = [f"row {row}: reproduced" for row in range(11)]
    alt = f"One row for each of 11 claims. {'; '.join(names)}."
    made = pieces.strips(rows_of_a_picture(11), alt, 4)
    shown = []
    for (data, words), count in zip(made, (4, 3, 4), strict=True):
        pixels = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
        assert len(pixels) == 12 + 10 * count
        assert (pixels[4:10, 5:20] == [200, 0, 0]).all()
        sentence, _, rest = words.removesuffix(".").partition(". ")
        assert sentence == "One row for each of 11 claims"
        assert rest.split("; ") == [names[shade // 10 - 1] for shade in pixels[16::10, 10, 2]]
        shown += rest.split("; ")
    assert shown == names


def test_what_is_no_long_plot_of_rows_is_not_torn_into_strips():
    alt = f"One row for each. {'; '.join('x' * 11)}."
    assert not pieces.strips(rows_of_a_picture(11), "A picture of which nothing is said by rows.", 4)
    assert not pieces.strips(rows_of_a_picture(11), alt, 11)
    assert not pieces.strips(png(100, 150, blank=(50, 97)), alt, 4)


def test_nothing_stands_above_a_slide():
    for see, shown in (("As above.", False), ("As above. Where it is narrow, nothing can be seen of it.", True)):
        ((_, *below),) = deck(SAID, shows(figure()), f"**How to read it.** {see}")
        blocks = "".join(block for slide in below for block in slide.blocks)
        assert "As above" not in blocks
        assert ('class="seen"' in blocks) == ("Where it is" in blocks) == shown


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("See Fig. 3 of Chen et al. (2020), which has been read by many. No more.",
         "See Fig. 3 of Chen et al. (2020), which has been read by many."),
        ("A value of $x. y$ and `a. b` that goes on for long enough to be one. No.",
         "A value of $x. y$ and `a. b` that goes on for long enough to be one."),
        ("It is so (and not. so) in each of the cases that were looked at here. No.",
         "It is so (and not. so) in each of the cases that were looked at here."),
        ("As above. And then a second one.", "As above. And then a second one."),
        ("No end", "No end"),
    ],
)  # fmt: skip
def test_the_first_sentence(text, first):
    assert pieces.sentence(text) == first


@pytest.mark.parametrize(
    ("text", "before", "led"),
    [
        ("One. With $p$ the share of it,", "", "With $p$ the share of it,"),
        ("One. Two is this:", "", "Two is this:"),
        ("One. Less is seen: it is cut, and", "", "Less is seen: it is cut, and"),
        ("One. Two costs. So below it the floor is", "", "Two costs. So below it the floor is"),
        ("So it is", "One. Two costs.", "Two costs. So it is"),
        ("So it is", "", "So it is"),
        ("", "One.", ""),
    ],
)
def test_the_sentence_before_a_formula_has_the_one_that_it_leans_on(text, before, led):
    assert pieces.lead(text, before) == led


def test_formulas_are_mathml_with_their_number_and_bars_as_high_as_a_letter():
    made = pieces.markdown(r"$$ \lVert u \rVert = \mathbb E x \tag{5} $$")
    assert '<span class="number">(5)</span>' in made
    assert made.count('<mo stretchy="false">&#x02016;</mo>') == 2
    assert "mathvariant" not in made
    assert "<mi>pos</mi>" in pieces.markdown("$s_{pos}$")
    assert "<mi>VRNS</mi>" in pieces.markdown(r"$L_\mathrm{VRNS}$")
    assert "<mi>i</mi><mi>j</mi>" in pieces.markdown("$a_{ij}$")  # two indices
    assert "<math" in pieces.markdown("Where $n$ is.")
    assert "$" not in pieces.markdown("Where $n$ is.")


def test_links_lead_to_decks_and_addresses_and_nowhere_else():
    text = "[a](01_x.ipynb#part), [b](02_y.ipynb), [c](https://arxiv.org/abs/1), [d](../data/README.md)"
    made = pieces.markdown(text, {"01_x.ipynb"})
    assert re.findall(r'href="([^"]*)"', made) == ["01_x.html", "https://arxiv.org/abs/1"]
    assert "b" in made


def test_a_deck_and_what_it_needs_are_written(tmp_path):
    path = tmp_path / "01_small.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# 01 · Small\n\nA sentence.")]), path)
    (written,) = slides.build([path], tmp_path / "out")
    for source in re.findall(r'(?:src|href)="([^"]+)"', written.read_text()):
        assert (tmp_path / "out" / source).is_file(), source
    assert "<title>01 · Small</title>" in written.read_text()


def test_a_notebook_without_a_heading_is_told(tmp_path):
    path = tmp_path / "01_small.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1")]), path)
    with pytest.raises(CompanionError, match=r"01_small\.ipynb has no heading"):
        slides.build([path], tmp_path / "out")


# ---- what is shown, and how much of it ----------------------------------------------------------------------------

SAID = "## The idea\n\nA sentence that says what all of this is about."


def words(*stacks):
    """All that slides and notes hold."""
    return "".join(text for stack in stacks for slide in stack for text in (slide.title, *slide.blocks, *slide.notes))


def printing(*lines, source="x = 1"):
    return shows(v4.new_output("stream", text="\n".join(lines) + "\n"), source=source)


def test_no_cell_of_a_solution_is_shown_and_no_output_among_the_exercises():
    made = deck(
        "## Exercises", "### Exercise 1: twice\n\nWrite it.\n\nNext: [more](02_more.ipynb).",
        v4.new_markdown_cell("It is 2 x.", metadata={"tags": ["solution"]}), shows(figure()), printing("0.5"),
    )  # fmt: skip
    assert "Write it" in words(*made)
    assert not re.search("It is 2 x|<img|<samp>|Next", words(*made))


def test_the_text_of_a_figure_may_hold_any_letter():
    ((_, below),) = deck(SAID, shows(figure(alt='Of "a" & <b>')))
    assert 'alt="Of &quot;a&quot; &amp; &lt;b&gt;"' in below.blocks[0]


@pytest.mark.parametrize(("parts", "shown"), [(1, 1), (4, 4), (5, 0)])
def test_a_figure_has_up_to_four_parts_each_with_its_number(monkeypatch, parts, shown):
    monkeypatch.setattr(pieces, "cut", lambda data: [(data, 0.5)] * parts)
    ((heading, *below),) = deck(SAID, shows(figure(alt="A figure")))
    found = [re.search('alt="(.*?)"', slide.blocks[0])[1] for slide in below]
    assert found == (["A figure"] if parts == 1 else [f"A figure (part {k} of {parts})" for k in range(1, shown + 1)])
    assert ("too high for slides" in words([heading])) == (not shown)


def test_a_plot_of_rows_may_have_more_strips(monkeypatch):
    monkeypatch.setattr(pieces, "strips", lambda data, alt, most: [(data, f"Strip {k}") for k in range(7)])
    ((_, *below),) = deck(SAID, shows(figure(alt="A figure")))
    assert [re.search('alt="(.*?)"', slide.blocks[0])[1] for slide in below] == [
        f"Strip {k} (part {k + 1} of 7)" for k in range(7)
    ]


def test_an_animation_and_what_the_code_says_in_words_are_shown_too():
    gif = v4.new_output("display_data", {"image/gif": base64.b64encode(b"GIF").decode()})
    said = v4.new_output("display_data", {"text/markdown": "**What we see.** It falls by 0.25 in each of the cases."})
    ((_, below),) = deck(SAID, shows(gif, said))
    assert below.blocks[0].startswith('<img src="data:image/gif;base64,R0lG"')
    assert "It falls by 0.25" in below.blocks[1]


def test_a_list_that_is_announced_is_shown_with_its_sentence():
    see = "**What we see.** There are two things that can be seen here:\n\n- one falls\n- one rises\n\nThe end."
    ((_, _, listed),) = deck(SAID, shows(figure()), see)
    shown = "".join(listed.blocks)
    assert (shown.count("<li>"), "two things" in shown, "The end" in shown) == (2, True, False)


def test_a_link_to_a_picture_that_is_not_there_is_no_figure():
    ((slide,),) = deck(SAID + "\n\n![A picture](nowhere.png)")
    assert "<img" not in "".join(slide.blocks)


@pytest.mark.parametrize("count", [1, 13, 14, 27])
def test_every_verdict_has_a_row_and_a_slide_thirteen_at_most(count):
    verdicts = [(f"a2020.claim{k}", "reproduced") for k in range(count)]
    printed = "Verdicts:\n" + "".join(f"{id}: {verdict}\n" for id, verdict in verdicts)
    output = v4.new_output("stream", text=printed)
    (stack,) = deck("## The claims of this notebook", shows(output, tags=["nbval-check-output"]))
    pages = [re.findall("<tr><th>(.*?)</th><td>(.*?)</td>", slide.blocks[0]) for slide in stack]
    assert [row for page in pages for row in page] == verdicts
    assert max(map(len, pages)) <= 13


@pytest.mark.parametrize(
    ("rows", "cell", "shown"),
    [(3, "a", True), (13, "a", True), (30, "a", True), (40, "a", False), (1, 95 * "a", False)],
)
def test_a_slide_has_thirteen_lines_of_a_table_three_slides_at_most_and_no_wide_one(rows, cell, shown):
    body = "".join(f"<tr><th>{k}</th><td>{cell}</td></tr>" for k in range(rows))
    output = v4.new_output("display_data", {"text/html": f"<table>{HEAD}<tbody>{body}</tbody></table>"})
    ((heading, *below),) = deck(SAID, shows(output))
    pages = [re.findall("<th>(\\d+)</th>", "".join(slide.blocks)) for slide in below]
    assert [row for page in pages for row in page] == [str(k) for k in range(rows if shown else 0)]
    assert len(pages) <= 3
    assert all(1 <= len(page) <= 13 for page in pages)
    assert ("see the notebook" in words([heading])) == (not shown)


def test_the_sentence_before_a_table_of_several_slides_stands_on_the_first():
    ((_, *below),) = deck(f"{SAID}\n\nSide by side:", small_table(30))
    assert ["Side by side:" in slide.blocks[0] for slide in below] == [True, False, False]


def test_what_stands_before_the_title_is_left_out():
    made = slides.deck_of(v4.new_notebook(cells=[v4.new_markdown_cell("A badge.\n\n# 01 · Small")]), paths.ROOT, set())
    (((slide,),),) = (made.stacks,)
    assert (slide.title, slide.blocks, "badge" in "".join(slide.notes)) == ("01 · Small", [], False)


def test_a_header_without_text_is_no_header():
    assert pieces.rows_of(f"<table>{HEAD}<tbody></tbody></table>", 92)[0].startswith("<tr><td></td><th>a</th>")


@pytest.mark.parametrize(("code", "printed", "shown"), [(6, 6, True), (7, 1, False), (1, 7, False)])
def test_a_slide_of_code_has_six_lines_at_most_and_what_they_print(code, printed, shown):
    ((_, *below),) = deck(SAID, printing(*["0.5"] * printed, source="\n".join(["x = 1"] * code)))
    assert bool(below) == shown


def test_warnings_are_not_what_code_prints():
    ((_, *below),) = deck(SAID, shows(v4.new_output("stream", name="stderr", text="0.5\n"), source="x = 1"))
    assert not below


def test_formulas_take_room_of_their_own():
    formulas = "\n\n".join(["$$ a $$"] * 8)  # of two lines each
    ((_, *below),) = deck("## Exercises", f"### Exercise 1: many\n\n{formulas}")
    assert len(below) == 1
    assert words(below).count("<math") < 8


def test_a_heading_alone_gives_its_notes_to_the_slide_below_it():
    ((slide,),) = pieces.finished(
        [[pieces.Slide("a", notes=["said"]), pieces.Slide("b", "figure", ["<img>"], ["more"])]]
    )
    assert (slide.title, slide.notes) == ("b", ["said", "more"])


@pytest.mark.parametrize(("lines", "kind"), [(4.4, "lead"), (4.5, "text")])
def test_a_sentence_alone_is_in_large_type(lines, kind):
    ((slide,),) = pieces.finished([[pieces.Slide("a", blocks=["b"], lines=lines)]])
    assert slide.kind == kind


def test_a_sentence_does_not_end_within_emphasis():
    text = "In each of the cases that were looked at here it is *so. And so* it goes on. No."
    assert pieces.sentence(text) == text.removesuffix(" No.")


def test_formulas_and_code_are_not_torn_and_items_are_parts():
    parts = ["One.", "- two", "- three", "$$\na\n\nb\n$$", "```\nc\n\nd\n```", "$$ unfinished"]
    assert list(pieces.paragraphs("\n\n".join(parts).replace("two\n\n", "two\n"))) == parts


def test_a_square_figure_is_whole_and_no_part_is_a_sliver():
    assert len(pieces.cut(png(100, 100, blank=(50,)))) == 1
    parts = pieces.cut(png(100, 110, blank=(6, 10, 14, 50)))  # the wider band is near the top
    assert [ratio for _, ratio in parts] == [0.53, 0.57]


def test_slides_that_are_there_are_linked_and_the_font_has_its_licence(tmp_path):
    for name, text in (("01_a", "# 01 · A\n\nSee [B](02_b.ipynb)."), ("02_b", "# 02 · B")):
        nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell(text)]), tmp_path / f"{name}.ipynb")
    out = tmp_path / "out"
    slides.build([tmp_path / "02_b.ipynb"], out)
    slides.build([tmp_path / "01_a.ipynb"], out)
    assert 'href="02_b.html"' in (out / "01_a.html").read_text()
    assert {path.name for path in (out / "reveal").glob("*math*")} == {
        path.name for path in slides.FONT.glob("*-math*")
    }


def test_one_bad_notebook_and_no_slides_are_written(tmp_path, capsys, monkeypatch):
    nbformat.write(v4.new_notebook(cells=[v4.new_markdown_cell("# 01 · A")]), tmp_path / "01_a.ipynb")
    (tmp_path / "02_b.ipynb").write_text("{")
    for bad in ("02_b.ipynb", "03_nowhere.ipynb"):
        given = [str(tmp_path / name) for name in ("01_a.ipynb", bad)]
        monkeypatch.setattr("sys.argv", ["slides", *given, "--out", str(tmp_path / "out")])
        assert slides.main() == 2
        assert f"{bad} is not a notebook that can be read" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
