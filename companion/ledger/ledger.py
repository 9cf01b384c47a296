"""The ledger: what each notebook observed of its claims, and what the recorded reference runs found."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from companion import paths, store
from companion.errors import CompanionError, choose
from companion.ledger.claims import KINDS, LEARNT, NOT_LEARNT, VERDICTS, Claim, load, verdict
from companion.ledger.observed import Observed

TAKEN, STOOD = "taken over", "left as it was"  # what becomes of the record of a claim that another machine found


class Ledger:
    """The claims of one notebook at one profile.

    Args:
        profile: a :class:`companion.course.profiles.Profile`: its ``folder`` below the results, the profile whose
            claims it tests (``tests_as``), and its ``tag``, set where another data set or seed is held to nothing.
    """

    def __init__(self, profile):
        self.profile = profile
        self.folder = paths.results() / profile.folder
        self._checked: dict[str, dict] = {}
        self._asked: set[str] = set()  # notebooks of the claims that were asked for

    def check(
        self, id: str, observed: Observed, *, quantity: str, runs: pd.DataFrame | Iterable[pd.DataFrame] = ()
    ) -> str:
        """File an observation and return its verdict.

        Args:
            id: of the claim.
            observed: the value, from :func:`~companion.ledger.identity`, :func:`~companion.ledger.over_seeds` or
                :func:`~companion.ledger.paired_difference`.
            quantity: what was observed, in the words of ``claims.yaml``.
            runs: for a claim about trained networks, the table or tables of runs (:func:`companion.training.table`)
                that the value was computed from; their keys are filed with it.

        Raises:
            CompanionError: for an id that the ledger does not have, a quantity that is not the claim's, too few
                observations for its kind, or a claim about trained networks without its runs.
        """
        claim = load()[choose(id, load(), "claim")]
        if quantity != claim.quantity:
            raise CompanionError(f"{id} promises {claim.quantity!r}, but {quantity!r} was handed in.")
        if observed.n < KINDS[claim.kind] or (claim.kind == "identity" and observed.n != 1):
            raise CompanionError(
                f"{id} is a claim of kind {claim.kind!r} and rests on {observed.n} observations: expected "
                + (
                    "exactly 1, a value without chance."
                    if claim.kind == "identity"
                    else f"{KINDS[claim.kind]} or more."
                )
            )
        tables = [runs] if isinstance(runs, pd.DataFrame) else list(runs)
        if claim.kind == "trained" and not tables:
            raise CompanionError(f"{id} is about trained networks: hand in the tables of their runs.")
        record = asdict(observed) | {"verdict": verdict(claim, observed)}
        if tables:
            record["runs"] = sorted({key for table in tables for key in table["key"]})
        if claim.accuracy and not learnt(tables):
            record["verdict"] = NOT_LEARNT
        self._checked[id] = record
        with _locked(self.profile.folder):
            store.write(self._path, json.dumps(self.records() | {id: record}, indent=1))
        return record["verdict"]

    def tests(self, id: str) -> bool:
        """Whether a notebook tests the claim at this profile: a value published for one data set is no target for
        another, and some claims are left to the recorded runs.

        Raises:
            CompanionError: for an id that the ledger does not have.
        """
        claim = load()[choose(id, load(), "claim")]
        self._asked.add(claim.notebook)
        return (
            self.profile.tests_as in claim.profiles and not self.profile.tag and not self._left(claim, self.recorded())
        )

    def records(self) -> dict[str, dict]:
        """What has been observed so far at this profile, by any notebook; claims that left the ledger are dropped."""
        return read(self._path)

    def recorded(self) -> dict[str, dict]:
        """What the recorded reference runs of this profile found, committed with the project; empty where there are
        none.

        Of a reference profile itself these are its own records.
        """
        return read(paths.reference() / self.profile.tests_as / "claims.json") if not self.profile.tag else {}

    def deciding(self) -> dict[str, dict]:
        """The record that gives each observed claim its verdict: of one on trained networks, or left to the recorded
        runs, the recorded reference's, unless it has fewer seeds; else what was observed here."""
        recorded, records = self.recorded(), self.records()
        found = {claim.id: self._deciding(claim, records.get(claim.id), recorded) for claim in load().values()}
        return {id: record for id, record in found.items() if record}

    def _deciding(self, claim: Claim, record: dict | None, recorded: dict[str, dict]) -> dict | None:
        other = recorded.get(claim.id)
        if record and claim.kind == "trained":
            return other if other and other["n"] >= record["n"] else record
        return self._own_record(claim, record, recorded)

    def _own_record(self, claim: Claim, record: dict | None, recorded: dict[str, dict]) -> dict | None:
        """What this profile says of the claim itself: what it observed, or the recorded runs if it is left to them."""
        return recorded[claim.id] if self._left(claim, recorded) else record

    def _left(self, claim: Claim, recorded: dict[str, dict]) -> bool:
        """Whether the claim is left to the recorded runs of this profile."""
        return claim.recorded_only and self._own and claim.id in recorded

    @property
    def _own(self) -> bool:
        """Whether this is a profile as it is: not a reference profile, another data set or seed."""
        return self.profile.folder == self.profile.tests_as

    def print_verdicts(self) -> None:
        """Print this notebook's verdicts, of this machine's own runs, that were found before at this profile: they must
        come out again.

        What chance could turn has no verdict *found before*; the table has all. If none is left, a line says why.
        """
        print("Verdicts that must come out again on this machine (what chance could turn stands in the table alone):")
        recorded = self.recorded()
        held = {id: record for id, record in self._checked.items() if self._found(load()[id])}
        for id, record in held.items():
            print(f"{id}: {self._own_record(load()[id], record, recorded)['verdict']}")
        if not held:
            known = any(claim.kind == "trained" and self._found(claim) for claim in load().values())
            why = "chance could turn every one of them" if known else "at this profile none was found before"
            print(f"none: {why}")

    def table(self, *, everything: bool = False) -> pd.DataFrame:
        """One row a claim: this notebook's, or with ``everything`` the whole ledger's.

        The verdict on a claim about trained networks is that of the recorded reference runs, unless they have fewer
        seeds. A claim without an observation is ``not yet`` (its notebook is still to be run or written), or names the
        profiles that test it.
        """
        records, recorded = self.records() if everything else self._checked, self.recorded()
        notebooks = {load()[id].notebook for id in records} | self._asked
        rows = [
            self._row(claim, records.get(claim.id), recorded)
            for claim in load().values()
            if everything or claim.id in records or (claim.notebook in notebooks and self._left(claim, recorded))
        ]
        return pd.DataFrame(rows).set_index("claim") if rows else pd.DataFrame()

    def surprises(self) -> list[str]:
        """Claims whose verdict, by this machine's own runs, differs from what was found before at this profile."""
        recorded, records = self.recorded(), self.records()
        own = {id: self._own_record(claim, records.get(id), recorded) for id, claim in load().items()}
        return [
            f"{id}: {record['verdict']}, found before: {found}"
            for id, record in own.items()
            if record and (found := self._found(load()[id])) and found != record["verdict"]
        ]

    def _found(self, claim: Claim) -> str:
        return claim.found.get(self.profile.tests_as, "") if self._own else ""

    def _row(self, claim: Claim, record: dict | None, recorded: dict[str, dict]) -> dict:
        row = {
            "claim": claim.id, "kind": claim.kind, "source": claim.source, "statement": claim.told,
            "quantity": claim.quantity, "accepted": claim.range, "published": claim.paper, "here": "", "n": "",
            "recorded": "", "recorded n": "", "agrees": "", "prediction": claim.prediction, "verdict": "not yet",
        }  # fmt: skip
        if claim.id in recorded and claim.kind != "identity":
            reference = observed(recorded[claim.id])
            row |= {"recorded": str(reference), "recorded n": reference.n}
        if record:
            here = observed(record)
            row |= {"here": str(here), "n": here.n}
            if row["recorded"]:
                row["agrees"] = "yes" if reference.foretells(here) else "no"
        if deciding := self._deciding(claim, record, recorded):
            row["verdict"] = deciding["verdict"]
        elif self.profile.tests_as not in claim.profiles:
            row["verdict"] = f"at profile {', '.join(claim.profiles)}"
        return row

    @property
    def _path(self) -> Path:
        return self.folder / "claims.json"


