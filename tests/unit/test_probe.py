import numpy as np
import pytest
import torch

from companion import probe


@pytest.fixture
def blobs():
    """Three classes in three directions, with features of very different length: only the direction tells."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(40)
    x = torch.eye(3).repeat_interleave(40, dim=0) + 0.15 * torch.randn(120, 3, generator=generator)
    return x * torch.rand(120, 1, generator=generator).mul(5).exp(), y


def test_both_probes_find_what_is_separable(blobs):
    x, y = blobs
    train, test = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    for classify in (probe.linear_probe, probe.knn):
        first, second = classify(x[train], y[train], (x[test], y[test]), (x[test], (y[test] + 1) % 3))
        assert first.mean() > 0.95
        assert second.mean() < 0.05  # wrong labels: the second test set is scored on its own


def test_knn_against_a_loop(blobs):
    x, y = blobs
    train, test = torch.arange(0, 120, 2), torch.arange(1, 120, 2)
    unit = torch.nn.functional.normalize(x, dim=1)
    (found,) = probe.knn(x[train], y[train], (x[test], y[test]), k=3)
    for i, correct in zip(test.tolist(), found, strict=True):
        nearest = max(train.tolist(), key=lambda j: float(unit[i] @ unit[j]))
        (alone,) = probe.knn(x[train], y[train], (x[i : i + 1], y[i : i + 1]), k=1)
        assert alone[0] == (y[nearest] == y[i])
        top = sorted(train.tolist(), key=lambda j: -float(unit[i] @ unit[j]))[:3]
        votes = torch.bincount(y[top], minlength=3)
        if votes.max() > 1:  # ties are the library's to break
            assert correct == (votes.argmax() == y[i])


def test_bootstrap_interval_matches_the_binomial_one():
    correct = np.arange(1000) % 4 != 0  # 75 %
    low, high = probe.bootstrap_interval(correct)
    half = 1.96 * (0.75 * 0.25 / 1000) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.005)
    assert high == pytest.approx(0.75 + half, abs=0.005)
    assert probe.bootstrap_interval(np.ones(10, dtype=bool)) == (1.0, 1.0)
