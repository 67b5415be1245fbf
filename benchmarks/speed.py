"""Compare the throughput of prediction with common code and with libraries tuned by hand.

    python benchmarks/speed.py engines  PHOTOS [--network resnet50 ...] [--minutes 3] [--rounds 15] [--save FILE.json]
    python benchmarks/speed.py images   PHOTOS [--network resnet50] [--count 2000] [--minutes 3] [--save FILE.json]
    python benchmarks/speed.py cold     PHOTOS [--network resnet50] [--rounds 9] [--minutes 3] [--save FILE.json]
    python benchmarks/speed.py accuracy DATA --network WEIGHTS ... [--minutes 3] [--save FILE.json]

Weights are random, which does not change the times; accuracy uses trained ones. The idiom is torchvision's network in
evaluation mode: fp32, eager, NCHW, with Pillow, Resize(256), CenterCrop(224), ToTensor and Normalize. Every contender
runs in a process of its own. They take turns, so that other work on the machine disturbs all alike. Ratios are those of
pairs, with a 95 % interval of their median. With `--precision int8` or `bf16`, only that precision is measured.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime sends usage data otherwise
CORES = len(os.sched_getaffinity(0))
SLICE = 1.0  # seconds of a turn
TURNS = 3  # of one pair of processes
BY_HAND = {  # what somebody would try who tunes a library: (setting, precision, batch)
    "openvino": [(f"streams {s}, batch {b}", s, b) for s, b in ((1, 1), (1, 16), (CORES, 4), (CORES, 16))],
    "compile": [(f"batch {b}", 1, b) for b in (1, 32)],
    "onnxruntime": [(f"batch {b}", 1, b) for b in (1, 32)],
}


# ---------------------------------------------------------------------------------------- contenders, each in a process


def idiom(network, setting):
    import torch
    import torchvision

    model = getattr(torchvision.models, network)().eval()
    x = torch.rand(setting["batch"], 3, 224, 224)

    def ask():
        with torch.inference_mode():
            model(x)

    return ask


def openvino(network, setting):
    sys.modules["openvino_telemetry"] = None
    import openvino

    core = openvino.Core()
    graph = core.read_model(setting["file"])
    graph.reshape([setting["batch"], 3, 224, 224])
    config = {"INFERENCE_PRECISION_HINT": "f32" if setting["precision"] == "fp32" else "bf16"}
    config |= {"NUM_STREAMS": setting["streams"], "INFERENCE_NUM_THREADS": CORES}
    queue = openvino.AsyncInferQueue(core.compile_model(graph, "CPU", config), setting["streams"])
    x = np.random.default_rng(0).random((setting["batch"], 3, 224, 224), np.float32)

    def ask():
        for _ in range(setting["streams"]):
            queue.start_async([x], share_inputs=True)
        queue.wait_all()

    return ask


def compiled(network, setting):
    import torch
    import torch._inductor.config as how
    import torchvision

    how.freezing = True
    model = getattr(torchvision.models, network)().eval().to(memory_format=torch.channels_last)
    x = torch.rand(setting["batch"], 3, 224, 224).contiguous(memory_format=torch.channels_last)
    fast = torch.compile(model)

    def ask():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=setting["precision"] == "bf16"):
            fast(x)

    return ask


def onnxruntime(network, setting):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(setting["file"], options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((setting["batch"], 3, 224, 224), np.float32)
    return lambda: session.run(None, {session.get_inputs()[0].name: x})


def ours(network, setting):
    """Return the engine saved for throughput, or that for latency; on all its streams, as predict asks it."""
    from resnetkit.engines.saved import open_engine, read_engines_file
    from resnetkit.optimization.worker import measure_speed

    folder = Path(setting["folder"])
    purpose = "latency" if setting["batch"] == 1 else "throughput"
    engine = open_engine(folder, next(kept for kept in read_engines_file(folder).engines if kept.purpose == purpose))
    pixels = np.random.default_rng(0).integers(0, 256, (2 * engine.config.batch_size, 224, 224, 3), np.uint8)
    return lambda seconds: measure_speed(engine, pixels, seconds)["images_per_second"]


def matmul(network, setting):
    """Nobody's network: what the cores give at this moment, in units (bf16: tiles where there are any) of their own."""
    import torch

    x = torch.randn(2048, 2048, dtype=torch.bfloat16 if setting["precision"] == "bf16" else torch.float32)
    return lambda: x @ x


