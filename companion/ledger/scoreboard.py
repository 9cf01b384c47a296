"""The scoreboard: the ledger as a page, as Markdown and for a terminal, and what chance alone would do to it."""

import html
from collections.abc import Iterable

import pandas as pd

from companion import paths, store
from companion.ledger.claims import NOT_LEARNT, VERDICTS, Claim, load
from companion.ledger.ledger import Ledger, observed, read
from companion.ledger.observed import LEVEL

NOT_RUN = "not run"  # at the papers' size
_STYLE = (
    "body{font:15px/1.4 sans-serif;margin:2em}table{border-collapse:collapse}"
    "td,th{padding:.3em .6em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
)


def holm(p_values: dict[str, float], *, level: float = 1 - LEVEL) -> set[str]:
    """Which of several verdicts survive Holm's correction (Holm 1979): together they err with at most ``level``."""
    survivors = set()
    for rank, (id, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p > level / (len(p_values) - rank):
            break
        survivors.add(id)
    return survivors


def p_values(records: dict[str, dict]) -> dict[str, float]:
    """Of every measured claim, decided or not, how easily chance gives a value so far to its side of the range's end.

    ``records`` are those that decide: :meth:`~companion.ledger.Ledger.deciding`. An identity has none, nor a claim
    that was not tested because nothing was learnt.
    """
    claims = load()
    return {
        id: observed(record).p_value(claims[id].at_least, claims[id].at_most)
        for id, record in records.items()
        if claims[id].kind != "identity" and record["verdict"] != NOT_LEARNT
    }


def survivors(records: dict[str, dict]) -> set[str]:
    """Decided claims whose verdict survives Holm's correction for all that were measured, the inconclusive ones too."""
    return {id for id in holm(p_values(records)) if records[id]["verdict"] != "inconclusive"}


def chance(records: dict[str, dict]) -> str:
    """In words: how many of the measured claims miss by chance, and how many verdicts survive that thought."""
    measured = p_values(records)
    decided = [id for id in measured if records[id]["verdict"] != "inconclusive"]
    misses = len(measured) * (1 - LEVEL)
    return (
        f"Of {len(measured)} measured claims about {misses:.1f} intervals miss the truth by chance; {len(decided)} are "
        f"decided, and {len(survivors(records))} of these survive Holm's correction for all {len(measured)}"
    )


def full_size() -> dict[str, str]:
    """What the recorded runs at the papers' size found of each claim, with n and the folder that it was recorded in; of
    several folders the first of :func:`companion.paths.full_size`. No verdict at another profile rests on it."""
    found = {}
    for folder in paths.full_size():
        for id, record in read(paths.reference() / folder / "claims.json").items():
            found.setdefault(id, f"{observed(record)}, n = {record['n']} ({folder})")
    return found


def recorded_on(folders: dict[str, str], claims: Iterable[Claim]) -> pd.DataFrame:
    """What was recorded of these claims on several data sets, one row a claim of which there is a record: its
    statement, what is accepted, and value, interval and verdict on each.

    Args:
        folders: name of a column → folder of the recorded results, such as ``cpu``.
        claims: of which; others are left out.
    """
    found = {name: read(paths.reference() / folder / "claims.json") for name, folder in folders.items()}
    rows = {
        claim.id: {"statement": claim.told, "accepted": f"{claim.quantity}: {claim.range}"}
        | {
            name: f"{observed(r[claim.id])}, {r[claim.id]['verdict']}" if claim.id in r else "–"
            for name, r in found.items()
        }
        for claim in claims
        if any(claim.id in r for r in found.values())
    }
    return pd.DataFrame(rows.values(), index=list(rows), columns=["statement", "accepted", *folders])


def table(ledger: Ledger) -> pd.DataFrame:
    """The whole ledger, one row a claim. The column ``full size`` has what was recorded at the papers' size, of all but
    identities, which have no size; ``holm`` marks measured verdicts that survive Holm's correction."""
    surviving, large = survivors(ledger.deciding()), full_size()
    whole = ledger.table(everything=True)
    column = ["" if kind == "identity" else large.get(id, NOT_RUN) for id, kind in whole["kind"].items()]
    whole.insert(whole.columns.get_loc("agrees"), "full size", column)
    return whole.assign(holm=["✓" if id in surviving else "" for id in whole.index])


def summary(ledger: Ledger) -> str:
    """Counts of the verdicts, what chance does to them, and which differ from what was found before."""
    verdicts = ledger.table(everything=True)["verdict"]
    counts = verdicts.where(~verdicts.str.startswith(("not yet", "at profile")), "not tested here").value_counts()
    named = ", ".join(f"{count} {name}" for name, count in counts.items())
    differing = "; ".join(ledger.surprises()) or "none"
    return f"{named}. {chance(ledger.deciding())}. Verdicts that differ from those found before: {differing}."


def write(ledger: Ledger) -> pd.DataFrame:
    """Write ``scoreboard.md`` and ``scoreboard.html`` beside ``claims.json``; return the table."""
    found, title = table(ledger), f"Scoreboard, profile {ledger.profile.folder}"
    cells = found.reset_index().astype(str)
    lines = [cells.columns.tolist(), ["---"] * len(cells.columns), *cells.values.tolist()]
    rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    words = summary(ledger)
    store.write(ledger.folder / "scoreboard.md", f"# {title}\n\n{words}\n\n{rows}\n")
    page = (
        "<!doctype html>\n<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(words)}</p>{cells.to_html(index=False, border=0)}</html>\n"
    )
    store.write(ledger.folder / "scoreboard.html", page)
    return found


def text(ledger: Ledger) -> str:
    """For a terminal: what was measured, a line a claim; of the identities only how many hold."""
    found = table(ledger)
    measured = found[(found["kind"] != "identity") & found["verdict"].isin((*VERDICTS, NOT_LEARNT))]
    identities = found[(found["kind"] == "identity") & found["verdict"].isin(VERDICTS)]
    columns = ["quantity", "accepted", "here", "n", "recorded", "full size", "verdict", "holm"]
    lines = measured[columns].to_string(max_colwidth=40, justify="left") if len(measured) else "(nothing measured yet)"
    return (
        f"Scoreboard, profile {ledger.profile.folder}: {summary(ledger)}\n\n{lines}\n\n"
        f"Identities: {(identities['verdict'] == 'reproduced').sum()} of {len(identities)} hold."
    )
