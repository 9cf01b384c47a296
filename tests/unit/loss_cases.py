"""All losses with hyperparameters that exercise them, for tests that go over every loss."""

from functools import partial

import torch

from companion import losses

TWO_VIEWS = {
    "info_nce": partial(losses.info_nce, temperature=0.2),
    "clip": partial(losses.clip, temperature=0.2),
    "clip within view": partial(losses.clip, temperature=0.2, within_view=True),
    "nt_xent": partial(losses.nt_xent, temperature=0.2),
    "dcl": partial(losses.dcl, temperature=0.2),
    "dclw": partial(losses.dclw, temperature=0.2),
    "dhel": partial(losses.dhel, temperature=0.2),
    "dhel koromilas": partial(losses.dhel, temperature=0.2, form="koromilas"),
    "hard_contrastive": partial(losses.hard_contrastive, temperature=0.2, keep=1),
    "simple": partial(losses.simple, weight=0.3),
    "hard simple": partial(losses.simple, weight=0.3, keep=1),
    "siglip": partial(losses.siglip, scale=10, bias=-2),
    "siglip within view": partial(losses.siglip, scale=10, bias=-2, within_view=True),
    "spectral": losses.spectral,
    "spectral within view": partial(losses.spectral, within_view=True),
    "vrns": partial(losses.vrns, n=100),
    "vrns variance": lambda u, v, **options: losses.vrns_parts(u, v, n=100, **options)[0],
    "vrns mean": lambda u, v, **options: losses.vrns_parts(u, v, n=100, **options)[1],
    "align_uniform": losses.align_uniform,
    "align": losses.align,
}
WITH_LABELS = {
    "sup_con": partial(losses.sup_con, temperature=0.2),
    "sincere": partial(losses.sincere, temperature=0.2),
    "eps_sup_info_nce": partial(losses.eps_sup_info_nce, temperature=0.2),
    "contrastive_margin": partial(losses.contrastive_margin, margin=-0.2),
    "triplet": partial(losses.triplet, margin=0.3),
    "lifted": partial(losses.lifted, margin=0.3),
    "batch_hard": partial(losses.batch_hard, margin=0.3),
}
NO_SIMILARITY = {"align", "align_uniform"}  # defined by distances on the sphere
NO_TILE = {"align", "contrastive_margin", "triplet", "lifted", "batch_hard"}  # linear in n, or for small batches
LABELS = torch.tensor([0, 2, 1, 0, 2, 2, 3, 0])  # unbalanced; class 1 and class 3 have a single member


def call(name: str, u, v, **options):
    """The loss `name` of the two views, or, for a loss with labels, of u with :data:`LABELS`."""
    if name in TWO_VIEWS:
        return TWO_VIEWS[name](u, v, **options)
    return WITH_LABELS[name](u, LABELS[: len(u)], **options)


ALL = [*TWO_VIEWS, *WITH_LABELS]
SYMMETRIC = [name for name in TWO_VIEWS if name not in ("info_nce", "hard_contrastive", "hard simple")]
