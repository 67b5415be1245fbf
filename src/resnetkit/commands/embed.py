"""``resnetkit embed``.

This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from resnetkit.commands.arguments import Argument
from resnetkit.commands.image_options import DEFAULT_IMAGE_OPTIONS, ImageOptions
from resnetkit.commands.output import check_output_file, log, print_json, progress_bar, sanitize_line, suggest_next
from resnetkit.commands.records import build_file_errors
from resnetkit.commands.stdin import read_file_arguments
from resnetkit.commands.weights_options import DEFAULT_WEIGHTS, WeightsOptions, load_with_options
from resnetkit.errors import DataError
from resnetkit.formatting import pluralize
from resnetkit.prediction.formats import import_pyarrow
from resnetkit.prediction.inputs import describe_skipped_files


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compute feature vectors of images: the outputs of a layer. Use them for search, clustering or a new classifier.

    Examples: resnetkit embed inbox/ --model runs/pets-resnet18-1; resnetkit embed inbox/ --model my-model/ --layer
    stage3 --out vectors.parquet
    """

    files: Annotated[tuple[str, ...], Argument("FILES", is_positional=True)] = ()
    """Images, folders, patterns in quotes; - reads names (one per line) or one image from standard input."""
    model: Annotated[str, Argument("MODEL")]
    """A run folder, a model folder, or a weights file of any library."""
    out: Annotated[str, Argument("FILE")] = "vectors.npz"
    """The .npz or .parquet file to write."""
    layer: Annotated[str, Argument("PATH")] = ""
    """The layer: stage3, stage2.block1, head.pool ...; by default the input of the classifier. Feature maps are
    averaged over their positions."""
    device: Annotated[str, Argument("NAME")] = "auto"
    """The device: cpu, cuda, cuda:1 or auto."""
    precision: Annotated[str, Argument("auto|fp32|bf16")] = "fp32"
    """The precision in which the network computes."""
    json: bool = False
    """Print one JSON document about the written file."""
    images: ImageOptions = DEFAULT_IMAGE_OPTIONS
    weights: WeightsOptions = DEFAULT_WEIGHTS


def run(options: Options) -> int:
    """Run the command and return its exit code."""
    options.images.apply()
    out = check_output_file(options.out, ".npz", ".parquet")
    if out.suffix == ".parquet":
        import_pyarrow()
    files = read_file_arguments(options.files, "resnetkit embed")
    from resnetkit.prediction.embed import embed
    from resnetkit.runtime.device import parse_precision

    model = load_with_options(options.model, options.weights)
    precision = parse_precision(options.precision)
    with progress_bar("embedding images") as on_progress:
        embeddings = embed(
            files,
            model,
            layer=options.layer or None,
            device=options.device,
            precision=precision,
            on_progress=on_progress,
        )
    embeddings.write(out)
    errors = [(name, error) for name, error in zip(embeddings.files, embeddings.errors, strict=True) if error]
    count, size, layer = embeddings.vectors.shape[0], embeddings.vectors.shape[-1], embeddings.layer
    if options.json:
        values = {"layer": layer, "n": count, "size": size, "errors": build_file_errors(errors)}
        print_json("embed", model=options.model, out=str(out), **values)
    else:
        print(f"wrote {pluralize(count, 'vector')} of {pluralize(size, 'number')} ({layer}) to {out}")
        for name, error in errors:
            print(f"{name}: ({error})")
    for note in describe_skipped_files(options.files):
        log(f"note: {sanitize_line(note)}")
    if errors:
        log(str(DataError(f"{len(errors)} of {pluralize(count, 'file')} could not be read; their vectors are NaN")))
    suggest_next("resnetkit explain", options.weights.network or options.model, "--why", layer)
    return DataError.exit_code if errors else 0
