"""``resnetkit embed``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import counting, one_line, output_file, results, say, then
from resnetkit.commands.stdin import files_or_stdin
from resnetkit.commands.weights_options import AS_TOLD, Weights, loaded
from resnetkit.errors import DataError
from resnetkit.prediction.formats import require_parquet
from resnetkit.prediction.inputs import passed_over


@dataclass(frozen=True)
class Options:
    """Pictures to vectors: what a place of the network makes of each. For search, clusters, a classifier of your own.

    Examples: resnetkit embed inbox/ --model runs/pets-resnet18-1; resnetkit embed inbox/ --model my-model/ --place
    stage3 --out vectors.parquet
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FILES")]
    """Pictures, folders, patterns in quotes; - reads names (one a line) or one picture from standard input."""
    model: str
    """A run folder, a model folder, or a weights file of any library."""
    out: str = "vectors.npz"
    """The .npz or .parquet file to write."""
    place: str = ""
    """stage3, stage2.block1, head.pool ...; what the classifier sees, if it is left out. Of a map the mean is taken."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    precision: Annotated[str, tyro.conf.arg(metavar="auto|fp32|bf16")] = "fp32"
    """In what the network computes."""
    json: bool = False
    """One JSON document that says what was written."""
    weights: Weights = AS_TOLD


def run(options: Options) -> int:
    out = output_file(options.out, ".npz", ".parquet")
    if out.suffix == ".parquet":
        require_parquet()
    files = files_or_stdin(options.files, "resnetkit embed")
    from resnetkit.prediction.embed import embed
    from resnetkit.runtime.device import as_precision

    model = loaded(options.model, options.weights)
    precision = as_precision(options.precision)
    with counting("looking at pictures") as tell:
        found = embed(files, model, place=options.place or None, device=options.device, precision=precision, tell=tell)
    found.write(out)
    bad = [{"file": name, "error": why} for name, why in zip(found.files, found.errors, strict=True) if why]
    count, size = found.vectors.shape[0], found.vectors.shape[-1]
    if options.json:
        results("embed", model=options.model, out=str(out), place=found.place, n=count, size=size, bad=bad)
    else:
        print(f"wrote {count} vectors of {size} numbers ({found.place}) to {out}")
        for row in bad:
            print(f"{row['file']}: ({row['error']})")
    for note in passed_over(options.files):
        say(f"note: {one_line(note)}")
    if bad:
        say(str(DataError(f"{len(bad)} of {count} files could not be read; their vectors are NaN")))
    then("resnetkit explain", options.weights.network or options.model, "--why", found.place)
    return DataError.exit_code if bad else 0
