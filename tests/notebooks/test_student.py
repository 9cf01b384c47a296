"""The student's version: what is taken out, what is left, and that every check tells one from the other."""

import ast
import builtins
import json
import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4
from part import bound, names, needed, parsed, reads, run

from companion import paths
from companion.course import student
from companion.errors import CompanionError

NOTEBOOKS = sorted((paths.ROOT / "notebooks").glob("*.ipynb"))
EXERCISE = '''def twice(x):
    """Twice x."""
    y = x
    ### BEGIN SOLUTION
    y = 2 * x
    return y
    ### END SOLUTION'''
CHECK = 'assert twice(2) == 4, "add it to itself"\nprint("Exercise 1: correct.")'


def code(source, *tags):
    output = v4.new_output("stream", text="found\n")
    return v4.new_code_cell(source, metadata={"tags": list(tags)} if tags else {}, outputs=[output], execution_count=1)


def notebook(*cells):
    made = v4.new_notebook(cells=cells)
    for number, cell in enumerate(made.cells):
        cell.id = f"cell-{number:02d}"
    return made


def whole():
    return notebook(
        v4.new_markdown_cell("# 01 · Small\n\nSee [the next](02_next.ipynb#part) and [data](../data/README.md)."),
        code("x = 1"),
        v4.new_markdown_cell("### Exercise 1: twice"),
        code(EXERCISE, "exercise", "hide-input"),
        code(CHECK, "check"),
        v4.new_markdown_cell("### Reading questions\n\n1. Why?"),
        v4.new_markdown_cell(
            "<details><summary>Solutions</summary>\n\n1. So.\n\n</details>", metadata={"tags": ["solution"]}
        ),
        v4.new_markdown_cell("Next: [x](02_next.ipynb)."),
    )


def test_what_lies_between_the_marks_becomes_a_place_to_write():
    made = student.student(whole(), "01.ipynb")
    source = made.cells[3].source
    assert source == 'def twice(x):\n    """Twice x."""\n    y = x\n    ...  # your code here'
    ast.parse(source)
    nbformat.validate(made)


def test_several_solutions_in_a_cell_each_leave_a_place_of_their_own():
    found = student.without_solution(
        "### BEGIN SOLUTION\na = 1\n### END SOLUTION\nb = 2\nif b:\n" + EXERCISE[-70:], "x"
    )
    assert found.count(student.PLACE) == 2
    assert "\nb = 2\n" in found


def test_answers_outputs_and_hidden_inputs_go_and_ids_stay():
    before = whole()
    made = student.student(before, "01.ipynb")
    assert [cell.id for cell in made.cells] == [f"cell-{i:02d}" for i in (0, 1, 2, 3, 4, 5, 7)]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in made.cells if cell.cell_type == "code")
    assert made.cells[3].metadata["tags"] == ["exercise"]
    assert made.cells[4].metadata["tags"] == ["check"]
    assert "So." not in nbformat.writes(made)
    assert before == whole()  # the notebook that was given is as it was


@pytest.mark.parametrize("title", ["Solutions", "Solution to 1", "Answer", "answers"])
def test_answers_without_the_tag_are_taken_out_of_their_cell(title):
    text = f"1. Why?\n\n<details><summary>{title}</summary>\n\n1. So.\n\n</details>\n\n## References"
    made = student.student(notebook(v4.new_markdown_cell(text)), "01.ipynb")
    assert made.cells[0].source == "1. Why?\n\n## References"


