"""Collect what the explorer of the report page needs to decode codes in a browser.

The page evaluates the decoder in JavaScript (`templates/explorer.js`). The weights are embedded as
float16, which changes the probability of a pixel by less than 0.01.
"""

import base64
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vae.model import CategoricalVAE
from vae.networks import ACTIVATIONS
from vae.tracking.pictures import modes

Layer = dict[str, Any]
"""The `type` of a layer, and the numbers that the page needs to evaluate the layer."""

_ACTIVATION_NAMES = {repr(build()): name for name, build in ACTIVATIONS.items()}


class NotExplorable(Exception):
    """The page cannot evaluate the decoder of a model."""


def collect_explorer(models: Mapping[str, CategoricalVAE], images: Tensor) -> dict[str, Any]:
    """Return the content of the explorer of one data set, as values for JSON.

    Args:
        models: The models to explore, by the name under which the page shows them; at least one.
        images: Some images, uint8 (n, D). The page shows them with their most probable codes.

    Returns:
        The `height` and `width` of the images, the `images` as bytes in base64, the `models` that
        can be shown, and for each other model the reason why it cannot be shown (`not_shown`).
    """
    shown, not_shown = [], {}
    for name, model in models.items():
        try:
            shown.append({"name": name, **_describe(model, images)})
        except NotExplorable as error:
            not_shown[name] = str(error)
    height, width = next(iter(models.values())).image_shape
    return {
        "height": height,
        "width": width,
        "images": [_to_base64(image) for image in images],
        "models": shown,
        "not_shown": not_shown,
    }


def embedded_bytes(explorers: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of bytes that the weights of all models take in the page."""
    return sum(len(model["weights"]) for explorer in explorers for model in explorer["models"])


def _describe(model: CategoricalVAE, images: Tensor) -> dict[str, Any]:
    """Return the codes of some images, the prior and the decoder of a model.

    Raises:
        NotExplorable: The page cannot evaluate the decoder.
    """
    layers = _describe_layers(model.decoder)
    tensors: list[Tensor] = list(model.decoder.parameters())
    if model.mean_logits is not None:
        layers.append({"type": "add", "outputs": len(model.mean_logits)})
        tensors.append(model.mean_logits)
    weights = torch.cat([tensor.detach().flatten() for tensor in tensors])
    if not weights.half().isfinite().all():
        raise NotExplorable("a weight of its decoder is not finite in float16")
    return {
        "latents": model.latents,
        "categories": model.categories,
        "prior": model.prior_logits.detach().softmax(-1).tolist(),
        "codes": modes(model, images).argmax(-1).tolist(),
        "layers": layers,
        "weights": _to_base64(weights.half()),
    }


def _describe_layers(decoder: nn.Module) -> list[Layer]:
    """Return the layers of a decoder in their order.

    The page takes the weight and the bias of each layer, in this order, from the parameters of the
    decoder.

    Raises:
        NotExplorable: The page cannot evaluate a layer.
    """
    layers: list[Layer] = []
    height = width = 1  # of the channels between two layers
    for module in decoder if isinstance(decoder, nn.Sequential) else [decoder]:
        if isinstance(module, nn.Linear) and module.bias is not None:
            sizes = {"inputs": module.in_features, "outputs": module.out_features}
            layers.append({"type": "linear", **sizes})
        elif isinstance(module, nn.ConvTranspose2d) and _is_square(module):
            kernel, stride = module.kernel_size[0], module.stride[0]
            padding = int(module.padding[0])
            layers.append(
                {
                    "type": "conv_transpose",
                    "inputs": module.in_channels,
                    "outputs": module.out_channels,
                    "height": height,
                    "width": width,
                    "kernel": kernel,
                    "stride": stride,
                    "padding": padding,
                }
            )
            height, width = ((n - 1) * stride - 2 * padding + kernel for n in (height, width))
        elif isinstance(module, nn.Unflatten):
            _, height, width = module.unflattened_size
        elif repr(module) in _ACTIVATION_NAMES:
            layers.append({"type": _ACTIVATION_NAMES[repr(module)]})
        elif not isinstance(module, nn.Flatten):  # the page keeps all values flat
            raise NotExplorable(f"the page cannot evaluate a layer {type(module).__name__}")
    return layers


def _is_square(module: nn.ConvTranspose2d) -> bool:
    """Return whether the page can evaluate a convolution: the same in both directions, plain."""
    kernel, stride, padding = (
        int(pair[0]) for pair in (module.kernel_size, module.stride, module.padding)
    )
    sizes = module.in_channels, module.out_channels, kernel
    return repr(module) == repr(nn.ConvTranspose2d(*sizes, stride=stride, padding=padding))


def _to_base64(values: Tensor) -> str:
    """Return the bytes of numbers in base64, least significant byte first."""
    array = values.cpu().numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
