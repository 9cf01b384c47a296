"""The scripts of data/tools as modules: they stay out of the package."""

import importlib.util
from pathlib import Path
from types import ModuleType


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
