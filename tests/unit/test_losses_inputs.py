"""Bad input meets an error that says what was given and what was expected, and never a NaN."""

import contextlib
import fractions
import math
from functools import partial

import naive
import numpy as np
import pytest
import torch
from loss_cases import ALL, LABELS, NO_SIMILARITY, NO_TILE, TWO_VIEWS, call
from torch import Tensor
from torch.overrides import TorchFunctionMode

from companion import losses
from companion.errors import CompanionError
from companion.similarity import Similarity, off_diagonal

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
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (spoiled(math.nan), "v has NaN or infinite values in 1 of 8 rows"),
        (U[0], r"v has shape \(4,\): expected 2 dimensions"),
        (U.long(), "v has dtype torch.int64: expected floating point"),
        (U.tolist(), "v is a list: expected a torch.Tensor"),
        (None, "v is a NoneType: expected a torch.Tensor"),
    ],
)
def test_a_bad_second_view(name, bad, message):
    with pytest.raises(CompanionError, match=message):
        call(name, U, bad)


@pytest.mark.parametrize("name", TWO_VIEWS)
def test_views_of_different_shapes(name):
    with pytest.raises(CompanionError, match="expected two views of one shape"):
        call(name, U, V[:5])


@pytest.mark.parametrize("name", ["info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel"])
@pytest.mark.parametrize(
    "temperature", [0, -0.1, math.nan, math.inf, pytest.param(10**400, id="huge"), "warm", "0.2", None]
)
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
        (None, "y has type NoneType"),
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
        (lambda: losses.info_nce(U, V, temperature=0.1, queue=U[:0]), "queue has 0 rows: expected at least 1"),
        (lambda: losses.nt_xent(U, V, temperature=0.1, similarity="cosine"), "similarity is 'cosine'"),
        (lambda: losses.LogitScale(initial=-1), "initial is -1"),
        (lambda: losses.LogitScale(200.0), "initial is 200.0: expected at most `largest`, 100"),
        (lambda: losses.LogitScale(initial=torch.tensor([1.0, 2.0])), r"initial is tensor\(\[1., 2.\]\)"),
        (lambda: losses.siglip(U, V, scale=1, bias="-10"), "bias is '-10'"),
    ],
)
def test_bad_hyperparameters(function, message):
    with pytest.raises(CompanionError, match=message):
        function()


# --- hyperparameters that are tensors, since they are learned ------------------------------------------

LEARNED = [
    *((name, "temperature", -0.5) for name in ("info_nce", "clip", "nt_xent", "dcl", "dclw", "dhel")),
    *((name, "temperature", 0.0) for name in ("hard_contrastive", "sup_con", "sincere", "eps_sup_info_nce")),
    ("clip within view", "temperature", math.nan),
    ("dclw", "sigma", 0.0),
    ("siglip", "scale", -0.5),
    ("siglip within view", "bias", math.nan),
    ("simple", "weight", -0.5),
    ("align", "alpha", 0.0),
    ("align_uniform", "weight", -0.5),
    ("align_uniform", "alpha", -0.5),
    ("align_uniform", "t", math.inf),
    ("eps_sup_info_nce", "epsilon", -0.5),
    ("contrastive_margin", "margin", math.inf),
    *((name, "margin", -0.5) for name in ("triplet", "lifted", "batch_hard")),
]


@pytest.mark.parametrize(("name", "hyperparameter", "bad"), LEARNED)
def test_bad_tensors(name, hyperparameter, bad):
    for value in (torch.tensor(bad), torch.tensor([[bad]], dtype=torch.float64)):
        with pytest.raises(CompanionError, match=f"^{hyperparameter} is {bad}: expected a finite number"):
            call(name, U, V, **{hyperparameter: value.requires_grad_()})
    for several in (torch.tensor([]), torch.full((4,), 0.25), torch.full((8, 1), 0.25)):
        with pytest.raises(
            CompanionError, match=rf"^{hyperparameter} has shape \(.*\): expected a number, or a tensor"
        ):
            call(name, U, V, **{hyperparameter: several})


@pytest.mark.parametrize(("name", "hyperparameter", "_"), LEARNED)
def test_sound_tensors_stand_for_their_number_and_have_a_gradient(name, hyperparameter, _):
    learned = torch.tensor(0.25, requires_grad=True)
    value = call(name, U, V, **{hyperparameter: learned})
    assert value.item() == pytest.approx(call(name, U, V, **{hyperparameter: 0.25}).item(), rel=1e-6)
    assert call(name, U, V, **{hyperparameter: learned.reshape(1, 1)}).shape == ()
    value.backward()
    assert torch.isfinite(learned.grad)


def test_a_learned_margin_has_the_same_gradient_in_tiles():
    gradients = []
    for tile in (None, 3):
        epsilon = torch.tensor(0.25, requires_grad=True)
        losses.eps_sup_info_nce(U, LABELS, temperature=0.2, epsilon=epsilon, tile=tile).backward()
        gradients.append(epsilon.grad.item())
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5) != 0


# --- inside unchecked() ---------------------------------------------------------------------------------------------


class Looks(TorchFunctionMode):
    """Counts how often a tensor becomes a number of Python: each time a GPU has to be waited for."""

    ways = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.numpy)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += function in self.ways
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "hyperparameter", "_"), LEARNED)
def test_unchecked_looks_at_no_value(name, hyperparameter, _):
    def looks(value):
        with Looks() as looks:
            call(name, U, V, **{hyperparameter: value})
        return looks.count

    number, learned = 0.25, torch.tensor(0.25)
    with losses.unchecked():
        assert looks(number) == looks(learned) == 0
        with pytest.raises(CompanionError, match=f"{hyperparameter} is nan"):  # that takes no look
            looks(math.nan)
    assert looks(learned) > looks(number) > 0


@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_TILE])
def test_unchecked_tiles_look_at_no_value(name):
    with losses.unchecked(), Looks() as looks:
        call(name, U, V, tile=3)
    assert looks.count == 0


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("name", ["siglip", "eps_sup_info_nce", "nt_xent"])
def test_no_number_is_copied_to_the_device(name, tile, monkeypatch):
    """That copy would make a GPU wait; what ``torch.full`` makes, it makes there."""
    copied, as_tensor = [], torch.as_tensor
    monkeypatch.setattr(torch, "as_tensor", lambda x, **options: copied.append(x) or as_tensor(x, **options))
    call(name, U, V, tile=tile)
    assert not [x for x in copied if not isinstance(x, Tensor)]


@pytest.mark.parametrize("integer", [np.int64, np.uint8])
def test_whole_numbers_of_numpy_are_whole_numbers(integer):
    assert losses.vrns(U, V, n=integer(100)) == losses.vrns(U, V, n=100)
    assert losses.nt_xent(U, V, temperature=0.2, tile=integer(3)) == losses.nt_xent(U, V, temperature=0.2, tile=3)
    with pytest.raises(CompanionError, match=r"is (np.int64\()?7\)?: expected a whole number of at least 8"):
        losses.vrns(U, V, n=np.int64(7))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of pdist
@pytest.mark.parametrize(("name", "hyperparameter", "_"), LEARNED)
def test_unchecked_losses_work_under_vmap(name, hyperparameter, _):
    u, v = torch.stack([U, V, U + V]), torch.stack([V, U - V, U])
    learned = torch.tensor([0.25, 0.5, 1.0])
    with losses.unchecked():
        batched = torch.func.vmap(lambda u, v, x: call(name, u, v, **{hyperparameter: x}))(u, v, learned)
    alone = [call(name, *views, **{hyperparameter: x.item()}) for *views, x in zip(u, v, learned, strict=True)]
    torch.testing.assert_close(batched, torch.stack(alone))


def test_checks_are_back_after_unchecked():
    bad = partial(losses.clip, U, V, temperature=torch.tensor(-0.5))
    with losses.unchecked():
        with losses.unchecked():
            bad()
        bad()
        with pytest.raises(CompanionError, match="tile is 0"):
            bad(tile=0)
    with pytest.raises(CompanionError, match=r"temperature is -0\.5"):
        bad()
    with contextlib.suppress(KeyError), losses.unchecked():
        raise KeyError
    with pytest.raises(CompanionError, match=r"temperature is -0\.5"):
        bad()


# --- a queue of negatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, 3])
def test_with_a_queue_one_anchor_is_enough(tile):
    loss = losses.info_nce(U[:1], V[:1], temperature=0.5, queue=V[1:], tile=tile)
    logits = torch.cosine_similarity(U[:1], V) / 0.5  # the positive first
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, torch.tensor(0)).item(), rel=1e-5)
    with pytest.raises(CompanionError, match="u has 0 rows: expected at least 1"):
        losses.info_nce(U[:0], V[:0], temperature=0.5, queue=V[1:], tile=tile)
    with pytest.raises(CompanionError, match="u has 1 rows: expected at least 2"):
        losses.info_nce(U[:1], V[:1], temperature=0.5, tile=tile)