def take_over(found: dict[str, dict], folder: str, runs: set[str]) -> dict[str, str]:
    """File what another machine found of the claims as recorded in ``folder``, each record that can stand there.

    A record that is there gives way only to one of more observations, since other things were concluded from it.

    Args:
        found: records by claim, as :func:`read` gives them.
        folder: of the recorded results, such as ``gpu``.
        runs: keys of the recorded runs whose numbers are those that the records were made from.

    Returns:
        What became of each: ``TAKEN``, ``STOOD``, or why it is refused.
    """
    path, profile, fate = paths.reference() / folder / "claims.json", folder.partition("-")[0], {}
    with _locked(f"reference/{folder}"):
        stand = read(path)
        for id, record in found.items():
            claim = load()[id]
            if profile not in claim.profiles:
                fate[id] = f"it is not tested at {profile}, but at {', '.join(claim.profiles)}"
            elif why := _untenable(claim, record, runs):
                fate[id] = why
            elif id in stand and record["n"] <= stand[id]["n"]:
                fate[id] = STOOD
            else:
                fate[id], stand[id] = TAKEN, record
        if TAKEN in fate.values():
            store.write(path, json.dumps(stand, indent=1))
    return fate


def _untenable(claim: Claim, record: dict, runs: set[str]) -> str:
    """Why a record cannot stand beside these recorded runs and this version's claims; empty if it can."""
    if record["n"] < KINDS[claim.kind]:
        return f"it rests on {record['n']} observations, and a claim of kind {claim.kind!r} needs {KINDS[claim.kind]}"
    keys = set(record.get("runs", []))
    if claim.kind == "trained" and not keys:
        return "it does not say on which runs it rests"
    if absent := sorted(keys - runs):
        return (
            f"{len(absent)} of its {len(keys)} runs are not recorded, or came damaged or with other numbers; the "
            f"first is {absent[0]}"
        )
    expected = verdict(claim, observed(record))
    if record["verdict"] != expected and not (claim.accuracy and record["verdict"] == NOT_LEARNT):
        return f"its verdict is {record['verdict']!r}, and by the range of this version it is {expected!r}"
    return ""


