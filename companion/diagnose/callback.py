"""The same numbers along a training: as a dictionary for any loop, and as a callback for Lightning's."""

import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from companion.diagnose.reading import diagnose
from companion.errors import CompanionError, MissingExtraError, choose, whole

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # one framework under two names, with two Callback classes
WHEN = ("train", "validation", "both")


def log_similarities(
    u: Tensor, v: Tensor, *, n: int | None = None, prefix: str = "similarity/", max_pairs: int = 2**18, seed: int = 0
) -> dict[str, float]:
    """The numbers of :func:`companion.diagnose.diagnose` worth a curve, as a flat dictionary for any logger.

    Of a batch of m pairs of d dimensions it takes O(m d²) time on the CPU and waits for the device; every hundredth
    step is plenty. The mean of the variances of batches is not the variance over all pairs.

    Args:
        u: (m, d) first view, m >= 2.
        v: (m, d) second view.
        n: size of the training set; adds ``vrns``, and ``negative_mean_off_target``, the mean plus 1/(n-1).
        prefix: what every name starts with.
        max_pairs: up to how many pairs i < j the uniformity is exact: all of 724 instances.
        seed: of the sample beyond.

    Returns:
        ``positive_mean``, ``positive_std``, ``negative_mean``, ``negative_variance``, ``negative_std``, ``alignment``,
        ``uniformity`` (mean of u's and v's), ``participation_ratio`` (of u and v together), ``gap``, and ``bound``,
        the sharp bound on ``positive_mean``, 1 where it does not bind; all finite.

    Raises:
        CompanionError: as :func:`companion.diagnose.diagnose`.
    """
    r = diagnose(u, v, n=n, max_pairs=max_pairs, seed=seed)
    found = {
        "positive_mean": r.positive.mean,
        "positive_std": r.positive.std,
        "negative_mean": r.negative.mean,
        "negative_variance": r.negative.variance,
        "negative_std": r.negative.std,
        "alignment": r.alignment,
        "uniformity": (r.u.uniformity.value + r.v.uniformity.value) / 2,
        "participation_ratio": r.both.participation_ratio,
        "gap": r.gap,
        "bound": 1.0 if r.bound is None else min(1.0, r.bound),
    }
    if r.target:
        found |= {"vrns": r.target.vrns, "negative_mean_off_target": r.target.distance}
    return {prefix + name: value for name, value in found.items()}


class SimilarityLogger:
    """A Lightning callback that logs :func:`log_similarities` of every k-th batch.

    Works with ``lightning`` and with ``pytorch_lightning``, whichever the program has imported. The training is not
    changed: while it measures, the module is in evaluation mode, without gradients, and the state of the random
    generators is put back. A batch of one pair, which has no negative, is passed over.

    Args:
        embeddings: function of the LightningModule and a batch, on its device, that returns u and v, (m, d) each.
        every: log batches 0, k, 2k, … of each epoch.
        when: ``train``, ``validation`` or ``both``. Training batches are logged one by one, at the optimiser step
            that they led to, under names that start with ``prefix`` and ``train/``; validation batches as their plain
            mean over the epoch, under ``validation/``.
        n: size of the training set, see :func:`log_similarities`.
        prefix: what every name starts with.

    Raises:
        MissingExtraError: if neither package is installed.
        CompanionError: if an argument does not fit; while it runs, if the embeddings are not sound.
    """

    def __new__(cls, *args, **kwargs):
        return super().__new__(_with_bases(_callbacks()) if cls is SimilarityLogger else cls)

    def __init__(
        self, embeddings: Callable, *, every: int = 100, when: str = "validation", n: int | None = None,
        prefix: str = "similarity/",
    ):  # fmt: skip
        if not callable(embeddings):
            raise CompanionError(
                f"embeddings is {embeddings!r}: expected a function of the module and a batch that returns u and v."
            )
        self.embeddings, self.every = embeddings, whole(every, "every", least=1)
        self.when, self.prefix = choose(when, WHEN, "time to log"), prefix
        self.n = None if n is None else whole(n, "n", least=2)

    def __reduce__(self):  # its class is made when it is needed, so pickle has to make it again
        options = {name: getattr(self, name) for name in ("every", "when", "n", "prefix")}
        return functools.partial(SimilarityLogger, **options), (self.embeddings,)

    def on_train_start(self, trainer, pl_module):
        if self.when == "validation" and not trainer.enable_validation:
            warnings.warn(
                "SimilarityLogger logs nothing, since there is no validation: hand the Trainer batches for it, or take "
                "when='train' or 'both'.",
                stacklevel=2,
            )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        found = self._read("train", pl_module, batch, batch_idx)
        # Not by pl_module.log, which would repeat a value at every step until the next is measured.
        for logger in trainer.loggers if found else []:
            logger.log_metrics(found, step=trainer.global_step)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        found = {} if trainer.sanity_checking else self._read("validation", pl_module, batch, batch_idx)
        if found:
            pl_module.log_dict(found, on_step=False, on_epoch=True, batch_size=1)

    def _read(self, stage: str, module, batch, batch_idx: int) -> dict[str, float]:
        if self.when not in (stage, "both") or batch_idx % self.every:
            return {}
        u, v = _measured(self.embeddings, module, batch)
        return log_similarities(u, v, n=self.n, prefix=f"{self.prefix}{stage}/") if len(u) > 1 else {}


@torch.no_grad()
def _measured(embeddings: Callable, module, batch):
    """The embeddings, without a trace: a forward pass in training mode would move batch norm's running statistics."""
    modes = {part: part.training for part in module.modules()}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        module.eval()
        try:
            return embeddings(module, batch)
        finally:
            for part, mode in modes.items():
                part.training = mode


def _callbacks() -> tuple[type, ...]:
    """The Callback class of every package that is imported; if none is, of the first that is installed."""
    names = [name for name in PACKAGES if name in sys.modules]
    names = names or [name for name in PACKAGES if importlib.util.find_spec(name.partition(".")[0])][:1]
    if not names:
        raise MissingExtraError(
            "Neither lightning nor pytorch-lightning is installed: SimilarityLogger needs one of them. Install it with "
            "`pip install lightning`, or call companion.diagnose.log_similarities in a loop of your own."
        )
    return tuple(import_module(name).Callback for name in names)


@functools.cache
def _with_bases(bases: tuple[type, ...]) -> type:
    return type(
        "SimilarityLogger", (SimilarityLogger, *bases), {"__module__": __name__, "__doc__": SimilarityLogger.__doc__}
    )