@pytest.mark.parametrize("after", ["", "\n\n## The next section\n\nIts text."])
def test_what_is_seen_is_closed_until_it_is_asked_for(after):
    said = "**What we see.** It falls.\n\n- And more."
    text = f"Before.\n\n{said}{after}"
    made = student.student(notebook(v4.new_markdown_cell(text)), "01.ipynb").cells[0].source
    folded = f"<details><summary>Run the cells above, then open this</summary>\n\n{said}\n\n</details>"
    assert made == f"Before.\n\n{folded}{after}"


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([code(EXERCISE, "exercise")], r"01\.ipynb, cell 0 is an exercise without a check"),
        ([code(EXERCISE, "exercise"), code("x"), code(CHECK, "check")], r"cell 0 is an exercise without a check"),
        ([code("x"), code(CHECK, "check")], r"01\.ipynb, cell 1 is a check, but the code before it is no exercise"),
        ([code(CHECK, "check")], r"cell 0 is a check"),
        ([code(EXERCISE)], r"01\.ipynb, cell 0 has a solution marked, but not the tag 'exercise'"),
        ([code("x = 1", "exercise"), code(CHECK, "check")], r"cell 0 is an exercise without '### BEGIN SOLUTION'"),
    ],
)
def test_exercises_that_are_not_well_formed_are_named(cells, expected):
    with pytest.raises(CompanionError, match=expected):
        student.student(notebook(*cells), "01.ipynb")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("### BEGIN SOLUTION\nx = 1", r"1: .* without '### END SOLUTION'"),
        ("x = 1\n### END SOLUTION", r"2: '### END SOLUTION' where '### BEGIN SOLUTION' was expected"),
        ("### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION", r"2: .* the end of the solution .* line 1"),
        ("### BEGIN SOLUTION\n### END SOLUTION", r"1: nothing stands between the marks"),
        ("## BEGIN SOLUTION\nx = 1\n### END SOLUTION", r"1: '## BEGIN SOLUTION' is no mark"),
        ("### BEGIN SOLUTION\nx = 1\n### End solution", r"3: '### End solution' is no mark"),
        ("### BEGIN SOLUTION: x\nx = 1\n### END SOLUTION", r"1: .* is no mark"),
    ],
)
def test_marks_that_do_not_pair_are_named_with_notebook_cell_and_line(source, expected):
    with pytest.raises(CompanionError, match=r"01\.ipynb, cell 0, line " + expected):
        student.student(notebook(code(source, "exercise"), code(CHECK, "check")), "01.ipynb")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").touch()
    for name in ("01_small", "02_next"):
        nbformat.write(whole(), tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


def links(path):
    """Where the relative links of a notebook lead, as they are written."""
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"[a-z]+:|#", link)]


def test_links_lead_where_they_led(project):
    out = project / "build" / "student"
    student.build(sorted((project / "notebooks").iterdir()), out)
    assert links(out / "01_small.ipynb") == ["02_next.ipynb#part", "../../data/README.md", "02_next.ipynb"]


def test_a_link_to_a_notebook_that_students_do_not_have_leads_to_the_committed_one(project):
    out = project / "build" / "student"
    student.build([project / "notebooks" / "01_small.ipynb"], out)
    assert links(out / "01_small.ipynb")[0] == "../../notebooks/02_next.ipynb#part"


def test_a_link_to_a_notebook_that_students_have_already_stays(project):
    out = project / "build" / "student"
    for name in ("02_next", "01_small"):  # one by one
        student.build([project / "notebooks" / f"{name}.ipynb"], out)
    assert links(out / "01_small.ipynb")[0] == "02_next.ipynb#part"


def test_a_link_from_the_root_stays():
    assert student.relink("[a](/)", paths.ROOT, paths.ROOT / "build", {}) == "[a](/)"


def test_brackets_in_code_are_no_links():
    assert student.relink("f[0](x.py)", paths.ROOT, paths.ROOT / "build", {}) == "f[0](x.py)"


def test_what_a_student_has_written_is_kept_and_what_was_only_run_is_not(project, capsys, monkeypatch):
    out, sources = project / "build" / "student", sorted((project / "notebooks").iterdir())
    assert student.build(sources, out) == [out / path.name for path in sources]
    first, second = (nbformat.read(out / path.name, as_version=4) for path in sources)
    where = next(cell for cell in first.cells if student.PLACE in cell.source)
    where.source = where.source.replace(student.PLACE, "return 1  # mine")
    nbformat.write(first, out / sources[0].name)
    run = next((cell for cell in second.cells if cell.cell_type == "code"), None)
    if run is not None:
        run.execution_count = 7
    nbformat.write(second, out / sources[1].name)
    capsys.readouterr()
    assert student.build(sources, out) == [out / sources[1].name]
    told = capsys.readouterr().out
    assert "01_small.ipynb is kept: somebody has written in it" in told
    assert "02_next" not in told
    assert "# mine" in (out / sources[0].name).read_text()
    monkeypatch.setattr(sys, "argv", ["student", *map(str, sources), "--out", str(out), "--force"])
    assert student.main() == 0
    assert "# mine" not in (out / sources[0].name).read_text()
    assert "make lab FOLDER=" in capsys.readouterr().out


def test_a_file_that_no_build_made_is_kept(project):
    out, source = project / "build" / "student", project / "notebooks" / "01_small.ipynb"
    out.mkdir(parents=True)
    for content in ("no notebook at all", source.read_text()):
        (out / source.name).write_text(content)
        assert student.build([source], out) == []
        assert (out / source.name).read_text() == content


