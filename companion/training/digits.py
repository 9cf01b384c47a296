"""The handwritten digits that come with scikit-learn: a second data set that needs no download."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

TEST = 597  # images of the test set, which leaves 1,200 to train on; the set comes without a split


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test images (n, 3, 8, 8) uint8 and their labels (n,) int64, each class in proportion.

    Grey, in three equal channels, so that an encoder of colour images takes them. Source: the test part of Alpaydin &
    Kaynak's Optical Recognition of Handwritten Digits (UCI, 1998), 17 levels of grey.
    """
    grey, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(grey).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(labels).long()
    parts = train_test_split(torch.arange(len(labels)).numpy(), test_size=TEST, random_state=0, stratify=labels.numpy())
    return tuple((images[part].contiguous(), labels[part]) for part in map(torch.from_numpy, parts))
