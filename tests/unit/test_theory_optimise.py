"""Direct optimisation against the optima that the theorems give in closed form."""

import itertools
import math
from functools import partial

import pytest
import scipy.optimize
import torch
from torch.nn.functional import normalize

from companion import losses, theory
from companion.errors import CompanionError

INFO_NCE_FAMILY = {
    "InfoNCE": losses.clip,
    "one-way InfoNCE": losses.info_nce,
    "SimCLR": losses.nt_xent,
    "DCL": losses.dcl,
    "DHEL": losses.dhel,
    "SigLIP": partial(losses.siglip, scale=5, bias=-5),
    "SigLIP, within view": partial(losses.siglip, scale=5, bias=5, within_view=True),
}
TAU = torch.tensor([0.2, 0.5, 1.0])


def worst(negatives, value):
    return (negatives - value).abs().max().item()


def negatives(path, run=0):
    """The n(n-1) cross-view negatives at the end of a run."""
    s = path.u[-1].flatten(0, -3)[run] @ path.v[-1].flatten(0, -3)[run].T
    return s[~torch.eye(len(s), dtype=torch.bool)]


@pytest.mark.parametrize("name", INFO_NCE_FAMILY)
def test_theorem_5_1_full_batch_ends_at_the_aligned_simplex(name):
    softmax = name not in ("SigLIP", "SigLIP, within view")
    path = theory.optimise(INFO_NCE_FAMILY[name], 8, 12, seeds=(0, 1), given={"temperature": TAU} if softmax else {})
    assert path.s_pos[-1].flatten().tolist() == pytest.approx([1] * path.s_pos[-1].numel(), abs=1e-12)
    for run in range(path.s_pos[-1].numel()):
        assert worst(negatives(path, run), -1 / 7) < 1e-6


@pytest.mark.parametrize("within_view", [False, True])
def test_the_spectral_loss_ends_at_orthogonal_instances(within_view):
    path = theory.optimise(partial(losses.spectral, within_view=within_view), 8, 12)
    assert path.loss[-1].item() == pytest.approx(-1, abs=1e-14)
    assert path.s_pos[-1].item() == pytest.approx(1, abs=1e-12)
    assert worst(negatives(path), 0) < 1e-7
    simplex = theory.simplex_etf(8, 12)
    assert losses.spectral(simplex, simplex).item() == pytest.approx(-1 + 1 / 49)


def test_the_spectral_loss_without_room_ends_at_a_simplex_up_to_signs():
    path = theory.optimise(losses.spectral, 8, 7)
    assert worst(negatives(path).abs(), 1 / 7) < 1e-6


SETTINGS = [(5, 0), (5, 2), (10, 0), (10, 5), (1, 0), (5, -5), (10, -10), (10, 10)]


def test_siglip_ends_at_the_one_dimensional_optimum_with_a_modality_gap():
    t, bias = torch.tensor([(t, -b) for t, b in SETTINGS], dtype=torch.float64).T
    path = theory.optimise(losses.siglip, 16, 17, given={"scale": t, "bias": bias}, steps=1000)
    best = theory.siglip_optimum(16, t, bias)
    torch.testing.assert_close(path.s_pos[-1, 0], best.s_pos, rtol=0, atol=1e-9)
    torch.testing.assert_close(path.s_neg[-1, 0], best.s_neg, rtol=0, atol=1e-9)
    gaps = path.u[-1, 0] - path.v[-1, 0]  # (settings, n, d)
    torch.testing.assert_close(gaps, gaps[:, :1].expand_as(gaps), rtol=0, atol=1e-5)
    torch.testing.assert_close(gaps[:, 0].norm(dim=1), 2 * best.a, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("t", "b"), SETTINGS)
def test_within_view_negatives_restore_the_aligned_simplex(t, b):
    path = theory.optimise(partial(losses.siglip, scale=t, bias=-b, within_view=True), 16, 17, steps=1000)
    assert path.s_pos[-1].item() == pytest.approx(1, abs=1e-12)
    assert path.s_neg[-1].item() == pytest.approx(-1 / 15, abs=1e-12)
    assert worst(negatives(path), -1 / 15) < 1e-4  # (10, -10) is stiff: curvature e^-20 across the simplex


