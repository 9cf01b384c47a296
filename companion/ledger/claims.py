"""The claims: ``claims.yaml``, read and checked, and the rule by which a verdict comes about."""

import functools
import math
from dataclasses import dataclass, field
from importlib import resources

import yaml

from companion.errors import CompanionError, choose
from companion.ledger.observed import Observed

PROFILES = ("smoke", "cpu", "gpu", "paper")
KINDS = {  # kind → the fewest independent observations that it takes
    "identity": 1,  # no randomness: a formula, a theorem's number, a counterexample
    "simulation": 5,  # seeded draws
    "trained": 3,  # networks, one a seed
}
VERDICTS = ("reproduced", "inconclusive", "not reproduced")
NOT_LEARNT = "networks did not learn enough here"
LEARNT = 0.05  # by how much trained networks must beat untrained ones before a claim about accuracy is tested
PREDICTIONS = ("yes", "no", "open")
PROVENANCE = {
    "paper": "",
    "repository": "authors' repository",
    "abstract": "abstract",
    "figure": "read off a figure",
    "computed": "computed here",
}


@dataclass(frozen=True)
class Claim:
    """One entry of ``claims.yaml``, whose head explains the fields."""

    id: str
    source: str
    notebook: str
    statement: str
    quantity: str
    kind: str
    scope: str = ""
    at_least: float = -math.inf
    at_most: float = math.inf
    accuracy: bool = False
    recorded_only: bool = False
    profiles: tuple[str, ...] = PROFILES
    published: str = ""
    provenance: str = "paper"
    prediction: str = ""
    longer: str = ""
    found: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        choose(self.kind, KINDS, f"kind of claim {self.id}")
        choose(self.provenance, PROVENANCE, f"provenance of claim {self.id}")
        for profile in (*self.profiles, *self.found):
            choose(profile, PROFILES, f"profile of claim {self.id}")
        for verdict in self.found.values():
            choose(verdict, (*VERDICTS, NOT_LEARNT), f"verdict found for claim {self.id}")
        if self.kind == "trained":  # what no training decides needs no prophet
            choose(self.prediction, PREDICTIONS, f"prediction of claim {self.id}")
        if self.longer:
            choose(self.longer, PREDICTIONS, f"prediction of claim {self.id} for a longer training")
        if not self.at_least <= self.at_most or (math.isinf(self.at_least) and math.isinf(self.at_most)):
            raise CompanionError(f"Claim {self.id} could never fail or never hold: give it at_least, at_most or both.")

    @property
    def told(self) -> str:
        """The statement, and in brackets what its test here leaves of the source's claim."""
        return f"{self.statement} ({self.scope})" if self.scope else self.statement

    @property
    def paper(self) -> str:
        """The published value, and where it was not read in the paper itself, that it was not."""
        note = PROVENANCE[self.provenance]
        return f"{self.published} ({note})" if self.published and note else self.published

    @property
    def range(self) -> str:
        """Where the observed value must lie, in words."""
        low, high = f"{self.at_least:g}", f"{self.at_most:g}"
        if math.isinf(self.at_most):
            return f"≥ {low}"
        if math.isinf(self.at_least):
            return f"≤ {high}"
        return low if low == high else f"{low} to {high}"


def verdict(claim: Claim, observed: Observed) -> str:
    """One of ``VERDICTS``: *reproduced* if the whole interval lies in the claim's range, *not reproduced* if none
    of it does, else *inconclusive*."""
    if claim.at_least <= observed.low and observed.high <= claim.at_most:
        return "reproduced"
    outside = observed.high < claim.at_least or observed.low > claim.at_most
    return "not reproduced" if outside else "inconclusive"


@functools.cache
def load() -> dict[str, Claim]:
    """All claims by id, in the order of the notebooks that test them.

    Raises:
        CompanionError: for an entry that is malformed, or an id that appears twice.
    """
    entries = yaml.safe_load(resources.files("companion.ledger").joinpath("claims.yaml").read_text(encoding="utf-8"))
    claims = {}
    for entry in entries:
        if entry["id"] in claims:
            raise CompanionError(f"Claim {entry['id']} stands twice in claims.yaml.")
        if isinstance(entry.get("found"), str):  # of every profile that tests it
            entry["found"] = dict.fromkeys(entry.get("profiles", PROFILES), entry["found"])
        try:
            claims[entry["id"]] = Claim(**entry)
        except TypeError as error:
            raise CompanionError(f"Claim {entry['id']} in claims.yaml is malformed: {error}.") from error
    return dict(sorted(claims.items(), key=lambda item: item[1].notebook))
