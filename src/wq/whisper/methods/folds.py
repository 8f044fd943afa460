"""The folds of SmoothQuant (Xiao et al. 2023): outliers of a linear layer's input, moved into its weight.

Dividing the channels of an input by s and multiplying the columns of the weights that read it by s changes no
output. Where the input is made by a LayerNorm or, across attention, which only mixes positions, by a value
projection, their own parameters take the division: it is folded, and costs nothing. Across GELU there is no
such fold; the input of fc2 is divided at run time, where that is asked for.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from wq.whisper.layers.layers import Layer, walk

# Of weights and factors, as in the authors' code
SMALLEST = 1e-5

# In a block of encoder or decoder: the module that makes an input, and the layers that read it
INPUTS = {
    "self_attn_layer_norm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.v_proj": ("self_attn.out_proj",),
    "encoder_attn_layer_norm": ("encoder_attn.q_proj",),
    "encoder_attn.v_proj": ("encoder_attn.out_proj",),
    "final_layer_norm": ("fc1",),
    "activation_fn": ("fc2",),
}


@dataclass(frozen=True)
class Fold:
    """One input of linear layers that can be smoothed, named after the module that makes it.

    submodule   whose alpha it takes: encoder, decoder or cross
    producer    that module: a LayerNorm, a value projection, or the activation function before fc2
    consumers   all layers that read the input, quantized or not: only together do they leave the model's
                output as it is
    """

    name: str
    submodule: str
    producer: nn.Module
    consumers: tuple[Layer, ...]


@dataclass(frozen=True)
class SmoothedInput:
    """What smoothing did to an input.

    alpha    None where it was left alone
    before   the largest magnitude [K] of every channel, on calibration speech
    factor   s [K]; None where it was left alone
    """

    fold: Fold
    alpha: float | None
    before: Tensor
    factor: Tensor | None


def find_folds(model: WhisperForConditionalGeneration, fc2: bool = False) -> list[Fold]:
    """Every input that can be smoothed, in the order of the computation; with `fc2` that of fc2 as well.

    The encoder's last norm is read by the keys and values of cross-attention in all decoder layers, which
    therefore share one s. The decoder's last norm is read by the output head, which is tied to the token
    embedding and cannot take a factor.
    """
    layers = {layer.name: layer for layer in walk(model)}
    encoder, decoder = model.model.encoder, model.model.decoder
    cross = [
        layers[f"model.decoder.layers.{index}.encoder_attn.{projection}"]
        for index in range(len(decoder.layers))
        for projection in ("k_proj", "v_proj")
    ]
    folds = _folds_of_blocks("encoder", encoder.layers, layers)
    folds.append(Fold("model.encoder.layer_norm", "cross", encoder.layer_norm, tuple(cross)))
    folds += _folds_of_blocks("decoder", decoder.layers, layers)
    return [fold for fold in folds if fc2 or not divides_at_run_time(fold)]


def _folds_of_blocks(side: str, blocks: Any, layers: Mapping[str, Layer]) -> list[Fold]:
    folds = []
    for index, block in enumerate(blocks):
        prefix = f"model.{side}.layers.{index}"
        for producer, readers in INPUTS.items():
            if hasattr(block, producer.partition(".")[0]):
                consumers = tuple(layers[f"{prefix}.{reader}"] for reader in readers)
                folds.append(Fold(f"{prefix}.{producer}", side, block.get_submodule(producer), consumers))
    return folds


def divides_at_run_time(fold: Fold) -> bool:
    """Whether the producer has no parameters to take the division."""
    return next(fold.producer.parameters(), None) is None


def factor(input_amax: Tensor, weight_amax: Tensor, alpha: float) -> Tensor:
    """s [K] = amax_x^alpha / amax_w^(1 - alpha), the paper's formula 4, from the largest magnitudes [K] of
    an input's channels and of the columns that read them.

    Both amax_w and s are at least 1e-5, as in the authors' code. A channel that calibration never saw alive
    keeps s = 1: nothing is known of it.
    """
    s = input_amax**alpha / weight_amax.clamp(min=SMALLEST) ** (1 - alpha)
    return torch.where(input_amax > 0, s.clamp(min=SMALLEST), 1.0)


def weight_amax(fold: Fold) -> Tensor:
    """The largest magnitude [K] in each column of all weights that read the input."""
    return torch.stack([layer.weight.data.abs().amax(0) for layer in fold.consumers]).amax(0)


def factors(
    folds: Sequence[Fold], channel_max: Mapping[str, Tensor], alphas: Mapping[str, float | None]
) -> dict[str, Tensor]:
    """s by the fold's name. channel_max: the largest magnitudes [K] of a layer's input, by the layer's name;
    alphas: by the fold's name, None leaves its input alone.

    All of them are of the weights as they are now, so that they depend on no order.
    """
    found = {}
    for fold in folds:
        alpha = alphas[fold.name]
        if alpha is not None:
            columns = weight_amax(fold)
            maxima = channel_max[fold.consumers[0].name].to(columns.device)
            found[fold.name] = factor(maxima, columns, alpha)
    return found


@contextmanager
def smoothed(folds: Sequence[Fold], factors: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the inputs of these folds are divided by their factors and the weights that read them
    multiplied; a fold without a factor is left alone. Afterwards the original parameters again."""
    with ExitStack() as undo:
        for fold in folds:
            if fold.name in factors:
                s = factors[fold.name]
                _divide_output(fold.producer, s, undo)
                for layer in fold.consumers:
                    _replace(layer.weight, layer.weight.data * s.to(layer.weight), undo)
        yield


def _divide_output(module: nn.Module, s: Tensor, undo: ExitStack) -> None:
    """Divide the channels of the module's output: in its weight and bias, or where it has none as it runs."""
    parameters = list(module.parameters())
    for parameter in parameters:
        column = s.to(parameter).view(-1, *[1] * (parameter.dim() - 1))
        _replace(parameter, parameter.data / column, undo)
    if not parameters:
        handle = module.register_forward_hook(lambda module, inputs, output: output / s.to(output))
        undo.callback(handle.remove)


def _replace(parameter: nn.Parameter, values: Tensor, undo: ExitStack) -> None:
    undo.callback(setattr, parameter, "data", parameter.data)
    parameter.data = values
