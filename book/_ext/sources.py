"""What the book takes from the rest of the project: notebooks, READMEs, files that they link to, CITATION.cff."""

import json
import os
import re
import shutil
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
HERE = Path(__file__).parents[1]
ROOT = HERE.parent
PAGES = {"data.md": "data/README.md", "recorded.md": "results/reference/README.md"}  # in the book → in the project
# Code that only draws or words what was computed before is closed at first: it trains nothing and files no claim.
WORDING = re.compile(r"\bfigures\.(show|say|movable|panels)\(")
EVIDENCE = re.compile(r"(\bcheck|\btraining\.\w+|\bruns|\brecorded)\(")
TAUGHT = {"exercise", "check"}
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:)([^()#\s]+)(#[^()\s]*)?\)")


def copy(root: Path, here: Path) -> None:
    """Sphinx reads only what lies below its folder: copies, with their times, so that builds stay incremental."""
    (here / "notebooks").mkdir(exist_ok=True)
    wanted = {here / "notebooks" / path.name: path for path in sorted((root / "notebooks").glob("*.ipynb"))}
    for old in set((here / "notebooks").iterdir()) - set(wanted):
        shutil.rmtree(old) if old.is_dir() else old.unlink()  # a folder: what JupyterLab leaves where it opened one
    for ours, theirs in (wanted | {here / name: root / origin for name, origin in PAGES.items()}).items():
        stat = theirs.stat()
        if not ours.exists() or (ours.stat().st_mtime, ours.stat().st_size) != (stat.st_mtime, stat.st_size):
            shutil.copy2(theirs, ours)


def origin(docname: str, suffix: str) -> Path:
    """Where the page lies in the project."""
    name = docname + suffix
    if docname.startswith("notebooks/"):
        return ROOT / name
    return ROOT / PAGES[name] if name in PAGES else HERE / name


class Links:
    """Rewrites the links of one page: as they are written they hold in the project, and the book must follow them."""

    def __init__(self, app, docname: str):
        self.app, self.docname = app, docname
        self.page = origin(docname, app.env.doc2path(docname).suffix)
        self.up = "../" * docname.count("/")

    def __call__(self, text: str) -> str:
        return LINK.sub(self._replaced, text)

    def _replaced(self, match: re.Match) -> str:
        words, target, fragment = match[1], match[2], match[3] or ""
        path = Path(os.path.normpath(self.page.parent / target))
        for name, theirs in PAGES.items():
            if path == ROOT / theirs:
                return f"[{words}](/{name}{fragment})"
        inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        if inside == "README.md":
            return f"[{words}](/index.md)"
        if inside.startswith("notebooks/") and path.suffix == ".ipynb":
            return f"[{words}](/{inside}{fragment})"
        if inside.startswith("companion/") and path.suffix == ".py" and path.exists():
            module = inside.removesuffix(".py").removesuffix("/__init__")
            room = module.split("/")[1]
            if path.name == "__init__.py" and (HERE / "api" / f"{room}.md").exists():
                return f"[{words}](/api/{room}.md)"
            return f'<a class="reference internal" href="{self.up}_modules/{module}.html">{words}</a>'
        if inside and not inside.startswith("book/") and path.is_file():
            shutil.copy2(path, _made(Path(self.app.outdir) / "files" / inside))
            return f'<a class="reference internal" href="{self.up}files/{inside}">{words}</a>'
        return match[0]  # a page of the book itself, or nothing: Sphinx tells


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _only_words(code: str) -> bool:
    return bool(WORDING.search(code)) and not EVIDENCE.search(code)


def _if_any(match: re.Match) -> str:
    return match[0] if any(HERE.glob(match[1])) else ""


def read(app, docname: str, content: list[str]) -> None:
    links = Links(app, docname)
    if docname == app.config.root_doc:  # it names pages that a copy of the project may leave out
        content[0] = re.sub(r"^(course/.*\*)\n", _if_any, content[0], flags=re.M)
    if not docname.startswith("notebooks/"):
        content[0] = links(content[0])
        return
    notebook = json.loads(content[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = links("".join(cell["source"]))
        elif not set(cell["metadata"].get("tags", [])) & TAUGHT and _only_words("".join(cell["source"])):
            cell["metadata"].setdefault("tags", []).append("hide-input")
            cell["metadata"]["mystnb"] = {"code_prompt_show": "Show this code", "code_prompt_hide": "Hide this code"}
        for output in cell.get("outputs", []):
            if "text/markdown" in output.get("data", {}):
                output["data"]["text/markdown"] = links("".join(output["data"]["text/markdown"]))
            if "text/html" in output.get("data", {}):
                page = "".join(output["data"]["text/html"])
                output["data"]["text/html"] = re.sub(r'(href="\d\d_\w+)\.ipynb', r"\1.html", page)
    content[0] = json.dumps(notebook)


class Sources(SphinxDirective):
    """The list of sources, from CITATION.cff."""

    def run(self):
        path = ROOT / "CITATION.cff"
        self.env.note_dependency(str(path))
        lines = []
        for source in yaml.safe_load(path.read_text())["references"]:
            names = ", ".join(f"{a['given-names'][0]}. {a['family-names']}" for a in source["authors"])
            arxiv = [i["value"].removeprefix("arXiv:") for i in source.get("identifiers", [])]
            link = f"[arXiv:{arxiv[0]}](https://arxiv.org/abs/{arxiv[0]})" if arxiv else f"<{source['url']}>"
            where = f" {source['collection-title']}," if "collection-title" in source else ""
            notes = f" {source['notes']}" if "notes" in source else ""
            key = source["authors"][0]["family-names"].lower() + str(source["year"])
            title = source["title"].rstrip(".")
            lines += [
                f"({key})=",
                f"- {names}. *{title}.*{where} {source['year']}, {link}.{notes}",
                "",
            ]
        box = nodes.Element()
        self.state.nested_parse(lines, self.content_offset, box)
        return box.children


def setup(app):
    app.add_directive("sources", Sources)
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
