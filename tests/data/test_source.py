"""Sources: binarisation, names of data sets, and images for evaluation."""

import pytest
import torch

from vae.data import Mnist5k, evaluation_images, pixel_means, to_float, training_batches

CPU = torch.device("cpu")
BINARISATIONS = ["none", "threshold", "dynamic", "static"]
SPLITS = ["train", "valid", "test"]

every_binarisation = pytest.mark.parametrize("binarize", BINARISATIONS)


def assert_drawn_from(images: torch.Tensor, grey: torch.Tensor) -> None:
    """Assert that pixels are 0 or 255, and 255 with the probability grey / 255.

    The number of white pixels is judged at each position and for some shades of grey.
    """
    assert images.dtype == torch.uint8
    assert set(images.unique().tolist()) <= {0, 255}
    assert (images[grey == 0] == 0).all() and (images[grey == 255] == 255).all()
    images, grey = images[::8], grey[::8]  # every eighth image is enough, and faster
    is_white, p = (images == 255).double(), grey.double() / 255
    variance = p * (1 - p)
    error = (is_white - p).sum(0).abs()
    assert (error <= 5 * variance.sum(0).sqrt() + 5).all()  # + 5: for nearly certain pixels
    assert (is_white - p).sum().abs() < 5 * variance.sum().sqrt()
    for shade in (20, 127, 235):
        similar = (grey > shade - 15) & (grey < shade + 15)
        assert (is_white - p)[similar].sum().abs() < 5 * variance[similar].sum().sqrt()


# Names and flags


@every_binarisation
def test_name_contains_the_binarisation(mnist_5k, binarize):
    assert mnist_5k[binarize].name == Mnist5k(binarize).name
    assert f"binarize={binarize}" in mnist_5k[binarize].name


def test_every_binarisation_has_a_different_name(mnist_5k):
    assert len({data.name for data in mnist_5k.values()}) == len(BINARISATIONS)


@every_binarisation
def test_redraw_is_true_for_dynamic_binarisation_alone(mnist_5k, binarize):
    assert mnist_5k[binarize].redraw == (binarize == "dynamic")


@every_binarisation
def test_binary_is_true_if_every_shown_pixel_is_0_or_1(mnist_5k, binarize):
    data = mnist_5k[binarize]
    assert data.binary == (binarize != "none")
    batch = next(training_batches(data, 100, torch.Generator().manual_seed(0)))
    splits = [to_float(evaluation_images(data, getattr(data, split))) for split in SPLITS]
    shown = torch.cat([batch, *splits])
    assert data.binary == bool(((shown == 0) | (shown == 1)).all())


# Binarisation


@pytest.mark.parametrize("split", SPLITS)
def test_threshold_is_at_one_half(mnist_5k, split):
    grey = getattr(mnist_5k["none"], split).images
    expected = torch.where(grey.double() / 255 > 0.5, 255, 0).to(torch.uint8)
    assert torch.equal(getattr(mnist_5k["threshold"], split).images, expected)


@pytest.mark.parametrize("split", SPLITS)
def test_static_images_are_drawn_from_the_grey_ones(mnist_5k, split):
    grey = getattr(mnist_5k["none"], split).images
    assert_drawn_from(getattr(mnist_5k["static"], split).images, grey)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_dynamic_held_out_images_are_drawn_from_the_grey_ones(mnist_5k, split):
    grey = getattr(mnist_5k["none"], split).images
    assert_drawn_from(getattr(mnist_5k["dynamic"], split).images, grey)


def test_dynamic_training_images_stay_grey(mnist_5k):
    assert torch.equal(mnist_5k["dynamic"].train.images, mnist_5k["none"].train.images)


def test_static_draw_does_not_depend_on_the_default_dtype(mnist_5k):
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        images = Mnist5k("static").load(CPU).test.images
        assert torch.equal(images, mnist_5k["static"].test.images)


@pytest.mark.parametrize("extreme", [0.0, 1 - 2**-24])
def test_black_stays_black_and_white_stays_white_in_an_extreme_draw(
    mnist_5k, monkeypatch, extreme
):
    rand = lambda size, **_: torch.full(size, extreme, dtype=torch.float32)
    monkeypatch.setattr(torch, "rand", rand)
    grey, images = mnist_5k["none"].valid.images, Mnist5k("static").load(CPU).valid.images
    expected = torch.where(grey > 0 if extreme == 0 else grey == 255, 255, 0)
    assert torch.equal(images, expected.to(torch.uint8))


# Images for evaluation


def test_evaluation_images_of_dynamic_training_images_are_one_reproducible_draw(mnist_5k):
    data = mnist_5k["dynamic"]
    grey, rng_state = data.train.images.clone(), torch.get_rng_state()
    images = evaluation_images(data, data.train)
    assert_drawn_from(images, grey)
    assert torch.equal(evaluation_images(data, data.train), images)
    assert torch.equal(data.train.images, grey)
    assert torch.equal(torch.get_rng_state(), rng_state)


@every_binarisation
def test_evaluation_images_of_all_other_splits_are_their_images(mnist_5k, binarize):
    data = mnist_5k[binarize]
    for split in (data.valid, data.test, *([] if data.redraw else [data.train])):
        assert evaluation_images(data, split) is split.images


@every_binarisation
def test_pixel_means_are_the_means_of_the_training_images(mnist_5k, binarize):
    images = mnist_5k[binarize].train.images
    expected = (images.double() / 255).mean(0)
    torch.testing.assert_close(pixel_means(images).double(), expected, rtol=1e-6, atol=1e-7)


def test_to_float_divides_by_255_and_leaves_its_argument_unchanged():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert to_float(pixels).dtype == torch.float32
    assert torch.equal(to_float(pixels), torch.arange(256, dtype=torch.float32) / 255)
    assert torch.equal(pixels, torch.arange(256, dtype=torch.uint8))


def test_to_float_refuses_pixels_that_are_floats_already():
    with pytest.raises(TypeError, match=r"uint8 from 0 to 255, not torch\.float32"):
        to_float(torch.rand(2, 784, dtype=torch.float32))
