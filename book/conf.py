"""The book: the executed notebooks as a site that needs no network, neither to build nor to read. `make book`"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]

import api  # noqa: E402
import sources  # noqa: E402

# Where the book and its notebooks are published, such as "https://github.com/NAME/REPOSITORY": with it every notebook
# gets buttons that open it on Binder and on Colab. Empty: no buttons.
REPOSITORY = os.environ.get("BOOK_REPOSITORY", "")

sources.copy(ROOT, HERE)

project = "A companion to contrastive learning"
author = "The contrastive companion's authors"
copyright = "its authors, MIT licence"
language = "en"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_codeautolink",
    "mathml",
    "outputs",
    "sources",
    "claims",
    "api",
    "course_pages",
]
exclude_patterns = ["_build", "_ext", "_static"]
nitpicky = True
# Names of other libraries have no page here, and no inventory is fetched from theirs.
nitpick_ignore_regex = [("py:.*", rf"({'|'.join(api.OTHERS)})\b.*")]

nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"  # formulas in what the code says in words, too
nb_code_prompt_show = "Show a solution"  # of an exercise; other cells that are closed at first have words of their own
nb_code_prompt_hide = "Hide the solution"
myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_allow_space = True

codeautolink_concat_default = True
codeautolink_inventory_map = api.NAMES
copybutton_selector = "div.highlight pre"
copybutton_exclude = ".linenos, .gp, .go"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "sphinx_book_theme"
html_title = "Contrastive companion"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_context = {"default_mode": "auto"}
html_copy_source = True
html_sourcelink_suffix = ""  # so that what is downloaded has the notebook's own name
html_domain_indices = False
html_theme_options = {
    "use_download_button": True,
    "use_fullscreen_button": False,
    "use_repository_button": bool(REPOSITORY),
    "navbar_persistent": [],
    "search_as_you_type": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
if REPOSITORY:
    html_theme_options |= {
        "repository_url": REPOSITORY,
        "repository_branch": "main",
        "path_to_docs": "",  # below it the notebooks have the same place here and there
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }
