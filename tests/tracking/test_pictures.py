"""Pictures of a model, tested by cutting them into their tiles again."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from vae.data import Split
from vae.model import CategoricalVAE
from vae.networks import MLP
from vae.tracking import pictures

B, N, K = 5, 2, 3
SHAPE, D, GAP = (4, 8), 32, 2


@pytest.fixture(autouse=True)
def _float32():
    """Use float32 models: `pictures` converts images to float32."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (B, D), dtype=torch.uint8)


@pytest.fixture
def model() -> CategoricalVAE:
    networks = MLP(encoder_sizes=[8], decoder_sizes=[8], activation="tanh")
    model = CategoricalVAE(networks, N, K, prior="learned", image_shape=SHAPE)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def cut_tiles(picture: Tensor, rows: int, columns: int) -> Tensor:
    """Return the tiles (rows, columns, D) of a picture; assert that it has exactly these."""
    height, width = SHAPE
    assert picture.shape == (1, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    assert picture.dtype == torch.float32
    assert picture.min() >= 0
    assert picture.max() <= 1
    flat = [
        picture[0, top : top + height, left : left + width].flatten()
        for top in range(0, picture.shape[1], height + GAP)
        for left in range(0, picture.shape[2], width + GAP)
    ]
    return torch.stack(flat).reshape(rows, columns, D)


@torch.no_grad()
def decode(model: CategoricalVAE, digits: tuple[int, ...]) -> Tensor:
    """Return the pixel probabilities (D,) of one code."""
    return model.decoder(torch.eye(K)[list(digits)].reshape(1, N * K)).sigmoid().squeeze(0)


def find_codes(model: CategoricalVAE, tiles: Tensor) -> Tensor:
    """Return which of the K**N codes each of the tiles (n, D) is decoded from."""
    all_codes = torch.stack([decode(model, d) for d in itertools.product(range(K), repeat=N)])
    distance = (tiles[:, None] - all_codes).abs().amax(-1)  # (n, K**N)
    assert distance.amin(1).max() < 1e-5
    return distance.argmin(1)


# Tiles


@pytest.mark.parametrize("rows, columns", [(1, 1), (1, 4), (3, 1), (2, 5)])
def test_tiles_are_in_the_order_of_the_images(rows, columns):
    images = torch.rand(rows * columns, D)
    placed = cut_tiles(pictures.tile(images, SHAPE, columns), rows, columns)
    assert torch.equal(placed, images.reshape(rows, columns, D))


def test_pixels_between_tiles_are_grey():
    picture = pictures.tile(torch.ones(6, D), SHAPE, 3)
    assert (picture == 1).sum() == 6 * D
    assert ((picture == 1) | (picture == 0.5)).all()


def test_picture_is_clamped_to_zero_and_one():
    placed = cut_tiles(pictures.tile(torch.tensor([[-1.0], [2.0]]).expand(2, D), SHAPE, 2), 1, 2)
    assert torch.equal(placed[0], torch.tensor([[0.0], [1.0]]).expand(2, D))


# Choice of images


@pytest.mark.parametrize(
    "labels, order",
    [
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 3, 6, 1, 4, 7, 2, 5, 8]),
        ([2, 0, 1, 1, 0, 2], [1, 2, 0, 4, 3, 5]),
        ([0, 0, 0, 0, 2], [0, 4, 1, 2, 3]),
    ],
    ids=["sorted by class", "mixed", "unequal"],
)
@pytest.mark.parametrize("count", [1, 4, 100])
def test_classes_take_turns_until_there_are_enough_images(labels, order, count):
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None].expand(-1, D)
    chosen = pictures.one_per_class_in_turn(Split(images, torch.tensor(labels)), count)
    assert torch.equal(chosen, images[order[:count]])


# Pictures of a model


def test_reconstructions_are_below_their_originals(model, images):
    shown = cut_tiles(pictures.reconstructions(model, images), 2, B)
    assert_close(shown[0], images / 255)
    find_codes(model, shown[1])


def test_reconstructions_are_of_codes_from_the_posterior(model, images):
    """A posterior that is certain has a single code."""
    nn.init.zeros_(model.encoder[-1].weight)
    model.encoder[-1].bias.data = 100 * torch.eye(K)[[1, 2]].flatten()
    shown = cut_tiles(pictures.reconstructions(model, images), 2, B)
    assert (find_codes(model, shown[1]) == 1 * K + 2).all()


@pytest.mark.parametrize("rows, columns", [(2, 3), (8, 16)])
def test_samples_are_decoded_from_several_codes(model, rows, columns):
    shown = cut_tiles(pictures.samples(model, rows, columns), rows, columns)
    assert len(find_codes(model, shown.flatten(0, 1)).unique()) > 1


def test_samples_come_from_the_prior(model):
    model.prior_logits.data = 100 * torch.eye(K)[[2, 0]]
    shown = cut_tiles(pictures.samples(model, 2, 3), 2, 3)
    assert (find_codes(model, shown.flatten(0, 1)) == 2 * K + 0).all()


@pytest.mark.parametrize("latent", range(N))
def test_latent_traversal_changes_one_latent_of_the_most_probable_code(model, images, latent):
    shown = cut_tiles(pictures.latent_traversal(model, images, latent), B, K)
    modes = model.encoder(images / 255).reshape(B, N, K).argmax(-1).tolist()
    assert len(set(map(tuple, modes))) > 1
    for row, mode in zip(shown, modes, strict=True):
        for category, tile in enumerate(row):
            assert_close(tile, decode(model, (*mode[:latent], category, *mode[latent + 1 :])))


@pytest.mark.parametrize(
    "draw",
    [
        pictures.reconstructions,
        lambda model, images: pictures.samples(model),
        lambda model, images: pictures.latent_traversal(model, images, 1),
    ],
    ids=["reconstructions", "samples", "latent traversal"],
)
def test_picture_is_the_same_at_every_call_and_leaves_the_global_generator_alone(
    model, images, draw
):
    state = torch.get_rng_state()
    first = draw(model, images)
    assert not first.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(draw(model, images), first)


def test_usage_has_a_square_per_category_and_white_for_the_most_used():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.2, 0.8]])
    picture = pictures.usage(probabilities)
    shades = torch.tensor([[1.0, 0.5, 0.5], [0.0, 0.25, 1.0]])
    squares = shades.repeat_interleave(12, 0).repeat_interleave(12, 1)
    assert torch.equal(picture[0, -2 * 12 :, -3 * 12 :], squares)


def test_usage_has_axes_with_names_and_numbers():
    """The axes are above and to the left of the squares, and depend on their number alone."""
    pictures_of_usage = [pictures.usage(torch.rand(n, k)) for n, k in ((4, 5), (4, 5), (4, 6))]
    axes = [picture[0, :24] for picture in pictures_of_usage]
    assert torch.equal(axes[0], axes[1])
    assert axes[0].min() < 0.1  # there is text
    last_number = [picture[12:, -10:] for picture in axes]
    assert not torch.equal(last_number[0], last_number[2])
    rows = [pictures.usage(torch.ones(n, 5))[0, -12:, : -5 * 12] for n in (4, 5)]
    assert not torch.equal(*rows)
