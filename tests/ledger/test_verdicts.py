"""After the notebooks have run: what they found is what the ledger expects. (`make test` runs them before this.)"""

import pytest

from companion import claims, paths, profiles

PROFILE = profiles.load("cpu")


@pytest.fixture(scope="module")
def records():
    found = claims.Ledger(PROFILE).records()
    if not found:
        pytest.fail(
            f"{paths.results() / 'cpu' / 'claims.json'} is missing: run `make test`, or `make reproduce` first."
        )
    return found


@pytest.mark.parametrize(
    "claim", [c for c in claims.load().values() if "cpu" in c.expected], ids=lambda claim: claim.id
)
def test_verdict_is_the_expected_one(records, claim):
    record = records[claim.id]
    assert record["verdict"] == claim.expected["cpu"], record


def test_every_observation_rests_on_several_seeds_or_is_exact(records):
    for id, record in records.items():
        assert record["n"] >= 3 or record["low"] == record["high"], id
