"""An executable companion to five sources on similarities in contrastive learning.

Import what you need from the submodules: ``companion.losses`` for your own training, ``companion.metrics`` and
``companion.diagnose`` to read embeddings, ``companion.theory`` for what they should be, ``companion.training`` to train
or load a run, ``companion.ledger`` for the claims.
"""

__version__ = "0.1.0"
