"""Where the weights of a verb come from, and what may be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from resnetkit.commands.output import log, truncate
from resnetkit.errors import UsageError
from resnetkit.formatting import escape_control

if TYPE_CHECKING:
    from resnetkit.network.layers import NetworkModule


@dataclass(frozen=True)
class WeightsOptions:
    """What is stronger than what a weights file tells of itself."""

    network: str = ""
    """Which network the weights are of."""
    dialect: str = ""
    """How its tensors are called."""
    reset_head: Annotated[int | None, tyro.conf.arg(metavar="CLASSES")] = None
    """Take the body alone, whatever the file has behind it, and start a new classifier."""
    input_channels: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Adapt the first convolution to so many channels."""

    def to_args(self) -> list[str]:
        """The options that say the same again."""
        values = {"--network": self.network, "--dialect": self.dialect, "--reset-head": self.reset_head,
                 "--input-channels": self.input_channels}  # fmt: skip
        return [str(arg) for option, value in values.items() if value not in ("", None) for arg in (option, value)]

    def check_unset(self, model: str) -> None:
        """Raise `UsageError` where something is said of weights and there are none to be read."""
        if self.to_args():
            message = "there is no weights file here that this could be about"
            raise UsageError(message, where=[model, " ".join(self.to_args())], fix="leave it out")


DEFAULT_WEIGHTS = WeightsOptions()


def load_with_options(model: str, weights: WeightsOptions) -> NetworkModule:
    """The model; of a weights file it is told what it was taken for, what became of its tensors, what was assumed."""
    from resnetkit.surgery.load import load

    network = load(
        model,
        weights.network or None,
        weights.dialect or None,
        reset_head=weights.reset_head,
        input_channels=weights.input_channels,
    )
    if network.card.assumed:
        log(f"read: {truncate(network.card.origin)}")
        log(f"tensors: {network.report.tensor_summary}")
        log(f"assumed: {escape_control('; '.join(network.card.assumed))}")
    return network
