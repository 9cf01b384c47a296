"""How fast, and in how much memory: ``python -m companion.bench``. Needs the extras ``course`` and ``oracles``."""
