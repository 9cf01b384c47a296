"""The ledger: every claim of the papers that this companion tests, and what was observed.

``claims.yaml`` states each claim once. A notebook hands its observation to :meth:`Ledger.check`, which computes the
verdict and files it under ``results/<profile>/claims.json``. The rule is the same for all claims: each names the range
in which the observed value must lie, and

* *reproduced*: the whole 95 % interval lies in the range,
* *partly*: only part of it does,
* *not reproduced*: none of it does.
"""

import functools
import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from companion import paths, store
from companion.errors import CompanionError, choose
from companion.profiles import NAMES, Profile

VERDICTS = ("reproduced", "partly", "not reproduced")
PROVENANCE = {
    "paper": "",
    "repository": "authors' repository",
    "abstract": "abstract",
    "figure": "read off a figure",
    "computed": "computed here",
}


@dataclass(frozen=True)
class Claim:
    """One entry of ``claims.yaml``."""

    id: str
    source: str  # paper and place in it
    notebook: str  # the notebook that tests it
    statement: str
    quantity: str = ""  # what is observed
    expected: dict[str, str] = field(default_factory=dict)  # profile → verdict, where it is known
    profiles: tuple[str, ...] = NAMES  # the profiles that test it
    paper: str = ""  # the published value, in words where it is no single number
    provenance: str = "paper"
    at_least: float = -math.inf
    at_most: float = math.inf

    def __post_init__(self):
        choose(self.provenance, PROVENANCE, f"provenance of claim {self.id}")
        for profile in (*self.profiles, *self.expected):
            choose(profile, NAMES, f"profile of claim {self.id}")
        for verdict in self.expected.values():
            choose(verdict, VERDICTS, f"expected verdict of claim {self.id}")
        if not self.at_least <= self.at_most or (math.isinf(self.at_least) and math.isinf(self.at_most)):
            raise CompanionError(f"Claim {self.id} could never fail or never hold: give it at_least, at_most or both.")

    @property
    def published(self) -> str:
        """The paper's value, and where it was not read in the paper itself, that it was not."""
        note = PROVENANCE[self.provenance]
        return f"{self.paper} ({note})" if self.paper and note else self.paper


