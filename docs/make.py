"""Every figure of the documentation, made anew from the code and from what `benchmarks/` measured.

    python docs/make.py            write
    python docs/make.py --check    say which files would change; exit 1 if any

A block behind ``<!-- made by: resnetkit ... -->`` is the output of that command; one behind
``<!-- made from: FILE -->`` is a table of a file in ``docs/measured``, or, of a .txt, what a command printed that needs
weights or trains. Pictures stand in ``docs/pictures``.
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
        for name in ("explain", "training", "models", "data", "weights", "surgery", "exactness", "speed")
    ),
)
COMPARED = ("vgg19", "plain34", "resnet34")
PICTURES = ("resnet18", "resnet50", "plain34", "resnet34", "resnet20")
BLOCK = re.compile(r"(<!-- (made by|made from): (.+?) -->\n)(?:(?!<!-- end -->).)*(<!-- end -->)", re.DOTALL)


def output(command: str) -> str:
    """What a command prints, behind its own line."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(io.StringIO()):
        code = main(shlex.split(command)[1:])
    if code:
        raise SystemExit(f"{command} gave {code}")
    return f"```console\n$ {command}\n{told.getvalue().rstrip()}\n```\n"


def measured(name: str) -> str:
    """A table of what was measured, or what was printed."""
    if name.endswith(".txt"):
        return f"```console\n{(ROOT / 'docs' / 'measured' / name).read_text().rstrip()}\n```\n"
    found = json.loads((ROOT / "docs" / "measured" / name).read_text())
    return TABLES[name.replace(WITHOUT_AMX, "")](found)


WITHOUT_AMX = "-without-amx"  # measured on another machine, of which the page has its table, too


def speed(found: dict) -> str:
    rows = ["| loop | setting | images/s |", "| --- | --- | ---: |"]
    for name, label in (("plain", "a plain loop"), ("ours", "`resnetkit train`")):
        rows.append(f"| {label} | {found[name]['setting']} | {found[name]['images_per_second']:,.0f} |")
    machine, pairs = found["environment"], f"{found['rounds']} pairs of {found['steps']} steps"
    where = f"{machine['cores']} cores ({', '.join(machine['features'])})"
    rows.append(f"\n{found['model']}, batches of {found['batch']}, {where}: **{found['ratio']:.2f}** times as fast, ")
    return "\n".join(rows) + f"the median of {pairs}.\n"


def results(found: list) -> str:
    rows = ["| command | part | right | of | top-1 | minutes |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    rows += [
        f"| `{run['command']}` | {run['part']} | {run['correct']:,} | {run['n']:,} | "
        f"{100 * run['correct'] / run['n']:.2f} % | {run['seconds'] / 60:.1f} |"
        for run in found
    ]
    return "\n".join(rows) + "\n"


