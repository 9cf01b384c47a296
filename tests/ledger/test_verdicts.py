"""After the notebooks have run: what was found before is found again. (`make test` runs them before this.)"""

import pytest

from companion import paths
from companion.course import profiles
from companion.ledger import KINDS, Ledger, load

PROFILE = profiles.load("cpu")


@pytest.fixture(scope="module")
def records():
    found = Ledger(PROFILE).records()
    if not found:
        pytest.fail(
            f"{paths.results() / 'cpu' / 'claims.json'} is missing: run `make test`, or `make reproduce` first."
        )
    return found


def test_what_was_found_before_is_found_again(records):
    before = {claim.id for claim in load().values() if "cpu" in claim.found}
    assert before <= set(Ledger(PROFILE).deciding())
    assert Ledger(PROFILE).surprises() == []


def test_every_claim_of_a_notebook_that_is_there_was_observed(records):
    written = {path.stem for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    for claim in load().values():
        if claim.notebook in written and Ledger(PROFILE).tests(claim.id):
            assert claim.id in records, claim.id


def test_every_observation_rests_on_as_many_as_its_kind_needs(records):
    for id, record in records.items():
        kind = load()[id].kind
        assert record["n"] >= KINDS[kind], id
        assert bool(record.get("runs")) == (kind == "trained"), id
