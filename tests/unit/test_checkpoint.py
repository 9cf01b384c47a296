"""An open_clip checkpoint by path: a small model with random weights, and files that are none of it."""

import json

import pytest
import safetensors.torch
import torch

from companion.errors import CompanionError
from companion.training import emoji
from companion.training.checkpoint import Encoders, evaluate, open_clip_encoders

open_clip = pytest.importorskip("open_clip")
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of the first of two architectures that open_clip knows from then on, and the file of its weights."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, width in (("companion-small", 32), ("companion-wider", 64)):
        settings = SMALL | {"vision_cfg": SMALL["vision_cfg"] | {"width": width}}
        (folder / f"{name}.json").write_text(json.dumps(settings))
        open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(0)
    model = open_clip.create_model("companion-small", pretrained=None, pretrained_hf=False).eval()
    torch.save(model.state_dict(), folder / "small.pt")
    return model, folder / "small.pt"


def test_a_checkpoint_gives_the_model_s_own_embeddings(saved):
    model, path = saved
    encoders = open_clip_encoders(path, "companion-small")
    concepts = emoji.concepts()[torch.arange(6)]
    images, settings = concepts.drawn("noto").float() / 255, open_clip.get_model_preprocess_cfg(model)
    mean, std = (torch.tensor(settings[name])[None, :, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(
            encoders.images(images), model.encode_image((images - mean) / std), atol=1e-4, rtol=0
        )
        tokens = open_clip.get_tokenizer("companion-small")(concepts.names)
        torch.testing.assert_close(encoders.texts(concepts.names), model.encode_text(tokens))


def test_it_is_evaluated_like_any_two_encoders(saved):
    concepts = emoji.concepts()[torch.arange(300)]
    found = evaluate(open_clip_encoders(saved[1], "companion-small"), concepts, "fluent", template="an emoji of {}")
    assert set(found) == {f"fluent_{way}_r{k}" for way in ("image", "text") for k in (1, 5)}
    assert all(value < 0.1 for value in found.values())  # it is random
    rows = {text: i for i, text in enumerate(concepts.names)}
    perfect = Encoders(
        lambda x: x.flatten(1), lambda texts: concepts.drawn("fluent")[[rows[t] for t in texts]].flatten(1)
    )
    assert evaluate(perfect, concepts, "fluent")["fluent_image_r1"] == 1


@pytest.mark.parametrize(
    ("change", "architecture", "expected"),
    [
        ("", "companion-wider", r"small\.pt holds no weights of 'companion-wider'.*name the architecture"),
        ("", "ViT-B-33", "Unknown open_clip architecture 'ViT-B-33'.*Did you mean"),
        ("missing", "companion-small", "There is no file"),
        ("damaged", "companion-small", "is damaged or no checkpoint"),
        ("half", "companion-small", "other.pt is damaged"),
        ("half.safetensors", "companion-small", "is damaged or no checkpoint"),
        ("a list", "companion-small", "is damaged or no checkpoint"),
        ("no pickle", "companion-small", "is damaged or no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_of_that_architecture_is_told(saved, tmp_path, change, architecture, expected):
    path = tmp_path / ("other.safetensors" if "safetensors" in change else "other.pt") if change else saved[1]
    if change == "damaged":
        path.write_bytes(b"no weights at all")
    elif change == "no pickle":
        path.write_bytes(b"\x80\x02.")  # IndexError
    elif change == "a list":
        torch.save([1, 2], path)
    elif change.startswith("half"):
        if "safetensors" in change:
            safetensors.torch.save_model(saved[0], path)
        whole = path.read_bytes() if "safetensors" in change else saved[1].read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CompanionError, match=expected):
        open_clip_encoders(path, architecture)


def test_a_template_without_a_place_for_the_name_is_told():
    with pytest.raises(CompanionError, match=r"expected a text with \{\} where the name belongs"):
        evaluate(Encoders(None, None), emoji.concepts(), "noto", template="an emoji")