def turns(ask, per_call):
    """Return a function that predicts for a number of seconds and returns images per second."""

    def turn(seconds):
        calls, begun = 0, time.perf_counter()
        while calls < 2 or time.perf_counter() - begun < seconds:
            ask()
            calls += 1
        return calls * per_call / (time.perf_counter() - begun)

    return turn


CONTENDERS = {"idiom": idiom, "openvino": openvino, "compile": compiled, "onnxruntime": onnxruntime, "ours": ours,
              "matmul": matmul}  # fmt: skip


def serve(network, setting):
    """Ready after the first turn; then a line in (seconds) is a turn, and its pace comes back."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setting = json.loads(setting)
    predict = CONTENDERS[setting["who"]](network, setting)
    at_once = setting["batch"] * (setting.get("streams", 1) if setting["who"] == "openvino" else 1)
    turn = predict if setting["who"] == "ours" else turns(predict, at_once)
    turn(0.0)
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(turn(float(line)), file=replies, flush=True)


class Contender:
    def __init__(self, network, **setting):
        self.setting = setting
        words = [sys.executable, __file__, "serve", network, json.dumps(setting)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{setting} does not run")

    def turn(self, seconds=SLICE):
        """Images per second."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Pace:
    """What the machine gives, looked at between turns: on a shared host others use its cores."""

    def __init__(self):
        self.sides, self.seen = {}, {"fp32": [], "bf16": []}

    def look(self):
        self.sides = self.sides or {kind: Contender("", who="matmul", precision=kind, batch=1) for kind in self.seen}
        for kind, side in self.sides.items():
            self.seen[kind].append(side.turn(SLICE / 4))

    def told(self):
        """Return the number of samples, and of each kind the median as a share of the best."""
        shares = {kind: statistics.median(seen) / max(seen) for kind, seen in self.seen.items() if seen}
        return {"looks": len(self.seen["fp32"]), **shares}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for side in self.sides.values():
            side.close()


def best_of(network, settings):
    """Return the fastest of these, each tried alone for two rounds, and what all of them gave."""
    results = []
    for setting in settings:
        try:
            contender = Contender(network, **setting)
        except RuntimeError:
            continue
        results.append((max(contender.turn(), contender.turn()), setting))
        contender.close()
    return max(results, key=lambda result: result[0]) if results else None


def paired(network, first, second, fresh, host):
    """(median pace of each, median ratio, its 95 % interval), over so many ``fresh`` pairs of processes.

    Where the memory of a process lies changes its pace by some per cent, so one pair of them tells little.
    """
    pairs = []
    for _ in range(fresh):
        sides = [Contender(network, **setting) for setting in (first, second)]
        for _ in range(TURNS):
            host.look()
            pace = {side: side.turn() for side in (sides if len(pairs) % 2 else sides[::-1])}
            pairs.append((pace[sides[0]], pace[sides[1]]))
        for side in sides:
            side.close()
    ratios = [a / b for a, b in pairs]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "first": statistics.median(a for a, _ in pairs),
        "second": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "interval": [medians[49], medians[1949]],
        "best": [max(a for a, _ in pairs), max(b for _, b in pairs)],  # when the machine was quietest for each
    }


# -------------------------------------------------------------------------------------------------------- by hand, once


