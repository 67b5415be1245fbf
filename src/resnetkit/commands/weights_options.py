"""Where the weights of a verb come from, and what may be said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from resnetkit.commands.output import one_line, say
from resnetkit.errors import UsageError
from resnetkit.formatting import printable

if TYPE_CHECKING:
    from resnetkit.network.layers import Network


@dataclass(frozen=True)
class Weights:
    """What is stronger than what a weights file tells of itself."""

    network: str = ""
    """Which network the weights are of."""
    dialect: str = ""
    """How its tensors are called."""
    reset_head: Annotated[int | None, tyro.conf.arg(metavar="CLASSES")] = None
    """Take the body alone, whatever the file has behind it, and start a new classifier."""
    input_channels: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Adapt the first convolution to so many channels."""

    def words(self) -> list[str]:
        """The options that say the same again."""
        given = {"--network": self.network, "--dialect": self.dialect, "--reset-head": self.reset_head,
                 "--input-channels": self.input_channels}  # fmt: skip
        return [str(word) for option, value in given.items() if value not in ("", None) for word in (option, value)]

    def refuse(self, model: str) -> None:
        """Raise `UsageError` where something is said of weights and there are none to be read."""
        if self.words():
            what = "there is no weights file here that this could be about"
            raise UsageError(what, where=[model, " ".join(self.words())], fix="leave it out")


AS_TOLD = Weights()


def loaded(model: str, weights: Weights) -> Network:
    """The model; of a weights file it is told what it was taken for, what became of its tensors, what was assumed."""
    from resnetkit.weights.load import load

    found = load(
        model,
        weights.network or None,
        weights.dialect or None,
        reset_head=weights.reset_head,
        input_channels=weights.input_channels,
    )
    if found.card.assumed:
        say(f"read: {one_line(found.card.origin)}")
        say(f"tensors: {found.report.tensors}")
        say(f"assumed: {printable('; '.join(found.card.assumed))}")
    return found
