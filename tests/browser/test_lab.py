"""JupyterLab itself in a real browser: a notebook runs from its menu, and a slider redraws its figure."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from companion import paths

pytestmark = pytest.mark.browser

WAIT = 300_000  # milliseconds: far more than it takes, since a busy machine is no failure
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page, seen or not
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
DONE = """() => {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((e) => e.textContent);
  const idle = document.querySelector('.jp-NotebookPanel-toolbar [data-status="idle"]');
  const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]');
  return failed || (idle && prompts.length && prompts.every((prompt) => /^\\[\\d+\\]:$/.test(prompt)));
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A server in an empty folder, with the configuration that a new user has; it trains nothing that is stored."""
    root = tmp_path_factory.mktemp("lab")
    for name, settings in SETTINGS.items():
        file = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings))
    paths.runs().mkdir(parents=True, exist_ok=True)
    (root / "results").mkdir()
    (root / "results" / "runs").symlink_to(paths.runs())  # what the notebooks file stays in the test's own folder
    (root / "notebooks").mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CONTRASTIVE_", "JUPYTER"))
    }
    environment |= {
        name: str(root / "jupyter" / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(root / "settings"), "CONTRASTIVE_RESULTS": str(root / "results"),
                    "CONTRASTIVE_PROFILE": "cpu", "PYTHONPATH": str(paths.ROOT)}  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.allow_root=True",
               "--LabApp.extension_manager=readonly"]  # fmt: skip
    with open(root / "log", "w") as log:
        server = subprocess.Popen(
            command, cwd=root / "notebooks", env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api", timeout=5).read()
                break
            assert server.poll() is None, (root / "log").read_text()
            time.sleep(0.2)
        yield address, root / "notebooks"
    finally:
        server.send_signal(signal.SIGTERM)  # it ends its kernels
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def put(folder, name, cells=None):
    """A copy of a committed notebook without its outputs, of its first ``cells`` alone if given."""
    notebook = nbformat.read(paths.ROOT / "notebooks" / name, as_version=4)
    notebook.cells = notebook.cells[:cells]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / name)


def run_all(chromium, address, name):
    """Open a notebook as a user does, run it from the menu, and wait until the kernel rests."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT)
    page.goto(f"{address}/lab/tree/{name}?reset")  # without what the test before had open
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # in the status bar: the kernel has started
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator('li[data-command="runmenu:run-all"]').click()
    page.wait_for_function(DONE)
    errors = page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
    assert not errors, errors
    return page


def test_the_first_notebook_runs_from_the_menu(lab, chromium):
    address, folder = lab
    put(folder, "00_start_here.ipynb")
    page = run_all(chromium, address, "00_start_here.ipynb")
    assert page.locator('.jp-OutputArea img[src^="data:image/png"]').count() >= 5
    page.close()


def test_the_slider_of_notebook_03_moves_by_key_and_redraws(lab, chromium):
    address, folder = lab
    name = "03_softmax_losses.ipynb"
    cells = nbformat.read(paths.ROOT / "notebooks" / name, as_version=4).cells
    first = next(i for i, cell in enumerate(cells) if cell.cell_type == "code" and "figures.movable(" in cell.source)
    put(folder, name, first + 1)
    page = run_all(chromium, address, name)
    page.wait_for_selector('.widget-output img[src^="data:image/png"]')
    image = page.locator('.widget-output img[src^="data:image/png"]').first
    before, said = image.get_attribute("src"), page.locator(".widget-readout").first
    value = said.inner_text()
    handle = page.locator(".widget-slider [role=slider]").first
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_function(
        """(before) => { const image = document.querySelector('.widget-output img[src^="data:image/png"]');
        return image && image.src !== before; }""",
        arg=before,
    )
    assert said.inner_text() != value
    assert page.locator('.widget-output img[src^="data:image/png"]').count() == 1
    page.close()
