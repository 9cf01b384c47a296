"""A Chromium that is installed already, and the book, built once."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from companion import paths

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Whatever the build would ask of another machine fails; what tests do among themselves on this one does not.
NO_NETWORK = """
import socket
_connect, _resolve = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    if self.family != socket.AF_UNIX:
        raise OSError(f"the build must not ask {address}")
    return _connect(self, address)
def getaddrinfo(host, *rest, **options):
    raise OSError(f"the build must not ask for {host}")
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


@pytest.fixture(scope="session")
def chromium():
    """The browser itself: a test opens contexts of its own."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no browser: install one of " + ", ".join(NAMES))
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: extra `browser`")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


PIXEL = (  # frames that differ
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==",
)
CONTROLS = [
    {"name": "loss", "values": ["triplet", "lifted"], "start": 0},
    {"name": "margin", "values": [0.0, 0.5, 1.0], "start": 1},
]
FRAMES = {
    "format": "png", "frames": [PIXEL[number % 2] for number in range(6)], "start": 1, "controls": CONTROLS,
    "alts": [f"{loss} at margin {margin}" for loss in CONTROLS[0]["values"] for margin in CONTROLS[1]["values"]],
}  # fmt: skip


def small_notebook():
    """What the book does with cells and outputs, whether or not a committed notebook has them."""
    moved = v4.new_output(
        "display_data",
        {"image/png": PIXEL[1], "application/vnd.companion.frames+json": FRAMES, "text/plain": "<Image>"},
        metadata={"image/png": {"alt": FRAMES["alts"][1]}},
    )
    done = v4.new_output("stream", name="stdout", text="Exercise 1: correct.\n")
    cells = [
        v4.new_markdown_cell(
            "# 99 · A small notebook\n\nIt has $a$ and $b$ and\n\n$$ c = a + b \\tag{1} $$\n\n"
            "**Minutes.** `smoke` 1 · `cpu` 1 on two cores.\n\n**Read first.** Nothing."
        ),
        v4.new_code_cell("import companion", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("figures.movable(draw)", execution_count=2, outputs=[moved]),
        v4.new_markdown_cell("## Exercises\n\n### Exercise 1: add\n\nWrite `add`."),
        v4.new_code_cell(
            "def add(a, b):\n    ### BEGIN SOLUTION\n    return a + b\n    ### END SOLUTION",
            metadata={"tags": ["exercise", "hide-input"]}, execution_count=3,
        ),
        v4.new_code_cell("assert add(1, 2) == 3", metadata={"tags": ["check"]}, execution_count=4, outputs=[done]),
        v4.new_markdown_cell("### Reading questions\n\n1. Why?"),
        v4.new_markdown_cell(
            "<details><summary>Solutions</summary>\n\n1. Because $a$.\n\n</details>", metadata={"tags": ["solution"]}
        ),
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
              "language_info": {"name": "python"}}  # fmt: skip
    return v4.new_notebook(cells=cells, metadata=kernel)


class Page(HTMLParser):
    """What of a page tests ask for, without a browser."""

    def __init__(self, path: Path, root: Path):
        super().__init__()
        self.path, self.name = path, path.relative_to(root).as_posix()
        self.text = path.read_text()
        self.ids, self.links, self.loaded, self.images, self.math, self.tags = set(), [], [], [], 0, 0
        self._article = 0
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get("id"):
            self.ids.add(found["id"])
        if tag == "a" and "name" in found:
            self.ids.add(found["name"])
        if tag == "article":
            self._article += 1
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source", "video", "audio") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") not in ("canonical", "author", "index", "search", "next", "prev"):
            self.loaded.append(found.get("href", ""))
        if tag == "img" and self._article:
            self.images.append((found["src"], found.get("alt")))
        self.math += tag == "math"
        self.tags += tag == "span" and found.get("class") == "eqno"

    def handle_endtag(self, tag):
        self._article -= tag == "article"


class Site:
    """The book as it was built."""

    def __init__(self, root: Path):
        self.root = root
        self.log = (root.parent / "log.txt").read_text()

    @functools.cached_property
    def pages(self) -> dict[str, Page]:
        return {p.relative_to(self.root).as_posix(): Page(p, self.root) for p in sorted(self.root.rglob("*.html"))}

    def uri(self, name: str) -> str:
        return (self.root / name).as_uri()


def build(folder: Path) -> None:
    """The whole book with a small notebook more, of a copy of the project, so that other builds are not disturbed."""
    project = folder / "project"
    ignored = shutil.ignore_patterns("__pycache__", "notebooks", *(["data.md", "recorded.md"]))
    shutil.copytree(paths.ROOT / "book", project / "book", ignore=ignored)
    shutil.copytree(paths.ROOT / "notebooks", project / "notebooks", ignore=shutil.ignore_patterns(".*"))
    nbformat.write(small_notebook(), project / "notebooks" / "99_small.ipynb")
    for name in ("companion", "data", "docs", "results", "CITATION.cff", "Makefile", "README.md", "LICENSE"):
        (project / name).symlink_to(paths.ROOT / name)
    (folder / "blocked").mkdir()
    (folder / "blocked" / "sitecustomize.py").write_text(NO_NETWORK)
    makefile = (paths.ROOT / "Makefile").read_text()
    command = re.search(r"^book: .*\n\t\$\(py\) (.*)$", makefile, re.M)[1].split()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BOOK_")}
    environment |= {"PYTHONPATH": f"{folder / 'blocked'}:{paths.ROOT}", "HTTPS_PROXY": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True)
    (project / "build" / "log.txt").write_text(done.stdout + done.stderr)
    (folder / "done.json").write_text(json.dumps(done.returncode))


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The book, built by the Makefile's command with the network blocked; once, however many processes test."""
    filelock, _ = (
        pytest.importorskip("filelock"),
        pytest.importorskip("sphinx", reason="Sphinx is not installed: extra `book`"),
    )
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if os.environ.get("PYTEST_XDIST_WORKER") else shared
    folder = shared / "book"
    with filelock.FileLock(shared / "book.lock"):
        if not (folder / "done.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
    found = Site(folder / "project" / "build" / "book")
    assert json.loads((folder / "done.json").read_text()) == 0, found.log
    return found


@pytest.fixture(scope="session")
def served(site):
    """The address at which the book is served on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site.root))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
