"""Batches of training images: which images are in them, in which order, and from which noise."""

import pytest
import torch

from vae.data import DataSet, Split, to_float, training_batches


def new_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered_images(count: int = 103, redraw: bool = False) -> DataSet:
    """Return images all of whose pixels are the number of the image."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None].repeat(1, 6)
    split = Split(pixels, torch.zeros(count, dtype=torch.int64))
    return DataSet("numbered", split, split, split, redraw=redraw, binary=redraw)


def image_numbers(data: DataSet, batch_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return the numbers (batches, batch_size) of the images in an epoch."""
    batches = torch.stack(list(training_batches(data, batch_size, generator)))
    assert batches.dtype == torch.float32
    assert (batches == batches[..., :1]).all()
    return (batches[..., 0] * 255).round().long()


@pytest.mark.parametrize("batch_size, batches", [(1, 103), (10, 10), (51, 2), (52, 1), (103, 1)])
def test_every_batch_is_full_and_no_image_is_shown_twice(batch_size, batches):
    numbers = image_numbers(numbered_images(), batch_size, new_generator())
    assert numbers.shape == (batches, batch_size)
    assert len(numbers.unique()) == numbers.numel()


def test_epoch_shows_every_image_if_the_batch_size_divides_their_number():
    numbers = image_numbers(numbered_images(100), 10, new_generator())
    assert torch.equal(numbers.flatten().sort().values, torch.arange(100))


def test_order_and_left_out_images_differ_between_epochs():
    generator = new_generator()
    first, second = (image_numbers(numbered_images(), 10, generator) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(first.flatten().sort().values, second.flatten().sort().values)


@pytest.mark.parametrize("redraw", [False, True])
def test_batches_depend_on_their_generator_alone(redraw):
    def two_epochs(seed: int, disturb: bool) -> torch.Tensor:
        generator, batches = new_generator(seed), []
        for _ in range(2):
            for x in training_batches(numbered_images(redraw=redraw), 10, generator):
                batches.append(x)
                if disturb:
                    torch.rand(3)
        return torch.stack(batches)

    assert torch.equal(two_epochs(0, False), two_epochs(0, True))
    assert not torch.equal(two_epochs(0, False), two_epochs(1, False))


@pytest.mark.parametrize("redraw", [False, True])
def test_batches_leave_the_global_generator_alone(redraw):
    before = torch.get_rng_state()
    list(training_batches(numbered_images(redraw=redraw), 10, new_generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_redrawn_images_differ_between_epochs_and_have_their_grey_as_mean():
    ramp = torch.arange(256, dtype=torch.uint8).expand(100, 256)
    split = Split(ramp, torch.zeros(100, dtype=torch.int64))
    data = DataSet("ramp", split, split, split, redraw=True, binary=True)
    generator, epochs, draws = new_generator(), 40, 40 * 100
    shown = torch.stack([x for _ in range(epochs) for x in training_batches(data, 100, generator)])
    assert shown.shape == (epochs, 100, 256)
    assert ((shown == 0) | (shown == 1)).all()
    assert len(shown.unique(dim=0)) == epochs
    p = torch.arange(256) / 255
    error = (shown.double().sum((0, 1)) - draws * p).abs()
    assert (error <= 5 * (draws * p * (1 - p)).sqrt()).all()


def test_images_that_are_not_redrawn_are_shown_unchanged(mnist_5k):
    data = mnist_5k["static"]
    (shown,) = training_batches(data, 4000, new_generator())
    expected = to_float(data.train.images).sum(1).sort().values
    assert torch.equal(shown.sum(1).sort().values, expected)
