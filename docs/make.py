"""Regenerate the tables, outputs and drawings of the documentation from the code and from `docs/measured`.

    python docs/make.py            write
    python docs/make.py --check    say which files would change; exit 1 if any

A block after ``<!-- made by: resnetkit ... -->`` holds the output of that command. A block after
``<!-- made from: FILE -->`` holds a table of a JSON file in ``docs/measured``, or the text of a .txt file there: the
output of a command that needs weights or trains. Drawings are in ``docs/pictures``.
"""

import contextlib
import io
import json
import re
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from resnetkit.architecture.catalog import CATALOG
from resnetkit.architecture.plan import plan
from resnetkit.architecture.published import PUBLISHED
from resnetkit.cli import main
from resnetkit.explain.drawings.overview import draw_overview
from resnetkit.explain.drawings.side_by_side import draw_side_by_side

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "explain",
            "training",
            "models",
            "data",
            "weights",
            "surgery",
            "exactness",
            "speed",
            "compatibility",
        )
    ),
)
COMPARED = ("vgg19", "plain34", "resnet34")
PICTURES = ("resnet18", "resnet50", "plain34", "resnet34", "resnet20")
BLOCK = re.compile(r"(<!-- (made by|made from): (.+?) -->\n)(?:(?!<!-- end -->).)*(<!-- end -->)", re.DOTALL)


