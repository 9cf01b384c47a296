"""An executable companion to five sources on similarities in contrastive learning.

Import what you need from the submodules: ``companion.losses`` for your own training, ``companion.pretrain`` to train or
load a run, ``companion.metrics`` and ``companion.probe`` to measure it, ``companion.claims`` for the ledger.
"""

__version__ = "0.1.0"
