"""An epoch of the benchmark in JAX: one jitted function that scans over the batches."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

Layers = list[tuple[jax.Array, jax.Array]]
"""The weights (inputs, outputs) and the biases of the layers of a network."""


def build_epoch(
    images: np.ndarray,
    batch_size: int,
    sizes: tuple[int, ...],
    code_shape: tuple[int, int],
    temperature: float,
    learning_rate: float,
) -> Callable[[], None]:
    """Return a function that trains for one epoch with straight-through Gumbel and Adam.

    Args:
        images: (n, D) uint8, with n a multiple of the batch size.
        batch_size: The number of images in a batch.
        sizes: The widths of the encoder, D first; those of the decoder are the mirror image.
        code_shape: Latents and categories.
        temperature: The temperature of the relaxed sample.
        learning_rate: The learning rate of Adam.
    """
    pixels, optimizer = jnp.asarray(images), optax.adam(learning_rate)

    def loss(networks: tuple[Layers, Layers], x: jax.Array, key: jax.Array) -> jax.Array:
        encoder, decoder = networks
        logits = _apply(encoder, x).reshape(len(x), *code_shape)
        relaxed = jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)
        hard = jax.nn.one_hot(relaxed.argmax(-1), code_shape[-1])
        z = hard + relaxed - lax.stop_gradient(relaxed)
        l = _apply(decoder, z.reshape(len(x), -1))
        bce = (jax.nn.softplus(l) - x * l).sum()
        log_q = jax.nn.log_softmax(logits)
        negative_entropy = (jnp.exp(log_q) * log_q).sum()  # the KL, up to a constant
        return (bce + negative_entropy) / len(x)

    def step(state: tuple, batch: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        (networks, moments), (index, key) = state, batch
        x = pixels[index].astype(jnp.float32) / 255
        gradients = jax.grad(loss)(networks, x, key)
        updates, moments = optimizer.update(gradients, moments)
        return (optax.apply_updates(networks, updates), moments), None

    @jax.jit
    def epoch(state: tuple, key: jax.Array) -> tuple:
        order_key, noise_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(pixels)).reshape(-1, batch_size)
        return lax.scan(step, state, (order, jax.random.split(noise_key, len(order))))[0]

    keys = jax.random.split(jax.random.key(0), 3)
    networks = _initialise(keys[0], sizes), _initialise(keys[1], sizes[::-1])
    state, key = (networks, optimizer.init(networks)), keys[2]

    def run() -> None:
        nonlocal state, key
        key, epoch_key = jax.random.split(key)
        state = jax.block_until_ready(epoch(state, epoch_key))

    return run


def _apply(layers: Layers, x: jax.Array) -> jax.Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.relu(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def _initialise(key: jax.Array, sizes: tuple[int, ...]) -> Layers:
    """Draw weights and biases from the distribution that torch's linear layers use."""
    layers = []
    for inputs, outputs in pairwise(sizes):
        key, weight_key, bias_key = jax.random.split(key, 3)
        bound = inputs**-0.5
        layers.append(
            (
                jax.random.uniform(weight_key, (inputs, outputs), minval=-bound, maxval=bound),
                jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound),
            )
        )
    return layers
