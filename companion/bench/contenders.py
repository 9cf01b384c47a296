"""The losses that the benchmark lets run against each other: of this package, of libraries, and the usual formula.

The libraries are those of the extra ``oracles`` and, for CUDA devices only, of the extra ``kernels``; one that is not
installed is left out.
"""

import functools
import importlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from companion import losses
from companion.bench.report import AUTO, DENSE, FLOOR, TILED, USUAL

TEMPERATURE, DIMENSION = 0.2, 128
SCALE, BIAS = 10.0, -10.0  # of SigLIP, where it starts
TILE = {"cpu": 512, "cuda": 8192}

Loss = Callable[[Tensor, Tensor], Tensor | None]  # of u and v; None: nothing to take the gradient of
OURS = {
    "nt_xent": functools.partial(losses.nt_xent, temperature=TEMPERATURE),
    "clip": functools.partial(losses.clip, temperature=TEMPERATURE),
    "info_nce": functools.partial(losses.info_nce, temperature=TEMPERATURE),
    "siglip": functools.partial(losses.siglip, scale=SCALE, bias=BIAS),
}


def usual_formula(u: Tensor, v: Tensor) -> Tensor:
    """NT-Xent as most repositories write it: exponentials, masks, a ratio, its logarithm."""
    z = F.normalize(torch.cat([u, v]), dim=1)
    exponentials = torch.exp(z @ z.T / TEMPERATURE)
    others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = torch.exp((z * z.roll(len(u), dims=0)).sum(dim=1) / TEMPERATURE)
    return -torch.log(positives / (exponentials * others).sum(dim=1)).mean()


def cross_entropy(u: Tensor, v: Tensor, both: bool) -> Tensor:
    """InfoNCE as most repositories write it: the cross entropy of the logits; with ``both``, of their transpose too."""
    logits = F.normalize(u, dim=1) @ F.normalize(v, dim=1).T / TEMPERATURE
    labels = torch.arange(len(u), device=u.device)
    value = F.cross_entropy(logits, labels)
    return (value + F.cross_entropy(logits.T, labels)) / 2 if both else value


def all_pairs(u: Tensor, v: Tensor) -> Tensor:
    """SigLIP's Algorithm 1, line by line."""
    logits = SCALE * F.normalize(u, dim=1) @ F.normalize(v, dim=1).T + BIAS
    labels = 2 * torch.eye(len(u), device=u.device) - 1
    return -F.logsigmoid(labels * logits).sum() / len(u)


def _products(a: Tensor, b: Tensor) -> None:
    """The matrix products that any dense form needs, and nothing else: S = a bᵀ, then S b and Sᵀ a for the gradient."""
    with torch.no_grad():
        s = a @ b.T
        _ = s @ b, s.T @ a


def _twice(u: Tensor, v: Tensor) -> None:
    z = torch.cat([u, v])
    _products(z, z)


def _plain(loss: Loss) -> Loss:
    def plain(u, v):
        with losses.plain():
            return loss(u, v)

    return plain


def _ours(name: str) -> dict[str, Callable[[str], Loss]]:
    return {
        FLOOR: lambda device: _twice if name == "nt_xent" else _products,
        AUTO: lambda device: OURS[name],
        TILED: lambda device: functools.partial(OURS[name], tile=TILE[device]),
        DENSE: lambda device: _plain(OURS[name]),
    }


def _on_cuda(device: str) -> None:
    """Some libraries have kernels for CUDA devices only; on another device they are as if not installed."""
    if device != "cuda":
        raise ImportError("it needs a CUDA device")


def _lightly(device: str) -> Loss:
    return importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)


def _pytorch_metric_learning(device: str) -> Loss:
    oracle = importlib.import_module("pytorch_metric_learning.losses").NTXentLoss(temperature=TEMPERATURE)
    return lambda u, v: oracle(torch.cat([u, v]), torch.arange(len(u), device=u.device).repeat(2))


def _open_clip(device: str) -> Loss:
    oracle = importlib.import_module("open_clip.loss").ClipLoss()
    scale = torch.tensor(1 / TEMPERATURE, device=device)
    return lambda u, v: oracle(F.normalize(u, dim=1), F.normalize(v, dim=1), scale)


def _memeff(device: str) -> Loss:
    """``stable``, its default, gives another gradient: √(n τ) times this one."""
    _on_cuda(device)
    return importlib.import_module("memeff").MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)


def _inf_cl(device: str) -> Loss:
    """Its fused loss for one device, one way; a value an anchor."""
    _on_cuda(device)
    flash = importlib.import_module("inf_cl").cal_flash_loss
    return lambda u, v: flash(F.normalize(u, dim=1), F.normalize(v, dim=1), None, 1 / TEMPERATURE, DIMENSION).mean()


def _cut_cross_entropy(device: str) -> Loss:
    """Linear cross entropy is one-way InfoNCE where the classes are the candidates. It takes half precision only; none
    of its gradient is left out."""
    _on_cuda(device)
    entropy = importlib.import_module("cut_cross_entropy").linear_cross_entropy

    def loss(u, v):
        u, v = ((F.normalize(x.float(), dim=1) / math.sqrt(TEMPERATURE)).bfloat16() for x in (u, v))
        return entropy(u, v, torch.arange(len(u), device=u.device), filter_eps=None)

    return loss


def _siglip_kernel(device: str) -> Loss:
    _on_cuda(device)
    fused = importlib.import_module("siglip_kernel").fused_siglip_loss
    scale, bias = (torch.tensor(x, device=device) for x in (math.log(SCALE), BIAS))
    return lambda u, v: fused(F.normalize(u, dim=1), F.normalize(v, dim=1), scale, bias)


# loss → contender → device → function of u and v; the three products are the floor that the others are held against
CONTENDERS = {
    "nt_xent": _ours("nt_xent")
    | {
        USUAL: lambda device: usual_formula,
        "lightly": _lightly,
        "pytorch-metric-learning": _pytorch_metric_learning,
    },
    "clip": _ours("clip")
    | {
        USUAL: lambda device: functools.partial(cross_entropy, both=True),
        "open_clip": _open_clip,
        "memeff": _memeff,
    },
    "info_nce": _ours("info_nce")
    | {
        USUAL: lambda device: functools.partial(cross_entropy, both=False),
        "inf-cl": _inf_cl,
        "cut-cross-entropy": _cut_cross_entropy,
    },
    "siglip": _ours("siglip") | {USUAL: lambda device: all_pairs, "siglip-kernel": _siglip_kernel},
}
