"""Methods: how a batch becomes a loss. One file each; a new one is a new file and a line in the registry below."""

from companion.training.methods.base import Batch, Method
from companion.training.methods.clip import Clip
from companion.training.methods.contrastive import Contrastive
from companion.training.methods.labelled import Labelled
from companion.training.methods.moco import MoCo
from companion.training.methods.supervised import Supervised

METHODS = {cls.name: cls for cls in (Clip, Contrastive, Labelled, MoCo, Supervised)}

__all__ = ["METHODS", "Batch", "Clip", "Contrastive", "Labelled", "Method", "MoCo", "Supervised"]
