"""The project's own rules: one place for each fact, and a package whose modules only look upwards."""

import ast
import re
import subprocess
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from companion import config, data, encoders, losses, paths, profiles

PACKAGE = paths.ROOT / "companion"
PYPROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())

# A module imports only from modules before it.
ORDER = [
    "errors", "paths", "config", "profiles", "store", "progress", "data", "augment", "encoders", "similarity", "losses",
    "theory", "metrics", "probe", "environment", "runs", "pretrain", "claims", "figures", "execute", "bench_report",
    "bench",
]  # fmt: skip


def modules_imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "companion":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("companion."):
            yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("companion."))


def test_modules_import_only_from_those_before_them():
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name == "__init__":
            continue
        for imported in modules_imported_by(path):
            assert imported == name or ORDER.index(imported) < ORDER.index(name), f"{path.name} imports {imported}"


def test_files_stay_short():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 320, path.name


def test_environment_yml_leaves_the_dependencies_to_pyproject():
    environment = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PYPROJECT['project']['requires-python']}", "pip"]
    *options, package = pip["pip"]
    assert options == ["-c constraints.txt"]
    extras = re.fullmatch(r"-e \.\[(.*)\]", package).group(1).split(",")
    assert extras == ["dev", "oracles"]
    assert set(extras) <= set(PYPROJECT["project"]["optional-dependencies"])
    assert "'.[dev,oracles]'" in (paths.ROOT / "Makefile").read_text()
    assert environment["name"] == PYPROJECT["project"]["name"]


def test_constraints_pin_every_dependency_within_its_bounds_and_name_no_address():
    lines = [line for line in (paths.ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( ;.*)?", line) for line in lines if line), lines
    pins = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower(): line.split("==")[1] for line in lines if line}
    extras = PYPROJECT["project"]["optional-dependencies"]
    for text in (*PYPROJECT["project"]["dependencies"], *extras["dev"], *extras["oracles"]):
        requirement = Requirement(text)
        pin = pins[re.sub(r"[-_.]+", "-", requirement.name).lower()].split(" ;")[0]
        assert requirement.specifier.contains(pin), f"{text} against {pin}"


def test_makefile_and_package_agree(monkeypatch):
    makefile = (paths.ROOT / "Makefile").read_text()
    assert re.search(r"^PROFILES := (.*)$", makefile, re.M).group(1).split() == list(profiles.NAMES)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name, dataset, seed in (("cpu", "", 0), ("gpu", "imagefolder:/My/Own_Images/", 0), ("smoke", "cifar10", 7)):
        command = ["make", "-f", "-", "VENV=", f"PROFILE={name}", f"DATASET={dataset}", f"SEED={seed}", "where"]
        text = makefile + "\nwhere:\n\t@echo $(folder)\n"
        done = subprocess.run(command, input=text, cwd=paths.ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"results/{profiles.load(name, dataset=dataset, seed=seed).folder}"


def test_every_name_that_a_config_may_hold_exists():
    assert set(data._TORCHVISION) | {config.EMBEDDED, "imagefolder:PATH"} == set(config.DATASETS)
    for name in config.LOSSES:
        assert callable(getattr(losses, name))
    for name in config.ENCODERS:
        encoders.build(config.Config(encoder=name, image_size=32), channels=3)


def test_the_project_speaks_of_itself_alone():
    tracked = subprocess.run(["git", "ls-files"], cwd=paths.ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    hosts = ["py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "deb." + "debian.org"]
    for name in tracked.stdout.splitlines():
        path = paths.ROOT / name
        if path.suffix in {".npz", ".png"} or not path.is_file():
            continue
        text = path.read_text()
        assert not [host for host in hosts if host in text], name
        assert "../" + "shared" not in text, name
