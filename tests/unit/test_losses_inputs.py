"""Bad input meets an error that says what was given and what was expected, and never a NaN."""

import math

import pytest
import torch
from loss_cases import ALL, LABELS, NO_TILE, TWO_VIEWS, call

from companion import losses
from companion.errors import CompanionError

U, V = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(0)).unbind()


def spoiled(value):
    u = U.clone()
    u[3, 1] = value
    return u


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (spoiled(math.nan), "NaN or infinite values in 1 of 8 rows"),
        (spoiled(math.inf), "NaN or infinite values in 1 of 8 rows"),
        (U[0], r"shape \(4,\): expected 2 dimensions"),
        (U[None], r"shape \(1, 8, 4\): expected 2 dimensions"),
        (U[:1], "1 rows: expected at least 2"),
        (U[:, :0], "at least one dimension"),
        (U.long(), "dtype torch.int64: expected floating point"),
        (U.tolist(), "is a list: expected a torch.Tensor"),
    ],
)
def test_bad_embeddings(name, bad, message):
    with pytest.raises(CompanionError, match=message):
        call(name, bad, bad)


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_views_of_different_shapes(name):
    with pytest.raises(CompanionError, match="expected two views of one shape"):
        call(name, U, V[:5])


@pytest.mark.parametrize("name", ["info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel"])
@pytest.mark.parametrize("temperature", [0, -0.1, math.nan, math.inf, "warm", None])
def test_bad_temperature(name, temperature):
    if temperature is None:
        with pytest.raises(TypeError, match="temperature"):
            getattr(losses, name)(U, V)
    else:
        with pytest.raises(CompanionError, match=r"temperature is .* expected a finite number greater than 0"):
            getattr(losses, name)(U, V, temperature=temperature)


@pytest.mark.parametrize("name", ["sup_con", "sincere", "eps_sup_info_nce", "triplet"])
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (LABELS[:5], r"y has shape \(5,\)"),
        (LABELS[None], r"y has shape \(1, 8\)"),
        (LABELS.float(), "y has dtype torch.float32: expected a torch.Tensor of whole numbers"),
        (LABELS.tolist(), "y has type list"),
    ],
)
def test_bad_labels(name, y, message):
    hyperparameters = {"margin": 0.1} if name == "triplet" else {"temperature": 0.1}
    with pytest.raises(CompanionError, match=message):
        getattr(losses, name)(U, y, **hyperparameters)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: losses.dclw(U, V, temperature=0.1, sigma=0), "sigma is 0"),
        (lambda: losses.dhel(U, V, temperature=0.1, form="leee"), "Did you mean 'lee'"),
        (lambda: losses.hard_contrastive(U, V, temperature=0.1, keep=0), "keep is 0"),
        (lambda: losses.hard_contrastive(U, V, temperature=0.1, keep=8), "keep is 8: expected at most n - 1 = 7"),
        (lambda: losses.simple(U, V, weight=-1), "weight is -1"),
        (lambda: losses.siglip(U, V, scale=0, bias=0), "scale is 0"),
        (lambda: losses.siglip(U, V, scale=1, bias=math.nan), "bias is nan"),
        (lambda: losses.vrns(U, V, n=7), "n .the training-set size. is 7: expected a whole number of at least 8"),
        (lambda: losses.vrns(U, V, n=9.5), "n .the training-set size. is 9.5"),
        (lambda: losses.align(U, V, alpha=0), "alpha is 0"),
        (lambda: losses.uniform(U, t=-1), "t is -1"),
        (lambda: losses.align_uniform(U, V, weight=-1), "weight is -1"),
        (lambda: losses.eps_sup_info_nce(U, LABELS, temperature=0.1, epsilon=-1), "epsilon is -1"),
        (lambda: losses.contrastive_margin(U, LABELS, margin=math.inf), "margin is inf"),
        (lambda: losses.triplet(U, LABELS, margin=-1), "margin is -1"),
        (lambda: losses.info_nce(U, V, temperature=0.1, queue=U[:, :3]), r"expected \(k, 4\)"),
        (lambda: losses.info_nce(U, V, temperature=0.1, queue=spoiled(math.nan)), "queue has NaN"),
        (lambda: losses.nt_xent(U, V, temperature=0.1, similarity="cosine"), "similarity is 'cosine'"),
        (lambda: losses.LogitScale(initial=-1), "initial is -1"),
    ],
)
def test_bad_hyperparameters(function, message):
    with pytest.raises(CompanionError, match=message):
        function()


@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_TILE])
@pytest.mark.parametrize("tile", [0, -1, 2.5, True])
def test_bad_tile(name, tile):
    with pytest.raises(CompanionError, match="tile is"):
        call(name, U, V, tile=tile)
