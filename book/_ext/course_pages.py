"""Directives for the pages of book/course/: what they say of notebooks and profiles is read where it stands."""

import posixpath
import re

import course_frame
from docutils import nodes
from sources import PAGES
from sphinx.util.docutils import SphinxDirective

from companion import losses
from companion.course import profiles


def _link(notebook: course_frame.Notebook, part: str = "") -> str:
    return f"[{notebook.number} · {notebook.title}](/notebooks/{notebook.name}.ipynb{part})"


class Course(SphinxDirective):
    """What one of the functions below writes of the notebooks, read as Markdown."""

    optional_arguments, final_argument_whitespace = 1, True

    def run(self) -> list[nodes.Node]:
        for path in (course_frame.ROOT / "notebooks").glob("*.ipynb"):
            self.env.note_dependency(str(path))
        found = course_frame.notebooks()
        text = TEXTS[self.name](found, *(self.arguments[0].split() if self.arguments else ()))
        return self.parse_text_to_nodes(text)


class Map(SphinxDirective):
    """The picture of what depends on what."""

    def run(self) -> list[nodes.Node]:
        for path in (course_frame.ROOT / "notebooks").glob("*.ipynb"):
            self.env.note_dependency(str(path))

        def link(name: str) -> str:
            return self.env.app.builder.get_relative_uri(self.env.docname, f"notebooks/{name}")

        picture = course_frame.svg(course_frame.notebooks(), link)
        return [nodes.raw("", f'<div class="course-map-frame">{picture}</div>', format="html")]


def linked(text: str, folder: str) -> str:
    """What stands in a file of that folder of the project, with its links as any page of the book can have them."""
    pages = {theirs: name for name, theirs in PAGES.items()}

    def link(target: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, target[1]))
        return "](/" + pages.get(path, path.removeprefix("book/"))

    return re.sub(r"\]\((?!\w+:|#|/)([^)#\s]+)", link, text)


def readme(found: list[course_frame.Notebook], part: str) -> str:
    """What stands in the README between two comments that name the part, with its links as the book has them."""
    text = (course_frame.ROOT / "README.md").read_text()
    start, end = text.index(f"<!-- {part} -->"), text.index(f"<!-- /{part} -->")
    text = linked(text[start:end].partition("-->")[2], "")
    # In the table of losses each function leads to its entry; what has no second picture needs no dash on a page.
    rows = (entries(line) if line.startswith("| ") else line for line in text.splitlines())
    return "\n".join(rows).replace(", – |", " |")


def entries(row: str) -> str:
    """A row of a table with each name of `companion.losses` in it as a link to its entry."""

    def link(code: re.Match) -> str:
        name = code[1].partition("(")[0]
        known = name in losses.__all__ or name.startswith("families.")
        return f"{{py:obj}}`{code[1]} <companion.losses.{name}>`" if known else code[0]

    return re.sub(r"`([^`]+)`", link, row)


def needs(found: list[course_frame.Notebook]) -> str:
    """A list: what each notebook says is to be read first, and what builds on it."""
    lines = []
    for notebook in found:
        after = [other.number for other in found if notebook.name in other.needs and not other.collects]
        first = linked(notebook.read_first, "notebooks")
        lines.append(
            f"- {_link(notebook)}. Read first: {first}" + (f" It leads to {', '.join(after)}." if after else "")
        )
    return "\n".join(lines)


def sources(found: list[course_frame.Notebook]) -> str:
    """A list: which notebooks each of the five sources has."""
    return "\n".join(
        f"- **{name}**: {', '.join(_link(notebook) for notebook in found if name in notebook.sources)}"
        for name in course_frame.SOURCES
    )


def minutes(found: list[course_frame.Notebook]) -> str:
    """A table: what each notebook says of its own time."""
    rows = [f"| {_link(notebook)} | {linked(notebook.minutes, 'notebooks')} |" for notebook in found]
    return "\n".join(["| notebook | minutes by profile |", "|---|---|", *rows])


def exercises(found: list[course_frame.Notebook], *numbers: str) -> str:
    """A list: the exercises in code of some notebooks, by their headings."""
    lines = []
    for notebook in found:
        if notebook.number in numbers:
            where = f"[{notebook.number}](/notebooks/{notebook.name}.ipynb#exercises)"
            titles = "; ".join(title.removeprefix("Exercise ") for title in notebook.exercises)
            lines.append(f"- Exercises in code of {where}: {titles}." if titles else f"- Reading questions of {where}.")
    return "\n".join(lines)


def table_of_profiles(found: list[course_frame.Notebook]) -> str:
    """A table: what the profiles train."""
    rows = ["| profile | device | images | network | epochs | seeds |", "|---|---|---|---|---|---|"]
    for name in profiles.NAMES:
        profile = profiles._PROFILES[name]  # not load(), which wants the device
        base, seeds = profile.base, profile.seeds
        images = f"{base.n_train:,} of `{base.dataset}`, {base.image_size} × {base.image_size}"
        network = base.encoder if base.encoder != "small" else f"three convolutions, the first of {base.width} channels"
        rows.append(
            f"| `{name}` | {profile.accelerator} | {images} | {network} | {base.epochs} | "
            f"{len(seeds)}: {seeds[0]} to {seeds[-1]} |"
        )
    return "\n".join(rows)


def offline(found: list[course_frame.Notebook]) -> str:
    """The command that fetches what `make setup` installs, as the Makefile has it."""
    extras = re.search(r"-e '\.\[(.*?)\]'", (course_frame.ROOT / "Makefile").read_text())[1]
    command = f"pip download -d wheels -c constraints.txt '.[{extras}]' 'setuptools>=77'"
    return f"```console\n$ {command}\n```"


TEXTS = {
    "course-offline": offline,
    "course-readme": readme,
    "course-needs": needs,
    "course-sources": sources,
    "course-minutes": minutes,
    "course-exercises": exercises,
    "course-profiles": table_of_profiles,
}


def setup(app):
    app.add_directive("course-map", Map)
    for name in TEXTS:
        app.add_directive(name, Course)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