def export_artifacts(network, photos, work):
    """Export torchvision's network for OpenVINO and ONNX Runtime, fp32 and int8."""
    sys.modules["openvino_telemetry"] = None
    import nncf
    import openvino
    import torch
    import torchvision
    from onnxruntime import quantization

    torch.manual_seed(0)
    model = getattr(torchvision.models, network)().eval()
    program = torch.export.export(model, (torch.rand(2, 3, 224, 224),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    graph = openvino.convert_model(program)
    openvino.save_model(graph, work / "fp32.xml", compress_to_fp16=False)
    given = [x[None] for x in inputs(photos)]
    openvino.save_model(nncf.quantize(graph, nncf.Dataset(given), subset_size=len(given)), work / "int8.xml", False)
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(work / "fp32.onnx"))

    class Reader(quantization.CalibrationDataReader):
        left = iter([{"x": x} for x in given[:50]])

        def get_next(self):
            return next(self.left, None)

    options = {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True}
    quantization.quantize_static(str(work / "fp32.onnx"), str(work / "int8.onnx"), Reader(), **options)


def inputs(photos):
    """Prepare images as the idiom does: (C, H, W), normalized."""
    prepare = transform()
    from PIL import Image

    return [prepare(Image.open(path).convert("RGB")).numpy() for path in photos]


def transform():
    from torchvision import transforms as t

    return t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor(),
                      t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])  # fmt: skip


def by_hand(network, work, precision, batch):
    """Return the fastest of three libraries, tuned for batches of one or of 32 at most."""
    results = []
    for who, ways in BY_HAND.items():
        if who == "onnxruntime" and precision == "bf16":
            continue  # it has no bf16 on CPUs
        if who == "compile" and precision == "int8":
            continue  # its int8 path needs another quantiser, torchao's
        ending = {"openvino": "xml", "onnxruntime": "onnx", "compile": ""}[who]
        kind = "int8" if precision == "int8" else "fp32"
        settings = [
            {"who": who, "batch": b, "streams": s, "precision": precision, "file": str(work / f"{kind}.{ending}")}
            for _, s, b in ways
            if (b == 1 and s == 1 if batch == 1 else b * s <= batch)
        ]
        best = best_of(network, settings)
        results += [best] if best else []
        print(f"  {who}: {best[0]:.1f}/s, {say(best[1])}" if best else f"  {who}: does not run", flush=True)
    return max(results, key=lambda result: result[0])[1]


def say(setting):
    return f"{setting['who']} {setting.get('precision', '')}, batch {setting['batch']} x {setting.get('streams', 1)}"


def optimized(network, photos, work, precision, minutes):
    """Return a model folder that was optimized for this precision."""
    import torch

    import resnetkit as rk

    torch.manual_seed(0)
    folder = rk.save(rk.build(network), work / f"{network}-{precision}")
    names = ["int8", "int8-body"] if precision == "int8" else [precision]
    result = rk.optimize(folder, data=photos, minutes=minutes, precisions=names)
    for kept in result.engines:
        logit_error = kept.measurement.comparison.logit_error
        print(f"  ours for {kept.purpose}: {kept.measurement.config}, logits {logit_error:.1e}", flush=True)
    return folder


