"""What the pages of the package document, and under which names."""

import importlib
import re
from pathlib import Path

from sphinx.ext.napoleon import Config, GoogleDocstring

OTHERS = [  # libraries, and the names of theirs that signatures show bare
    "torch", "numpy", "pandas", "matplotlib", "PIL", "pathlib", "collections", "lightning", "lightning_fabric",
    "papermill", "Tensor", "Axes", "Figure", "Path", "Callable", "Iterable", "Iterator", "Sequence", "Mapping", "nn",
    "np", "pd", "Fabric", "Any", "Self", "ast",
]  # fmt: skip
PACKAGES = ["losses", "theory", "diagnose", "training", "training.methods", "ledger"]


def canonical() -> dict[str, str]:
    """Where an object is defined → the name under which users import it, and under which it has its entry."""
    names = {}
    for package in PACKAGES:
        module = importlib.import_module(f"companion.{package}")
        for name in module.__all__:
            found = getattr(module, name)
            defined = getattr(found, "__module__", None)
            if isinstance(defined, str) and defined != module.__name__:
                names.setdefault(f"{defined}.{found.__qualname__}", f"companion.{package}.{name}")
    return names


NAMES = canonical()


def skip(app, what, name, found, skipped, options):
    """An object that a package exports has its entry there, and none beside it under its module."""
    if what == "module" and not skipped:
        module = app.env.current_document.autodoc_module or app.env.ref_context.get("py:module", "")
        own = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
        if own in NAMES and NAMES[own].rpartition(".")[0] != module:
            return True
    return None


class Docstring(GoogleDocstring):
    """Sections as Napoleon reads them, but no word before a colon is taken for a type: signatures have those."""

    def _consume_returns_section(self, preprocess_types: bool = False):
        lines = self._dedent(self._consume_to_next_section())
        return [("", "", lines)] if lines else []


def process(app, what, name, found, options, lines) -> None:
    text = "\n".join(lines)
    # A bar is no substitution here, and the star of (k, *runs) no emphasis.
    text = re.sub(r"(``.*?``)|(?<!\\)\||(?<=[(, ])\*(?=\w+[,)])", lambda m: m[1] or "\\" + m[0], text, flags=re.S)
    config = Config(napoleon_google_docstring=True, napoleon_numpy_docstring=False)
    kind = "class" if what == "class" else "function"  # of a property it would read the first words as its type
    lines[:] = Docstring(text.split("\n"), config, app, kind, name, found, options).lines()


def signature(app, what, name, found, options, arguments, returned):
    """A default that a dataclass makes afresh is shown as Python can read it, for Sphinx reads signatures."""
    return (arguments.replace("<factory>", "..."), returned) if arguments else None


BACK = re.compile(r'(id="([\w.]+)">\s*)<a class="viewcode-back" href="([^"#]*)#[^"]*">\[docs\]</a>')


def lead_back(app, exception) -> None:
    """From a page of code to the entries of the package's pages: the extension takes each for one of the first package
    that it was imported by, and some for entries that there are not."""
    entries = {} if exception else app.env.domains.python_domain.objects
    root = Path(app.outdir, "_modules")
    for path in root.rglob("*.html") if entries else ():
        module = ".".join(path.relative_to(root).with_suffix("").parts)

        up = "../" * (module.count(".") + 1)

        def mended(match: re.Match, module=module, up=up) -> str:
            outer, dot, inner = match[2].partition(".")
            name = NAMES.get(f"{module}.{outer}", f"{module}.{outer}") + dot + inner
            if name not in entries:
                return match[1]
            page = f"{up}{entries[name].docname}.html#{entries[name].node_id}"
            return f'{match[1]}<a class="viewcode-back" href="{page}">[docs]</a>'

        path.write_text(BACK.sub(mended, path.read_text()))


def setup(app):
    app.connect("build-finished", lead_back)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