def output(command: str) -> str:
    """Return what a command prints, after its own line."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(io.StringIO()):
        code = main(shlex.split(command)[1:])
    if code:
        raise SystemExit(f"{command} gave {code}")
    return f"```console\n$ {command}\n{stdout.getvalue().rstrip()}\n```\n"


def measured(name: str) -> str:
    """Return the table of a measurement, or the text that a command printed."""
    if name.endswith(".txt"):
        return f"```console\n{(ROOT / 'docs' / 'measured' / name).read_text().rstrip()}\n```\n"
    data = json.loads((ROOT / "docs" / "measured" / name).read_text())
    return TABLES[name.replace(WITHOUT_AMX, "")](data)


WITHOUT_AMX = "-without-amx"  # measured on a second machine, which has tables of its own


def speed(data: dict) -> str:
    rows = ["| loop | setting | images/s |", "| --- | --- | ---: |"]
    for name, label in (("plain", "a plain loop"), ("ours", "`resnetkit train`")):
        rows.append(f"| {label} | {data[name]['setting']} | {data[name]['images_per_second']:,.0f} |")
    machine, pairs = data["environment"], f"{data['rounds']} pairs of {data['steps']} steps"
    where = f"{machine['cores']} cores ({', '.join(machine['features'])})"
    rows.append(f"\n{data['model']}, batches of {data['batch']}, {where}: **{data['ratio']:.2f}** times as fast, ")
    return "\n".join(rows) + f"the median of {pairs}.\n"


def results(runs: list) -> str:
    rows = ["| command | split | correct | images | top-1 | minutes |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    rows += [
        f"| `{run['command']}` | {run['split']} | {run['correct']:,} | {run['n']:,} | "
        f"{100 * run['correct'] / run['n']:.2f} % | {run['seconds'] / 60:.1f} |"
        for run in runs
    ]
    return "\n".join(rows) + "\n"


def fine_tuning(data: dict) -> str:
    """Return the mean accuracy over seeds, with the lowest and highest."""
    rows = [
        "| start | accuracy on the test images, mean (lowest to highest) | epochs | seconds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in data["rows"]:
        shares = [100 * correct / row["n"] for correct in row["correct"]]
        mean, epochs = sum(shares) / len(shares), "/".join(map(str, row["epochs"]))
        cell = f"{mean:.1f} % ({min(shares):.1f} to {max(shares):.1f})"
        rows.append(f"| {row['way']} | {cell} | {epochs} | {row['seconds']:.0f} |")
    n, seeds = data["rows"][0]["n"], len(data["rows"][0]["correct"])
    return "\n".join(rows) + (
        f"\n\nresnet20 was trained on eight classes of CIFAR-10 for {data['base_epochs']} epochs, then on "
        f"{data['images']} images of airplanes and frogs, and tested on {n:,} others; {seeds} seeds, each with its own "
        "splits.\n"
    )


def two_classes(data: dict) -> str:
    rows = ["| command | seconds | its last line |", "| --- | ---: | --- |"]
    rows += [f"| `{row['command']}` | {row['seconds']:.1f} | {row['last']} |" for row in data["rows"]]
    cores = data["environment"]["cores"]
    classes = " and ".join(f"{name}s" for name in data["classes"])
    return "\n".join(rows) + f"\n\nOn {data['images']} photographs ({classes} of CIFAR-10), {cores} cores.\n"


def dialects(data: dict) -> str:
    """Return a row per library, with the largest error of its networks."""
    rows = ["| dialect | reads | writes | verified against | largest relative error of logits | back bit-equal |"]
    rows.append("| --- | --- | --- | --- | ---: | --- |")
    for library, version in data["versions"].items():
        mine = [row for row in data["rows"] if row["library"] == library]
        names, worst = ", ".join(row["name"] for row in mine), max(row["error"] for row in mine)
        equal = f"{sum(row['equal'] for row in mine)} of {len(mine)}"
        rows.append(f"| {library} | yes | yes | {library} {version}: {names} | {worst:.1e} | {equal} |")
    cifar = data["cifar"]
    rows += [f"| {row['library']} | yes | yes | {row['what']} | {row['accuracy']} | {row['equal']} |" for row in cifar]
    return "\n".join(rows) + "\n"


def sweep(data: dict) -> str:
    """Return the number of networks of each library by outcome, and the names of those that are not exact."""
    ways = ("state dict", "file", "folder", "live", "keys and shapes")
    starts = {"exact": ("exact", "recognized"), "named": ("named", "the tensors also"), "refused": ("refused",)}
    rows = ["| library | read as | networks | exact | named | refused | wrong |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    names: dict[str, dict[str, None]] = {"named": {}, "refused": {}}
    for library in dict.fromkeys(row["library"] for row in data["rows"]):
        for way in ways:
            mine = {row["name"]: row[way] for row in data["rows"] if row["library"] == library and way in row}
            members = {key: [name for name, text in mine.items() if text.startswith(starts[key])] for key in starts}
            for outcome in names:
                names[outcome] |= dict.fromkeys(f"{library} {name}" for name in members[outcome])
            counts = [len(names) for names in members.values()]
            if mine:
                cells = [library, way, len(mine), *counts, len(mine) - sum(counts)]
                rows.append(f"| {' | '.join(map(str, cells))} |")
    notes = [f"{outcome.capitalize()}: {', '.join(members)}." for outcome, members in names.items()]
    return "\n".join(rows) + "\n\n" + "\n\n".join(notes) + "\n"


def loading(data: dict) -> str:
    rows = ["| ResNet-50 from a file | seconds | peak memory above the imports, MiB |", "| --- | ---: | ---: |"]
    labels = {
        "torchvision": "`resnet50()`, `torch.load` of a .pth, `load_state_dict`",
        "ours": "`rk.load` of a .safetensors file",
    }
    rows += [
        f"| {label} | {data['seconds'][name]:.3f} | {data['peak_mib'][name]:.0f} |" for name, label in labels.items()
    ]
    pairs = f"the median of {data['rounds']} pairs; the file has {data['file_mib']:.0f} MiB"
    text = f"{data['ratio']:.2f} of the time, {pairs}. `python benchmarks/loading.py` measures it again."
    return "\n".join(rows) + f"\n\n{text}\n"


def reading(data: dict) -> str:
    rows = ["| small images from | seconds to open | images/s, random order | peak memory, MiB |"]
    rows.append("| --- | ---: | ---: | ---: |")
    rows += [
        f"| {what} | {row['opened']:.2f} | {row['images_per_second']:,.0f} | {row['peak'] / 1024:,.0f} |"
        for what, row in data["rows"]["sources"].items()
    ]
    run, cores = data["training"], data["environment"]["cores"]
    return "\n".join(rows) + (
        f"\n\n{data['rows']['count']:,} images of 32x32, in one thread. A photograph of 500x400 takes "
        f"{run['read_ms']:.1f} ms of a core to read and {run['learn_ms']:.0f} ms to train on ({run['model']} at "
        f"224x224, {run['precision']}). So on {cores} cores, a single worker is as fast as the network. "
        "`python benchmarks/reading.py` measures it again.\n"
    )


def compatibility(data: dict) -> str:
    def format_row(row: dict) -> str:
        return f"{row['client']} | {row['version']} | {row['outcome']} | {row['details']}"

    lines = table("client | version | outcome | what was tried", "--- | --- | --- | ---", data["rows"], format_row)
    return f"{lines}\ntorch {data['torch']}\n"


def dilation(data: dict) -> str:
    """Return a row for the networks of a library that have the same cause, from best to worst."""
    rows = ["| library | networks | output stride 16 | output stride 8 | |", "| --- | --- | --- | --- | --- |"]
    groups = {}
    for row in data["rows"]:
        groups.setdefault((row["library"], row["cause"] or row["refused"]), []).append(row)
    for (library, cause), mine in groups.items():
        names = ", ".join(dict.fromkeys(row["name"] for row in mine))
        cells = [_spread([row for row in mine if row["output_stride"] == stride]) for stride in (16, 8)]
        rows.append(f"| {library} | {names} | {cells[0]} | {cells[1]} | {cause} |")
    versions = ", ".join(f"{name} {version.split('+')[0]}" for name, version in data["versions"].items())
    sizes = ", ".join(f"{height}x{width}" for height, width in data["sizes"])
    rows.append(f"\nThe largest relative error over images of {sizes}; {versions}.")
    return "\n".join(rows) + "\n" + _describe_catalog(data)


def _spread(rows: list) -> str:
    """Format the lowest and the highest error."""
    if any(row["refused"] for row in rows):
        return "refused"
    errors = sorted(
        {f"{row['error']:.1e}" if row["error"] < 1e-9 else f"{row['error']:.2f}" for row in rows}, key=float
    )
    return " to ".join(dict.fromkeys((errors[0], errors[-1])))


def _describe_catalog(data: dict) -> str:
    """Describe the largest error in the catalog, and the networks that rounding alone changes as much."""
    rows, odd = ([r for r in data["catalog"] if bool(r["own"]) is own] for own in (False, True))
    networks = len({row["name"] for row in data["catalog"]})
    sizes, larger = (" and ".join(f"{h}x{w}" for h, w in pair) for pair in data["catalog_sizes"])
    text = (
        f"\nThe {networks} networks that the catalog had without attention, each at half and a quarter of its output "
        f"stride (16 and 8 of 32, 2 and 1 of CIFAR's 4), images of {sizes}, or {larger} if the last map would be one "
        f"pixel: at most **{max(row['error'] for row in rows):.1e}** in {len(rows)} of {len(rows + odd)} dilated "
        f"networks.\n"
    )
    return text + "".join(_rounded(name, mine) for name, mine in _by_name(odd).items())


def _rounded(name: str, rows: list) -> str:
    errors = " and ".join(f"{row['error']:.1e}" for row in rows)
    return (
        f"\n{name}: {errors}, which the report compares with the effect of rounding. "
        "With these random statistics, rounding alone decides its predictions: without dilation, another memory order "
        f"changes the logits by {rows[0]['own']:.1e}.\n"
    )


def _by_name(rows: list) -> dict:
    return {row["name"]: [candidate for candidate in rows if candidate["name"] == row["name"]] for row in rows}


def surgery(data: dict) -> str:
    head = f"correct of {data['n']:,}"
    rows = [f"| edit | | {head} | same prediction | largest change of a logit | MACs |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in (row for group in data["rows"].values() for row in group):
        count = f"**{row['correct']:,}**" if row["promised"] else f"{row['correct']:,}"
        rows.append(
            f"| {row['edit']} | {row['method']} | {count} | {row['same']:,} | {row['apart']:.1e} | {row['macs']:.2f} |"
        )
    return "\n".join(rows) + "\n"


def kills(data: dict) -> str:
    """Return a row for each setting of a library."""
    rows = ["| library | setting | killed: equal | stopped at a checkpoint: equal | largest difference of a weight | |"]
    rows.append("| --- | --- | ---: | --- | ---: | --- |")
    rows += [_killed(row) for row in data["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    twice = sum(row["same_twice"] for row in data["rows"])
    return "\n".join(rows) + (
        f"\n\nWith {versions}. Undisturbed, {twice} of the {len(data['rows'])} settings gave the same weights twice.\n"
    )


def _killed(row: dict) -> str:
    ends = [*row["killed"], *row["stopped"].values()]
    stopped = ", ".join(f"{where}: {'yes' if end['equal'] else 'no'}" for where, end in row["stopped"].items())
    equal, apart = sum(end["equal"] for end in row["killed"]), max(end["apart"] for end in ends)
    count = f"**{equal}** of {len(row['killed'])}"
    start = f"| {row['library']} {row['version']} | {row['method']} | {count} | {stopped} "
    return f"{start}| {f'{apart:.2g}' if apart else '0'} | {'; '.join(filter(None, (row['note'], _lost(ends))))} |"


def _lost(ends: list) -> str:
    """Describe other losses: images that an epoch skipped, checkpoints that could not be read."""
    most, torn = max(end["missed"] or 0 for end in ends), sum(end["torn"] for end in ends)
    lost = f"up to {most:,} images of an epoch skipped" if most else ""
    return "; ".join(filter(None, (lost, f"{torn} checkpoints could not be read" if torn else "")))


def machine(data: dict, *, whole: bool = False) -> str:
    """Describe the machine of a measurement; with ``whole``, list the features of its processor."""
    environment = data["environment"]
    amx = " with AMX" if any(name.startswith("amx") for name in environment["features"]) else ""
    able = f" ({', '.join(environment['features'])})" if whole else amx
    return f"\n{environment['processor']}, {environment['cores']} cores{able}{_pace(data.get('pace', {}))}.\n"


def _pace(seen: dict) -> str:
    """Describe how much of a shared host was available."""
    if not seen.get("looks"):
        return ""
    shares = f"{seen['fp32']:.0%} (fp32) and {seen['bf16']:.0%} (bf16) of its best observed throughput"
    return f". The host is shared: matrix multiplication reached {shares} (median of {seen['looks']} samples)"


def table(headings: str, form: str, rows: list, format_row: Callable[[dict], str]) -> str:
    """Return a Markdown table of headings, the alignment of columns, and the cells of each row."""
    lines = [headings, form, *map(format_row, rows)]
    return "".join(f"| {line} |\n" for line in lines)


PLAIN = "plain torchvision, eager fp32"


def speed_engines(data: dict) -> str:
    def format_row(row: dict) -> str:
        beside = PLAIN if row["beside"] == "idiom" else row["setting"]
        low, high = row["interval"]
        return (
            f"{row['network']} | {row['precision']} | {row['batch']} | {row['first']:.1f} | {beside} | "
            f"{row['second']:.1f} | **{row['ratio']:.2f}** ({low:.2f} to {high:.2f}) | {at_best(row)}"
        )

    head = (
        "network | precision | batch size | ours, images/s | compared with | its images/s | "
        f"times as fast (95 %) | {AT_BEST}"
    )
    form = "--- | --- | ---: | ---: | --- | ---: | ---: | ---:"
    return table(head, form, data["rows"], format_row) + machine(data, whole=True)


AT_BEST = "best round of each"


def at_best(row: dict) -> str:
    """Format the ratio of the best rounds of both sides, if they are known."""
    return f"{row['best'][0] / row['best'][1]:.2f}" if "best" in row else "-"


def speed_images(data: dict) -> str:
    def format_row(row: dict) -> str:
        pace = f"{row['ours']:.1f}" + (f", {row['with_start']:.1f} with start-up" if "with_start" in row else "")
        return (
            f"{row['network']}, {row['precision']} | {pace} | {row['idiom']:.1f} (batch {row['batch']}) | "
            f"**{row['ratio']:.1f}** | {at_best(row)} | {100 * row['efficiency']:.0f} % | {peaks(row)}"
        )

    head = (
        f"`resnetkit predict`, 2,000 JPEGs | images/s | {PLAIN} | times faster | {AT_BEST} | "
        "fraction of the network's own throughput | peak memory, MiB | plain torchvision's"
    )
    form = "--- | ---: | ---: | ---: | ---: | ---: | ---: | ---:"
    return table(head, form, data["rows"], format_row) + machine(data)


def peaks(row: dict) -> str:
    return f"{row['peak']:.0f} | {row['idiom_peak']:.0f}"


def speed_cold(data: dict) -> str:
    def format_row(row: dict) -> str:
        who, pace = f"{row['network']}, {row['precision']}", f"{row['seconds']:.2f} | {row['idiom']:.2f}"
        return f"{who} | {pace} | **{1 / row['ratio']:.1f}** | {peaks(row)}"

    head = (
        "one JPEG, from starting Python | seconds | a plain torchvision script | times faster | peak memory, MiB | "
        "the script's"
    )
    return table(head, "--- | ---: | ---: | ---: | ---: | ---:", data["rows"], format_row) + machine(data)


def speed_accuracy(data: dict) -> str:
    plain = {row["weights"]: row["correct"] for row in data["rows"] if row["engine"] == "torch"}
    once = {(row["weights"], row["engine"]): row for row in data["rows"]}

    def format_row(row: dict) -> str:
        engine = "the network, fp32" if row["engine"] == "torch" else row["engine"]
        points = 100 * (row["correct"] - plain[row["weights"]]) / row["n"]
        return f"{row['weights']} | {engine} | {row['correct']:,} | {points:+.2f}"

    return table(
        "weights | engine | correct of 10,000 | points", "--- | --- | ---: | ---:", list(once.values()), format_row
    )


def preparing(data: dict) -> str:
    ways = {"decode": "Pillow, full decode alone", "idiom": "full decode, resize, crop", "ours": "ours"}

    def format_row(part: dict) -> str:
        spent = " | ".join(f"{statistics.median(part['ms'][way]):.2f} ms" for way in ways)
        ratios = " | ".join(f"**{beside(part['ms'][way], part['ms']['ours']):.2f}**" for way in ("decode", "idiom"))
        levels = f"{part['levels']['mean']:.2f}, at most {part['levels']['largest_mean']:.2f} for one image"
        return f"{part['images']}, {part['name']} | {spent} | {ratios} | {levels}"

    def beside(theirs: list, own: list) -> float:
        return statistics.median(a / b for a, b in zip(theirs, own, strict=True))

    parts = [{"name": name, **data[name]} for name in ("as they are", "4000x3000")]
    faster = "times as fast as Pillow alone | as decode, resize, crop"
    head = f"photographs | {' | '.join(ways.values())} | {faster} | mean difference, levels"
    return table(head, "--- | ---: | ---: | ---: | ---: | ---: | ---:", parts, format_row)


def flat(data: dict) -> str:
    rows = table(
        "rows | MiB held", "---: | ---:", [data["held"][1], data["held"][-1]], lambda at: f"{at[0]:,} | {at[1]:.0f}"
    )
    who = data["engine"].removeprefix("engine: ")
    return f"{rows}\n`resnetkit predict` of {data['images']:,} small JPEGs ({who}); at most {data['peak']:.0f} MiB.\n"


TABLES = {
    "flat-memory.json": flat,
    "speed-engines.json": speed_engines,
    "speed-pictures.json": speed_images,
    "speed-cold.json": speed_cold,
    "speed-accuracy.json": speed_accuracy,
    "preparing.json": preparing,
    "kills.json": kills,
    "reading.json": reading,
    "dilation.json": dilation,
    "surgery.json": surgery,
    "compatibility.json": compatibility,
    "dialects.json": dialects,
    "sweep.json": sweep,
    "loading.json": loading,
    "two-classes.json": two_classes,
    "training-speed.json": speed,
    "training-results.json": results,
    "fine-tuning.json": fine_tuning,
}


def catalog() -> str:
    rows = ["| name | input | params | MACs | depth | receptive field | published top-1 | source |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, spec in CATALOG.items():
        network_plan, published = plan(spec), PUBLISHED.get(name)
        shape = "x".join(map(str, network_plan.input))
        top1, source = (f"{published.top1:.2f}", published.source) if published else ("", "")
        rows.append(
            f"| {name} | {shape} | {network_plan.params:,} | {network_plan.macs:,} | {network_plan.depth} | "
            f"{network_plan.receptive_field} | {top1} | {source} |"
        )
    return "\n".join(rows) + "\n"


def block(match: re.Match) -> str:
    kind, what = match[2], match[3]
    text = output(what) if kind == "made by" else catalog() if what == "the catalog" else measured(what)
    return match[1] + text + match[4]


def files() -> dict[Path, str]:
    """Return the text of each generated file by its path."""
    pages = {ROOT / page: BLOCK.sub(block, (ROOT / page).read_text()) for page in PAGES}
    drawings = {
        ROOT / "docs" / "pictures" / f"{name}.svg": draw_overview(plan(CATALOG[name]), name) for name in PICTURES
    }
    plans = {name: plan(CATALOG[name]) for name in COMPARED}
    return pages | drawings | {ROOT / "docs" / "pictures" / f"{'-'.join(COMPARED)}.svg": draw_side_by_side(plans)}


if __name__ == "__main__":
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'stale' if '--check' in sys.argv else 'wrote'} {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.write_text(files()[path])
    sys.exit(bool(stale) and "--check" in sys.argv)
