"""Options about a weights file, and loading a model with them.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from resnetkit.commands.arguments import Argument, format_options
from resnetkit.commands.output import log, sanitize_line
from resnetkit.errors import UsageError
from resnetkit.formatting import escape_control

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule


@dataclass(frozen=True)
class WeightsOptions:
    """Statements about a weights file; they take precedence over those of the file."""

    network: Annotated[str, Argument("NAME")] = ""
    """The network of the weights, if the file does not identify it."""
    dialect: Annotated[str, Argument("NAME")] = ""
    """The library whose tensor names the weights use, if the file does not identify it."""
    state_dict: Annotated[str, Argument("NAME")] = ""
    """The table or the prefix of the tensors, if a file holds several networks."""
    reset_head: Annotated[int | None, Argument("CLASSES")] = None
    """Replace the classifier with a new one for this number of classes."""
    input_channels: int | None = None
    """Adapt the first convolution to this number of channels."""

    def to_args(self) -> list[str]:
        """Return the command-line options that give these values."""
        return format_options(self)

    def check_unset(self, model: str) -> None:
        """Check that no option is given for a model without a weights file.

        Raises:
            UsageError: An option is given.
        """
        if self.to_args():
            message = "these options are about a weights file, and the model is not one"
            where = [model, " ".join(self.to_args())]
            raise UsageError(message, where=where, fix="remove them, or name a weights file")


DEFAULT_WEIGHTS = WeightsOptions()


def load_with_options(model: str, weights: WeightsOptions) -> NetworkModule:
    """Load a model; for a weights file, log how it was read and what was assumed.

    Args:
        model: A run folder, a model folder, or a weights file.
        weights: The options about the weights file.
    """
    from resnetkit.surgery.load import load

    network = load(
        model,
        weights.network or None,
        weights.dialect or None,
        reset_head=weights.reset_head,
        input_channels=weights.input_channels,
        state_dict=weights.state_dict or None,
    )
    if network.card.assumed:
        log(f"read: {sanitize_line(network.card.origin)}")
        log(f"tensors: {network.report.tensor_summary}")
        log(f"assumed: {escape_control('; '.join(network.card.assumed))}")
    return network
