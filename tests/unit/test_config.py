import math

import pytest

from companion.config import Config
from companion.errors import CompanionError


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"loss": "nt-xent"}, "Unknown loss 'nt-xent'.*Did you mean 'nt_xent'"),
        ({"dataset": "cifar"}, "Unknown data set 'cifar'.*Did you mean"),
        ({"dataset": "imagefolder:"}, "Unknown data set"),
        ({"encoder": "vit"}, "Unknown encoder"),
        ({"precision": "8-bit"}, "Unknown precision"),
        ({"temperatur": 0.1}, "Unknown parameter 'temperatur'.*Did you mean 'temperature'"),
        ({"temperature": 0.0}, "temperature is 0.0: expected a finite number greater than 0"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"vrns": -1.0}, "vrns is -1.0.*at least 0"),
        ({"batch_size": 1}, "batch_size is 1.*at least 2"),
        ({"batch_size": 64.0}, "batch_size is 64.0: expected a whole number"),
        ({"batch_size": 100_000}, "batch_size 100000 is larger than n_train"),
        ({"loss_batch_size": 1}, "loss_batch_size is 1"),
        ({"loss_batch_size": 48}, "loss_batch_size 48 does not divide batch_size 128"),
        ({"flip": 1.5}, "flip is 1.5: expected a number from 0 to 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"bias": math.inf}, "bias is inf"),
        ({"heads": 3}, "heads is 3: expected 1.*or 2"),
        ({"within_view": True}, "within_view makes no difference to 'nt_xent'"),
    ],
)
def test_bad_values_are_told(changes, expected):
    with pytest.raises(CompanionError, match=expected):
        Config().replace(**changes)


def test_key_covers_every_field():
    base = Config(loss="clip")  # which takes within-view negatives
    changed = {
        "dataset": None, "image_size": 16, "n_train": 2000, "n_validation": 10, "encoder": "resnet18", "width": 8,
        "projector_hidden": 64, "projector_dim": 64, "loss": "dcl", "temperature": 0.3, "vrns": 1.0, "batch_size": 64,
        "loss_batch_size": 32, "epochs": 3, "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.0,
        "warmup_epochs": 2, "crop_scale": 0.5, "flip": 0.0, "jitter": 0.1, "jitter_probability": 0.5,
        "grayscale": 0.1, "blur": 0.5, "measured_pairs": 100, "precision": "bf16-mixed", "accelerator": "cpu",
        "seed": 7, "bias": -5.0, "heads": 2, "within_view": True,
    }  # fmt: skip
    assert set(changed) == set(Config.__dataclass_fields__)
    keys = {base.replace(**{name: value}).key("data") for name, value in changed.items() if value is not None}
    assert len(keys | {base.key("data"), base.key("other data")}) == len(changed) + 1


def test_key_does_not_depend_on_where_the_data_lie():
    here, there = Config(dataset="imagefolder:/a/images"), Config(dataset="imagefolder:/b/images")
    assert here.key("imagefolder:images:123") == there.key("imagefolder:images:123")


def test_whole_batch_has_one_description():
    assert Config(batch_size=64, loss_batch_size=64) == Config(batch_size=64)
    assert Config(batch_size=64, loss_batch_size=16).m == 16
