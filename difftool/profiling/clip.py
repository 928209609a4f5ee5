"""CLIP, as transformers has it: prompts and pictures as directions in one space."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from difftool.components.check import check_component
from difftool.components.fit import check_transformers_fit
from difftool.errors import WeightsError
from difftool.media.writer import to_uint8


class ClipReader:
    """The model of a folder, read when it is first asked; in fp32, on the CPU."""

    def __init__(self, folder: Path):
        """Raises WeightsError where the folder's weights are not those of its config."""
        weights = check_component(folder)
        if weights is None:
            raise WeightsError(f"{folder} has no config.json")
        check_transformers_fit(CLIPModel, weights, folder)
        self._folder = folder

    @cached_property
    def _model(self) -> CLIPModel:
        return CLIPModel.from_pretrained(self._folder, local_files_only=True, dtype=torch.float32).eval()

    @cached_property
    def _parts(self) -> tuple[Any, CLIPImageProcessorPil]:
        """The tokenizer, and what makes the model's input of a picture."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            return tokenizer, CLIPImageProcessorPil.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{self._folder} cannot be loaded as CLIP: {error}") from error

    def embed_text(self, text: str) -> Tensor:
        """[D], of length 1: of the first tokens of a text, as many as the model reads (77 of OpenAI's)."""
        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._parts[0](text, truncation=True, max_length=longest, return_tensors="pt")
        return _direction(self._model.get_text_features(**tokens).pooler_output)

    def embed_picture(self, pixels: Tensor) -> Tensor:
        """[D], of length 1: of a picture, [3, H, W] in [0, 1], as the bytes that a file of it has."""
        picture = Image.fromarray(to_uint8(pixels))
        taken = self._parts[1](picture, return_tensors="pt")
        return _direction(self._model.get_image_features(**taken).pooler_output)


def _direction(features: Tensor) -> Tensor:
    return features[0] / features[0].norm()
