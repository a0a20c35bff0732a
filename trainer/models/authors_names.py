"""The map between the names in the authors' checkpoints and ours, in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.blocks import Bottleneck, ConvNormReLU, ImageNetStem
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.msdnet import MultiScaleLayer
from trainer.models.multi_exit import MultiExitNet

# Leaves of a unit: our name, theirs.
_LEAVES: dict[type[nn.Module], dict[str, str]] = {
    ConvNormReLU: {"conv": "net.0", "norm": "net.1"},
    Bottleneck: {"reduce.conv": "net.0", "reduce.norm": "net.1", "conv.conv": "net.3", "conv.norm": "net.4"},
    ImageNetStem: {"conv": "0", "norm": "1"},
    nn.Linear: {"": ""},
}


def from_authors(config: ModelConfig, authors_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict of the authors' one (parameters and buffers; `module.` prefixes are dropped).

    Raises ValueError naming the first missing and unexpected entries where the state is not of this net.
    """
    state = {key.removeprefix("module."): value for key, value in authors_state.items()}
    return _renamed({theirs: ours for ours, theirs in authors_names(config).items()}, state, "the authors' net")


def to_authors(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict of ours: the inverse of `from_authors`."""
    return _renamed(authors_names(config), state, "this net")


def authors_names(config: ModelConfig) -> dict[str, str]:
    """Our name of every parameter and buffer -> the authors'."""
    with torch.device("meta"):
        net = build_model(config, config.num_classes or 1)
    units = _msdnet_units(net) if config.net == "msdnet" else _ranet_units(net, config)
    leaf_names = {}
    for ours, theirs in [*units, *_classifier_units(net)]:
        for our_leaf, their_leaf in _LEAVES[type(net.get_submodule(ours))].items():
            leaf_names[f"{ours}.{our_leaf}".rstrip(".")] = f"{theirs}.{their_leaf}".rstrip(".")
    names = {}
    for key in net.state_dict():
        leaf, _, tensor = key.rpartition(".")
        names[key] = f"{leaf_names[leaf]}.{tensor}"
    return names


def _msdnet_units(net: MultiExitNet) -> Iterator[tuple[str, str]]:
    for scale, _ in enumerate(net.get_submodule("stem.scales").children()):
        yield f"stem.scales.{scale}", f"blocks.0.0.layers.{scale}"
    for k, block in enumerate(net.blocks):
        position = 1 if k == 0 else 0  # the stem is the first entry of the authors' block 0
        for index, layer in enumerate(block.get_submodule("layers").children()):
            assert isinstance(layer, MultiScaleLayer)
            ours, theirs = f"blocks.{k}.layers.{index}", f"blocks.{k}.{position}"
            for kept in range(len(layer.own)):
                yield f"{ours}.own.{kept}", f"{theirs}.layers.{kept}.conv_normal"
            for finer in range(len(layer.down)):
                yield f"{ours}.down.{finer}", f"{theirs}.layers.{finer + 1 - layer.dropped}.conv_down"
            position += 1
            if layer.transition is not None:
                for kept in range(len(layer.transition)):
                    yield f"{ours}.transition.{kept}", f"blocks.{k}.{position}.m.{kept}"
                position += 1


def _ranet_units(net: MultiExitNet, config: ModelConfig) -> Iterator[tuple[str, str]]:
    for scale in range(len(config.scales)):
        yield f"stem.stem.scales.{scale}", f"FirstLayer.layers.{scale}"
    exit_, num_fused = 0, 0
    for subnet, num_blocks in enumerate(config.blocks):
        ours = [f"blocks.{exit_}.fused.{number}" for number in range(num_fused)]
        ours += [f"blocks.{exit_ + plain}.block" for plain in range(num_blocks - num_fused)]
        for number, name in enumerate(ours):
            yield from _ranet_block(net.get_submodule(name), name, f"scale_flows.{subnet}.{number}")
        exit_, num_fused = exit_ + num_blocks - num_fused, num_blocks


def _ranet_block(block: nn.Module, ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for index, layer in enumerate(block.get_submodule("layers").children()):
        yield f"{ours}.layers.{index}.own", f"{theirs}.layers.{index}.conv_normal"
        if hasattr(layer, "coarse"):
            yield f"{ours}.layers.{index}.coarse", f"{theirs}.layers.{index}.conv_up"
    for own, their in (("fusion", "conv_last"), ("transition", "trans")):
        if getattr(block, own) is not None:
            yield f"{ours}.{own}", f"{theirs}.{their}"


def _classifier_units(net: MultiExitNet) -> Iterator[tuple[str, str]]:
    for k in range(net.num_exits):
        yield f"classifiers.{k}.linear", f"classifier.{k}.linear"
        for index in range(2):
            yield f"classifiers.{k}.convs.{index}", f"classifier.{k}.m.{index}"


def weight_net_from_authors(authors_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our weight net's state dict of the authors' one, of any depth; ValueError where a layer is missing."""
    state = {key.removeprefix("module."): value for key, value in authors_state.items()}
    depth = 1 + len({key.split(".")[1] for key in state if key.startswith("rest_hidden_layers.")})
    return _renamed({theirs: ours for ours, theirs in _weight_net_names(depth).items()}, state, "the weight net")


def weight_net_to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `weight_net_from_authors`."""
    depth = len({key.split(".")[1] for key in state if key.startswith("hidden.")})
    return _renamed(_weight_net_names(depth), state, "the weight net")


def _weight_net_names(depth: int) -> dict[str, str]:
    layers = {"hidden.0": "first_hidden_layer.fc", "output": "output_layer"}
    layers |= {f"hidden.{index}": f"rest_hidden_layers.{index - 1}.fc" for index in range(1, depth)}
    return {f"{ours}.{t}": f"{theirs}.{t}" for ours, theirs in layers.items() for t in ("weight", "bias")}


def _renamed(names: Mapping[str, str], state: Mapping[str, Tensor], whose: str) -> dict[str, Tensor]:
    missing, unexpected = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    if missing or unexpected:
        named = (("missing", missing), ("unexpected", unexpected))
        found = " and ".join(f"{len(keys)} entries {what}, first {keys[0]}" for what, keys in named if keys)
        raise ValueError(
            f"the state does not fit {whose}: {found}; check that the model's settings are those it was trained with"
        )
    return {name: state[key] for key, name in names.items()}


def model_config_from_authors_options(options: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of the authors' command-line options, given by their names.

    Lists may also be written as they write them ("1-2-4"). Raises ValueError for a net that this project does not
    build: one without bottlenecks, with another pruning than "max", or with another mode of step.
    """
    ranet = "scale_list" in options
    growth_factors = _numbers(options["grFactor"])
    required: dict[str, Any] = {"bottleneck": True, "prune": "max", "bnAfter": True, "nScales": len(growth_factors)}
    for name, needed in required.items():
        if options.get(name, needed) != needed:
            raise ValueError(f"option {name} is {options[name]!r}; only {needed!r} is built here")
    modes = {"even": "even", "lg" if ranet else "lin_grow": "linear"}
    if options["stepmode"] not in modes:
        raise ValueError(f"option stepmode is {options['stepmode']!r}; it must be one of {' | '.join(modes)}")
    cifar = str(options["data"]).lower().startswith("cifar")
    shape: dict[str, Any] = {"num_exits": options["nBlocks"]}
    if ranet:
        scales = _numbers(options["scale_list"])
        blocks = tuple(options["nBlocks"] + options["block_step"] * index for index in range(len(scales)))
        compression = options["compress_factor"]
        shape = {"num_exits": blocks[-1], "scales": scales, "blocks": blocks, "compression": compression}
    return ModelConfig(
        net="ranet" if ranet else "msdnet",
        stem="cifar" if cifar else "imagenet",
        first_channels=options["nChannels"],
        growth=options["growthRate"],
        growth_factors=growth_factors,
        bottleneck_factors=_numbers(options["bnFactor"]),
        base=options["step"] if ranet else options["base"],
        step=options["step"],
        step_mode="even" if modes[options["stepmode"]] == "even" else "linear",
        reduction=options["reduction"],
        classifier_channels=128 if cifar else 0,
        **shape,
    )


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in (value.split("-") if isinstance(value, str) else value))