def fine_tuning(found: dict) -> str:
    """The mean over seeds, with the lowest and highest."""
    rows = [
        "| start | right of the others, mean (lowest to highest) | epochs | seconds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        shares = [100 * correct / row["n"] for correct in row["correct"]]
        mean, epochs = sum(shares) / len(shares), "/".join(map(str, row["epochs"]))
        told = f"{mean:.1f} % ({min(shares):.1f} to {max(shares):.1f})"
        rows.append(f"| {row['way']} | {told} | {epochs} | {row['seconds']:.0f} |")
    n, seeds = found["rows"][0]["n"], len(found["rows"][0]["correct"])
    return "\n".join(rows) + (
        f"\n\nresnet20 learnt eight classes of CIFAR-10 for {found['base_epochs']} epochs, then {found['pictures']} "
        f"pictures of airplanes and frogs, and was asked about {n:,} others; {seeds} seeds, each with its own parts.\n"
    )


def two_classes(found: dict) -> str:
    rows = ["| command | seconds | its last line |", "| --- | ---: | --- |"]
    rows += [f"| `{row['command']}` | {row['seconds']:.1f} | {row['last']} |" for row in found["rows"]]
    cores = found["environment"]["cores"]
    classes = " and ".join(f"{name}s" for name in found["classes"])
    return "\n".join(rows) + f"\n\nOn {found['pictures']} photographs ({classes} of CIFAR-10), {cores} cores.\n"


def dialects(found: dict) -> str:
    """A row for each library, with the worst of its networks."""
    rows = ["| dialect | reads | writes | proved against | largest relative error of logits | back bit-equal |"]
    rows.append("| --- | --- | --- | --- | ---: | --- |")
    for library, version in found["versions"].items():
        mine = [row for row in found["rows"] if row["library"] == library]
        names, worst = ", ".join(row["name"] for row in mine), max(row["error"] for row in mine)
        equal = f"{sum(row['equal'] for row in mine)} of {len(mine)}"
        rows.append(f"| {library} | yes | yes | {library} {version}: {names} | {worst:.1e} | {equal} |")
    cifar = found["cifar"]
    rows += [f"| {row['library']} | yes | yes | {row['what']} | {row['told']} | {row['equal']} |" for row in cifar]
    return "\n".join(rows) + "\n"


def loading(found: dict) -> str:
    rows = ["| ResNet-50 from a file | seconds | peak memory above the imports, MiB |", "| --- | ---: | ---: |"]
    labels = {
        "torchvision": "`resnet50()`, `torch.load` of a .pth, `load_state_dict`",
        "ours": "`rk.load` of a .safetensors file",
    }
    rows += [
        f"| {label} | {found['seconds'][name]:.3f} | {found['peak_mib'][name]:.0f} |" for name, label in labels.items()
    ]
    pairs = f"the median of {found['rounds']} pairs; the file has {found['file_mib']:.0f} MiB"
    told = f"{found['ratio']:.2f} of the time, {pairs}. `python benchmarks/loading.py` measures it again."
    return "\n".join(rows) + f"\n\n{told}\n"


def reading(found: dict) -> str:
    rows = ["| small pictures from | seconds to open | pictures/s, random order | peak memory, MiB |"]
    rows.append("| --- | ---: | ---: | ---: |")
    rows += [
        f"| {what} | {one['opened']:.2f} | {one['pictures_per_second']:,.0f} | {one['peak'] / 1024:,.0f} |"
        for what, one in found["rows"]["found"].items()
    ]
    run, cores = found["training"], found["environment"]["cores"]
    return "\n".join(rows) + (
        f"\n\n{found['rows']['count']:,} pictures of 32x32, in one thread. Of photographs of 500x400 a picture takes "
        f"{run['read_ms']:.1f} ms of a core to read and {run['learn_ms']:.0f} ms to learn from ({run['model']} at "
        f"224x224, {run['precision']}), so on {cores} cores a single worker keeps up with the network. "
        "`python benchmarks/reading.py` measures it again.\n"
    )


def dilation(found: dict) -> str:
    """A row for the networks of a library that have the same cause, from best to worst."""
    rows = ["| library | networks | output stride 16 | output stride 8 | |", "| --- | --- | --- | --- | --- |"]
    groups = {}
    for row in found["rows"]:
        groups.setdefault((row["library"], row["cause"] or row["refused"]), []).append(row)
    for (library, cause), mine in groups.items():
        names = ", ".join(dict.fromkeys(row["name"] for row in mine))
        cells = [_spread([row for row in mine if row["output_stride"] == stride]) for stride in (16, 8)]
        rows.append(f"| {library} | {names} | {cells[0]} | {cells[1]} | {cause} |")
    versions = ", ".join(f"{name} {version.split('+')[0]}" for name, version in found["versions"].items())
    sizes = ", ".join(f"{height}x{width}" for height, width in found["sizes"])
    rows.append(f"\nThe largest relative error over images of {sizes}; {versions}.")
    return "\n".join(rows) + "\n" + _catalogue(found)


def _spread(rows: list) -> str:
    """The lowest and the highest error."""
    if any(row["refused"] for row in rows):
        return "refused"
    errors = sorted(
        {f"{row['error']:.1e}" if row["error"] < 1e-9 else f"{row['error']:.2f}" for row in rows}, key=float
    )
    return " to ".join(dict.fromkeys((errors[0], errors[-1])))


def _catalogue(found: dict) -> str:
    """The worst network of all, and those of which rounding alone leaves nothing."""
    rows, odd = ([r for r in found["catalogue"] if bool(r["own"]) is own] for own in (False, True))
    networks = len({row["name"] for row in found["catalogue"]})
    sizes, larger = (" and ".join(f"{h}x{w}" for h, w in pair) for pair in found["catalogue_sizes"])
    told = (
        f"\nEvery network of the catalogue without attention, {networks} in all, at half and a quarter of its output "
        f"stride (16 and 8 of 32, 2 and 1 of CIFAR's 4), images of {sizes}, or {larger} where the last map would be a "
        f"pixel: at most **{max(row['error'] for row in rows):.1e}** in {len(rows)} of {len(rows + odd)} dilated "
        f"networks.\n"
    )
    return told + "".join(_rounded(name, mine) for name, mine in _by_name(odd).items())


def _rounded(name: str, rows: list) -> str:
    errors = " and ".join(f"{row['error']:.1e}" for row in rows)
    return (
        f"\n{name}: {errors}, which the report sets beside what rounding alone does. "
        "With these random statistics rounding alone decides its answers: not dilated, its numbers in another order, "
        f"it is {rows[0]['own']:.1e} from itself.\n"
    )


def _by_name(rows: list) -> dict:
    return {row["name"]: [other for other in rows if other["name"] == row["name"]] for row in rows}


def surgery(found: dict) -> str:
    head = f"right of {found['n']:,}"
    rows = [f"| edit | | {head} | the same answer | largest change of a logit | MACs |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in (row for group in found["rows"].values() for row in group):
        count = f"**{row['correct']:,}**" if row["promised"] else f"{row['correct']:,}"
        rows.append(
            f"| {row['edit']} | {row['how']} | {count} | {row['same']:,} | {row['apart']:.1e} | {row['macs']:.2f} |"
        )
    return "\n".join(rows) + "\n"


def kills(found: dict) -> str:
    """A row for each setting of a library."""
    rows = ["| library | setting | killed: equal | stopped at a checkpoint: equal | largest difference of a weight | |"]
    rows.append("| --- | --- | ---: | --- | ---: | --- |")
    rows += [_killed(row) for row in found["rows"]]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    twice = sum(row["same_twice"] for row in found["rows"])
    return "\n".join(rows) + (
        f"\n\nWith {versions}. Undisturbed, {twice} of the {len(found['rows'])} settings gave the same weights twice.\n"
    )


def _killed(row: dict) -> str:
    ends = [*row["killed"], *row["stopped"].values()]
    stopped = ", ".join(f"{where}: {'yes' if one['equal'] else 'no'}" for where, one in row["stopped"].items())
    equal, apart = sum(one["equal"] for one in row["killed"]), max(one["apart"] for one in ends)
    count = f"**{equal}** of {len(row['killed'])}"
    how = f"| {row['library']} {row['version']} | {row['how']} | {count} | {stopped} "
    return f"{how}| {f'{apart:.2g}' if apart else '0'} | {'; '.join(filter(None, (row['note'], _lost(ends))))} |"


def _lost(ends: list) -> str:
    """What went wrong besides: pictures that no step of an epoch saw, checkpoints that could not be read."""
    most, torn = max(one["missed"] or 0 for one in ends), sum(one["torn"] for one in ends)
    lost = f"up to {most:,} pictures of an epoch not seen" if most else ""
    return "; ".join(filter(None, (lost, f"{torn} checkpoints could not be read" if torn else "")))


def machine(found: dict, *, whole: bool = False) -> str:
    """What the figures are of; the ``whole`` of what its processor is able to, once on a page."""
    here = found["environment"]
    amx = " with AMX" * any(name.startswith("amx") for name in here["features"])
    able = f" ({', '.join(here['features'])})" if whole else amx
    return f"\n{here['processor']}, {here['cores']} cores{able}{_pace(found.get('pace', {}))}.\n"


def _pace(seen: dict) -> str:
    """How much of a shared host was there."""
    if not seen.get("looks"):
        return ""
    shares = f"{seen['fp32']:.0%} (fp32) and {seen['bf16']:.0%} (bf16) of the best pace seen"
    return f"; others use them: products of matrices ran at {shares}, the median of {seen['looks']} looks"


def table(headings: str, form: str, found: list, said: Callable[[dict], str]) -> str:
    """Of Markdown: the cells of its head, how each column lies, and what is said of each row."""
    lines = [headings, form, *map(said, found)]
    return "".join(f"| {line} |\n" for line in lines)


PLAIN = "plain torchvision, eager fp32"


def speed_engines(found: dict) -> str:
    def said(row: dict) -> str:
        beside = PLAIN if row["beside"] == "idiom" else row["setting"]
        low, high = row["interval"]
        return (
            f"{row['network']} | {row['precision']} | {row['batch']} | {row['first']:.1f} | {beside} | "
            f"{row['second']:.1f} | **{row['ratio']:.2f}** ({low:.2f} to {high:.2f}) | {at_best(row)}"
        )

    head = (
        "network | precision | pictures at once | ours, images/s | compared with | its images/s | "
        f"times as fast (95 %) | {AT_BEST}"
    )
    form = "--- | --- | ---: | ---: | --- | ---: | ---: | ---:"
    return table(head, form, found["found"], said) + machine(found, whole=True)


AT_BEST = "the same, each at its best"


def at_best(row: dict) -> str:
    """The ratio of the best turns of both sides, if they are known."""
    return f"{row['best'][0] / row['best'][1]:.2f}" if "best" in row else "-"


def speed_pictures(found: dict) -> str:
    def said(row: dict) -> str:
        pace = f"{row['ours']:.1f}" + (f", {row['with_start']:.1f} with start-up" if "with_start" in row else "")
        return (
            f"{row['network']}, {row['precision']} | {pace} | {row['idiom']:.1f} (batch {row['batch']}) | "
            f"**{row['ratio']:.1f}** | {at_best(row)} | {100 * row['efficiency']:.0f} % | {peaks(row)}"
        )

    head = (
        f"`resnetkit predict`, 2,000 JPEGs | images/s | {PLAIN} | times faster | {AT_BEST} | "
        "share of the network's own speed | peak memory, MiB | plain torchvision's"
    )
    form = "--- | ---: | ---: | ---: | ---: | ---: | ---: | ---:"
    return table(head, form, found["found"], said) + machine(found)


def peaks(row: dict) -> str:
    return f"{row['peak']:.0f} | {row['idiom_peak']:.0f}"


def speed_cold(found: dict) -> str:
    def said(row: dict) -> str:
        who, pace = f"{row['network']}, {row['precision']}", f"{row['seconds']:.2f} | {row['idiom']:.2f}"
        return f"{who} | {pace} | **{1 / row['ratio']:.1f}** | {peaks(row)}"

    head = (
        "one JPEG, from starting Python | seconds | a plain torchvision script | times faster | peak memory, MiB | "
        "the script's"
    )
    return table(head, "--- | ---: | ---: | ---: | ---: | ---:", found["found"], said) + machine(found)


def speed_accuracy(found: dict) -> str:
    plain = {row["weights"]: row["correct"] for row in found["found"] if row["engine"] == "torch"}
    once = {(row["weights"], row["engine"]): row for row in found["found"]}

    def said(row: dict) -> str:
        engine = "the network, fp32" if row["engine"] == "torch" else row["engine"]
        points = 100 * (row["correct"] - plain[row["weights"]]) / row["n"]
        return f"{row['weights']} | {engine} | {row['correct']:,} | {points:+.2f}"

    return table("weights | engine | right of 10,000 | points", "--- | --- | ---: | ---:", list(once.values()), said)


def preparing(found: dict) -> str:
    ways = {"decode": "Pillow, full decode alone", "idiom": "the usual way: full decode, resize, crop", "ours": "ours"}

    def said(part: dict) -> str:
        spent = " | ".join(f"{statistics.median(part['ms'][way]):.2f} ms" for way in ways)
        ratios = " | ".join(f"**{beside(part['ms'][way], part['ms']['ours']):.2f}**" for way in ("decode", "idiom"))
        levels = f"{part['levels']['mean']:.2f}, at most {part['levels']['largest_mean']:.2f} for one picture"
        return f"{part['pictures']}, {part['name']} | {spent} | {ratios} | {levels}"

    def beside(theirs: list, own: list) -> float:
        return statistics.median(a / b for a, b in zip(theirs, own, strict=True))

    parts = [{"name": name, **found[name]} for name in ("as they are", "4000x3000")]
    faster = "times as fast as Pillow alone | as the usual way"
    head = f"photographs | {' | '.join(ways.values())} | {faster} | mean difference, levels"
    return table(head, "--- | ---: | ---: | ---: | ---: | ---: | ---:", parts, said)


def flat(found: dict) -> str:
    rows = table(
        "rows | MiB held", "---: | ---:", [found["held"][1], found["held"][-1]], lambda at: f"{at[0]:,} | {at[1]:.0f}"
    )
    who = found["engine"].removeprefix("engine: ")
    return (
        f"{rows}\n`resnetkit predict` of {found['pictures']:,} small JPEGs ({who}); at most {found['peak']:.0f} MiB.\n"
    )


TABLES = {
    "flat-memory.json": flat,
    "speed-engines.json": speed_engines,
    "speed-pictures.json": speed_pictures,
    "speed-cold.json": speed_cold,
    "speed-accuracy.json": speed_accuracy,
    "preparing.json": preparing,
    "kills.json": kills,
    "reading.json": reading,
    "dilation.json": dilation,
    "surgery.json": surgery,
    "dialects.json": dialects,
    "loading.json": loading,
    "two-classes.json": two_classes,
    "training-speed.json": speed,
    "training-results.json": results,
    "fine-tuning.json": fine_tuning,
}


def catalogue(_: str) -> str:
    rows = ["| name | input | params | MACs | depth | receptive field | published top-1 | where |"]
    rows.append("| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, spec in CATALOG.items():
        made, known = plan(spec), PUBLISHED.get(name)
        shape, told = "x".join(map(str, made.input)), (f"{known.top1:.2f}", known.source) if known else ("", "")
        rows.append(
            f"| {name} | {shape} | {made.params:,} | {made.macs:,} | {made.depth} | {made.receptive_field} | "
            f"{told[0]} | {told[1]} |"
        )
    return "\n".join(rows) + "\n"


def block(match: re.Match) -> str:
    kind, what = match[2], match[3]
    made = output(what) if kind == "made by" else catalogue(what) if what == "the catalogue" else measured(what)
    return match[1] + made + match[4]


def files() -> dict[Path, str]:
    """Path -> what should stand there."""
    pages = {ROOT / page: BLOCK.sub(block, (ROOT / page).read_text()) for page in PAGES}
    pictures = {
        ROOT / "docs" / "pictures" / f"{name}.svg": draw_overview(plan(CATALOG[name]), name) for name in PICTURES
    }
    plans = {name: plan(CATALOG[name]) for name in COMPARED}
    return pages | pictures | {ROOT / "docs" / "pictures" / f"{'-'.join(COMPARED)}.svg": draw_side_by_side(plans)}


if __name__ == "__main__":
    stale = [path for path, text in files().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{'stale' if '--check' in sys.argv else 'wrote'} {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.write_text(files()[path])
    sys.exit(bool(stale) and "--check" in sys.argv)
