"""The student's version of notebooks, without solutions: ``python -m companion.course.student NOTEBOOK …``.

In a code cell tagged ``exercise`` all that lies between ``### BEGIN SOLUTION`` and ``### END SOLUTION`` (nbgrader's
marks) becomes a place to write; cells tagged ``solution`` go, and so do all outputs; what a text says of results is
folded, until the reader has seen them. A notebook in which somebody has written since stays as it is.

``--nbgrader`` writes what nbgrader makes its own version from: an assignment for each notebook, with the solutions.
"""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from companion import paths, store
from companion.errors import CompanionError, command, extra

with extra("course"):
    import nbformat
    from nbformat import NotebookNode

PLACE = "...  # your code here"
MARK = re.compile(r"^(?P<indent>[ \t]*)### (?P<which>BEGIN|END) SOLUTION[ \t]*$")
LIKE_A_MARK = re.compile(r"#.*\b(begin|end)[ _-]*solution", re.IGNORECASE)
SEEN = re.compile(r"^\*\*What we see\.\*\*.*?(?=^#{1,6} |\Z)", re.M | re.S)
FOLDED = re.compile(r"\s*<details>\s*<summary>\s*(?:Solution|Answer).*?</details>[ \t]*", re.S | re.I)
LINK = re.compile(r"(\]\()(?![a-z]+:|/|#)([^)\s#]+)(#[^)\s]*)?\)")


def opened(path: Path) -> NotebookNode:
    """The notebook at ``path``.

    Raises:
        CompanionError: if there is none, or it is no notebook.
    """
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CompanionError(f"{path} is not a notebook that can be read ({why}): check its name.") from error


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def without_solution(source: str, where: str) -> str:
    """The source of an exercise with a place to write for each of its solutions.

    Raises:
        CompanionError: if the marks do not come in pairs, hold nothing between them, or are misspelt.
    """
    lines, began, count = [], None, 0
    for number, line in enumerate(source.splitlines(), start=1):
        mark = MARK.match(line)
        if not mark:
            if LIKE_A_MARK.search(line):
                raise CompanionError(
                    f"{where}, line {number}: {line.strip()!r} is no mark. Expected a line with nothing but "
                    "'### BEGIN SOLUTION' or '### END SOLUTION'."
                )
            if began is None:
                lines.append(line)
            continue
        if (mark["which"] == "BEGIN") != (began is None):
            expected = (
                "'### BEGIN SOLUTION'" if began is None else f"the end of the solution that begins in line {began}"
            )
            raise CompanionError(f"{where}, line {number}: {line.strip()!r} where {expected} was expected.")
        if began is None:
            began, count = number, count + 1
            lines.append(mark["indent"] + PLACE)
        elif number == began + 1:
            raise CompanionError(f"{where}, line {began}: nothing stands between the marks; expected a solution.")
        else:
            began = None
    if began is not None:
        raise CompanionError(f"{where}, line {began}: '### BEGIN SOLUTION' without '### END SOLUTION' after it.")
    if not count:
        raise CompanionError(f"{where} is an exercise without '### BEGIN SOLUTION': mark what students are to write.")
    return "\n".join(lines)


def pairs(notebook: NotebookNode, name: str) -> list[tuple[int, int]]:
    """The exercises of a notebook, each with its check, the next code cell: numbers of cells.

    Raises:
        CompanionError: for an exercise without a check, a check without an exercise, or marks outside an exercise.
    """
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    found = []
    for before, after in zip([None, *code], [*code, None], strict=True):
        exercise = before is not None and "exercise" in tags(notebook.cells[before])
        check = after is not None and "check" in tags(notebook.cells[after])
        if exercise and check:
            found.append((before, after))
        elif exercise:
            raise CompanionError(
                f"{name}, cell {before} is an exercise without a check: expected one as the next code."
            )
        elif check:
            raise CompanionError(f"{name}, cell {after} is a check, but the code before it is no exercise.")
        if before is not None and not exercise and LIKE_A_MARK.search(notebook.cells[before].source):
            raise CompanionError(f"{name}, cell {before} has a solution marked, but not the tag 'exercise': add it.")
    return found


def student(notebook: NotebookNode, name: str, *, nbgrader: bool = False) -> NotebookNode:
    """A copy of ``notebook`` for students; the ids of its cells stay.

    Args:
        notebook: with solutions.
        name: what errors call it.
        nbgrader: leave what lies between the marks to nbgrader, and tell it in the cells' metadata what is written by
            students, and that a check is worth a point.

    Raises:
        CompanionError: naming the notebook and the number of the cell, if its exercises are not well formed.
    """
    found = pairs(notebook, name)
    copy = nbformat.from_dict(notebook)
    if nbgrader:
        for number, (exercise, check) in enumerate(found, start=1):
            copy.cells[exercise].metadata["nbgrader"] = _told(f"exercise-{number}", solution=True)
            copy.cells[check].metadata["nbgrader"] = _told(f"check-{number}", grade=True, locked=True, points=1)
    kept = []
    for number, cell in enumerate(copy.cells):
        if "solution" in tags(cell):
            continue
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if "exercise" in tags(cell):
                stub = without_solution(cell.source, f"{name}, cell {number}")
                cell.source = cell.source if nbgrader else stub
                cell.metadata["tags"] = [tag for tag in tags(cell) if tag != "hide-input"]
        else:
            cell.source = SEEN.sub(_closed, FOLDED.sub("", cell.source)).rstrip()
        kept.append(cell)
    copy.cells = kept
    nbformat.validate(copy)
    return copy


