"""The scoreboard as a page, and the links between it and the cells of the notebooks that test its claims."""

import ast
import html
import json
import re
from pathlib import Path

from bs4 import BeautifulSoup
from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from companion import ledger, paths
from companion.course import profiles
from companion.ledger.ledger import observed, read

logger = logging.getLogger(__name__)
SCOREBOARD = "notebooks/14_scoreboard"
CLAIMS = ledger.load()
CPU = ledger.Ledger(profiles.load("cpu"))  # the committed notebooks were executed at it


def anchor(claim: str) -> str:
    """Of the cell that tests the claim, in its notebook's page."""
    return "claim-" + re.sub(r"[^a-z0-9]+", "-", claim.lower())


# ---- the cells that test claims -----------------------------------------------------------------------------------


def names(source: str) -> list[re.Pattern]:
    """Every text in a cell of code, as the pattern of what it can be: what is put in at run time can be anything."""
    try:
        tree = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M))
    except SyntaxError:
        return []
    parts, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            texts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in node.values]
            found.append("".join(texts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            found.append(re.escape(node.value))
    return [re.compile(text) for text in found if "." in text.replace(".*", "")]


def place(claim: str, cells: list[str]) -> int | None:
    """Number of the cell that tests the claim: the one that files it by its name, or by a name put together; else the
    one that names it, else the table of the notebook's claims."""
    named = [i for i, source in enumerate(cells) if any(p.fullmatch(claim) for p in names(source))]
    exact = [i for i in named if f'"{claim}"' in cells[i]]
    files = [i for i in range(len(cells)) if "ledger.check(" in cells[i]]
    beyond = [i for i in exact if f'"{claim}"' in cells[i].replace(f'.tests("{claim}")', "")]  # not asked alone whether
    table = [i for i, source in enumerate(cells) if "ledger.table(" in source]
    for candidates in ([i for i in exact if i in files], [i for i in named if i in files], beyond, exact, named, table):
        if candidates:
            return candidates[0]
    return None


def mark(app, doctree) -> None:
    """Give the cells their anchors."""
    docname = app.env.current_document.docname
    if not docname.startswith("notebooks/"):
        return
    cells = [c for c in doctree.findall(nodes.container) if c.get("nb_element") == "cell_code"]
    sources = [next(iter(c.findall(nodes.literal_block))).astext() for c in cells]
    for claim in CLAIMS.values():
        if f"notebooks/{claim.notebook}" == docname:
            number = place(claim.id, sources)
            if number is None:
                logger.warning("no cell tests the claim %s", claim.id, location=docname)
            else:
                cells[number]["ids"].append(anchor(claim.id))
    up = "../" * docname.count("/")
    for literal in list(doctree.findall(nodes.literal)):
        if literal.astext() in CLAIMS and not isinstance(literal.parent, nodes.reference):
            link = nodes.reference("", "", internal=True, refuri=f"{up}scoreboard.html#{literal.astext()}")
            literal.replace_self(link)
            link += literal


def setup(app):
    app.add_directive("scoreboard", Scoreboard)
    app.connect("doctree-read", mark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


# ---- the page -----------------------------------------------------------------------------------------------------


def rows(notebook: Path) -> dict[str, dict[str, str]]:
    """The rows of the scoreboard's tables, as the committed notebook shows them, by the claims' ids."""
    found = {}
    for cell in json.loads(notebook.read_text())["cells"]:
        for output in cell.get("outputs", []):
            page = BeautifulSoup("".join(output.get("data", {}).get("text/html", "")), "html.parser")
            for table in page.find_all("table"):
                columns = [th.get_text() for th in table.thead.tr.find_all("th")][1:]
                for row in table.tbody.find_all("tr"):
                    if row.th and row.th.get_text() in CLAIMS:
                        values = [td.get_text().strip() for td in row.find_all("td")]
                        found[row.th.get_text()] = dict(zip(columns, values, strict=True))
    return found


COLUMNS = ["claim", "source", "statement", "verdict", "value", "n", "accepted"]


class Scoreboard(SphinxDirective):
    """Every claim of the ledger with what the committed notebooks and the recorded runs found."""

    def run(self):
        notebook, recorded = paths.ROOT / f"{SCOREBOARD}.ipynb", paths.reference() / "cpu" / "claims.json"
        for path in (notebook, recorded, paths.ROOT / "companion" / "ledger" / "claims.yaml"):
            self.env.note_dependency(str(path))
        shown, records = rows(notebook), read(recorded)
        found = [self.row(claim, shown.get(id, {}), records.get(id)) for id, claim in CLAIMS.items()]
        verdicts = sorted({verdict for verdict, _ in found})
        options = "".join(f"<option>{html.escape(verdict)}</option>" for verdict in verdicts)
        heads = "".join(f'<th scope="col" aria-sort="none" data-label="{name}">{name}</th>' for name in COLUMNS)
        page = (
            '<div class="scoreboard-filter" hidden><label>Words <input type="search"></label>'
            f'<label>Verdict <select><option value="">any</option>{options}</select></label>'
            '<span role="status"></span></div>'
            '<div class="scoreboard" role="region" aria-label="All claims" tabindex="0"><table class="sortable">'
            f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{''.join(line for _, line in found)}</tbody></table></div>"
        )
        return [nodes.raw("", page, format="html")]

    @staticmethod
    def row(claim, shown: dict[str, str], record: dict | None) -> tuple[str, str]:
        """The verdict on a claim and its row of the table."""
        here = {"n": int(shown.get("n") or 1)} if shown.get("here") else None
        if record and CPU._deciding(claim, here, {claim.id: record}) is record:
            value, n, verdict, where = str(observed(record)), record["n"], record["verdict"], " <small>recorded</small>"
        else:
            value, verdict, where = shown.get("here", ""), shown.get("verdict", "not yet"), ""
            n = shown.get("n", "") or ("1" if value else "")
        number = re.match(r"-?[\d.]+(e[-+]?\d+)?", value)
        id, words = html.escape(claim.id), html.escape
        place = f"notebooks/{claim.notebook}.html#{anchor(claim.id)}"
        cells = {
            "source": words(claim.source),
            "statement": f'<a href="{place}">{words(claim.statement)}</a>'
            f"{f' ({words(claim.scope)})' if claim.scope else ''}<br><small>{words(claim.quantity)}</small>",
            "verdict": f'<span class="verdict {verdict.replace(" ", "-")}">{words(verdict)}</span>',
            "value": f"{words(value)}{where}",
            "n": n,
            "accepted": words(claim.range),
        }
        sorts = {"value": f' data-value="{number[0] if number else ""}"'}
        return verdict, (
            f'<tr id="{id}" data-verdict="{words(verdict)}">'
            f'<th scope="row"><a href="#{id}">{id.replace(".", ".<wbr>")}</a></th>'
            + "".join(f'<td data-label="{c}"{sorts.get(c, "")}>{cells[c]}</td>' for c in COLUMNS[1:])
            + "</tr>\n"
        )
