"""The committed notebooks as they are stored: executed, clean, accessible, small."""

import ast
import math
import re

import nbformat
import pytest

from companion import paths
from companion.course import controls
from companion.ledger import load

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    return found


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell):
    return cell.metadata.get("tags", [])


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 4


def test_it_ran_from_top_to_bottom_without_an_error(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [output for output in outputs(notebook) if output.output_type == "error"]


def test_it_has_one_cell_of_literal_parameters(notebook):
    (cell,) = [cell for cell in code(notebook) if "parameters" in tags(cell)]
    assert cell.source.splitlines() == ['PROFILE = "auto"', 'DATASET = ""', "SEED = 0"]


def test_it_has_a_contract_cell_with_output(notebook):
    contracts = [cell for cell in code(notebook) if "nbval-check-output" in tags(cell)]
    assert contracts
    assert all(cell.outputs for cell in contracts)


def test_it_stores_no_stderr_and_no_absolute_path(notebook):
    for output in outputs(notebook):
        assert output.get("name") != "stderr", output.get("text")
        texts = [output.get("text", ""), *(str(v) for k, v in output.get("data", {}).items() if k.startswith("text/"))]
        for text in texts:
            assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users|usr|opt)/", text), text


def test_every_figure_says_in_words_what_it_shows(notebook):
    for output in outputs(notebook):
        for kind in {"image/png", "image/gif"} & set(output.get("data", {})):
            alt = output.metadata.get(kind, output.metadata).get("alt", "")
            assert len(alt.split()) >= 8, alt


def test_a_movable_figure_is_stored_with_all_its_pictures(notebook):
    for output in outputs(notebook):
        if frames := output.get("data", {}).get(controls.MIME):
            count = math.prod(len(control["values"]) for control in frames["controls"])
            assert len(frames["frames"]) == len(frames["alts"]) == count
            assert len(set(frames["alts"])) == count  # each says what is to be seen at its values
            assert all(len(alt.split()) >= 8 for alt in frames["alts"])
            assert output["data"]["image/png"].strip() == frames["frames"][frames["start"]]
    moved = [cell for cell in code(notebook) if "figures.movable(" in cell.source and "phrase=" not in cell.source]
    assert len(moved) == sum(controls.MIME in output.get("data", {}) for output in outputs(notebook))


def test_cells_are_short_and_the_file_is_small(path, notebook):
    assert path.stat().st_size < 1.5e6
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= 15, cell.source


def test_its_metadata_hold_nothing_of_the_machine_or_the_day(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


def test_it_is_built_as_the_others_are(notebook, path):
    number = path.stem.split("_")[0]
    first = notebook.cells[0].source
    assert first.startswith(f"# {number} · "), first
    for part in ("What you will learn.", "Claims tested.", "Minutes.", "Read first."):
        assert f"**{part}**" in first, part
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "## Exercises" in prose
    assert "<details>" in prose
    assert "## References" in prose


def pattern(node) -> str | None:
    """A pattern for the values of a string in code: literals whole; in the holes of an f-string, a word of an id."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        words = [re.escape(v.value) if isinstance(v, ast.Constant) else r"\.?\w*" for v in node.values]
        if not isinstance(node.values[0], ast.Constant):
            words[0] = r"[\w.]+"
        return "".join(words)
    return None


def checks(notebook):
    """Of every call of ``ledger.check``, the patterns of the ids that it may file.

    An id that is a variable may be any string of the notebook's code that looks like one.
    """
    sources = [
        "\n".join(x for x in cell.source.splitlines() if not x.startswith(("%", "!"))) for cell in code(notebook)
    ]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    like_ids = {p for node in nodes if (p := pattern(node)) and re.match(r"(companion|[a-z]+\d{4})\\\.", p)}
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ledger.check":
            given = node.args[0] if node.args else next(k.value for k in node.keywords if k.arg == "id")
            yield [p] if (p := pattern(given)) else sorted(like_ids)


def test_it_checks_the_claims_that_the_ledger_gives_it_and_no_others(notebook, path):
    mine = [claim.id for claim in load().values() if claim.notebook == path.stem]
    found = list(checks(notebook))
    assert bool(mine) == bool(found)
    for patterns in found:
        assert any(re.fullmatch(p, id) for p in patterns for id in mine), f"{patterns}: not a claim of this notebook"
    for id in mine:
        assert any(re.fullmatch(p, id) for patterns in found for p in patterns), f"{id} is never checked"


def test_a_pattern_is_no_substring():
    (first, second) = (ast.parse(text).body[0].value for text in ('"lee2025.fig3"', 'f"lee2025.fig3.{x}"'))
    assert not re.fullmatch(pattern(first), "lee2025.fig3.flatter")
    assert re.fullmatch(pattern(second), "lee2025.fig3.flatter")
    assert not re.fullmatch(pattern(second), "lee2025.fig4.flatter")
    assert not re.fullmatch(pattern(second), "lee2025xfig3.flatter")


def test_a_display_formula_has_at_most_one_tag(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for formula in re.findall(r"\$\$(.+?)\$\$", cell.source, re.S):
                assert formula.count(r"\tag") <= 1, formula


def test_it_links_where_it_names_others(notebook, path):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    targets = set(re.findall(r"\]\(([^)#]+\.ipynb)\)", prose))
    assert targets, "no link to another notebook"
    for target in targets:
        assert (path.parent / target).exists(), target
    assert "Next: " in notebook.cells[-1].source
