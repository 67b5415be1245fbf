"""Load a model and apply the edits that loading offers: another head, other input channels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from resnetkit.network.layers import NetworkModule
from resnetkit.surgery import head_and_input
from resnetkit.surgery.transfer import EditResult
from resnetkit.weights.load import LoadOptions, load_network


def load(
    source: str | os.PathLike[str] | nn.Module | Mapping[str, Tensor],
    network: str | None = None,
    dialect: str | None = None,
    *,
    reset_head: int | Sequence[str] | None = None,
    input_channels: int | None = None,
    state_dict: str | None = None,
) -> NetworkModule:
    """Return the network of a source, in evaluation mode.

    A network of resnetkit is returned unchanged. A live model of another library runs beside ours on a small image and
    must give the same output, unless ``reset_head`` is set. Names and shapes tell the dialect and the network of a
    file; ``model.card.assumed`` lists what they cannot tell.

    Args:
        source: A model folder, a run folder, a weights file of any dialect, a state dict or a live model.
        network: The network that the weights belong to, if names and shapes do not tell.
        dialect: Whose names the tensors have, if they do not tell.
        reset_head: Classes, or their names. Load the body only and start a new linear classifier.
        input_channels: Adapt the first convolution to so many channels.
        state_dict: The table or the prefix of the tensors, if a file holds several networks.

    Raises:
        UsageError: ``source`` names no weights, or an option does not apply to it.
        WeightsError: the weights are damaged, do not fit, or their network cannot be recognized.
    """
    options = LoadOptions(network, dialect, reset_head is not None, input_channels is not None, state_dict)
    model = load_network(source, options)
    if reset_head is not None:
        model = _combine_reports(model, head_and_input.classes(model, reset_head))
    if input_channels is not None:
        model = _combine_reports(model, head_and_input.input_channels(model, input_channels))
    return model


def _combine_reports(old_model: NetworkModule, edit: EditResult) -> NetworkModule:
    """Return the edited network with one report of loading it and of the edit."""
    new_model, report = edit
    new_model.report = old_model.report.combine(report)
    return new_model