@pytest.mark.parametrize(("m", "printed"), [(4, 0.0199), (8, 0.0159), (16, 0.0127), (32, 0.0082)])
def test_a_fixed_partition_ends_at_the_expected_variance(m, printed):
    """Free optimisation knows of no orientation: its batches end as if turned at random."""
    path = theory.optimise(partial(losses.clip, temperature=0.2), 64, 64, m=m, seeds=range(4))
    expected = theory.expected_variance(64, m, 64)
    assert expected == pytest.approx(printed, abs=5e-5)
    variance = path.variance[-1]
    assert variance.mean().item() == pytest.approx(expected, rel=0.03)
    low, high = theory.variance_bounds(64, m)
    assert ((low <= variance) & (variance <= high)).all()
    torch.testing.assert_close(path.s_neg[-1], torch.full((4,), -1 / 63, dtype=torch.float64), rtol=0, atol=1e-9)
    within = path.u[-1, 0, :m] @ path.v[-1, 0, :m].T
    assert worst(within[~torch.eye(m, dtype=torch.bool)], -1 / (m - 1)) < 1e-5


@pytest.mark.parametrize(("d", "printed"), [(7, 0.129), (512, 0.0037)])
def test_the_dimension_moves_the_variance_through_its_interval(d, printed):
    path = theory.optimise(partial(losses.clip, temperature=0.2), 64, d, m=8, seeds=range(2))
    assert path.variance[-1].mean().item() == pytest.approx(printed, abs=1e-4)


def test_in_expectation_random_batches_have_the_optimum_of_the_full_batch():
    """The loss averaged over all batches is convex in the similarities and blind to the order of the instances."""
    batches = list(itertools.combinations(range(6), 3))

    def every_batch(u, v):
        return torch.stack([losses.clip(u[list(b)], v[list(b)], temperature=0.5) for b in batches]).mean()

    path = theory.optimise(every_batch, 6, 6)
    assert path.s_pos[-1].item() == pytest.approx(1, abs=1e-12)
    assert worst(negatives(path), -1 / 5) < 1e-6


def test_a_reshuffled_partition_falls_below_the_range_of_a_fixed_one():
    path = theory.optimise(
        partial(losses.clip, temperature=0.2),
        64, 64, m=4, partition="reshuffled", method="adam", steps=800, learning_rate=0.02,
    )  # fmt: skip
    low, _ = theory.variance_bounds(64, 4)
    assert path.variance[0] > 2 * low
    assert path.variance[-1] < low


def test_trained_scale_and_bias_drive_the_loss_to_zero():
    def siglip(u, v, log_scale, bias):
        return losses.siglip(u, v, scale=log_scale.exp(), bias=bias)

    trained = {"log_scale": math.log(10), "bias": -5.0}
    path = theory.optimise(siglip, 16, 17, trained=trained, method="adam", steps=600, learning_rate=0.1)
    assert path.loss[-1] < 1e-3 < theory.siglip_optimum(16, 10, -5).loss
    assert path.trained["log_scale"].shape == path.loss.shape
    assert path.trained["log_scale"][0] == pytest.approx(math.log(10))
    assert path.trained["log_scale"][-1] > math.log(10)