def test_one_bad_notebook_and_nothing_is_written(project, capsys, monkeypatch):
    bad = project / "notebooks" / "02_next.ipynb"
    nbformat.write(notebook(code(EXERCISE, "exercise")), bad)
    out = project / "build" / "student"
    monkeypatch.setattr(sys, "argv", ["student", *map(str, sorted(bad.parent.iterdir())), "--out", str(out)])
    assert student.main() == 2
    assert "02_next.ipynb, cell 0 is an exercise without a check" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_what_is_no_notebook_is_told_and_nothing_is_written(project, capsys, monkeypatch, content):
    bad, out = project / "notebooks" / "03_bad.ipynb", project / "build" / "student"
    if content is not None:
        bad.write_text(content)
    notebooks = [project / "notebooks" / "01_small.ipynb", bad]
    monkeypatch.setattr(sys, "argv", ["student", *map(str, notebooks), "--out", str(out)])
    assert student.main() == 2
    assert re.fullmatch(r".*03_bad\.ipynb is not a notebook that can be read \(.+\).*\n", capsys.readouterr().err)
    assert not out.exists()


def test_nbgrader_is_given_the_solutions_to_take_out_and_told_what_is_worth_a_point():
    given = whole()
    made = student.student(given, "01.ipynb", nbgrader=True)
    told = {cell.id: cell.metadata.get("nbgrader") for cell in made.cells}
    (exercise,) = [cell for cell in made.cells if "exercise" in cell.metadata.get("tags", [])]
    (check,) = [cell for cell in made.cells if "check" in cell.metadata.get("tags", [])]
    assert "### BEGIN SOLUTION" in exercise.source
    assert exercise.source in [cell.source for cell in given.cells]
    common = {"schema_version": 3, "task": False}
    assert told[exercise.id] == common | {"grade_id": "exercise-1", "grade": False, "solution": True, "locked": False}
    assert told[check.id] == common | {
        "grade_id": "check-1", "grade": True, "solution": False, "locked": True, "points": 1,
    }  # fmt: skip
    assert [value for value in told.values() if value] == [told[exercise.id], told[check.id]]
    assert not any("nbgrader" in cell.metadata for cell in [*given.cells, *student.student(given, "01.ipynb").cells])
    assert not any("solution" in cell.metadata.get("tags", []) for cell in made.cells)


def test_each_assignment_of_nbgrader_has_a_folder_of_its_own_to_which_links_lead(project):
    out, notebooks = project / "build" / "source", sorted((project / "notebooks").iterdir())
    written = [out / path.stem / path.name for path in notebooks]
    for again in range(2):  # nobody has written in them
        assert student.build(notebooks, out, nbgrader=True) == written, again
    expected = ["../02_next/02_next.ipynb#part", "../../../data/README.md", "../02_next/02_next.ipynb"]
    assert links(written[0]) == expected
    assert student.build(notebooks[:1], out, nbgrader=True) == written[:1]  # the other is there already
    assert links(written[0]) == expected


def test_the_committed_notebooks_are_never_overwritten(project):
    for out in ("notebooks", "notebooks/../notebooks"):
        with pytest.raises(CompanionError, match="holds the notebooks themselves"):
            student.build(list((project / "notebooks").iterdir()), project / out)


