"""Parts of the book that need no build of it: rows of its scoreboard, frames of figures, copies of notebooks."""

import base64
import io
import json
import re
import sys
from dataclasses import replace

import PIL.Image
import pytest

from companion import ledger, paths
from companion.ledger.ledger import observed

pytest.importorskip("myst_nb", reason="the extra `book` is not installed")
from bs4 import BeautifulSoup


@pytest.fixture(scope="module")
def parts():
    """The book's own modules, by their names."""
    sys.path.insert(0, str(paths.ROOT / "book" / "_ext"))
    try:
        import claims as found
        import outputs
        import sources
    finally:
        sys.path.pop(0)
    return {"claims": found, "outputs": outputs, "sources": sources}


SHOWN = {"here": "0.50 [−0.40, 1.40]", "n": "3", "verdict": "inconclusive"}
RECORD = {"value": 0.9, "low": 0.89, "high": 0.91, "n": 10, "verdict": "reproduced"}
HERE, RECORDED = (SHOWN["here"], "3", "inconclusive"), (f"{observed(RECORD)} recorded", "10", "reproduced")


@pytest.mark.parametrize(
    ("changes", "shown", "expected"),
    [
        ({"kind": "trained", "found": {}}, SHOWN, RECORDED),
        ({"kind": "trained", "found": {"cpu": "inconclusive"}}, SHOWN, RECORDED),
        ({"kind": "trained", "found": {}}, SHOWN | {"n": "11"}, (SHOWN["here"], "11", "inconclusive")),  # it has more
        ({"kind": "trained", "found": {"cpu": "reproduced"}, "accuracy": True}, SHOWN, RECORDED),
        ({"kind": "trained", "found": {}, "recorded_only": True}, {}, RECORDED),
        ({"kind": "trained", "found": {}, "accuracy": True}, {}, ("", "", "not yet")),
        ({"kind": "trained", "found": {}}, {"here": "", "n": "", "verdict": "not yet"}, ("", "", "not yet")),
        ({"kind": "simulation", "found": {}}, SHOWN, HERE),
        ({"kind": "identity", "found": {}}, SHOWN, HERE),
    ],
)
def test_a_row_of_the_scoreboard_has_value_and_verdict_from_the_runs_that_decide(parts, changes, shown, expected):
    some = next(claim for claim in ledger.load().values() if claim.kind == "trained")
    claim = replace(some, **{"accuracy": False, "recorded_only": False} | changes)
    verdict, row = parts["claims"].Scoreboard.row(claim, shown, RECORD)
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
    assert (cells[4], cells[5], cells[3]) == expected
    assert verdict == expected[2]


def test_a_cell_that_files_a_claim_is_its_place_before_those_that_speak_of_it(parts):
    cells = ['print("a.b")', 'ledger.check(f"a.{name}", x)', 'ledger.check("a.b", x)', "ledger.table()"]
    place = parts["claims"].place
    assert place("a.b", cells) == place("a.b", [*cells, cells[2]]) == 2
    assert place("a.c", cells) == 1
    assert place("b.c", cells) == 3
    assert place("b.c", cells[:3]) is None


def test_every_frame_has_its_own_picture_and_text_and_the_sliders_start_where_the_figure_does(parts, tmp_path):
    def png(level):
        buffer = io.BytesIO()
        PIL.Image.new("L", (2, 2), level).save(buffer, format="png")
        return base64.b64encode(buffer.getvalue()).decode()

    class Renderer:
        def write_file(self, path, content, exists_ok):
            (tmp_path / path[0]).write_bytes(content)
            return path[0]

    controls = [
        {"name": "a & b", "values": [0.5, 1.0], "start": 1},
        {"name": "c", "values": ["<", "y", "z"], "start": 0},
    ]
    levels = range(0, 240, 40)
    content = {"format": "png", "frames": [png(k) for k in levels], "alts": [f"grey {k}" for k in levels], "start": 3,
               "controls": controls}  # fmt: skip
    head, scroller = parts["outputs"].frames(Renderer(), content).children
    images = scroller.children
    assert [image["alt"] for image in images] == content["alts"]
    assert [PIL.Image.open(tmp_path / image["uri"]).convert("L").getpixel((0, 0)) for image in images] == list(levels)
    assert [k for k, image in enumerate(images) if "shown" in image["classes"]] == [3]
    sliders = BeautifulSoup(head.astext(), "html.parser").find_all("input")
    assert [(s["max"], s["value"], s["aria-valuetext"]) for s in sliders] == [("1", "1", "1.0"), ("2", "0", "<")]
    assert [json.loads(s["data-values"]) for s in sliders] == [["0.5", "1.0"], ["<", "y", "z"]]


def test_the_book_has_the_notebooks_that_there_are_and_no_others(parts, tmp_path):
    for name in ("notebooks", "data", "results/reference", "book/notebooks/.ipynb_checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "notebooks/01_a.ipynb",
        "data/README.md",
        "results/reference/README.md",
        "book/notebooks/00_old.ipynb",
    ):
        (tmp_path / name).write_text(name)
    for text in ("first", "longer"):
        (tmp_path / "notebooks" / "01_a.ipynb").write_text(text)
        parts["sources"].copy(tmp_path, tmp_path / "book")
        assert [path.name for path in (tmp_path / "book" / "notebooks").iterdir()] == ["01_a.ipynb"]
        assert (tmp_path / "book" / "notebooks" / "01_a.ipynb").read_text() == text
    assert (tmp_path / "book" / "recorded.md").read_text() == "results/reference/README.md"
    assert (tmp_path / "book" / "data.md").read_text() == "data/README.md"