@pytest.mark.parametrize(
    "loss",
    [
        partial(losses.clip, temperature=0.2),
        partial(losses.siglip, scale=5, bias=-2, within_view=True),
        lambda u, v: losses.siglip(u, v, scale=5, bias=0) + losses.vrns(u, v, n=20),
    ],
)
def test_lbfgs_goes_as_low_as_that_of_scipy(loss):
    """Whose line search satisfies the strong Wolfe conditions; ours asks for a lower loss alone."""
    path = theory.optimise(loss, 8, 9, record=500, frames=True)

    def objective(x):
        x = torch.from_numpy(x).requires_grad_()
        value = loss(*normalize(x.view(2, 8, 9), dim=-1))
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    start = torch.stack([path.u[0, 0], path.v[0, 0]])
    options = {"maxiter": 2000, "maxcor": 20, "ftol": 0, "gtol": 0}
    best = scipy.optimize.minimize(objective, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    assert path.loss[-1].item() == pytest.approx(best.fun, rel=1e-14)
    assert (path.loss.diff(dim=0) <= 1e-15 * path.loss[:-1].abs()).all()  # every step, but for rounding


# --- how it is used -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_shapes_and_the_recorded_path(method):
    given = {"scale": torch.tensor([[1.0], [5.0]]), "bias": torch.tensor([-1.0, 0.0, 1.0])}
    path = theory.optimise(
        losses.siglip, 6, 7, seeds=(3, 4), given=given, method=method, steps=20, record=4, frames=True
    )
    assert path.steps == [0, 5, 10, 15, 20]
    for series in (path.loss, path.s_pos, path.s_neg, path.variance):
        assert series.shape == (5, 2, 2, 3)
    assert path.u.shape == path.v.shape == (5, 2, 2, 3, 6, 7)
    torch.testing.assert_close(path.u.norm(dim=-1), torch.ones_like(path.u[..., 0]))
    torch.testing.assert_close(theory.moments(path.u, path.v).s_pos, path.s_pos)
    assert (path.loss[-1] < path.loss[0]).all()
    for i, j in itertools.product(range(2), range(3)):  # every point of the grid has its own hyperparameters
        scale, bias = given["scale"][i, 0].item(), given["bias"][j].item()
        value = losses.siglip(path.u[-1, 1, i, j], path.v[-1, 1, i, j], scale=scale, bias=bias)
        assert value.item() == pytest.approx(path.loss[-1, 1, i, j].item(), rel=1e-12)
    alone = theory.optimise(losses.siglip, 6, 7, seeds=(4,), given={"scale": 5.0, "bias": 1.0}, method=method, steps=20)
    assert alone.loss[-1].item() == pytest.approx(path.loss[-1, 1, 1, 2].item(), rel=1e-9)  # runs do not interact
    assert alone.u.shape == (1, 1, 6, 7)  # the end alone


def test_recording_does_not_change_a_reshuffled_run():
    once, often = (
        theory.optimise(
            partial(losses.clip, temperature=0.5),
            8, 4, m=4, partition="reshuffled", method="adam", steps=10, record=record,
        )
        for record in (1, 10)
    )  # fmt: skip
    assert torch.equal(once.u[-1], often.u[-1])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_adam_takes_the_steps_of_a_loop_by_hand(schedule):
    """Kingma & Ba 2015, Algorithm 1, and every embedding brought back to length 1 after every step."""
    steps, learning_rate = 30, 0.2
    path = theory.optimise(
        partial(losses.siglip, scale=5), 6, 4, trained={"bias": -1.0}, method="adam", steps=steps, record=steps,
        learning_rate=learning_rate, schedule=schedule, frames=True,
    )  # fmt: skip
    x = [path.u[0, 0], path.v[0, 0], torch.tensor(-1.0, dtype=torch.float64)]
    mean, square = [torch.zeros_like(part) for part in x], [torch.zeros_like(part) for part in x]
    for step in range(1, steps + 1):
        leaves = [part.clone().requires_grad_() for part in x]
        value = losses.siglip(*leaves[:2], scale=5, bias=leaves[2])
        rate = learning_rate * (1 if schedule == "constant" else (1 + math.cos(math.pi * (step - 1) / steps)) / 2)
        for k, g in enumerate(torch.autograd.grad(value, leaves)):
            mean[k], square[k] = 0.9 * mean[k] + 0.1 * g, 0.999 * square[k] + 0.001 * g**2
            x[k] = x[k] - rate * mean[k] / (1 - 0.9**step) / ((square[k] / (1 - 0.999**step)).sqrt() + 1e-8)
        x[:2] = [part / part.norm(dim=1, keepdim=True) for part in x[:2]]
        for found, expected in zip((path.u, path.v, path.trained["bias"]), x, strict=True):
            torch.testing.assert_close(found[step, 0], expected, rtol=0, atol=1e-8)


def test_a_seed_has_the_same_batches_at_every_point_of_the_grid_and_alone():
    def path(seeds, temperatures):
        return theory.optimise(
            losses.clip, 12, 6, m=3, partition="reshuffled", method="adam", steps=5, seeds=seeds,
            given={"temperature": torch.tensor(temperatures)},
        )  # fmt: skip

    temperatures = [0.2, 0.5, 1.0]
    together = path((3, 4), temperatures)
    for (i, seed), (j, temperature) in itertools.product(enumerate((3, 4)), enumerate(temperatures)):
        alone = path((seed,), temperature)
        torch.testing.assert_close(together.loss[:, i, j], alone.loss[:, 0], rtol=1e-9, atol=0)
        torch.testing.assert_close(together.u[-1, i, j], alone.u[-1, 0], rtol=0, atol=1e-9)


def test_batches_are_those_of_the_partition():
    path = theory.optimise(partial(losses.clip, temperature=0.5), 12, 6, m=3, steps=3)
    u, v = path.u[-1, 0], path.v[-1, 0]
    value = sum(losses.clip(u[k : k + 3], v[k : k + 3], temperature=0.5) for k in range(0, 12, 3)) / 4
    assert value.item() == pytest.approx(path.loss[-1].item(), rel=1e-12)


@pytest.mark.parametrize("kind", ["given", "trained"])
@pytest.mark.parametrize(
    ("value", "bad"),
    [(-0.5, -0.5), (torch.tensor([0.5, 0.25, -0.5]), -0.5), (torch.tensor([[0.5, 0.25], [math.nan, 0.5]]), math.nan)],
)
def test_a_bad_hyperparameter_is_named_wherever_in_the_grid(kind, value, bad):
    def loss(u, v, temperature, weight):
        return weight * losses.clip(u, v, temperature=temperature)

    hyperparameters = {"temperature": value, "weight": torch.tensor([[1.0], [2.0]])}
    with pytest.raises(CompanionError, match=f"^temperature is {bad}: expected a finite number"):
        theory.optimise(loss, 8, 8, **{kind: hyperparameters})
    with pytest.raises(CompanionError, match=r"^weight is nan: expected a finite number"):  # though no loss sees it
        theory.optimise(loss, 8, 8, **{kind: {"temperature": 0.5, "weight": torch.tensor([1.0, math.nan])}})


def test_a_bad_combination_is_found_wherever_in_the_grid():
    given = {"a": torch.tensor([[1.0], [2.0]]), "b": torch.tensor([0.0, 1.5])}  # 1 - 1.5 alone is not positive
    with pytest.raises(CompanionError, match=r"^scale is -0\.5"):
        theory.optimise(lambda u, v, a, b: losses.siglip(u, v, scale=a - b, bias=b), 8, 8, seeds=(0, 1), given=given)


@pytest.mark.parametrize(
    "arguments",
    [
        {"m": 3},
        {"m": 1},
        {"method": "sgd"},
        {"partition": "random"},
        {"partition": "reshuffled"},
        {"d": 0},
        {"steps": 0},
        {"seeds": ()},
        {"seeds": "0"},
        {"record": 0},
        {"learning_rate": 0},
        {"schedule": "linear"},
        {"given": {"temperature": torch.tensor([0.5, math.nan])}},
        {"given": {"temperature": torch.ones(2), "similarity": torch.ones(3)}},
        {"loss": partial(losses.clip, temperature=-1)},
        {"loss": lambda u, v: losses.clip(u, v, temperature=0.5) / 0},
    ],
)
def test_bad_input_is_told(arguments):
    with pytest.raises(CompanionError):
        theory.optimise(**{"loss": partial(losses.clip, temperature=0.5), "n": 8, "d": 8} | arguments)


@pytest.mark.parametrize("method", ["adam", "lbfgs"])
def test_a_temperature_that_is_trained_below_zero_is_told(method):
    def cools(u, v, *, temperature):  # it falls for ever
        return losses.info_nce(u, v, temperature=temperature) * 0 + (temperature - 1) ** 3

    with pytest.raises(CompanionError, match=r"temperature is .*-.*after \d+ steps"):
        theory.optimise(cools, 4, 3, trained={"temperature": 0.5}, method=method, steps=200, learning_rate=0.2)
