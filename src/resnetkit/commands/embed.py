"""``resnetkit embed``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from resnetkit.commands.output import check_output_file, log, print_json, progress_bar, suggest_next, truncate
from resnetkit.commands.stdin import read_file_arguments
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.errors import DataError
from resnetkit.prediction.formats import check_parquet_installed
from resnetkit.prediction.inputs import describe_skipped_files


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
    layer: str = ""
    """stage3, stage2.block1, head.pool ...; what the classifier sees, if it is left out. Of a map the mean is taken."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    precision: Annotated[str, tyro.conf.arg(metavar="auto|fp32|bf16")] = "fp32"
    """In what the network computes."""
    json: bool = False
    """One JSON document that says what was written."""
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    out = check_output_file(options.out, ".npz", ".parquet")
    if out.suffix == ".parquet":
        check_parquet_installed()
    files = read_file_arguments(options.files, "resnetkit embed")
    from resnetkit.prediction.embed import embed
    from resnetkit.runtime.device import parse_precision

    model = load_with_options(options.model, options.weights)
    precision = parse_precision(options.precision)
    with progress_bar("looking at pictures") as on_progress:
        embeddings = embed(
            files,
            model,
            layer=options.layer or None,
            device=options.device,
            precision=precision,
            on_progress=on_progress,
        )
    embeddings.write(out)
    errors = [
        {"file": name, "error": error} for name, error in zip(embeddings.files, embeddings.errors, strict=True) if error
    ]
    count, size = embeddings.vectors.shape[0], embeddings.vectors.shape[-1]
    if options.json:
        print_json("embed", model=options.model, out=str(out), layer=embeddings.layer, n=count, size=size, bad=errors)
    else:
        print(f"wrote {count} vectors of {size} numbers ({embeddings.layer}) to {out}")
        for row in errors:
            print(f"{row['file']}: ({row['error']})")
    for note in describe_skipped_files(options.files):
        log(f"note: {truncate(note)}")
    if errors:
        log(str(DataError(f"{len(errors)} of {count} files could not be read; their vectors are NaN")))
    suggest_next("resnetkit explain", options.weights.network or options.model, "--why", embeddings.layer)
    return DataError.exit_code if errors else 0
