"""The ledger of claims: what the papers say, what was observed here, and whether the one bears out the other."""

from companion.errors import extra

with extra("course"):
    from companion.ledger import scoreboard
    from companion.ledger.claims import KINDS, NOT_LEARNT, VERDICTS, Claim, load, verdict
    from companion.ledger.ledger import Ledger
    from companion.ledger.observed import Observed, identity, over_seeds, paired_difference

__all__ = [
    "KINDS",
    "NOT_LEARNT",
    "VERDICTS",
    "Claim",
    "Ledger",
    "Observed",
    "identity",
    "load",
    "over_seeds",
    "paired_difference",
    "scoreboard",
    "verdict",
]