def _told(name: str, **true) -> dict:
    """What nbgrader reads of a cell, by the third version of its metadata."""
    return {
        "schema_version": 3,
        "grade_id": name,
        "grade": False,
        "solution": False,
        "locked": False,
        "task": False,
        **true,
    }


def _closed(said: re.Match) -> str:
    """What is seen, as a text that opens when it is clicked."""
    return f"<details><summary>Run the cells above, then open this</summary>\n\n{said[0].rstrip()}\n\n</details>\n\n"


def relink(source: str, before: Path, after: Path, here: dict[str, str]) -> str:
    """Links of a text that moves from the folder ``before`` to ``after``; those to files ``here`` become what that
    says."""

    def moved(link: re.Match) -> str:
        if link[2] in here:
            return f"{link[1]}{here[link[2]]}{link[3] or ''})"
        if not (before / link[2]).exists():  # in code, `](` may be anything
            return link[0]
        return f"{link[1]}{Path(os.path.relpath(before / link[2], after)).as_posix()}{link[3] or ''})"

    return LINK.sub(moved, source)


def fingerprint(notebook: NotebookNode) -> str:
    """Of what stands in the cells, outputs apart."""
    return hashlib.sha256("\0".join(cell.source for cell in notebook.cells).encode()).hexdigest()


def written_in(path: Path) -> bool:
    """Whether somebody has written in the students' notebook at ``path`` since it was made. Having run it does not
    count; a file that no :func:`build` has made, or that cannot be read, does."""
    try:
        found = opened(path)
    except CompanionError:
        return path.exists()
    return found.metadata.get("companion", {}).get("made") != fingerprint(found)


def build(notebooks: Sequence[Path], out: Path, *, force: bool = False, nbgrader: bool = False) -> list[Path]:
    """Write the students' version of these notebooks into the folder ``out``, or that of nbgrader's sources, each into
    a folder of its own there; all are made before one is written.

    Links among them stay; other relative links lead from ``out`` to where they led before. A notebook in ``out`` that
    somebody has written in is kept, and told, unless ``force`` is given.

    Returns:
        The notebooks that were written.

    Raises:
        CompanionError: as :func:`opened` and :func:`student`, and if ``out`` is where the notebooks are or cannot be
            written.
    """
    for path in notebooks:
        if out.resolve() == path.parent.resolve():
            raise CompanionError(f"{out} holds the notebooks themselves: expected another folder for the students'.")
    made = {path: student(opened(path), path.name, nbgrader=nbgrader) for path in notebooks}
    there = [path.name for path in [*notebooks, *out.glob("*/[!.]*.ipynb" if nbgrader else "[!.]*.ipynb")]]
    here = {name: f"../{Path(name).stem}/{name}" if nbgrader else name for name in there}
    written = []
    for path, notebook in made.items():
        target = (out / path.stem if nbgrader else out) / path.name
        for cell in notebook.cells:
            cell.source = relink(cell.source, path.parent.resolve(), target.parent.resolve(), here)
        notebook.metadata["companion"] = {"made": fingerprint(notebook)}
        if written_in(target) and not force:
            print(
                f"{path.name} is kept: somebody has written in it. FORCE=1 makes it anew, and what was written is lost."
            )
            continue
        store.write(target, nbformat.writes(notebook) + "\n")
        written.append(target)
    return written


@command
def program(build: Callable[..., list[Path]], description: str, folder: str, said: str, **flags: str) -> None:
    """The command line of something that writes a file for each notebook: what it writes them with, where below
    ``build/`` by default, what it says at the end, of ``{count}`` and ``{out}``, and flags with their help, which
    ``build`` takes by name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("notebooks", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=paths.ROOT / "build" / folder, help=f"default: build/{folder}/")
    for flag, explained in flags.items():
        parser.add_argument(f"--{flag}", action="store_true", help=explained)
    arguments = parser.parse_args()
    written = build(arguments.notebooks, arguments.out, **{flag: getattr(arguments, flag) for flag in flags})
    print(said.format(count=len(written), out=os.path.relpath(arguments.out)))


def main() -> int:
    said = "{count} notebooks: {out}/    (to open them: make lab FOLDER={out})"
    force = "make a notebook anew in which somebody has written"
    nbgrader = "write nbgrader's sources, with the solutions, which it takes out itself"
    return program(build, "Write the student's version of notebooks.", "student", said, force=force, nbgrader=nbgrader)


if __name__ == "__main__":
    sys.exit(main())
