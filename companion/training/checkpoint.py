"""An existing open_clip checkpoint, evaluated on emoji as the miniature is. Needs the extra ``oracles``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor

from companion.errors import DAMAGED, CompanionError, choose, extra
from companion.training.emoji import Concepts
from companion.training.retrieval import both_ways

CHUNK = 128  # images or texts at once


@dataclass(frozen=True)
class Encoders:
    """Two functions: (n, 3, h, w) images in [0, 1], and a list of n texts, each to (n, d), not normalised."""

    images: Callable[[Tensor], Tensor]
    texts: Callable[[list[str]], Tensor]


def open_clip_encoders(path: Path | str, architecture: str) -> Encoders:
    """The encoders of an open_clip checkpoint, on the CPU; nothing is downloaded, and nothing in the file is run.

    Args:
        path: of the file of weights, ``.pt`` or ``.safetensors``.
        architecture: open_clip's name of the model, such as ``ViT-B-32``.

    Raises:
        CompanionError: for an unknown architecture, a file that is missing or damaged, or one of another architecture.
    """
    with extra("oracles"):
        import open_clip
    choose(architecture, open_clip.list_models(), "open_clip architecture")
    if not Path(path).is_file():
        raise CompanionError(f"There is no file {path}: expected the weights of an open_clip model.")
    model = open_clip.create_model(architecture, pretrained=None, pretrained_hf=False).eval()
    try:
        open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):  # a zip file that breaks off
            raise CompanionError(f"{path} is damaged ({str(error)[:120]}): fetch it anew.") from error
        first = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))[:120]
        raise CompanionError(
            f"{path} holds no weights of {architecture!r} ({first}): name the architecture that it was trained with."
        ) from error
    except (*DAMAGED, safetensors.SafetensorError) as error:
        why = str(error)[:120] or type(error).__name__
        raise CompanionError(f"{path} is damaged or no checkpoint ({why}): fetch it anew.") from error
    settings, tokenizer = open_clip.get_model_preprocess_cfg(model), open_clip.get_tokenizer(architecture)
    mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("mean", "std"))
    size = settings["size"] if isinstance(settings["size"], tuple | list) else (settings["size"],) * 2

    def images(given: Tensor) -> Tensor:
        resized = F.interpolate(given, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)
        return model.encode_image((resized - mean) / std)

    return Encoders(images, lambda texts: model.encode_text(tokenizer(texts)))


@torch.no_grad()
def evaluate(encoders: Encoders, concepts: Concepts, artist: str, *, template: str = "{}") -> dict[str, float]:
    """R@1 and R@5 both ways of an artist's drawings and the names of their concepts.

    Args:
        encoders: from :func:`open_clip_encoders`, or any two functions.
        concepts: whose drawings and names.
        artist: one of ``companion.training.emoji.ARTISTS``.
        template: a text with ``{}`` in place of the name, such as ``"an emoji of a {}"``.

    Raises:
        CompanionError: for a template without ``{}``, or an unknown artist.
    """
    if "{}" not in template:
        raise CompanionError(f"template is {template!r}: expected a text with {{}} where the name belongs.")
    images, texts = concepts.drawn(artist).float() / 255, [template.replace("{}", name) for name in concepts.names]
    u = torch.cat([encoders.images(part) for part in images.split(CHUNK)]).float()
    v = torch.cat([encoders.texts(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]).float()
    return both_ways(F.normalize(u, dim=1) @ F.normalize(v, dim=1).T, artist)