def engines(options, photos, work):
    rows = []
    for network in options.network:
        print(f"{network}: what people copy, at its better batch", flush=True)
        plain = best_of(network, [{"who": "idiom", "batch": batch} for batch in (1, 16)])[1]
        export_artifacts(network, photos, (artifacts := Path(tempfile.mkdtemp(dir=work))))
        for precision in options.precision:
            folder = optimized(network, options.photos, artifacts, precision, options.minutes)
            for batch in (1, 32):
                mine = {"who": "ours", "folder": str(folder), "batch": batch}
                rivals = {"idiom": plain if batch > 1 else {"who": "idiom", "batch": 1}}
                rivals["by hand"] = by_hand(network, artifacts, precision, batch)
                for name, setting in rivals.items():
                    row = paired(network, mine, setting, max(1, options.rounds // TURNS), options.host)
                    print(f"{network} {precision} batch {batch}: ours {row['first']:.1f}/s, {name} ({say(setting)}) "
                          f"{row['second']:.1f}/s, ratio {row['ratio']:.2f} "
                          f"({row['interval'][0]:.2f} to {row['interval'][1]:.2f}); both at their best "
                          f"{row['best'][0]:.1f} and {row['best'][1]:.1f}", flush=True)  # fmt: skip
                    rows.append({"network": network, "precision": precision, "batch": batch, "beside": name,
                                  "setting": say(setting), **row})  # fmt: skip
                store(options, rows)
    return rows


def store(options, rows):
    """Save the rows so far, because such a run takes long."""
    if options.save:
        from resnetkit.runtime.environment import collect_environment

        results = {"environment": collect_environment(), "pace": options.host.told(), "rows": rows}
        options.save.write_text(json.dumps(results, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------- from files to labels

IDIOM = """
import sys, time
begun = time.perf_counter()
import torch, torchvision
from PIL import Image
from torchvision import transforms as t
network, weights, batch, *paths = sys.argv[1:]
prepare = t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor(),
                     t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
model = getattr(torchvision.models, network)()
model.load_state_dict(torch.load(weights, weights_only=True))
model.eval()
ready, batch = time.perf_counter(), int(batch)
with torch.inference_mode():
    for i in range(0, len(paths), batch):
        x = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths[i:i + batch]])
        print(*model(x).softmax(1).argmax(1).tolist())
pace = len(paths) / (time.perf_counter() - ready)
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])  # getrusage keeps that of who started it
print(pace, peak / 1024, file=sys.stderr)
"""


def ran(words, **kwargs):
    """(seconds, peak MiB, stderr) of a process."""
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs)
    _, output = process.communicate()
    if process.returncode not in (0,):
        raise SystemExit(f"{words[:4]} gave {process.returncode}: {output}")
    return time.perf_counter() - begun, output


PEAK = (
    "import sys; from resnetkit.cli import main; code = main(sys.argv[1:]); "
    "peak = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024; "
    "print('peak', peak, 'torch' in sys.modules, file=sys.stderr); "
    "sys.exit(code)"
)


def ours_over(folder, paths, work):
    """(seconds of the whole command, peak MiB, whether torch was imported)."""
    words = [sys.executable, "-c", PEAK, "predict", *map(str, paths), "--model", str(folder), "--jsonl"]
    seconds, output = ran(words, cwd=work)
    peak, torch = output.split("peak ")[1].split()[:2]
    return seconds, float(peak), torch == "True"


def idiom_over(network, weights, batch, paths):
    """(images per second once it is ready, seconds of the whole, peak MiB)."""
    seconds, output = ran([sys.executable, "-c", IDIOM, network, str(weights), str(batch), *map(str, paths)])
    pace, peak = map(float, output.split()[-2:])
    return pace, seconds, peak


def prepared(options, photos, work):
    """Weights of torchvision as a file, and a model folder optimized in each precision."""
    import torch
    import torchvision

    torch.manual_seed(0)
    weights = work / "weights.pth"
    torch.save(getattr(torchvision.models, options.network[0])().state_dict(), weights)
    folders = {p: optimized(options.network[0], options.photos, work, p, options.minutes) for p in options.precision}
    return weights, folders


def images(options, photos, work):
    network = options.network[0]
    weights, folders = prepared(options, photos, work)
    paths = list(itertools.islice(itertools.cycle(photos), options.count))
    few = paths[: max(64, options.count // 10)]  # the idiom's pace does not depend on how many there are
    rows = []
    better = max((1, 16), key=lambda batch: idiom_over(network, weights, batch, few[:64])[0])
    for precision, folder in folders.items():
        alone = Contender(network, who="ours", folder=str(folder), batch=32)
        rounds = []
        for _ in range(options.rounds):
            options.host.look()
            net = alone.turn(5.0)
            begun, *_ = ours_over(folder, few, work)  # start-up and a tenth: the rest is as fast as it gets
            seconds, peak, torch = ours_over(folder, paths, work)
            pace, _, their_peak = idiom_over(network, weights, better, few)
            steady = (len(paths) - len(few)) / (seconds - begun)
            rounds.append((steady, len(paths) / seconds, pace, net, peak, their_peak))
        alone.close()
        mine, whole, theirs, net, peak, their_peak = map(statistics.median, zip(*rounds, strict=True))
        ratio = statistics.median(own / theirs for own, _, theirs, *_ in rounds)
        efficiency = statistics.median(own / alone for own, _, _, alone, *_ in rounds)
        row = {
            "network": network,
            "precision": precision,
            "ours": mine,
            "with_start": whole,
            "idiom": theirs,
            "batch": better,
            "alone": net,
            "peak": peak,
            "best": [max(own for own, *_ in rounds), max(theirs for _, _, theirs, *_ in rounds)],
        }
        row |= {"idiom_peak": their_peak, "ratio": ratio, "efficiency": efficiency, "torch": torch}
        print(f"{network} {precision}: {len(paths)} JPEGs to labels {mine:.1f}/s once it is ready, {whole:.1f}/s with "
              f"start-up, the idiom at batch {better} {theirs:.1f}/s once it is ready, ratio {row['ratio']:.2f}; "
              f"network alone {net:.1f}/s, efficiency {row['efficiency']:.2f}; each at its best "
              f"{row['best'][0]:.1f} and {row['best'][1]:.1f}; peak {peak:.0f} MiB, the idiom's "
              f"{their_peak:.0f}; torch imported: {torch}", flush=True)  # fmt: skip
        rows.append(row)
    return rows


def cold(options, photos, work):
    network = options.network[0]
    weights, folders = prepared(options, photos, work)
    rows = []
    for _ in range(options.rounds + 1):
        options.host.look()
        _, theirs, their_peak = idiom_over(network, weights, 1, photos[:1])
        rows.append([(theirs, their_peak), *[ours_over(folder, photos[:1], work)[:2] for folder in folders.values()]])
    rows = []
    for place, precision in enumerate(folders, 1):
        ratio = statistics.median(row[place][0] / row[0][0] for row in rows[1:])
        row = {
            "network": network,
            "precision": precision,
            "seconds": statistics.median(row[place][0] for row in rows[1:]),
            "ratio": ratio,
        }
        row |= {"idiom": statistics.median(row[0][0] for row in rows[1:]), "peak": rows[1][place][1]}
        row |= {"idiom_peak": rows[1][0][1]}
        print(f"{network} {precision}: one JPEG to its label, from nothing {row['seconds']:.2f} s, the idiom's script")
        print(f"  {row['idiom']:.2f} s, ratio {ratio:.2f}; peak {row['peak']:.0f} and {row['idiom_peak']:.0f} MiB")
        rows.append(row)
    return rows


def accuracy(options, photos, work):
    """Exact counts of trained networks, by the plain network and by each precision of OpenVINO."""
    import resnetkit as rk

    rows = []
    for number, weights in enumerate(options.network):
        for precision in options.precision:
            folder = work / f"{number}-{precision}"
            rk.optimize(weights, out=folder, data=options.photos, minutes=options.minutes, engines=["openvino"],
                        precisions=[precision])  # fmt: skip
            rows += [counted(folder, options.photos, name) for name in ("torch", f"openvino-{precision}")]
            print(f"{Path(weights).name} {precision}: {rows[-2]['correct']:,} in fp32, {rows[-1]['correct']:,} of "
                  f"{rows[-1]['n']:,}", flush=True)  # fmt: skip
            rows[-2:] = [{**row, "weights": Path(weights).name} for row in rows[-2:]]
    return rows


def counted(folder, data, engine):
    words = [sys.executable, "-m", "resnetkit", "evaluate", folder, data, "--engine", engine, "--json"]
    result = subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    result = json.loads(result.stdout)
    return {"engine": engine, "correct": result["correct"], "n": result["n"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("engines", "images", "cold", "accuracy"))
    parser.add_argument("photos", type=lambda word: Path(word).resolve())
    parser.add_argument("--network", nargs="+", default=["resnet50"])
    parser.add_argument("--precision", nargs="+", default=["int8", "bf16"], choices=("int8", "bf16"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    with tempfile.TemporaryDirectory() as work, Pace() as options.host:
        store(options, globals()[options.what](options, photos, Path(work)))
    if (pace := options.host.told())["looks"]:
        shares = ", ".join(f"{kind} {pace[kind]:.0%}" for kind in options.host.seen)
        print(f"matrix products, median of {pace['looks']} looks, of the best pace seen: {shares}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        main()