@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_TILE])
@pytest.mark.parametrize("tile", [0, -1, 2.5, True])
def test_bad_tile(name, tile):
    with pytest.raises(CompanionError, match="tile is"):
        call(name, U, V, tile=tile)


# --- embeddings of several dtypes ----------------------------------------------------------------------------------

# With digits that float32 lacks.
FINE = torch.randn(3, 8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("coarse", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("name", TWO_VIEWS)
def test_views_of_two_dtypes_are_compared_in_the_finer_one(name, tile, coarse):
    options = {} if tile is None or name in NO_TILE else {"tile": tile}
    for u, v in ((U.to(coarse), FINE[0]), (FINE[0], U.to(coarse))):
        found = call(name, u, v, **options)
        assert found.dtype == torch.float64
        assert found.item() == call(name, u.double(), v.double(), **options).item()
        assert found.item() != call(name, u.float(), v.float(), **options).item()
    found = call(name, U.to(coarse), V, **options)
    assert found.dtype == torch.float32  # at least
    assert found.item() == call(name, U.to(coarse).float(), V, **options).item()


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("fine", range(3))
def test_one_embedding_of_double_precision_is_enough(fine, tile):
    """Be it the queue. Against loops over Python's floats, which are double."""
    given = [FINE[k] if k == fine else FINE[k].float() for k in range(3)]
    found = losses.info_nce(*given[:2], temperature=0.2, queue=given[2], tile=tile)
    expected = naive.moco(*(x.tolist() for x in given), naive.cosine, 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-13)


def test_finite_values_whose_sum_overflows_are_finite():
    z = torch.full((8, 4), 6e4, dtype=torch.float16)
    assert torch.isfinite(losses.nt_xent(z, z, temperature=0.2))


@pytest.mark.parametrize(
    ("positional", "named", "message"),
    [
        (3, {"temperature": 0.2}, "too many positional arguments"),
        (2, {"u": U, "temperature": 0.2}, "multiple values for argument 'u'"),
        (1, {"temperature": 0.2}, "missing a required argument: 'v'"),
        (2, {}, "missing a required .*argument: 'temperature'"),
        (2, {"temprature": 0.2}, r"info_nce\(\) got an unexpected .* 'temprature'. Did you mean 'temperature'\?"),
        (2, {"temperature": 0.2, "weights": None}, "unexpected keyword argument 'weights'"),
    ],
)
def test_arguments_are_bound_as_python_binds_them(positional, named, message):
    with pytest.raises(TypeError, match=message):
        losses.info_nce(*[U] * positional, **named)


def test_a_number_is_one_number_inside_of_unchecked_too():
    with losses.unchecked(), pytest.raises(CompanionError, match="expected a number, or a tensor that holds one"):
        losses.nt_xent(U, U, temperature=torch.tensor([0.2, 0.3]))


def _centred(a, b):
    """A similarity that depends on more than two embeddings: on the mean of those that it is compared with."""
    return a @ (b - b.mean(dim=0)).T


def test_positives_and_negatives_come_from_the_same_matrix_of_a_similarity_of_one_s_own():
    u, v = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = _centred(u, v)
    by_hand = torch.nn.functional.cross_entropy(matrix / 0.5, torch.arange(6))
    torch.testing.assert_close(losses.info_nce(u, v, temperature=0.5, similarity=_centred), by_hand)
    by_hand = torch.nn.functional.softplus(-(3 * matrix.diagonal() - 1)).mean()
    by_hand += torch.nn.functional.softplus(3 * off_diagonal(matrix) - 1).sum() / 6
    torch.testing.assert_close(losses.siglip(u, v, scale=3.0, bias=-1.0, similarity=_centred), by_hand)


def test_the_first_view_comes_first_in_a_similarity_that_is_not_symmetric():
    def one_way(a, b):
        return a @ b.roll(1, dims=1).T

    u, v = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = one_way(u, v)
    positives, negatives = matrix.diagonal() / 0.5, off_diagonal(matrix) / 0.5
    within = [(off_diagonal(one_way(z, z)) / 0.5).logsumexp(dim=1) for z in (u, v)]
    one = (matrix / 0.5).logsumexp(dim=1) - positives
    other = (matrix / 0.5).logsumexp(dim=0) - positives
    softplus, mean = torch.nn.functional.softplus, matrix.diagonal().mean()
    expected = {
        "info_nce": ({"temperature": 0.5}, one.mean()),
        "clip": ({"temperature": 0.5}, (one + other).mean() / 2),
        "hard_contrastive": ({"temperature": 0.5, "keep": 5}, one.mean()),  # all of them
        "dhel": ({"temperature": 0.5}, (sum(within) / 2 - positives).mean()),
        "simple": ({"weight": 0.3}, 0.3 * off_diagonal(matrix).sum() / 6 - mean),
        "spectral": ({}, off_diagonal(matrix).square().mean() - mean),
        "siglip": ({"scale": 2.0, "bias": 0.0}, softplus(-positives).mean() + softplus(negatives).sum() / 6),
    }
    for name, (given, by_hand) in expected.items():
        torch.testing.assert_close(getattr(losses, name)(u, v, similarity=one_way, **given), by_hand, msg=name)


def test_a_similarity_that_draws_or_looks_at_values_is_taken():
    u, v = torch.randn(2, 6, 4)
    for similarity in (
        lambda a, b: torch.nn.functional.dropout(a, 0.5) @ b.T,
        lambda a, b: a @ b.T if a.max() > 0 else b @ a.T,
    ):
        assert losses.nt_xent(u, v, temperature=0.5, similarity=similarity).isfinite()


@pytest.mark.parametrize("tile", [None, 8])
@pytest.mark.parametrize(
    "similarity",
    [torch.nn.functional.cosine_similarity, lambda a, b: a * b, lambda a, b: 0.5, lambda a, b: (a @ b.T)[:-1]],
)
@pytest.mark.parametrize("name", [name for name in ALL if name not in NO_SIMILARITY])
def test_a_similarity_of_another_shape_is_told(name, similarity, tile):
    if tile is not None and name in NO_TILE:
        pytest.skip("it takes no tiles")
    options = {} if tile is None else {"tile": tile}
    with pytest.raises(CompanionError, match=r"expected a torch.Tensor of shape \(\d+, \d+\)"):
        call(name, U, V, similarity=similarity, **options)


def test_what_a_similarity_has_learned_is_refused_in_tiles_alone():
    u, v = torch.randn(2, 8, 4)
    weight = torch.eye(4).requires_grad_()

    def similarity(a, b):
        return a @ weight @ b.T

    losses.nt_xent(u, v, temperature=0.5, similarity=similarity).backward()
    assert weight.grad.abs().sum() > 0
    for own in (similarity, Similarity(similarity)):
        with pytest.raises(CompanionError, match="leave out tile="):
            losses.nt_xent(u, v, temperature=0.5, similarity=own, tile=4)
    with torch.no_grad():
        values = [losses.nt_xent(u, v, temperature=0.5, similarity=similarity, tile=t) for t in (None, 4)]
    torch.testing.assert_close(*values)


def test_a_similarity_of_one_s_own_is_called_with_parts_alone_in_tiles():
    u, v = torch.randn(2, 20, 4)
    called = []

    def similarity(a, b):
        called.append((len(a), len(b)))
        return a @ b.T

    value = losses.info_nce(u, v, temperature=0.5, similarity=similarity, tile=6)
    assert max(map(max, called)) <= 6
    torch.testing.assert_close(value, losses.info_nce(u, v, temperature=0.5, similarity=lambda a, b: a @ b.T))


@pytest.mark.parametrize("temperature", [np.array(0.2), np.float32(0.2), fractions.Fraction(1, 5)])
def test_a_number_of_another_library_is_a_number(temperature):
    u, v = torch.randn(2, 6, 4)
    torch.testing.assert_close(losses.nt_xent(u, v, temperature=temperature), losses.nt_xent(u, v, temperature=0.2))


@pytest.mark.parametrize("alpha", [0.5, 1, 2, torch.tensor(0.5)])
def test_alignment_of_views_that_coincide_has_a_gradient(alpha):
    u = torch.randn(4, 3, dtype=torch.float64).requires_grad_()
    v = u.detach().clone()
    v[3] += 1
    value = losses.align(u, v, alpha=alpha)
    value.backward()
    assert u.grad[:3].eq(0).all()
    assert u.grad[3].abs().sum() > 0
    distance = (u[3] / u[3].norm() - v[3] / v[3].norm()).norm()
    torch.testing.assert_close(value, distance**alpha / 4)
