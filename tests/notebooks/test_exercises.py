"""What every notebook gives its readers to do: exercises with checks, predictions, questions; in the shape of all."""

import ast
import re

import nbformat
import pytest

from companion import paths
from companion.course import student

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
TAGS = {"parameters", "nbval-check-output", "exercise", "hide-input", "check", "solution"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def cells(path):
    return nbformat.read(path, as_version=4).cells


@pytest.fixture
def pairs(path):
    return student.pairs(nbformat.read(path, as_version=4), path.name)


def scoreboard(path):
    """The one that only collects: it has less to do."""
    return path.stem.startswith("14_")


def headings(cells):
    return [line for cell in cells if cell.cell_type == "markdown" for line in re.findall(r"(?m)^#+ .+$", cell.source)]


def prompts(cells):
    return [i for i, cell in enumerate(cells) if cell.cell_type == "markdown"
            and cell.source.lstrip().startswith("**Predict, then run.**")]  # fmt: skip


def test_it_has_exercises_in_code_each_with_its_check(path, pairs):
    least = 1 if scoreboard(path) else 3
    assert len(pairs) >= least, f"{path.name} has {len(pairs)} exercises in code with a check: expected {least} or more"


def test_exercises_are_numbered_in_a_section_of_their_own(path, cells, pairs):
    (start,) = [i for i, cell in enumerate(cells) if "## Exercises" in cell.source.splitlines()]
    numbered = [heading for heading in headings(cells) if heading.startswith("### Exercise ")]
    assert [int(re.match(r"### Exercise (\d+): \S", x)[1]) for x in numbered] == list(range(1, len(pairs) + 1)), (
        numbered
    )
    for number, (exercise, check) in enumerate(pairs, start=1):
        assert start < exercise, f"{path.name}, cell {exercise}: an exercise before the section '## Exercises'"
        assert check == exercise + 1, f"{path.name}, cell {exercise}: its check is not the next cell"
        task = cells[exercise - 1]
        assert task.cell_type == "markdown", f"{path.name}, cell {exercise}: expected its task in the cell before"
        assert f"### Exercise {number}: " in task.source, (
            f"{path.name}, cell {exercise - 1}: no task of exercise {number}"
        )
        assert len(task.source.split()) >= 15, f"{path.name}, cell {exercise - 1}: the task is hardly told"
        assert student.tags(cells[exercise]) == ["exercise", "hide-input"]


def test_every_assertion_of_a_check_teaches(path, cells, pairs):
    for number, (_, check) in enumerate(pairs, start=1):
        body = ast.parse(cells[check].source).body
        asserts = [node for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.Assert)]
        where = f"{path.name}, cell {check}"
        assert len(asserts) >= 2, (
            f"{where}: {len(asserts)} assertion: expected one for the stub and one for the content"
        )
        for node in asserts:
            said = ast.unparse(node.msg) if node.msg else ""  # or a name, of one of several texts
            enough = isinstance(node.msg, ast.Name | ast.Subscript) or len(said.split()) >= 4
            assert enough, f"{where}: `{ast.unparse(node.test)}` fails without a word that helps"
        assert ast.unparse(body[-1]) == f"print('Exercise {number}: correct.')", f"{where}: what it prints at the end"
        assert cells[check].source.count("print(") == 1, f"{where}: it prints more"


def test_exercises_and_checks_are_short(path, cells, pairs):
    for cell in (cell for pair in pairs for cell in pair):
        assert len(cells[cell].source.splitlines()) <= 15, f"{path.name}, cell {cell}"


def test_a_check_leaves_the_names_of_the_notebook_alone(path, cells, pairs):
    """A cell above that is run again after the exercises finds what it found before."""
    numbers = {number for pair in pairs for number in pair}
    above = {i: c.source for i, c in enumerate(cells) if c.cell_type == "code" and i not in numbers}
    bound = {i: assigned(source) for i, source in above.items()}
    for number in sorted(numbers):
        for name in assigned(cells[number].source):
            needed = [i for i, source in above.items() if name in read(source) - bound[i]]
            assert not any(name in bound[i] for j in needed for i in above if i < j), (number, name)


def assigned(source):
    """Names that a cell binds for the cells after it: not those inside functions and comprehensions."""
    found, waiting = set(), list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            waiting += ast.iter_child_nodes(node)
    return found


def read(source):
    return {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def test_it_asks_for_predictions_before_it_shows(path, cells):
    found = prompts(cells)
    least = 0 if scoreboard(path) else 2
    assert len(found) >= least, f"{path.name} has {len(found)} cells '**Predict, then run.**': expected {least} or more"
    for i in found:
        assert "?" in cells[i].source, f"{path.name}, cell {i}: it asks nothing"
        later = [cell for cell in cells[i + 1 : i + 8] if cell.cell_type == "code" and cell.outputs]
        assert later, f"{path.name}, cell {i}: nothing is shown after it"


def test_reading_questions_have_their_answers_in_a_cell_of_their_own(path, cells):
    places = [i for i, cell in enumerate(cells) if "### Reading questions" in cell.source.splitlines()]
    assert len(places) == 1, f"{path.name}: expected one cell with the heading '### Reading questions'"
    questions, answers = cells[places[0]], cells[places[0] + 1]
    assert student.tags(answers) == ["solution"], f"{path.name}, cell {places[0] + 1}: expected the tag 'solution'"
    text = answers.source.strip()
    assert re.fullmatch(r"<details>\s*<summary>Solutions?</summary>\n\n.+\n\n</details>", text, re.S), path.name
    numbers = [re.findall(r"(?m)^(\d+)\. ", cell.source) for cell in (questions, answers)]
    assert numbers[0] == numbers[1] != [], f"{path.name}: questions {numbers[0]}, answers {numbers[1]}"


def test_answers_stand_nowhere_else(path, cells):
    for i, cell in enumerate(cells):
        if "solution" not in student.tags(cell):
            assert "<details>" not in cell.source, f"{path.name}, cell {i}: folded text without the tag 'solution'"


def test_it_closes_as_the_others_do(path, cells):
    order = ["## The claims of this notebook", "## Exercises", "### Reading questions", "## References"]
    tests_claims = any("ledger.table()" in cell.source for cell in cells)
    order = order if tests_claims else order[1:]
    found = [heading for heading in headings(cells) if heading.startswith(tuple(order))]
    assert [next(x for x in order if heading.startswith(x)) for heading in found] == order, f"{path.name}: {found}"


def test_no_tag_is_misspelt(path, cells):
    for i, cell in enumerate(cells):
        assert set(student.tags(cell)) <= TAGS, f"{path.name}, cell {i}: {student.tags(cell)}"