def test_make_student_writes_all_notebooks_or_those_that_are_named(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(paths.ROOT / name)
    (tmp_path / "notebooks").symlink_to(paths.ROOT / "notebooks")
    command = ["make", "VENV=", "--dry-run", "student"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
    assert len(re.findall(r"notebooks/\w+\.ipynb", done.stdout)) == len(NOTEBOOKS)
    done = subprocess.run([*command, "NOTEBOOKS=03"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert re.findall(r"notebooks/\w+\.ipynb", done.stdout) == ["notebooks/03_softmax_losses.ipynb"]


# Over the committed notebooks. That every check passes with its solution is what nbval runs; here it must fail with the
# stub, and to run the notebooks again for that would double the time. So of the cells before an exercise only those
# statements are run that make a name which the stub and the check's first assertion read, directly or through others.


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("project") / "build" / "student"
    student.build(NOTEBOOKS, out)
    return out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_solution_is_left(path, built):
    before, after = (nbformat.read(x, as_version=4) for x in (path, built / path.name))
    text = (built / path.name).read_text()
    assert not re.search(r"(BEGIN|END) SOLUTION|<summary>\s*Solution", text)
    assert not [cell for cell in after.cells if {"solution", "hide-input"} & set(student.tags(cell))]
    assert json.loads(text)["nbformat_minor"] == before.nbformat_minor
    sources = {cell.source for cell in after.cells}
    for cell in before.cells:
        if "solution" in student.tags(cell):
            assert cell.source not in sources
    for exercise, _ in student.pairs(before, path.name):
        lines, inside = before.cells[exercise].source.splitlines(), False
        stub = next(cell for cell in after.cells if cell.id == before.cells[exercise].id).source
        for line in lines:
            inside = (inside or "BEGIN SOLUTION" in line) and "END SOLUTION" not in line
            if inside and len(line.strip()) > 12 and "SOLUTION" not in line:
                assert line not in stub, line
    for link in links(built / path.name):
        target, _, _ = link.partition("#")
        if target.endswith(".ipynb"):
            assert (built / target).exists(), target
        else:
            assert (built.resolve() / target).exists(), target


def test_only_what_an_exercise_needs_is_run():
    check = """
x = a
y = x + 1
for i, r in b:
    z = r + x
    z = c(z, i)
def f(q, *, k=d):
    w = q
    return w + e + k
"""
    assert read_by(ast.parse(check).body) == {"a", "b", "c", "d", "e"}
    assert read_by(ast.parse("n += 1\n[j for j in range(k)]\n(lambda t: t + m)(1)").body) == {"n", "k", "m"}
    source = """
import math
a = 1
b = a + 1
a = 5
def f(x): return g(x) + c
def g(x): return x * a
print(b)
rows = []
for k in range(3):
    rows.append(k)
c = 2
d = slow()
"""
    kept = [ast.unparse(x) for x in needed(ast.parse(source).body, {"f"})]
    assert kept == ["a = 5", "def f(x):\n    return g(x) + c", "def g(x):\n    return x * a", "c = 2"]
    assert len(needed(ast.parse(source).body, {"rows"})) == 2
    assert len(needed(ast.parse("text = ''\nfor k in range(3):\n    text += rows[k]").body, {"text"})) == 2
    assert len(needed(ast.parse("text = ''\nfor k in range(3):\n    text += x[k]\n    y = k").body, {"y"})) == 2
    assert [ast.unparse(x) for x in needed(ast.parse(source).body, {"b"})] == ["a = 1", "b = a + 1"]
    assert [ast.unparse(x) for x in needed(ast.parse(source).body, {"math"})] == ["import math"]


def up_to_its_first_assertion(check):
    asserts = (any(isinstance(node, ast.Assert) for node in ast.walk(statement)) for statement in check)
    return check[: next(i for i, found in enumerate(asserts, 1) if found)]


def read_by(statements, made=frozenset()):
    """Names that the statements read before they make them, if they do; ``made`` are there already."""
    found, made = set(), set(made)
    for statement in statements:
        if isinstance(statement, ast.For):
            found |= reads(ast.Expr(statement.iter)) - made
            found |= read_by(statement.body, made | names(statement.target, ast.Store))
            found |= read_by(statement.orelse, made)
        else:
            found |= reads(statement) - made
            makes, surely = bound(statement)
            made |= makes if surely else set()
    return found - set(dir(builtins))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_check_tells_a_stub_from_a_solution(path, built, tmp_path, monkeypatch):
    """The student's version fails by the check's first assertion, which says something; the committed one passed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONTRASTIVE_PROFILE", "cpu")
    monkeypatch.setenv("CONTRASTIVE_PROGRESS", "off")
    committed = nbformat.read(path, as_version=4)
    exercises = dict(student.pairs(committed, path.name))
    if not exercises:
        pytest.skip("it has no exercises in code")
    sources = [parsed(cell.source) if cell.cell_type == "code" else [] for cell in committed.cells]
    given = {cell.id: cell.source for cell in nbformat.read(built / path.name, as_version=4).cells}
    stubs = {i: parsed(given[committed.cells[i].id]) for i in exercises}
    firsts = {i: up_to_its_first_assertion(sources[check]) for i, check in exercises.items()}

    checks = set(exercises.values())

    def before(cell, wanted):  # of a check, what it imports
        earlier = [(i, s) for i in range(cell) for s in sources[i]]
        return needed([s for i, s in earlier if i not in checks or isinstance(s, ast.Import | ast.ImportFrom)], wanted)

    # The statements that any of them needs, run once, in the order of the notebook.
    kept = {id(s) for i in exercises for s in before(i, read_by(stubs[i] + firsts[i]))}
    namespace = {"__name__": "__main__"}
    for i, body in enumerate(sources):
        if i in exercises:
            told = f"{path.name}, cell {exercises[i]}, the check"
            trial = dict(namespace)
            run(stubs[i], trial)
            with pytest.raises(AssertionError) as failed:
                run(firsts[i], trial)
            assert len(str(failed.value).split()) >= 4, f"{told}: it teaches nothing to say {str(failed.value)!r}"
            printed = "".join(output.get("text", "?") for output in committed.cells[exercises[i]].outputs)
            assert re.fullmatch(r"Exercise \d+: correct\.\n", printed), f"{told} has printed {printed!r}"
        run([s for s in body if id(s) in kept], namespace)
