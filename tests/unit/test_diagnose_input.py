"""Bad input to a reading, each told to the person who gave it; files; the program."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from companion import theory
from companion.diagnose import diagnose, figures, files, load, log_similarities, page
from companion.diagnose.__main__ import main
from companion.errors import CompanionError, MissingExtraError

GENERATOR = torch.Generator().manual_seed(0)
U, V = torch.randn(2, 20, 5, generator=GENERATOR)


def spoilt(rows, value):
    z = U.clone()
    z[rows, 2] = value
    return z


BAD = {
    "shapes that differ": ((U, V[:, :4]), {}, r"u has shape \(20, 5\) and v \(20, 4\): expected one shape"),
    "lengths that differ": ((U, V[:19]), {}, r"u has shape \(20, 5\) and v \(19, 5\): expected one shape"),
    "one dimension": ((U[0], V[0]), {}, r"u has shape \(5,\): expected 2 dimensions, \(n, d\)"),
    "one dimension on one side": ((U, V[:, 0]), {}, r"v has shape \(20,\): expected 2 dimensions"),
    "no dimension": ((U[:, :0], V[:, :0]), {}, r"u has shape \(20, 0\)"),
    "one row": ((U[:1], V[:1]), {}, r"u has 1 row\(s\): expected at least 2"),
    "no array": ((U.tolist(), V), {}, "u is a list: expected a NumPy array or a torch.Tensor"),
    "whole numbers": ((U.int(), V), {}, r"u has dtype torch.int32: expected floating point .*astype\('float32'\)"),
    "whole numbers of NumPy": ((U, V.int().numpy()), {}, "v has dtype int32: expected floating point"),
    "NaN": ((spoilt([3, 8], torch.nan), V), {}, "u has NaN or infinite values in 2 of 20 rows"),
    "infinity": ((U, spoilt([4], -torch.inf)), {}, "v has NaN or infinite values in 1 of 20 rows"),
    "half precision that overflowed": ((U, (V * 1e5).half()), {}, r"v has NaN or infinite values in \d+ of 20 rows"),
    "zeros": ((U, V * (torch.arange(20) > 2)[:, None]), {}, "v has 3 of 20 rows that are all zeros"),
    "few labels": ((U, V), {"labels": [0, 1]}, r"The labels have shape \(2,\): expected \(20,\)"),
    "labels in columns": ((U, V), {"labels": np.zeros((20, 1), int)}, r"The labels have shape \(20, 1\)"),
    "broken labels": ((U, V), {"labels": torch.rand(20)}, "The labels have dtype float32: expected whole numbers or"),
    "broken labels of half precision": ((U, V), {"labels": torch.rand(20).bfloat16()}, "The labels have dtype float32"),
    "labels of several kinds": ((U, V), {"labels": np.array([1, "a"] * 10, object)}, "The labels have dtype object"),
    "a mask": ((U, np.ma.masked_array(V.numpy(), V.numpy() > 1)), {}, "v is a MaskedArray: .* nothing of it masked"),
    "labels that all differ": ((U, V), {"labels": torch.arange(20)}, "All 20 labels differ"),
    "a small training set": ((U, V), {"n": 19}, r"n \(the size of the training set .*\) is 19: .* at least 20"),
    "half a SigLIP": ((U, V), {"scale": 10}, "bias is missing"),
    "the other half": ((U, V), {"bias": -10}, "scale is missing"),
    "a scale of 0": ((U, V), {"scale": 0, "bias": 1}, "scale is 0: expected a finite number greater than 0"),
    "no bias": ((U, V), {"scale": 1, "bias": float("nan")}, "bias is nan: expected a finite number"),
    "few pairs": ((U, V), {"max_pairs": 999}, "max_pairs is 999: expected a whole number of at least 1000"),
    "half a seed": ((U, V), {"seed": 0.5}, "seed is 0.5: expected a whole number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_told(case):
    arrays, options, expected = BAD[case]
    with pytest.raises(CompanionError, match=expected):
        diagnose(*arrays, **options)


def test_a_logger_tells_it_too():
    with pytest.raises(CompanionError, match="u has NaN or infinite values in 1 of 20 rows"):
        log_similarities(spoilt([0], torch.nan), V)


def test_the_least_that_can_be_read_gives_finite_numbers():
    for u, v in ((U[:2], V[:2]), (U[:2, :1], V[:2, :1]), (U[:2], -U[:2]), (U * 1e-38, V * 1e38)):
        found = log_similarities(u, v, n=100)
        assert np.isfinite(list(found.values())).all()
    tiny = torch.full((3, 2), 5e-324, dtype=torch.float64)
    assert diagnose(tiny, tiny).positive.mean == pytest.approx(1)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    u, v = U.numpy(), V.numpy()
    np.save(tmp_path / "u.npy", u)
    np.save(tmp_path / "v.npy", v)
    np.savez(tmp_path / "pairs.npz", u=u, v=v)
    np.savez(tmp_path / "one.npz", u=u)
    torch.save({"u": U, "v": V, "epoch": 3}, tmp_path / "pairs.pt")
    torch.save(U, tmp_path / "u.pt")
    return tmp_path


@pytest.mark.parametrize("where", ["u.npy", "pairs.npz:u", "one.npz", "one.npz:u", "pairs.pt:u", "u.pt"])
def test_every_kind_of_file_gives_the_array(folder, where):
    np.testing.assert_array_equal(np.asarray(load(folder / where)), U.numpy())
    assert isinstance(load(folder / "u.npy"), np.memmap)


def test_safetensors_keep_bfloat16(folder):
    save = pytest.importorskip("safetensors.torch").save_file
    save({"u": U.bfloat16(), "v": V.bfloat16()}, folder / "pairs.safetensors")
    found = load(folder / "pairs.safetensors:v")
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, V.bfloat16())
    with pytest.raises(CompanionError, match=r"holds u, v: say which array is meant, as pairs.safetensors:u"):
        load(folder / "pairs.safetensors")
    (folder / "pairs.safetensors").write_bytes(b"\x07\0\0\0\0\0\0\0nothing")
    with pytest.raises(CompanionError, match=r"pairs.safetensors cannot be read"):
        load(folder / "pairs.safetensors:u")


def test_a_colon_in_a_folder_parts_nothing(folder):
    other = folder / "10:30.npy.d"
    other.mkdir()
    np.savez(other / "pairs.npz", **{"a:b": U.numpy()})
    np.testing.assert_array_equal(load(f"{other}/pairs.npz:a:b"), U.numpy())


class Code:
    """What a file of Python objects can do to the machine that opens it."""

    def __reduce__(self):
        return os.mkdir, ("opened",)


@pytest.mark.parametrize(
    ("where", "expected"),
    [("none.npy", "There is no file .*none.npy: expected .npy, .npz"), ("", "is of no known kind"),
     ("u.csv", "u.csv is of no known kind: expected .npy"), ("u.npy:u", "a .npy holds one without a name"),
     ("pairs.npz", "holds u, v: say which array is meant, as pairs.npz:u"),
     ("pairs.npz:w", "Unknown array in pairs.npz 'w': expected one of u, v"),
     ("pairs.pt", "holds u, v: say which array is meant"), ("pairs.pt:epoch", "expected one of u, v"),
     ("u.pt:u", "u.pt holds one tensor"), ("list.pt", "list.pt holds list: expected a tensor, or a dictionary"),
     ("empty.npz", "empty.npz holds nothing"), ("text.npy", "text.npy cannot be read"),
     ("text.npz", "text.npz cannot be read"), ("text.pt", "text.pt cannot be read"),
     ("empty.npy", "empty.npy cannot be read"), ("short.npy", "short.npy cannot be read"),
     ("short.pt", "short.pt cannot be read"), ("objects.npy", "objects.npy cannot be read .* Python objects are not"),
     ("packed.npz:u", "packed.npz cannot be read"), ("open.npy", "open.npy cannot be read"),
     ("pickle.pt", "pickle.pt cannot be read"), ("code.npy", "code.npy cannot be read .* Python objects are not"),
     ("code.npz", "code.npz cannot be read .* Python objects are not"),
     ("objects.npz", "objects.npz cannot be read"), ("objects.pt", "objects.pt cannot be read .* Python objects")],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_and_runs_nothing(folder, where, expected, monkeypatch):
    monkeypatch.chdir(folder)
    torch.save([U], "list.pt")
    torch.save(Code(), "objects.pt")
    np.savez("empty.npz")
    np.savez("objects.npz", u=np.array([Code()], dtype=object))
    np.save("objects.npy", np.array([Code()], dtype=object))
    for suffix in ("npy", "npz"):
        (folder / f"code.{suffix}").write_bytes(pickle.dumps(Code()))  # no array, which NumPy would run
    for suffix in ("npy", "npz", "pt"):
        (folder / f"text.{suffix}").write_text("no array")
    (folder / "empty.npy").touch()
    for name in ("u.npy", "u.pt"):
        whole = (folder / name).read_bytes()
        (folder / f"short.{name[2:]}").write_bytes(whole[: len(whole) // 2])
    np.savez_compressed("packed.npz", u=np.zeros(1000))
    packed = (folder / "packed.npz").read_bytes()
    (folder / "packed.npz").write_bytes(packed[:60] + b"\xff" * 9 + packed[69:])  # zlib.error
    (folder / "open.npy").write_bytes((folder / "u.npy").read_bytes().replace(b"),", b" ,"))  # tokenize.TokenError
    (folder / "pickle.pt").write_bytes(b"\x80\x02.")  # IndexError
    with pytest.raises(CompanionError, match=expected):
        load(where)
    assert not (folder / "opened").exists()


def test_a_missing_safetensors_is_named(folder, monkeypatch):
    (folder / "u.safetensors").touch()
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(MissingExtraError, match=r"safetensors is not installed.*contrastive-companion\[train\]"):
        load(folder / "u.safetensors")


# --- the program ----------------------------------------------------------------------------------------------------


def program(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "companion.diagnose", *arguments], cwd=folder, capture_output=True, text=True
    )


def test_the_program_prints_a_table_and_writes_a_page_that_loads_nothing(folder):
    pytest.importorskip("matplotlib")
    np.save(folder / "y.npy", np.arange(20) % 3)
    done = program(
        folder, "u.npy", "pairs.npz:v", "--labels", "y.npy", "--n", "50000", "--scale", "10", "--bias", "-10",
        "--out", "new/page.html",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    r = diagnose(U, V, labels=np.arange(20) % 3, n=50000, scale=10, bias=-10)
    text = (folder / "new" / "page.html").read_text()
    for expected in (
        "20 pairs of embeddings in 5 dimensions", f"{r.positive.mean:.4f} ± {r.positive.std:.4f}", f"{r.gap:.4f}",
        f"{r.u.uniformity.value:.4f}", "partly separated", "training set of 50,000", "by class (3)",
        f"{r.classes.within_class_pairs:.4g}", f"{r.target.vrns:.4g}", "exact sums over all pairs",
    ):  # fmt: skip
        assert expected in done.stdout
        assert expected in text
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert done.stdout.endswith("Written to new/page.html\n")
    assert not re.search(r"""(src|href)\s*=\s*(?!["']?#)|url\((?!#)|@import|<script|<link""", text)
    described = re.findall(r'<figure role="img" aria-label="([^"]+)"><svg aria-hidden="true"', text)
    assert len(described) == text.count("<svg") == text.count("<figure") == 3
    for alt, number in zip(described, (r.positive.mean, r.u.singular_values[0], r.negative.mean), strict=True):
        assert f"{number:.3f}" in alt
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    found = re.findall(r'\bid="([^"]+)"', text)
    assert len(found) == len(set(found)) > 20  # so that no figure refers to a part of another
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= set(found)
    assert not re.search("#0[0-9a-f]0[0-9a-f]0[0-9a-f]", text)  # every placeholder has become a colour of the page
    assert str(folder) not in text
    assert sorted(path.name for path in (folder / "new").iterdir()) == ["page.html"]


def test_what_is_drawn_lies_within_named_axes_and_its_text_says_whether_the_bound_binds():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    r, a = diagnose(U, V), Figure().subplots(3)
    figures._histograms(a[0], r)
    cosines = torch.nn.functional.normalize(U) @ torch.nn.functional.normalize(V).T
    low, high = a[0].get_xlim()
    assert cosines.min() - 0.05 < low <= cosines.min()
    assert cosines.max() <= high < cosines.max() + 0.05
    figures._spectrum(a[1], r)
    assert f"the sharp bound of Theorem 5.2 allows {r.bound:.3f} at most" in figures._plane(a[2], r)
    assert a[2].get_xlim() == pytest.approx((min(r.simplex - 0.25, r.negative.mean - 0.1), r.simplex + 0.25))
    assert a[2].get_ylim()[0] < r.positive.mean < a[2].get_ylim()[1] < 1.1
    assert [(x.get_xlabel(), x.get_ylabel()) for x in a] == [
        ("cosine similarity", "density"), ("number of the singular value", "singular value / √n"),
        ("mean negative", "mean positive"),
    ]  # fmt: skip
    r = diagnose(U, U)  # of which no mean negative lies below -1/(n-1)
    assert 1 < r.bound < 2
    assert "the sharp bound of Theorem 5.2 does not bind here" in figures._plane(a[2], r)


def test_without_a_page_the_table_is_all(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert main(["u.npy", "v.npy", "--no-page"]) == 0
    assert "20 pairs of embeddings" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == before
    pytest.importorskip("matplotlib")
    assert main(["u.npy", "v.npy"]) == 0
    assert capsys.readouterr().out.endswith("Written to diagnosis.html\n")
    assert (folder / "diagnosis.html").is_file()


def test_the_program_samples_as_it_is_told(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    np.save(folder / "u.npy", U.repeat(10, 1).numpy())
    np.save(folder / "v.npy", V.repeat(10, 1).numpy())
    printed = []
    for seed in ("0", "0", "1"):
        assert main(["u.npy", "v.npy", "--sample", "1000", "--seed", seed]) == 0
        printed.append(capsys.readouterr().out)
    first, again, other = printed
    assert first == again != other
    pairs = diagnose(U.repeat(10, 1), V.repeat(10, 1), max_pairs=1000).u.uniformity.pairs
    assert f"a random sample of {pairs:,} pairs of instances; the brackets are 95 % intervals" in " ".join(
        first.split()
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("u.npy", "none.npy"), "There is no file none.npy"), (("u.npy", "v.npy", "--n", "3"), "at least 20"),
     (("u.npy", "v.npy", "--scale", "3"), "bias is missing"), (("u.npy", "v.npy", "--labels", "u.npy"), "The labels"),
     (("u.npy", "v.npy", "--out", "v.npy"), "to be written to v.npy: expected a name that ends in .html"),
     (("u.npy", "v.npy", "--out", "u.npy/page.html"), "Cannot write u.npy/page.html"),
     (("u.npy", "pairs.npz:w"), "expected one of u, v")],
)  # fmt: skip
def test_the_program_tells_in_a_line_what_is_wrong_and_writes_nothing(folder, arguments, expected, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(list(arguments)) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert expected in told
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_program_ends_with_an_error_where_there_is_one(folder):
    done = program(folder, "u.npy", "none.npy")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_a_page_that_fails_leaves_the_one_before(folder, monkeypatch):
    pytest.importorskip("matplotlib")
    r = diagnose(U, V)
    page.write(r, folder / "page.html")
    before = (folder / "page.html").read_bytes()
    with pytest.raises(CompanionError, match=r"u\.npy: expected a name that ends in \.html"):
        page.write(r, folder / "u.npy")
    np.testing.assert_array_equal(load(folder / "u.npy"), U.numpy())
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CompanionError, match=r"Cannot write .*No space left.*Nothing was left half-written"):
        page.write(diagnose(U, U), folder / "page.html")
    assert (folder / "page.html").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_labels_as_a_table_holds_them():
    names = np.array(["a", "b", "b", "c"] * 5, dtype=object)
    assert diagnose(U, V, labels=names).classes == diagnose(U, V, labels=names.astype(str)).classes


def test_without_matplotlib_the_table_is_printed_unless_a_page_was_asked_for(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["u.npy", "v.npy"]) == 0
    printed = capsys.readouterr()
    assert "20 pairs of embeddings" in printed.out
    assert "No page is written, the table alone: matplotlib is not installed" in printed.err
    assert main(["u.npy", "v.npy", "--out", "own.html"]) == 2
    assert not capsys.readouterr().out


def test_a_missing_matplotlib_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed.*contrastive-companion\[course\]"):
        page.write(diagnose(U, V), folder / "page.html")
    assert not (folder / "page.html").exists()


@pytest.mark.parametrize(
    ("u", "v"),
    [(U[:2], V[:2]), (U[:2, :1], V[:2, :1]), (torch.ones(9, 3), torch.ones(9, 3)),
     (torch.ones(9, 3), -torch.ones(9, 3)), (torch.eye(400), torch.eye(400)), theory.shifted_simplex(10, 12, 0.6)],
    ids=["two", "a line", "a point", "two points", "orthogonal", "shifted"],
)  # fmt: skip
def test_every_extreme_has_its_page(u, v):
    pytest.importorskip("matplotlib")
    text = page.html(diagnose(u, v))
    assert "nan" not in re.sub(r"<[^>]*>", " ", text).lower().split()
    assert not re.search(r'\bd="[^"]*(nan|inf)', text)


def test_what_is_read_is_known_by_its_suffix():
    assert {".npy", ".npz", ".safetensors", ".pt"} <= set(files.SUFFIXES)
