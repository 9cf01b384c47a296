import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from companion import claims, paths, profiles
from companion.claims import Claim, Observed
from companion.errors import CompanionError


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.3, "reproduced"),
        (0.0, 0.3, "reproduced"),  # the range includes its ends
        (-0.1, 0.3, "partly"),
        (-0.3, -0.1, "not reproduced"),
        (0.9, 1.1, "partly"),
        (1.1, 1.2, "not reproduced"),
        (-1, 2, "partly"),
    ],
)
def test_verdict_compares_interval_and_range(low, high, expected):
    claim = Claim(id="x", source="", notebook="", statement="", at_least=0, at_most=1)
    assert claims.verdict(claim, Observed((low + high) / 2, low, high, 3)) == expected


def test_over_seeds_is_the_t_interval():
    values = [0.1, 0.4, 0.25, 0.3]
    found = claims.over_seeds(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert (found.value, found.n) == (pytest.approx(np.mean(values)), 4)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0], [1.0, 2.0, math.nan]])
def test_no_claim_from_too_few_or_broken_values(values):
    with pytest.raises(CompanionError, match="at least 3 finite values"):
        claims.over_seeds(values)


def test_differences_are_paired_by_seed_in_any_order():
    a = pd.DataFrame({"seed": [0, 1, 2], "x": [10.0, 20.0, 30.0]})
    b = pd.DataFrame({"seed": [2, 0, 1], "x": [29.0, 9.0, 19.0]})
    found = claims.paired_difference(a, b, "x")
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    with pytest.raises(CompanionError, match="cannot be paired"):
        claims.paired_difference(a, b[b["seed"] < 2], "x")


def test_an_observation_that_is_not_finite_is_refused():
    with pytest.raises(CompanionError, match="expected a finite value"):
        claims.exact(math.nan)


def test_numbers_are_shown_to_the_digits_that_the_interval_allows():
    assert str(Observed(0.123456, 0.1, 0.15, 3)) == "0.1235 [0.1000, 0.1500]"
    assert str(claims.exact(1 / 3)) == "0.3333"


def test_every_claim_of_the_ledger_is_sound():
    notebooks = {path.stem for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    for claim in claims.load().values():
        assert claim.statement
        assert claim.source
        if claim.expected:  # a verdict can be expected only where a notebook computes it
            assert claim.notebook in notebooks, claim.id
            assert set(claim.expected) <= set(claim.profiles), claim.id


def test_ledger_files_observations_of_several_notebooks(results):
    profile = profiles.load("smoke")
    first, second = claims.Ledger(profile), claims.Ledger(profile)
    assert first.check("lee2025.table1.vrns", Observed(0.1, 0.05, 0.15, 3)) == "reproduced"
    assert second.check("lee2025.fig4.dcl", Observed(0.0, -0.1, 0.1, 3)) == "partly"
    stored = json.loads((results / "smoke" / "claims.json").read_text())
    assert {id: record["verdict"] for id, record in stored.items()} == {
        "lee2025.table1.vrns": "reproduced",
        "lee2025.fig4.dcl": "partly",
    }
    assert list(first.table().index) == ["lee2025.table1.vrns"]  # a notebook's own claims
    everything = second.write_scoreboard()
    assert list(everything.index) == list(claims.load())
    assert everything.loc["lee2025.table1.vrns", "verdict"] == "reproduced"
    assert everything.loc["lee2025.table1.simclr.m32", "verdict"] == "at profile paper"
    assert everything.loc["lee2025.theorem5.3", "verdict"] == "not yet"
    for ending in ("md", "html", "txt"):
        text = (results / "smoke" / f"scoreboard.{ending}").read_text()
        assert "lee2025.fig4.dcl" in text
        assert "read off a figure" in text or ending == "txt"
        assert "0.100 [0.050, 0.150]" in text


def test_a_verdict_that_differs_from_the_expected_one_is_a_surprise(results, monkeypatch):
    claim = Claim(id="x", source="", notebook="", statement="", at_least=0, expected={"smoke": "reproduced"})
    monkeypatch.setattr(claims, "load", lambda: {"x": claim})
    ledger = claims.Ledger(profiles.load("smoke"))
    ledger.check("x", Observed(1.0, 0.5, 1.5, 3))
    assert ledger.surprises() == []
    ledger.check("x", Observed(0.0, -0.5, 0.5, 3))
    assert ledger.surprises() == ["x: partly, expected reproduced"]
    # another data set or seed is held to nothing
    other = claims.Ledger(profiles.load("smoke", dataset="cifar10"))
    other.check("x", Observed(0.0, -0.5, 0.5, 3))
    assert other.surprises() == []


def test_unknown_claim_and_damaged_file(results):
    ledger = claims.Ledger(profiles.load("smoke"))
    with pytest.raises(CompanionError, match=r"Unknown claim 'lee2025.fig4.dlc'.*Did you mean 'lee2025.fig4.dcl'"):
        ledger.check("lee2025.fig4.dlc", claims.exact(1))
    ledger.check("lee2025.fig4.dcl", claims.exact(1))
    (results / "smoke" / "claims.json").write_text("{half")
    with pytest.raises(CompanionError, match="is damaged"):
        ledger.records()


def test_a_claim_without_a_range_is_refused():
    with pytest.raises(CompanionError, match="could never fail"):
        Claim(id="x", source="", notebook="", statement="")
