"""The two linear probes that Lee et al. (2025) publish, in their text and in their code; they are not the same one.

Ours, which every table has, is :func:`companion.training.probe.linear_probe`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.errors import CompanionError, choose, whole
from companion.training import data
from companion.training.augment import SimCLR
from companion.training.config import Config
from companion.training.loop import seeded
from companion.training.methods import Method
from companion.training.runs import features
from companion.training.sources import seed

EPOCHS, BATCH_SIZE, RATE, MOMENTUM = 200, 256, 0.1, 0.9  # of both; the momentum stands in the code alone


@dataclass(frozen=True)
class Form:
    """What a probe sees of an image."""

    normalise: bool  #: whether its features are brought to length 1
    augmentation: SimCLR | None  #: of the training images; the test images have none


FORMS = {
    "text": Form(normalise=True, augmentation=None),
    "code": Form(normalise=False, augmentation=SimCLR(crop_scale=0.08, flip=0.5, jitter=0.0)),
}


def published_probe(
    method: Method,
    config: Config,
    images: data.Data,
    *,
    form: str = "text",
    passes: int | None = None,
    epochs: int = EPOCHS,
) -> np.ndarray:
    """A linear classifier of frozen features, trained by SGD as the paper says: see :func:`sgd_probe`.

    In the ``text`` it sees the encoder's outputs "without applying any augmentations", "normalized"; in the ``code``
    (github.com/leechungpa/embedding-similarity-cl: rate, batch and epochs in ``scripts/linear_cifar.yaml``; crop, flip
    and momentum in the solo-learn that it imports) those of a random crop, of 8 % of the area or more, and flip of each
    training image, not normalised.

    Args:
        method: in evaluation mode, on the device where all of this shall run: ``run.method()``.
        config: its description; the seed decides the classifier's first weights, the order of the images, the crops.
        images: ``run.data()``; the probe is trained on its labelled training images.
        form: ``text`` or ``code``.
        passes: of ``code``, how often the training images are cropped anew and go through the encoder: None, in every
            epoch; with fewer the passes come around again, which is that much faster.
        epochs: of the classifier; its number of steps goes with the training images.

    Returns:
        (k,) booleans: which test images are classified correctly.

    Raises:
        CompanionError: for another form, passes that are no whole number from 1 to ``epochs``, or a classifier that
            diverged.
    """
    chosen = FORMS[choose(form, FORMS, "form of the published probe")]
    passes = epochs if passes is None else passes
    if whole(passes, "passes", least=1) > whole(epochs, "epochs", least=1):
        raise CompanionError(f"passes is {passes}: expected at most {epochs}, one an epoch.")

    def prepared(x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) if chosen.normalise else x

    augment = chosen.augmentation and chosen.augmentation.build(config.image_size)
    device = next(method.parameters()).device

    def seen(number: int) -> Tensor:
        draws = torch.Generator(device).manual_seed(seed(config.seed, 8, number))
        return prepared(features(method, images.labelled, view=augment and (lambda x: augment(x, draws)))[0])

    count = passes if augment else 1
    kept = [seen(number) for number in range(count)] if count < epochs else None
    of_epoch = (lambda epoch: kept[epoch % count]) if kept else seen
    x, y = features(method, images.test)
    return sgd_probe(of_epoch, images.labelled.labels.to(device), (prepared(x), y), number=config.seed, epochs=epochs)


def sgd_probe(
    of_epoch: Callable[[int], Tensor],
    labels: Tensor,
    test: tuple[Tensor, Tensor],
    *,
    number: int = 0,
    epochs: int = EPOCHS,
) -> np.ndarray:
    """Softmax regression by SGD: a rate of .1 that falls to 0 along half a cosine, momentum .9, batches of 256, no
    weight decay. The published code lowers the rate at every step, this at every epoch, and it leaves out the last
    batch of an epoch, which is smaller.

    Args:
        of_epoch: number of the epoch → (n, d) features of the training images.
        labels: (n,).
        test: features (k, d) and labels (k,).
        number: seed of the first weights and of the order of the images.
        epochs: of training.

    Returns:
        (k,) booleans: which test images are classified correctly.

    Raises:
        CompanionError: if the weights became NaN or infinite.
    """
    x, y = test
    with seeded(number, 6):
        layer = nn.Linear(x.shape[1], int(labels.max()) + 1).to(x.device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed(number, 7, epoch)))
        order, features_now = order.to(x.device), of_epoch(epoch)
        for batch in order.split(BATCH_SIZE):
            loss = F.cross_entropy(layer(features_now[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    if not all(parameter.isfinite().all() for parameter in layer.parameters()):
        raise CompanionError("The published probe diverged: its weights are not finite. Are the features?")
    with torch.no_grad():
        return (layer(x).argmax(dim=1) == y).cpu().numpy()
