"""Direct optimisation of unit embeddings: no network, no images, only the loss and the sphere."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import normalize

from companion.errors import CompanionError, choose, number, positive, whole
from companion.losses import plain, unchecked
from companion.theory.exact import batch_count, moments

METHODS = ("lbfgs", "adam")
PARTITIONS = ("fixed", "reshuffled")
SCHEDULES = ("cosine", "constant")
MEMORY = 20  # pairs of steps and changes of the gradient that L-BFGS keeps


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """How embeddings moved. ``runs`` stands for ``(seeds, *grid)``: a seed starts alike at every point of the grid."""

    steps: list[int]  #: (k,) the recorded steps; 0 is the start
    loss: Tensor  #: (k, *runs) the loss that was minimised, of a reshuffled partition on that step's batches
    s_pos: Tensor  #: (k, *runs) mean similarity of the positives
    s_neg: Tensor  #: (k, *runs) mean similarity of all cross-view negatives, whether in one batch or not
    variance: Tensor  #: (k, *runs) variance of those
    u: Tensor  #: (k, *runs, n, d) first view, unit vectors; k = 1, the end alone, unless frames were asked for
    v: Tensor  #: (k, *runs, n, d) second view
    trained: dict[str, Tensor]  #: (k, *runs) each trained hyperparameter


def optimise(
    loss: Callable[..., Tensor],
    n: int,
    d: int,
    *,
    m: int | None = None,
    partition: str = "fixed",
    seeds: Iterable[int] | int = (0,),
    given: Mapping[str, Tensor | float] | None = None,
    trained: Mapping[str, Tensor | float] | None = None,
    method: str = "lbfgs",
    steps: int = 500,
    learning_rate: float = 0.05,
    schedule: str = "cosine",
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
        seeds: one or several, of the start, uniform on the sphere, and of the reshuffling.
        given: hyperparameters of the loss over a grid: numbers or tensors that broadcast to its shape.
        trained: the same for hyperparameters that are trained along, with their first values.
        method: ``lbfgs``, with a backtracking line search, for exact optima; or ``adam``, for paths that resemble
            training.
        steps: number of iterations; L-BFGS ends sooner once nothing moves.
        learning_rate: of Adam.
        schedule: of Adam's rate: ``cosine``, which falls to 0, or ``constant``.
        record: how often to record, evenly spread, beside the start.
        frames: keep the embeddings of every record, not of the end alone.

    Raises:
        CompanionError: for sizes that do not fit, an unknown method, partition or schedule, L-BFGS on a reshuffled
            partition, hyperparameters that do not broadcast, or that the loss refuses at any point of the grid, or
            when they have moved, or a loss that leaves the finite numbers.
    """
    choose(method, METHODS, "method")
    whole(steps, "steps", least=1)
    interval = max(1, steps // whole(record, "record", least=1))
    positive(learning_rate, "learning_rate")
    choose(schedule, SCHEDULES, "schedule")
    if choose(partition, PARTITIONS, "partition") == "reshuffled" and method == "lbfgs":
        raise CompanionError("L-BFGS needs a loss that stays the same: use method='adam' with a reshuffled partition.")
    seeds = list(seeds) if isinstance(seeds, Iterable) else [seeds]
    if not seeds or not all(isinstance(seed, Integral) for seed in seeds):
        raise CompanionError(f"seeds is {seeds!r}: expected at least one whole number, one a run.")
    problem = _Problem(loss, n, d, m, seeds, given or {}, trained or {}, partition == "reshuffled")
    records = []

    def note(step: int, x: Tensor) -> None:
        with torch.no_grad():
            z, values = problem.unpack(x)
            if values or not step:
                problem.check(z, values, f" (after {step} steps)" if step else "")
            value = problem(x, torch.arange(len(x)))
        if not torch.isfinite(value).all():
            raise CompanionError(f"The loss is not finite after {step} steps: check its hyperparameters.")
        if records and not frames:
            del records[-1]["u"], records[-1]["v"]
        u, v = z.unbind(1)
        records.append({"steps": step, "loss": value, **moments(u, v)._asdict(), "u": u, "v": v, **values})

    note(0, problem.start)
    if method == "lbfgs":
        _lbfgs(problem, steps, interval, note)
    else:
        _adam(problem, steps, interval, note, learning_rate, schedule)

    def series(name: str) -> Tensor:
        return torch.stack([r[name].unflatten(0, problem.shape) for r in records if name in r])

    return Trajectory(
        steps=[r["steps"] for r in records],
        trained={name: series(name) for name in problem.trained},
        **{name: series(name) for name in ("loss", "s_pos", "s_neg", "variance", "u", "v")},
    )


class _Problem:
    """The objective of all runs: from x, one row a run with all that moves, to one number a run."""

    def __init__(self, loss, n: int, d: int, m: int | None, seeds: list[int], given, trained, reshuffled: bool):
        self.batches, self.n, self.d = batch_count(n, n if m is None else m), n, whole(d, "d", least=1)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        views = torch.stack([torch.randn(2, n, d, dtype=torch.float64, generator=g) for g in self.generators])
        self.shape, hyperparameters = _broadcast(len(seeds), {**given, **trained})
        self.points = self.shape[1:].numel()  # of the grid

        def of_batch(pair: Tensor, values: dict[str, Tensor]) -> Tensor:  # (2, m, d) → ()
            return loss(pair[0], pair[1], **values)

        views = normalize(views, dim=-1)  # (seeds, 2, n, d)
        self.of_batch = of_batch
        self.of_batches = torch.func.vmap(torch.func.vmap(of_batch, in_dims=(0, None)))
        self.trained = list(trained)
        moving = [hyperparameters.pop(name)[:, None] for name in trained]
        self.given = hyperparameters
        self.start = torch.cat([views.flatten(1).repeat_interleave(self.points, dim=0), *moving], dim=1)  # (runs, p)
        self.reshuffled, self.orders = reshuffled, torch.arange(n).expand(len(seeds), n)
        self.shuffle()

    def check(self, z: Tensor, values: dict[str, Tensor], when: str) -> None:
        """Let the loss's own checks look at each point of the grid, and where hyperparameters move at each run."""
        for run in range(len(z) if self.trained else self.points):
            own = {name: x[run] for name, x in (self.given | values).items()}
            try:
                self.of_batch(z[run, :, : self.n // self.batches], own)
            except CompanionError as error:
                raise CompanionError(f"{error}{when}") from error

    def shuffle(self) -> None:
        """Draw new batches, if the partition is not fixed; each seed has its own."""
        if self.reshuffled:
            self.orders = torch.stack([torch.randperm(self.n, generator=g) for g in self.generators])  # (seeds, n)

    def unpack(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(runs, p) → (runs, 2, n, d) unit vectors, and (runs,) each trained hyperparameter."""
        views, *values = x.split([2 * self.n * self.d, *(1 for _ in self.trained)], dim=1)
        z = normalize(views.reshape(-1, 2, self.n, self.d), dim=-1)
        return z, {name: value[:, 0] for name, value in zip(self.trained, values, strict=True)}

    def __call__(self, x: Tensor, runs: Tensor) -> Tensor:
        """The rows of x and the numbers of the runs that they belong to → (len(runs),)."""
        z, values = self.unpack(x)
        values |= {name: value[runs] for name, value in self.given.items()}
        order = self.orders[runs // self.points][:, None, :, None].expand_as(z)
        batches = z.gather(2, order).unflatten(2, (self.batches, -1)).movedim(2, 1)  # (runs, batches, 2, m, d)
        with unchecked(), plain():
            return self.of_batches(batches, values).mean(dim=1)

    def project(self, x: Tensor) -> Tensor:
        """The same directions at length 1."""
        return torch.cat([self.unpack(x)[0].flatten(1), x[:, 2 * self.n * self.d :]], dim=1)


def _lbfgs(problem: _Problem, steps: int, interval: int, note) -> None:
    """L-BFGS with a backtracking line search (Nocedal & Wright, Algorithms 7.4 and 3.1), each run on its own.

    torch.optim.LBFGS would give all runs one step length and one memory, so that a stiff run holds up the others;
    SciPy's L-BFGS-B takes one run at a time, four times as slow on the grids of the course. A step must lower the loss
    enough (Armijo). Wolfe's curvature condition is not asked for: a step along which the slope falls is not remembered.
    """

    def evaluate(x: Tensor, runs: Tensor) -> tuple[Tensor, Tensor]:  # → (runs, 1), (runs, p)
        x = x.detach().requires_grad_()
        value = problem(x, runs)
        return value.detach()[:, None], torch.autograd.grad(value.sum(), x)[0]

    x = problem.start
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
            shrink = -slope / (2 * (new_value - before[s] - slope))  # to the least point of the parabola so far
            length[s] = length[s] * shrink.nan_to_num(0.5).clamp(0.1, 0.5)
            searching = s[~lower]
            if not len(searching):
                break
        stalls += (value >= before)[:, 0]
        pairs = pairs[1 - MEMORY :]
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


def _adam(problem: _Problem, steps: int, interval: int, note, learning_rate: float, schedule: str) -> None:
    x, runs = problem.start.clone().requires_grad_(), torch.arange(len(problem.start))
    optimiser = torch.optim.Adam([x], lr=learning_rate)
    rates = torch.optim.lr_scheduler
    falling = rates.CosineAnnealingLR(optimiser, steps) if schedule == "cosine" else rates.ConstantLR(optimiser, 1.0)
    for step in range(1, steps + 1):
        problem.shuffle()
        optimiser.zero_grad()
        problem(x, runs).sum().backward()
        optimiser.step()
        falling.step()
        with torch.no_grad():
            x.copy_(problem.project(x))  # or their growing length would slow the embeddings down
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
    for name, x in tensors.items():
        for value in x.flatten().tolist():
            number(value, name)
    shape = torch.Size((seeds, *grid))
    return shape, {name: x.detach().expand(shape).flatten().clone() for name, x in tensors.items()}
