"""Direct optimisation of unit embeddings: no network, no images, only the loss and the sphere."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from companion.errors import CompanionError, choose, positive, whole
from companion.losses._inputs import unchecked
from companion.theory.exact import batch_count, moments

METHODS = ("lbfgs", "adam")
PARTITIONS = ("fixed", "reshuffled")


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """How embeddings moved. ``runs`` stands for (seeds, *grid): each seed starts alike at every point of the grid."""

    steps: list[int]  # (k,) the recorded steps; 0 is the start
    loss: Tensor  # (k, *runs) the loss that was minimised, of a reshuffled partition on fresh batches
    s_pos: Tensor  # (k, *runs) mean similarity of the positives
    s_neg: Tensor  # (k, *runs) mean similarity of all cross-view negatives, whether in one batch or not
    variance: Tensor  # (k, *runs) variance of those
    u: Tensor  # (k, *runs, n, d) first view, unit vectors; k = 1, the end alone, unless frames were asked for
    v: Tensor  # (k, *runs, n, d) second view
    trained: dict[str, Tensor]  # (k, *runs) each trained hyperparameter


def optimise(
    loss: Callable[..., Tensor],
    n: int,
    d: int,
    *,
    m: int | None = None,
    partition: str = "fixed",
    seeds: Iterable[int] = (0,),
    given: Mapping[str, Tensor | float] | None = None,
    trained: Mapping[str, Tensor | float] | None = None,
    method: str = "lbfgs",
    steps: int = 500,
    learning_rate: float = 0.05,
    record: int = 20,
    frames: bool = False,
) -> Trajectory:
    """Minimise a loss over n pairs of unit embeddings in R^d, in float64, for all seeds and a whole grid at once.

    Args:
        loss: ``loss(u, v, **hyperparameters)`` of two (m, d) views, a scalar: a function of :mod:`companion.losses`, or
            a formula made of such. It is vectorised by :func:`torch.func.vmap`.
        n: number of instances.
        d: dimension.
        m: batch size that divides n: what is minimised is the mean of the loss over the n/m batches. Default: n.
        partition: ``fixed``: the same batches at every step; ``reshuffled``: new random batches at every step.
        seeds: of the start, uniform on the sphere, and of the reshuffling.
        given: hyperparameters of the loss over a grid: numbers or tensors that broadcast to its shape.
        trained: the same for hyperparameters that are trained along, with their first values.
        method: ``lbfgs`` with a strong Wolfe line search, for exact optima (all runs share its steps), or ``adam``, for
            paths that resemble training; its rate falls to 0 along a cosine.
        steps: number of iterations; L-BFGS ends sooner once nothing moves.
        learning_rate: of Adam.
        record: how often to record, evenly spread, beside the start.
        frames: keep the embeddings of every record, not of the end alone.

    Raises:
        CompanionError: for sizes that do not fit, an unknown method or partition, L-BFGS on a reshuffled partition,
            hyperparameters that do not broadcast, or a loss that leaves the finite numbers.
    """
    batches = batch_count(n, n if m is None else m)
    choose(method, METHODS, "method")
    whole(d, "d", least=1)
    whole(steps, "steps", least=1)
    whole(record, "record", least=1)
    positive(learning_rate, "learning_rate")
    if choose(partition, PARTITIONS, "partition") == "reshuffled" and method == "lbfgs":
        raise CompanionError("L-BFGS needs a loss that stays the same: use method='adam' with a reshuffled partition.")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    start = [torch.randn(2, n, d, dtype=torch.float64, generator=generator) for generator in generators]
    shape, hyperparameters = _broadcast(len(generators), {**(given or {}), **(trained or {})})
    points = shape[1:].numel()  # of the grid
    trained = {name: hyperparameters.pop(name) for name in trained or {}}
    views = normalize(torch.stack(start), dim=-1).repeat_interleave(points, dim=0)  # (runs, 2, n, d)
    x = torch.cat(
        [views.flatten(1), *(value[:, None] for value in trained.values())], dim=1
    )  # (runs, p) all that moves

    def unpack(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        views, *values = x.split([2 * n * d, *(1 for _ in trained)], dim=1)
        return normalize(views.view(-1, 2, n, d), dim=-1), dict(zip(trained, (v[:, 0] for v in values), strict=True))

    def one_batch(pair: Tensor, values: dict[str, Tensor]) -> Tensor:  # (2, m, d) → ()
        return loss(pair[0], pair[1], **values)

    batchwise = torch.func.vmap(torch.func.vmap(one_batch, in_dims=(0, None)))

    def objective(x: Tensor, runs: Tensor) -> Tensor:  # the rows x and numbers of some runs → (len(runs),)
        z, values = unpack(x)
        values |= {name: value[runs] for name, value in hyperparameters.items()}
        if partition == "reshuffled":
            orders = torch.stack([torch.randperm(n, generator=generator) for generator in generators])  # (seeds, n)
            z = z.gather(2, orders[runs // points][:, None, :, None].expand_as(z))
        with unchecked():
            return batchwise(z.unflatten(2, (batches, -1)).movedim(2, 1), values).mean(dim=1)

    one_batch(views[0].unflatten(1, (batches, -1))[:, 0], {k: v[0] for k, v in {**hyperparameters, **trained}.items()})
    records = []

    def note(step: int, x: Tensor) -> None:
        value = objective(x, torch.arange(len(x)))
        if not torch.isfinite(value).all():
            raise CompanionError(f"The loss is not finite after {step} steps: lower the learning rate.")
        z, values = unpack(x)
        u, v = z.unbind(1)
        if records and not frames:
            del records[-1]["u"], records[-1]["v"]
        records.append({"steps": step, "loss": value, **moments(u, v)._asdict(), "u": u, "v": v, **values})

    interval = max(1, steps // record)
    if method == "lbfgs":
        _lbfgs(objective, x, steps, interval, note)
    else:
        _adam(objective, x, steps, interval, note, learning_rate, 2 * n * d, d)

    def series(name: str) -> Tensor:
        return torch.stack([r[name].unflatten(0, shape) for r in records if name in r])

    return Trajectory(
        steps=[r["steps"] for r in records],
        trained={name: series(name) for name in trained},
        **{name: series(name) for name in ("loss", "s_pos", "s_neg", "variance", "u", "v")},
    )


def _lbfgs(objective, x: Tensor, steps: int, interval: int, note, *, memory: int = 20) -> None:
    """L-BFGS with a backtracking line search (Nocedal & Wright, Algorithms 7.4 and 3.1), each run on its own.

    torch.optim.LBFGS would give all runs one step length and one memory, so that a stiff run holds up the others.
    """

    def evaluate(x: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:  # → (runs, 1), (runs, p)
        x = x.detach().requires_grad_()
        value = objective(x, runs)
        return value.detach()[:, None], torch.autograd.grad(value.sum(), x)[0]

    note(0, x)
    value, gradient = evaluate(x, torch.arange(len(x)))
    pairs = []  # (move, change of the gradient, 1 / their product), the newest last; 1 / product = 0: not used
    stalls = torch.zeros(len(x), dtype=torch.int)  # steps that did not lower the loss: only rounding is left
    for step in range(1, steps + 1):
        direction = _direction(gradient, pairs)
        length = torch.ones_like(value) if pairs else 1 / gradient.norm(dim=1, keepdim=True).clamp(min=1)
        searching = (stalls < 5).nonzero()[:, 0]  # numbers of the runs
        if not len(searching):
            break
        move, change, before = torch.zeros_like(x), torch.zeros_like(x), value.clone()
        for _ in range(20):
            s = searching
            trial = length[s] * direction[s]
            new_value, new_gradient = evaluate(x[s] + trial, s)
            slope = _dot(gradient[s], trial)
            lower = (new_value <= before[s] + 1e-4 * slope + 1e-15 * before[s].abs())[:, 0]  # but for rounding
            good = s[lower]
            move[good], change[good] = trial[lower], (new_gradient - gradient[s])[lower]
            value[good] = new_value[lower]
            parabola = -slope / (
                2 * (new_value - before[s] - slope)
            )  # the minimum of the parabola through what is known
            length[s] = length[s] * parabola.nan_to_num(0.5).clamp(0.1, 0.5)
            searching = s[~lower]
            if not len(searching):
                break
        stalls += (value >= before)[:, 0]
        pairs = pairs[1 - memory :]
        for _, _, inverse in pairs:
            inverse[searching] = 0  # start afresh
        product = _dot(move, change)
        pairs.append((move, change, torch.where(product > 0, 1 / product, 0)))
        x, gradient = x + move, gradient + change
        if step % interval == 0 and step < steps:
            note(step, x)
    note(step, x)


def _direction(gradient: Tensor, pairs: list) -> Tensor:
    """The two loops of L-BFGS: minus the inverse Hessian, as the last moves show it, times the gradient."""
    direction, weights = -gradient, []
    for move, change, inverse in reversed(pairs):
        weights.append(inverse * _dot(move, direction))
        direction = direction - weights[-1] * change
    if pairs:
        move, change, inverse = pairs[-1]
        direction = direction * torch.where(inverse > 0, 1 / (inverse * _dot(change, change)), 1)
    for move, change, inverse in pairs:
        direction = direction + (weights.pop() - inverse * _dot(change, direction)) * move
    return torch.where(_dot(gradient, direction) < 0, direction, -gradient)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, keepdim=True)


def _adam(objective, x: Tensor, steps: int, interval: int, note, learning_rate: float, size: int, d: int) -> None:
    note(0, x)
    runs = torch.arange(len(x))
    x = x.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        optimiser.zero_grad()
        objective(x, runs).sum().backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():  # back to the sphere, or the growing length would slow the embeddings down
            x[:, :size] = normalize(x[:, :size].unflatten(1, (-1, d)), dim=-1).flatten(1)
        if step % interval == 0 or step == steps:
            note(step, x.detach().clone())


def _broadcast(seeds: int, hyperparameters: Mapping) -> tuple[torch.Size, dict[str, Tensor]]:
    """The shape (seeds, *grid) of the runs, and each hyperparameter as a (runs,) tensor of its own."""
    tensors = {name: torch.as_tensor(x, dtype=torch.float64) for name, x in hyperparameters.items()}
    try:
        grid = torch.broadcast_shapes(*(x.shape for x in tensors.values()))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items())
        raise CompanionError(f"The hyperparameters have shapes {shapes}: expected shapes that broadcast.") from None
    shape = torch.Size((seeds, *grid))
    return shape, {name: x.detach().expand(shape).flatten().clone() for name, x in tensors.items()}
