"""The project's own rules: one place for each fact, and a package whose modules only look upwards."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement

from companion import losses, paths
from companion.course import profiles
from companion.errors import CompanionError
from companion.training import Config, data, encoders
from companion.training.config import DATASETS, EMBEDDED, EMOJI
from companion.training.methods import contrastive, labelled

PACKAGE = paths.ROOT / "companion"
PYPROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())

# A room imports only from rooms before it; inside a room, a file only from files before it where an order is given.
ROOMS = [
    "errors",
    "paths",
    "store",
    "similarity",
    "losses",
    "theory",
    "metrics",
    "diagnose",
    "training",
    "ledger",
    "course",
    "bench",
]
FILES = {
    "training": ["settings", "augment", "encoders", "methods", "config", "digits", "places", "data", "sources", "emoji",
                 "progress", "provenance", "planned", "probe", "retrieval", "pixels", "pairs", "checkpoint", "capture",
                 "resume", "processes", "loop", "runs", "standins", "published", "engines", "sweeps", "baselines",
                 "recorded", "rates"],
    "diagnose": ["arrays", "sums", "reading", "files", "advice", "table", "figures", "page", "callback"],
    "ledger": ["observed", "claims", "ledger", "scoreboard"],
    "course": ["profiles", "environment", "controls", "figures", "forest", "full_size", "execute", "merge", "report",
               "student", "pieces", "deck", "slides", "dry_run", "estimate"],
    "bench": ["report", "contenders", "measure", "training", "together", "tricks", "speedlog", "speedrun"],
}  # fmt: skip
SCIENCE = ("errors", "similarity", "losses", "theory", "metrics")
WITH_THE_SCIENCE_ALONE = (*SCIENCE, "diagnose")  # what else it can do says what it needs when it is asked


def modules_imported_by(path):
    """Full names below `companion`, such as ``training.config``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "companion":
            below = node.module.split(".")[1:]
            yield from (".".join([*below, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("companion."))


def test_rooms_and_files_import_only_from_those_before_them():
    seen = set()
    for path in PACKAGE.rglob("*.py"):
        room, *rest = path.relative_to(PACKAGE).with_suffix("").parts
        if room == "__init__" or "embedded" in path.parts:
            continue
        seen.add(room)
        for imported in modules_imported_by(path):
            other, _, below = imported.partition(".")
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path.name} imports {imported}"
            order, names = FILES.get(room, []), (rest[0] if rest else "", below.partition(".")[0])
            if other == room and all(name in order for name in names) and names[0] != names[1]:
                assert order.index(names[1]) < order.index(names[0]), f"{path.name} imports {imported}"
    assert seen == set(ROOMS)
    for room, names in FILES.items():
        files = {path.stem for path in (PACKAGE / room).iterdir() if path.suffix == ".py" or path.name == "methods"}
        assert files - {"__init__", "__main__"} == set(names), room


ALONE = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
import companion.{module}
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def with_dependencies(names) -> set[str]:
    """These distributions and whatever they need, extras aside."""
    found, todo = set(), [plain(name) for name in names]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            try:
                texts = metadata.requires(name) or []
            except metadata.PackageNotFoundError:  # of another platform
                continue
            todo += [plain(Requirement(text).name) for text in texts if "extra ==" not in text]
    return found


def everything_but(names) -> list[str]:
    """Importable names of all that is installed, but for these distributions and what they need."""
    allowed = with_dependencies(names)
    return [
        module
        for module, distributions in metadata.packages_distributions().items()
        if module.isidentifier() and not module.startswith("_") and module != "companion"
        and not {plain(name) for name in distributions} & allowed
    ]  # fmt: skip


SCIENTIFIC = [Requirement(text).name for text in PYPROJECT["project"]["dependencies"]]


def import_alone(module: str, blocked: list[str]) -> subprocess.CompletedProcess:
    code = ALONE.format(module=module, blocked=set(blocked))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.ROOT)


