"""A reading as one self-contained HTML page: nothing is loaded, light and dark, wide and narrow."""

from html import escape
from pathlib import Path

from companion import store
from companion.diagnose import figures, table
from companion.diagnose.advice import advice
from companion.diagnose.reading import Reading
from companion.errors import CompanionError

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #8b929a; --paper: #fff; --rule: #d8dde3;
        --positive: #00795a; --negative: #1769b5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7ec; --faint: #7d8690; --paper: #14171b; --rule: #363c43;
          --positive: #3ecf9f; --negative: #6db3f5; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 46rem; color: var(--ink); background: var(--paper);
       font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
table { width: 100%; border-collapse: collapse; margin: 0 0 1.25rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: left; font-weight: normal; vertical-align: top; padding: .3rem .8rem .3rem 0;
         border-top: 1px solid var(--rule); }
th { width: 32%; } td:nth-child(2) { width: 32%; font-variant-numeric: tabular-nums; }
td:last-child { padding-right: 0; }
.note, td:last-child { font-size: .875rem; }
li { margin-bottom: 1rem; } li p { margin: .25rem 0; } code { font-size: .85em; }
figure { margin: 0 0 1.5rem; max-width: 34rem; } figure svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif !important; }
"""


def html(reading: Reading) -> str:
    """The page as text.

    Raises:
        MissingExtraError: if matplotlib, which draws its figures, is not installed.
    """
    found = [
        f"<li><p><strong>{escape(item.finding)}</strong></p><p>{escape(item.suggestion)}</p>"
        f'<p class="note">Explained in <code>{escape(item.notebook)}</code>, “{escape(item.section)}”.</p></li>'
        for item in advice(reading)
    ]
    pictures = [
        f'<figure role="img" aria-label="{escape(p.alt)}">{p.svg}</figure>\n<p class="note">{escape(p.alt)}</p>'
        for p in figures.draw(reading)
    ]
    tables = [_table(section, rows) for section, rows in table.tables(reading).items()]
    title = escape(table.title(reading))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>",
            f'<p class="note">{escape(table.basis(reading))}</p>\n<h2>What to look at</h2>\n<ul>',
            *found, "</ul>\n<h2>Figures</h2>", *pictures, "<h2>All numbers</h2>", *tables,
            '<p class="note">Written by <code>python -m companion.diagnose</code>. Theorem and equation numbers are '
            'those of Lee, Lim, Lee &amp; Sohn (ICML 2025); alignment and uniformity are Wang '
            "&amp; Isola's (ICML 2020).</p>",
            "</main>\n</body>\n</html>\n",
        ]
    )  # fmt: skip


def check_name(path: str | Path) -> Path:
    """The path, if a page may be written there.

    Raises:
        CompanionError: if it does not end in ``.html`` or ``.htm``: an array may lie there, which would be lost.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise CompanionError(f"The page is to be written to {path}: expected a name that ends in .html.")
    return path


def write(reading: Reading, path: str | Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        CompanionError: if the name does not end in ``.html``, or the file cannot be written.
        MissingExtraError: if matplotlib is not installed.
    """
    store.write(check_name(path), html(reading))


def _table(caption: str, rows: list[table.Row]) -> str:
    body = "\n".join(
        f'<tr><th scope="row">{escape(row.name)}</th><td>{escape(row.value)}</td><td>{escape(row.meaning)}</td></tr>'
        for row in rows
    )
    return f"<table>\n<caption>{escape(caption)}</caption>\n{body}\n</table>"
