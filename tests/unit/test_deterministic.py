"""What DETERMINISTIC=1 sets while a run is trained, and what it leaves."""

import os

import pytest
import torch

from companion.errors import CompanionError
from companion.training import run, sweeps


@pytest.mark.parametrize(("given", "expected"), [("", False), ("0", False), ("1", True)])
def test_a_run_trains_with_the_algorithms_that_were_asked_for(quick, results, monkeypatch, given, expected):
    monkeypatch.setenv("CONTRASTIVE_DETERMINISTIC", given)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen, train = [], sweeps.train

    def look(*args, **options):
        seen.append((torch.are_deterministic_algorithms_enabled(), not torch.backends.cudnn.benchmark))
        return train(*args, **options)

    monkeypatch.setattr(sweeps, "train", look)
    found = run(quick)
    assert seen == [(expected, expected)]
    assert found.provenance.get("deterministic") == ("yes" if expected else None)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if expected else None)
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


def test_another_value_is_told(quick, results, monkeypatch):
    monkeypatch.setenv("CONTRASTIVE_DETERMINISTIC", "yes")
    with pytest.raises(CompanionError, match=r"Unknown DETERMINISTIC .*'yes': expected one of 0, 1"):
        run(quick)