def _locked(folder: str):
    """The lock of the claims in a folder of results."""
    return store.lock(f"claims-{folder.replace('/', '-')}")


def learnt(tables: Iterable[pd.DataFrame]) -> bool:
    """Whether the networks of these tables beat untrained ones by more than ``LEARNT``, on average over the runs of
    the table that does so by most: of a comparison one side must have learnt, or there is nothing to compare."""
    runs = (table.drop_duplicates("key") for table in tables)
    gains = [(table["linear_accuracy"] - table["untrained_accuracy"]).mean() for table in runs]
    known = [gain for gain in gains if not math.isnan(gain)]  # a recorded run may lack its baselines
    return max(known, default=-math.inf) > LEARNT + 1e-9  # a rounding error is no gain


def observed(record: dict) -> Observed:
    """The observation of a record."""
    return Observed(**{name: record[name] for name in ("value", "low", "high", "n")})


def read(path: Path) -> dict[str, dict]:
    """The records of a ``claims.json``, without those of claims that left the ledger; empty where there is no file.

    Raises:
        CompanionError: if the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text())
        for record in stored.values():
            observed(record)
            choose(record["verdict"], (*VERDICTS, NOT_LEARNT), "verdict")
            runs = record.get("runs", [])
            if not (isinstance(runs, list) and all(isinstance(key, str) for key in runs)):
                raise CompanionError(f"its runs are {runs!r:.60}: expected a list of their names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error).removesuffix(".")
        raise CompanionError(f"{path} is damaged ({why}): remove it and run `make reproduce`.") from error
    return {id: record for id, record in stored.items() if id in load()}