@dataclass(frozen=True)
class Observed:
    """A value with its interval and the number of independent observations behind it."""

    value: float
    low: float
    high: float
    n: int

    def __post_init__(self):
        if not (math.isfinite(self.value) and self.low <= self.value <= self.high):
            raise CompanionError(
                f"Observed {self.value} in [{self.low}, {self.high}]: expected a finite value inside its interval."
            )

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.0f}" if self.value == round(self.value) else f"{self.value:.4g}"
        digits = max(0, 2 - math.floor(math.log10(self.high - self.low)))  # the interval to about two digits
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def over_seeds(values: Sequence[float]) -> Observed:
    """Mean and 95 % Student-t interval of one value a seed; for differences, pair them by seed first.

    Raises:
        CompanionError: for fewer than 3 values, since no claim rests on one run, or for values that are not finite.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) < 3 or not np.isfinite(values).all():
        raise CompanionError(f"Observed {values.tolist()}: expected at least 3 finite values, one a seed.")
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Observed(values.mean(), values.mean() - half, values.mean() + half, len(values))


def paired_difference(a: pd.DataFrame, b: pd.DataFrame, column: str) -> Observed:
    """``a - b`` in one column of two tables of runs (:func:`companion.runs.table`), paired by seed.

    Raises:
        CompanionError: if the two have not the same seeds, each once.
    """
    left, right = a.set_index("seed")[column], b.set_index("seed")[column]
    if sorted(left.index) != sorted(right.index) or not left.index.is_unique:
        raise CompanionError(
            f"Seeds {sorted(left.index)} and {sorted(right.index)} cannot be paired: expected the same, each once."
        )
    return over_seeds(left - right.loc[left.index])


def exact(value: float) -> Observed:
    """A value that no seed changes: a theorem's number, an identity's residual."""
    return Observed(float(value), float(value), float(value), 1)


def verdict(claim: Claim, observed: Observed) -> str:
    """One of :data:`VERDICTS`, by the rule at the top of this module."""
    if claim.at_least <= observed.low and observed.high <= claim.at_most:
        return "reproduced"
    return "not reproduced" if observed.high < claim.at_least or observed.low > claim.at_most else "partly"


@functools.cache
def load() -> dict[str, Claim]:
    """All claims by id, in the order of the notebooks that test them.

    Raises:
        CompanionError: for an entry that is malformed, or an id that appears twice.
    """
    entries = yaml.safe_load(resources.files("companion").joinpath("claims.yaml").read_text())
    claims = {}
    for entry in entries:
        if entry["id"] in claims:
            raise CompanionError(f"Claim {entry['id']} stands twice in claims.yaml.")
        try:
            claims[entry["id"]] = Claim(**entry)
        except TypeError as error:
            raise CompanionError(f"Claim {entry['id']} in claims.yaml is malformed: {error}.") from error
    return dict(sorted(claims.items(), key=lambda item: item[1].notebook))


class Ledger:
    """The claims of one notebook at one profile."""

    def __init__(self, profile: Profile):
        self.profile = profile
        self.folder = paths.results() / profile.folder
        self._checked: dict[str, dict] = {}

    def check(self, id: str, observed: Observed) -> str:
        """File an observation and return its verdict.

        Raises:
            CompanionError: for an id that the ledger does not have.
        """
        claim = load()[choose(id, load(), "claim")]
        expected = None if self.profile.tag else claim.expected.get(self.profile.name)
        record = asdict(observed) | {"verdict": verdict(claim, observed), "expected": expected}
        self._checked[id] = record
        with store.lock(f"claims-{self.profile.folder}"):
            store.write(self._path, json.dumps(self.records() | {id: record}, indent=1))
        return record["verdict"]

    def tests(self, id: str) -> bool:
        """Whether this profile tests the claim: a value published for one data set is no target for another."""
        return self.profile.name in load()[choose(id, load(), "claim")].profiles and not self.profile.tag

    def records(self) -> dict[str, dict]:
        """What has been observed so far at this profile, by any notebook; claims that left the ledger are dropped."""
        if not self._path.exists():
            return {}
        try:
            stored = json.loads(self._path.read_text())
        except json.JSONDecodeError as error:
            raise CompanionError(f"{self._path} is damaged ({error}): remove it and run `make reproduce`.") from error
        return {id: record for id, record in stored.items() if id in load()}

    def print_verdicts(self) -> None:
        """Print this notebook's verdicts where the ledger expects one: what must come out the same on every machine."""
        for id, record in self._checked.items():
            if record["expected"]:
                print(f"{id}: {record['verdict']}")

    def table(self, *, everything: bool = False) -> pd.DataFrame:
        """One row a claim: this notebook's, or with ``everything`` the whole ledger's.

        A claim without an observation is marked ``not yet`` (its notebook is still to be run or written), or with the
        profiles that test it where this one does not.
        """
        records = self.records() if everything else self._checked
        rows = []
        for claim in load().values():
            record = records.get(claim.id)
            if not (record or everything):
                continue
            row = {
                "claim": claim.id,
                "source": claim.source,
                "statement": claim.statement,
                "quantity": claim.quantity,
                "paper": claim.published,
                "ours": "",
                "n": "",
                "verdict": "not yet",
                "expected": "",
            }
            if record:
                observed = Observed(**{name: record[name] for name in ("value", "low", "high", "n")})
                row |= {"ours": str(observed), "n": record["n"], "verdict": record["verdict"]}
                row["expected"] = record["expected"] or "open"
            elif self.profile.name not in claim.profiles:
                row["verdict"] = f"at profile {', '.join(claim.profiles)}"
            rows.append(row)
        return pd.DataFrame(rows).set_index("claim") if rows else pd.DataFrame()

    def surprises(self) -> list[str]:
        """Claims whose verdict differs from the expected one."""
        return [
            f"{id}: {record['verdict']}, expected {record['expected']}"
            for id, record in self.records().items()
            if record["expected"] not in (None, record["verdict"])
        ]

    def write_scoreboard(self) -> pd.DataFrame:
        """Write ``scoreboard.md``, ``.html`` and ``.txt`` (the terminal's) beside ``claims.json``; return the table."""
        table = self.table(everything=True)
        title = f"Scoreboard, profile {self.profile.folder}"
        counts = table["verdict"].where(table["verdict"].isin(VERDICTS), "not tested").value_counts()
        summary = ", ".join(f"{count} {name}" for name, count in counts.items())
        surprises = self.surprises()
        differing = "Verdicts that differ from the expected ones: " + ("; ".join(surprises) or "none") + "."
        cells = table.reset_index().astype(str)
        lines = [cells.columns.tolist(), ["---"] * len(cells.columns), *cells.values.tolist()]
        rows = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        store.write(self.folder / "scoreboard.md", f"# {title}\n\n{summary}. {differing}\n\n{rows}\n")
        page = (
            "<!doctype html>\n<html lang='en'><meta charset='utf-8'>"
            f"<title>{html.escape(title)}</title>"
            "<style>body{font:15px/1.4 sans-serif;margin:2em;max-width:90em}table{border-collapse:collapse}"
            "td,th{padding:.3em .6em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}</style>"
            f"<h1>{html.escape(title)}</h1><p>{html.escape(summary)}. {html.escape(differing)}</p>"
            f"{cells.to_html(index=False, border=0)}</html>\n"
        )
        store.write(self.folder / "scoreboard.html", page)
        tested = table[table["verdict"].isin(VERDICTS)][["quantity", "paper", "ours", "n", "verdict"]]
        terminal = tested.to_string(max_colwidth=42, justify="left")
        store.write(self.folder / "scoreboard.txt", f"\n{title}: {summary}\n\n{terminal}\n\n{differing}\n")
        return table

    @property
    def _path(self) -> Path:
        return self.folder / "claims.json"
