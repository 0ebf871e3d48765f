"""Pictures of what a model does: tensors (1, height, width), float32 in [0, 1]."""

import math

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vae import categorical
from vae.data import Split, to_float
from vae.model import CategoricalVAE

_SEED = 40_000
_GAP = 2  # pixels between tiles
_SQUARE = _LINE = 12  # pixels of a square, and of a line of text, in the picture of code usage
_BACKGROUND = 200  # of its text: neither black nor white, which are shades of squares


def tile(images: Tensor, shape: tuple[int, int], columns: int) -> Tensor:
    """Arrange images (n, D) in rows of `columns` with a gap between them.

    `n` must be a multiple of `columns`.
    """
    height, width = shape
    tiles = images.float().reshape(-1, columns, height, width)  # (rows, columns, H, W)
    tiles = torch.nn.functional.pad(tiles, (0, _GAP, 0, _GAP), value=0.5)
    rows, columns, height, width = tiles.shape
    picture = tiles.permute(0, 2, 1, 3).reshape(rows * height, columns * width)
    return picture[:-_GAP, :-_GAP].unsqueeze(0).clamp(0, 1)


def one_per_class_in_turn(split: Split, count: int) -> Tensor:
    """Return at most `count` images (count, D): one image of each class in turn."""
    rank = torch.nn.functional.one_hot(split.labels).cumsum(0)  # (n, classes)
    rank = rank.gather(1, split.labels[:, None]).squeeze(1)  # rank within its class, from 1
    order = (rank * (split.labels.max() + 1) + split.labels).argsort()
    return split.images[order[:count]]


@torch.no_grad()
def reconstructions(model: CategoricalVAE, images: Tensor) -> Tensor:
    """Draw uint8 images (n, D) in one row, and their reconstructions in the row below.

    Each reconstruction is decoded from one sampled code.
    """
    x = to_float(images)
    generator = torch.Generator(x.device).manual_seed(_SEED)
    z = categorical.sample(model.encode(x), 1, generator)
    decoded = model.decode(z).sigmoid().squeeze(0)
    return tile(torch.cat([x, decoded]), model.image_shape, len(x))


@torch.no_grad()
def samples(model: CategoricalVAE, rows: int = 8, columns: int = 16) -> Tensor:
    """Draw the pixel probabilities of codes from the prior. Every call uses the same noise."""
    generator = torch.Generator(model.prior_logits.device).manual_seed(_SEED)
    return tile(model.sample(rows * columns, generator), model.image_shape, columns)


@torch.no_grad()
def modes(model: CategoricalVAE, images: Tensor) -> Tensor:
    """Return the most probable codes (n, N, K) of uint8 images (n, D)."""
    return categorical.one_hot_argmax(model.encode(to_float(images)))


@torch.no_grad()
def latent_traversal(model: CategoricalVAE, images: Tensor, latent: int) -> Tensor:
    """Draw one row per image: its most probable code with one latent set to each of K values."""
    mode = modes(model, images)  # (B, N, K)
    z = mode.unsqueeze(1).repeat(1, model.categories, 1, 1)  # (B, K values, N, K)
    z[:, :, latent] = torch.eye(model.categories, device=z.device)
    decoded = model.decode(z).sigmoid().flatten(0, 1)
    return tile(decoded, model.image_shape, model.categories)


def usage(probabilities: Tensor) -> Tensor:
    """Draw the aggregate posterior (N, K) as a row of squares per latent, with named axes.

    The square of the category that a latent uses most is white. The first and the last row and
    column are numbered.
    """
    shade = probabilities.float().cpu() / probabilities.float().cpu().amax(-1, keepdim=True)
    squares = shade.repeat_interleave(_SQUARE, 0).repeat_interleave(_SQUARE, 1)
    rows, columns = probabilities.shape
    # Pillow draws the text. Matplotlib takes seconds to import, and half a second per picture.
    font = ImageFont.load_default()
    left, top = math.ceil(font.getlength("latent")) + 4, 2 * _LINE
    size = left + squares.shape[1], top + squares.shape[0]
    image = Image.new("L", size, color=_BACKGROUND)
    draw = ImageDraw.Draw(image)

    def write_left_of(x: float, y: int, text: str) -> None:
        draw.text((x - font.getlength(text), y), text, fill=0, font=font)

    write_left_of(size[0], 0, "category")
    write_left_of(size[0], _LINE, str(columns - 1))
    draw.text((left, _LINE), "0", fill=0, font=font)
    draw.text((0, _LINE), "latent", fill=0, font=font)
    for row in {0, rows - 1}:
        write_left_of(left - 4, top + row * _SQUARE, str(row))
    picture = torch.from_numpy(np.array(image)).float().div(255).unsqueeze(0)  # (1, H, W)
    picture[0, top:, left:] = squares
    return picture