@pytest.mark.parametrize("module", WITH_THE_SCIENCE_ALONE)
def test_the_science_needs_torch_numpy_and_scipy_alone(module):
    assert sorted(SCIENTIFIC) == ["numpy", "scipy", "torch"]
    blocked = everything_but(SCIENTIFIC)
    assert {"torchvision", "pandas", "sklearn", "matplotlib", "yaml", "PIL", "kornia", "pytest"} <= set(blocked)
    done = import_alone(module, blocked)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("training", "train"),
        ("ledger", "course"),
        ("course.figures", "course"),
        ("course.execute", "course"),
        ("course.dry_run", "course"),
        ("course.merge", "course"),
        ("bench.measure", "course"),
        ("bench.speedrun", "course"),
    ],
)
def test_with_the_science_alone_the_rest_names_its_extra(module, extra):
    done = import_alone(module, everything_but(SCIENTIFIC))
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("companion.errors.MissingExtraError: ")
    assert re.search(r"pip install 'contrastive-companion\[(train|course)\]'", last).group(1) in ("train", extra)


@pytest.mark.parametrize("module", ["measure", "training", "together", "speedrun"])
def test_a_machine_without_notebooks_measures_too(module):
    done = import_alone(f"bench.{module}", ["ipywidgets", "IPython", "nbformat", "papermill", "matplotlib", "seaborn"])
    assert done.returncode == 0, done.stderr


EXTRAS = {"training": ["train"], "ledger": ["train", "course"], "course": ["train", "course"],
          "diagnose": ["train", "course"], "bench": ["train", "course", "oracles", "kernels"]}  # fmt: skip


IN_ONE_FILE = {
    "engines.py": {"dask", "distributed", "ray"},  # which name their extra when a cluster is asked for
    "checkpoint.py": {"open-clip-torch"},  # which names the extra when it is asked for a checkpoint
    "pieces.py": {"latex2mathml", "markdown-it-py", "mdit-py-plugins"},  # and these when slides are
    "slides.py": {"jinja2", "sphinx-revealjs"},
}


@pytest.mark.parametrize("room", ROOMS)
def test_what_a_room_imports_stands_in_its_extra(room):
    """Of the store, too: it belongs to training, and torch brings its lock along."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    texts = [text for name in EXTRAS.get(room, ["train"] if room == "store" else []) for text in extras[name]]
    declared = {plain(name) for name in SCIENTIFIC} | {plain(Requirement(text).name) for text in texts}
    sources = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else (PACKAGE / room).rglob("*.py")
    owners = metadata.packages_distributions()
    for path in sources:
        own = IN_ONE_FILE.get(path.name, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                names = [node.args[0].value]
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"companion"}:
                assert {plain(owner) for owner in owners.get(top, [top])} & (declared | own), (
                    f"{path.name} imports {top}"
                )


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("training", "safetensors", "train"), ("training", "torchvision", "train"), ("ledger", "yaml", "course"),
     ("course.figures", "seaborn", "course"), ("course.execute", "papermill", "course"),
     ("course.figures", "papermill", None)],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_extra(module, missing, extra):
    done = import_alone(module, [missing])
    if extra is None:  # only the runner of notebooks needs it
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode != 0
        assert f"pip install 'contrastive-companion[{extra}]'" in done.stderr
        assert missing in done.stderr


@pytest.mark.parametrize("module", ["course.execute", "course.report"])
def test_what_runs_a_notebook_and_what_prints_the_scoreboard_start_without_torch(module):
    """It would take seconds before each kernel, which imports torch anyway, and before each scoreboard."""
    done = import_alone(module, ["torch"])
    assert done.returncode == 0, done.stderr


INSTALLED = """
import companion
from companion.ledger import load
from companion.training import data, emoji
assert load() and len(emoji.concepts())
print(companion.__file__, len(data.load("eurosat-subset", image_size=32, n_train=8000).train))
"""


def test_the_wheel_carries_the_images_and_the_claims(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, "."]
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=paths.ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = [name for name in listed.stdout.splitlines() if (paths.ROOT / name).is_file()]
    for name in tracked:
        if name.startswith(("companion/", "data/")) or name in ("pyproject.toml", "README.md", "LICENSE"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((paths.ROOT / name).read_bytes())
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "installed")
        names = packed.namelist()
    embedded = ("eurosat-subset.jpg", "LICENSE.eurosat", "emoji.webp", "emoji.tsv", "LICENSE.emoji")
    for needed in (*(f"embedded/{name}" for name in embedded), "ledger/claims.yaml", "training/loop.py"):
        assert f"companion/{needed}" in names
    assert wheel.stat().st_size < 11e6
    assert not [name for name in names if name.startswith("companion/embedded/") and name.endswith(".py")]
    found = {name for name in names if name.startswith("companion/") and name.endswith(".py")}
    assert found == {name for name in tracked if name.startswith("companion/") and name.endswith(".py")}
    (tmp_path / "elsewhere").mkdir()  # where it is used, far from any checkout
    done = subprocess.run(
        [sys.executable, "-c", INSTALLED], cwd=tmp_path / "elsewhere", capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "CONTRASTIVE_DATA": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "installed" / "companion" / "__init__.py"), "8000"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_constraints_know_no_package_twice():
    names = re.findall(r"^([A-Za-z0-9._-]+)==", (paths.ROOT / "constraints.txt").read_text(), re.M)
    assert len({plain(name) for name in names}) == len(names)


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
    assert extras == ["train", "course", "oracles", "book", "browser", "dev"]
    assert set(extras) <= set(PYPROJECT["project"]["optional-dependencies"])
    assert f"'.[{','.join(extras)}]'" in (paths.ROOT / "Makefile").read_text()
    assert environment["name"] == PYPROJECT["project"]["name"]


def test_constraints_pin_every_dependency_within_its_bounds_and_name_no_address():
    lines = [line for line in (paths.ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+( ;.*)?", line) for line in lines if line), lines
    pins = {plain(line.split("==")[0]): line.split("==")[1] for line in lines if line}
    extras = PYPROJECT["project"]["optional-dependencies"]
    needed = [text for name in ("train", "course", "oracles", "book", "browser", "dev") for text in extras[name]]
    for text in (*PYPROJECT["project"]["dependencies"], *needed):
        requirement = Requirement(text)
        if requirement.name == PYPROJECT["project"]["name"]:  # an extra that includes another
            continue
        pin = pins[plain(requirement.name)].split(" ;")[0]
        assert requirement.specifier.contains(pin), f"{text} against {pin}"


PIP = """#!/bin/sh
echo "$@" >> "{log}"
case " $* " in {fails}) exit 1;; esac
"""


@pytest.mark.parametrize(
    ("fails", "installs"),
    [("*nothing*", ["tested"]), ("*constraints*", ["tested", "newest"]), ("*install*", ["tested", "newest"])],
    ids=["all pinned versions are there", "one is withdrawn", "no network"],
)
def test_setup_takes_the_tested_versions_else_the_newest_else_says_that_there_is_no_environment(
    tmp_path, fails, installs
):
    log, python = tmp_path / "log", tmp_path / "python"
    (tmp_path / "pip").write_text(PIP.format(log=log, fails=fails))
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit 0\nmkdir -p "$3/bin" && cp "{tmp_path}/pip" "$3/bin/pip"\n')
    for script in (tmp_path / "pip", python):
        script.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(paths.ROOT / name, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CONTRASTIVE_", "MAKE"))}
    command = ["make", f"PYTHON={python}", "VENV=env", "setup"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    calls = log.read_text().splitlines()
    assert ["tested" if "-c constraints.txt" in call else "newest" for call in calls] == installs
    assert all("train,course,oracles,book,browser,dev" in call for call in calls)
    assert ("can be had" in done.stderr) == (len(installs) == 2)
    succeeds = fails != "*install*"
    assert (done.returncode == 0) == succeeds
    assert (tmp_path / "env" / ".ready").exists() == succeeds


def test_makefile_and_package_agree(monkeypatch):
    makefile = (paths.ROOT / "Makefile").read_text()
    assert re.search(r"^PROFILES := (.*)$", makefile, re.M).group(1).split() == list(profiles.NAMES)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for name, dataset, seed in (
        ("cpu", "", 0), ("gpu", "imagefolder:/My/Own_Images/", 0), ("smoke", "cifar10", 7), ("reference", "", 0),
        ("reference", "imagefolder:cifar10-jpeg", 0), ("cpu", "imagefolder:/O'Hara/It's Tom's", 1020),
        ("long", "", 0), ("long", "cifar10", 7),
    ):  # fmt: skip
        command = ["make", "-f", "-", "VENV=", f"PROFILE={name}", f"DATASET={dataset}", f"SEED={seed}", "where"]
        text = makefile + "\nwhere:\n\t@echo $(folder)\n"
        done = subprocess.run(command, input=text, cwd=paths.ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"results/{profiles.load(name, dataset=dataset, seed=seed).folder}"


def test_a_data_set_by_whose_name_no_folder_can_be_named_is_told():
    nameless = "imagefolder:/data/фото/"
    done = subprocess.run(
        ["make", "VENV=", f"DATASET={nameless}", "help"], cwd=paths.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"DATASET is '{nameless}', a name with neither a letter from a to z nor a digit" in done.stderr
    with pytest.raises(CompanionError, match="'фото' has neither a letter from a to z nor a digit"):
        profiles.load("cpu", dataset=nameless)


@pytest.mark.parametrize("name", sorted({*re.findall(r"-m (companion[\w.]*)", (paths.ROOT / "Makefile").read_text())}))
def test_what_make_starts_is_a_program(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["program", "--help"])
    monkeypatch.delitem(sys.modules, name, raising=False)  # runpy warns of what is imported already
    with pytest.raises(SystemExit) as left:
        runpy.run_module(name, run_name="__main__")
    assert not left.value.code
    assert capsys.readouterr().out.startswith("usage: ")


@pytest.mark.parametrize(
    ("memory", "said", "profile"),
    [("8188", "", "cpu"), ("24564", "", "cpu"), ("40960", "", "gpu"), ("81559\n8188", "", "gpu"), ("[N/A]", "", "cpu"),
     (None, "", "cpu"), ("81559", "smoke", "smoke")],
)  # fmt: skip
def test_auto_is_what_the_environment_says_else_gpu_on_a_gpu_of_a_data_centre_alone(memory, said, profile, tmp_path):
    makefile = (paths.ROOT / "Makefile").read_text()
    assert int(re.search(r"^DATA_CENTRE := (\d+)$", makefile, re.M).group(1)) == profiles.DATA_CENTRE
    pretended = tmp_path / "nvidia-smi"
    pretended.write_text(f"#!/bin/sh\necho '{memory}'\n" if memory else "#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
    pretended.chmod(0o755)
    done = subprocess.run(
        ["make", "-f", "-", "VENV=", "PROFILE=auto", "which"],
        input=makefile + "\nwhich:\n\t@echo $(profile)\n",
        cwd=paths.ROOT, capture_output=True, text=True, check=True,
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CONTRASTIVE_PROFILE": said},
    )  # fmt: skip
    assert done.stdout.strip() == profile


def test_every_name_that_a_config_may_hold_exists():
    assert set(data._TORCHVISION) | {EMBEDDED, EMOJI, "digits", "eurosat", "imagefolder:PATH"} == set(DATASETS)
    for name in (*contrastive.LOSSES, *labelled.WITH_MARGIN, *labelled.WITH_TEMPERATURE):
        assert callable(getattr(losses, name))
    for name in encoders.ENCODERS:
        encoders.build(Config(encoder=name, image_size=32), channels=3)


def test_the_project_speaks_of_itself_alone():
    tracked = subprocess.run(["git", "ls-files"], cwd=paths.ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    hosts = ["py" + "pi.org", "python" + "hosted.org", "registry." + "npmjs", "deb." + "debian.org"]
    for name in tracked.stdout.splitlines():
        path = paths.ROOT / name
        if path.suffix in {".jpg", ".png", ".webp", ".woff2"} or not path.is_file():
            continue
        text = path.read_text()
        assert not [host for host in hosts if host in text], name
        assert "../" + "shared" not in text, name
