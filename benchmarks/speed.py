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
TURN_SECONDS = 1.0
TURNS_PER_PAIR = 3  # of one pair of processes
BY_HAND = {  # what a user would try by hand: (description, streams, batch)
    "openvino": [(f"streams {s}, batch {b}", s, b) for s, b in ((1, 1), (1, 16), (CORES, 4), (CORES, 16))],
    "compile": [(f"batch {b}", 1, b) for b in (1, 32)],
    "onnxruntime": [(f"batch {b}", 1, b) for b in (1, 32)],
}


# ---------------------------------------------------------------------------------------- contenders, each in a process


def make_idiom(network, setting):
    import torch
    import torchvision

    model = getattr(torchvision.models, network)().eval()
    x = torch.rand(setting["batch"], 3, 224, 224)

    def predict():
        with torch.inference_mode():
            model(x)

    return predict


def make_openvino(network, setting):
    sys.modules["openvino_telemetry"] = None
    import openvino

    core = openvino.Core()
    graph = core.read_model(setting["file"])
    graph.reshape([setting["batch"], 3, 224, 224])
    config = {"INFERENCE_PRECISION_HINT": "f32" if setting["precision"] == "fp32" else "bf16"}
    config |= {"NUM_STREAMS": setting["streams"], "INFERENCE_NUM_THREADS": CORES}
    queue = openvino.AsyncInferQueue(core.compile_model(graph, "CPU", config), setting["streams"])
    x = np.random.default_rng(0).random((setting["batch"], 3, 224, 224), np.float32)

    def predict():
        for _ in range(setting["streams"]):
            queue.start_async([x], share_inputs=True)
        queue.wait_all()

    return predict


def make_compiled(network, setting):
    import torch
    import torch._inductor.config as inductor_config
    import torchvision

    inductor_config.freezing = True
    model = getattr(torchvision.models, network)().eval().to(memory_format=torch.channels_last)
    x = torch.rand(setting["batch"], 3, 224, 224).contiguous(memory_format=torch.channels_last)
    fast = torch.compile(model)

    def predict():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=setting["precision"] == "bf16"):
            fast(x)

    return predict


def make_onnxruntime(network, setting):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(setting["file"], options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((setting["batch"], 3, 224, 224), np.float32)
    return lambda: session.run(None, {session.get_inputs()[0].name: x})


def make_resnetkit(network, setting):
    """Return the saved engine for throughput, or for latency; it uses all its streams, as in predict."""
    from resnetkit.engines.saved import open_engine, read_engines_file
    from resnetkit.optimization.worker import measure_speed

    folder = Path(setting["folder"])
    purpose = "latency" if setting["batch"] == 1 else "throughput"
    engine = open_engine(folder, next(kept for kept in read_engines_file(folder).engines if kept.purpose == purpose))
    pixels = np.random.default_rng(0).integers(0, 256, (2 * engine.config.batch_size, 224, 224, 3), np.uint8)
    return lambda seconds: measure_speed(engine, pixels, seconds)["images_per_second"]


def make_matmul(network, setting):
    """Return a matrix multiplication, whose speed shows how busy the host is at this moment."""
    import torch

    x = torch.randn(2048, 2048, dtype=torch.bfloat16 if setting["precision"] == "bf16" else torch.float32)
    return lambda: x @ x


def make_timed_loop(predict, per_call):
    """Return a function that predicts for a number of seconds and returns images per second."""

    def run_turn(seconds):
        calls, start = 0, time.perf_counter()
        while calls < 2 or time.perf_counter() - start < seconds:
            predict()
            calls += 1
        return calls * per_call / (time.perf_counter() - start)

    return run_turn


CONTENDERS = {
    "idiom": make_idiom,
    "openvino": make_openvino,
    "compile": make_compiled,
    "onnxruntime": make_onnxruntime,
    "ours": make_resnetkit,
    "matmul": make_matmul,
}


def serve(network, setting):
    """Print ``ready``, then run a turn for each line of stdin (seconds) and print its images per second."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    setting = json.loads(setting)
    predict = CONTENDERS[setting["library"]](network, setting)
    images_per_call = setting["batch"] * (setting.get("streams", 1) if setting["library"] == "openvino" else 1)
    turn = predict if setting["library"] == "ours" else make_timed_loop(predict, images_per_call)
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

    def run_turn(self, seconds=TURN_SECONDS):
        """Run for some seconds and return the images per second."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class HostMonitor:
    """Samples of the speed of the machine between turns: on a shared host others use its cores."""

    def __init__(self):
        self.sides, self.samples = {}, {"fp32": [], "bf16": []}

    def sample(self):
        if not self.sides:
            self.sides = {kind: Contender("", library="matmul", precision=kind, batch=1) for kind in self.samples}
        for kind, side in self.sides.items():
            self.samples[kind].append(side.run_turn(TURN_SECONDS / 4))

    def summarize(self):
        """Return the number of samples, and of each kind the median as a share of the best."""
        shares = {kind: statistics.median(rates) / max(rates) for kind, rates in self.samples.items() if rates}
        return {"looks": len(self.samples["fp32"]), **shares}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for side in self.sides.values():
            side.close()


def find_best_setting(network, settings):
    """Return the images per second and the setting of the fastest contender; each runs alone for two turns."""
    results = []
    for setting in settings:
        try:
            contender = Contender(network, **setting)
        except RuntimeError:
            continue
        results.append((max(contender.run_turn(), contender.run_turn()), setting))
        contender.close()
    return max(results, key=lambda result: result[0]) if results else None


def compare_in_pairs(network, first, second, n_pairs, host):
    """Return the median speed of two settings, the median ratio and its 95 % interval.

    The placement of its memory changes the speed of a process by some percent, so several pairs are needed.

    Args:
        network: The name of the network.
        first: The first setting.
        second: The second setting.
        n_pairs: The number of pairs of processes.
        host: Samples the speed of the machine before each turn.
    """
    pairs = []
    for _ in range(n_pairs):
        sides = [Contender(network, **setting) for setting in (first, second)]
        for _ in range(TURNS_PER_PAIR):
            host.sample()
            pace = {side: side.run_turn() for side in (sides if len(pairs) % 2 else sides[::-1])}
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
        "best": [max(a for a, _ in pairs), max(b for _, b in pairs)],  # at the least busy moment of each
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
    calibration_images = [x[None] for x in prepare_images(photos)]
    quantized = nncf.quantize(graph, nncf.Dataset(calibration_images), subset_size=len(calibration_images))
    openvino.save_model(quantized, work / "int8.xml", False)
    torch.onnx.export(program, dynamo=True, verbose=False).save(str(work / "fp32.onnx"))

    class Reader(quantization.CalibrationDataReader):
        left = iter([{"x": x} for x in calibration_images[:50]])

        def get_next(self):
            return next(self.left, None)

    options = {"quant_format": quantization.QuantFormat.QDQ, "per_channel": True}
    quantization.quantize_static(str(work / "fp32.onnx"), str(work / "int8.onnx"), Reader(), **options)


def prepare_images(photos):
    """Prepare images as the idiom does: (C, H, W), normalized."""
    prepare = make_transform()
    from PIL import Image

    return [prepare(Image.open(path).convert("RGB")).numpy() for path in photos]


def make_transform():
    from torchvision import transforms as t

    return t.Compose([t.Resize(256), t.CenterCrop(224), t.ToTensor(),
                      t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])  # fmt: skip


def tune_by_hand(network, work, precision, batch):
    """Return the fastest of three libraries, tuned for batches of one or of 32 at most."""
    results = []
    for library, variants in BY_HAND.items():
        if library == "onnxruntime" and precision == "bf16":
            continue  # it has no bf16 on CPUs
        if library == "compile" and precision == "int8":
            continue  # its int8 path needs another quantizer (torchao)
        ending = {"openvino": "xml", "onnxruntime": "onnx", "compile": ""}[library]
        kind = "int8" if precision == "int8" else "fp32"
        settings = [
            {
                "library": library,
                "batch": b,
                "streams": s,
                "precision": precision,
                "file": str(work / f"{kind}.{ending}"),
            }
            for _, s, b in variants
            if (b == 1 and s == 1 if batch == 1 else b * s <= batch)
        ]
        best = find_best_setting(network, settings)
        results += [best] if best else []
        print(
            f"  {library}: {best[0]:.1f}/s, {format_setting(best[1])}" if best else f"  {library}: does not run",
            flush=True,
        )
    return max(results, key=lambda result: result[0])[1]


def format_setting(setting):
    return (
        f"{setting['library']} {setting.get('precision', '')}, batch {setting['batch']} x {setting.get('streams', 1)}"
    )


def optimize_network(network, photos, work, precision, minutes):
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


def compare_engines(options, photos, work):
    """Compare the throughput of networks, without decoding, with the idiom and with tuned libraries."""
    rows = []
    for network in options.network:
        print(f"{network}: what people copy, at its better batch", flush=True)
        plain = find_best_setting(network, [{"library": "idiom", "batch": batch} for batch in (1, 16)])[1]
        export_artifacts(network, photos, (artifacts := Path(tempfile.mkdtemp(dir=work))))
        for precision in options.precision:
            folder = optimize_network(network, options.photos, artifacts, precision, options.minutes)
            for batch in (1, 32):
                mine = {"library": "ours", "folder": str(folder), "batch": batch}
                rivals = {"idiom": plain if batch > 1 else {"library": "idiom", "batch": 1}}
                rivals["by hand"] = tune_by_hand(network, artifacts, precision, batch)
                for name, setting in rivals.items():
                    row = compare_in_pairs(
                        network, mine, setting, max(1, options.rounds // TURNS_PER_PAIR), options.host
                    )
                    print(f"{network} {precision} batch {batch}: ours {row['first']:.1f}/s, "
                          f"{name} ({format_setting(setting)}) {row['second']:.1f}/s, ratio {row['ratio']:.2f} "
                          f"({row['interval'][0]:.2f} to {row['interval'][1]:.2f}); both at their best "
                          f"{row['best'][0]:.1f} and {row['best'][1]:.1f}", flush=True)  # fmt: skip
                    rows.append({"network": network, "precision": precision, "batch": batch, "beside": name,
                                  "setting": format_setting(setting), **row})  # fmt: skip
                save_rows(options, rows)
    return rows


def save_rows(options, rows):
    """Save the rows so far, because such a run takes long."""
    if options.save:
        from resnetkit.runtime.environment import collect_environment

        results = {"environment": collect_environment(), "pace": options.host.summarize(), "rows": rows}
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


def run_process(words, **kwargs):
    """Return the seconds and the stderr of a process."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **kwargs)
    _, output = process.communicate()
    if process.returncode not in (0,):
        raise SystemExit(f"{words[:4]} gave {process.returncode}: {output}")
    return time.perf_counter() - start, output


PEAK = (
    "import sys; from resnetkit.cli import main; code = main(sys.argv[1:]); "
    "peak = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024; "
    "print('peak', peak, 'torch' in sys.modules, file=sys.stderr); "
    "sys.exit(code)"
)


def run_resnetkit(folder, paths, work):
    """Return the seconds of the whole command, its peak in MiB, and whether it imported torch."""
    words = [sys.executable, "-c", PEAK, "predict", *map(str, paths), "--model", str(folder), "--jsonl"]
    seconds, output = run_process(words, cwd=work)
    peak, torch = output.split("peak ")[1].split()[:2]
    return seconds, float(peak), torch == "True"


def run_idiom(network, weights, batch, paths):
    """Return the images per second after start-up, the seconds of the whole script, and its peak in MiB."""
    seconds, output = run_process([sys.executable, "-c", IDIOM, network, str(weights), str(batch), *map(str, paths)])
    pace, peak = map(float, output.split()[-2:])
    return pace, seconds, peak


def prepare_models(options, work):
    """Return a weights file of torchvision, and a model folder that was optimized for each precision."""
    import torch
    import torchvision

    torch.manual_seed(0)
    weights = work / "weights.pth"
    torch.save(getattr(torchvision.models, options.network[0])().state_dict(), weights)
    network, photos, minutes = options.network[0], options.photos, options.minutes
    return weights, {name: optimize_network(network, photos, work, name, minutes) for name in options.precision}


def compare_file_reading(options, photos, work):
    """Compare the throughput from JPEG files to labels with the idiom."""
    network = options.network[0]
    weights, folders = prepare_models(options, work)
    paths = list(itertools.islice(itertools.cycle(photos), options.count))
    few = paths[: max(64, options.count // 10)]  # the speed of the idiom does not depend on their number
    rows = []
    better = max((1, 16), key=lambda batch: run_idiom(network, weights, batch, few[:64])[0])
    for precision, folder in folders.items():
        alone = Contender(network, library="ours", folder=str(folder), batch=32)
        rounds = []
        for _ in range(options.rounds):
            options.host.sample()
            net = alone.run_turn(5.0)
            few_seconds, *_ = run_resnetkit(folder, few, work)  # start-up and a tenth of the images
            seconds, peak, torch = run_resnetkit(folder, paths, work)
            pace, _, their_peak = run_idiom(network, weights, better, few)
            steady = (len(paths) - len(few)) / (seconds - few_seconds)
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


def compare_start(options, photos, work):
    """Compare the seconds and the memory from the start of a process to the label of one JPEG."""
    network = options.network[0]
    weights, folders = prepare_models(options, work)
    measurements = []  # per round: (seconds, peak MiB) of the idiom, then of each precision
    for _ in range(options.rounds + 1):
        options.host.sample()
        _, theirs, their_peak = run_idiom(network, weights, 1, photos[:1])
        ours = [run_resnetkit(folder, photos[:1], work)[:2] for folder in folders.values()]
        measurements.append([(theirs, their_peak), *ours])
    rounds, rows = measurements[1:], []  # the first round warms up
    for i, precision in enumerate(folders, 1):
        row = {
            "network": network,
            "precision": precision,
            "seconds": statistics.median(item[i][0] for item in rounds),
            "ratio": statistics.median(item[i][0] / item[0][0] for item in rounds),
            "idiom": statistics.median(item[0][0] for item in rounds),
            "peak": rounds[0][i][1],
            "idiom_peak": rounds[0][0][1],
        }
        print(f"{network} {precision}: one JPEG to its label, from nothing {row['seconds']:.2f} s, the idiom's script")
        print(
            f"  {row['idiom']:.2f} s, ratio {row['ratio']:.2f}; peak {row['peak']:.0f} and {row['idiom_peak']:.0f} MiB"
        )
        rows.append(row)
    return rows


def compare_accuracy(options, photos, work):
    """Count the correct predictions of trained networks, in fp32 and in each precision of OpenVINO."""
    import resnetkit as rk

    rows = []
    for number, weights in enumerate(options.network):
        for precision in options.precision:
            folder = work / f"{number}-{precision}"
            rk.optimize(weights, out=folder, data=options.photos, minutes=options.minutes, engines=["openvino"],
                        precisions=[precision])  # fmt: skip
            rows += [evaluate_engine(folder, options.photos, name) for name in ("torch", f"openvino-{precision}")]
            print(f"{Path(weights).name} {precision}: {rows[-2]['correct']:,} in fp32, {rows[-1]['correct']:,} of "
                  f"{rows[-1]['n']:,}", flush=True)  # fmt: skip
            rows[-2:] = [{**row, "weights": Path(weights).name} for row in rows[-2:]]
    return rows


def evaluate_engine(folder, data, engine):
    words = [sys.executable, "-m", "resnetkit", "evaluate", folder, data, "--engine", engine, "--json"]
    result = subprocess.run(list(map(str, words)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    result = json.loads(result.stdout)
    return {"engine": engine, "correct": result["correct"], "n": result["n"]}


COMPARISONS = {
    "engines": compare_engines,
    "images": compare_file_reading,
    "cold": compare_start,
    "accuracy": compare_accuracy,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=COMPARISONS)
    parser.add_argument("photos", type=lambda word: Path(word).resolve())
    parser.add_argument("--network", nargs="+", default=["resnet50"])
    parser.add_argument("--precision", nargs="+", default=["int8", "bf16"], choices=("int8", "bf16"))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    with tempfile.TemporaryDirectory() as work, HostMonitor() as options.host:
        save_rows(options, COMPARISONS[options.what](options, photos, Path(work)))
    if (pace := options.host.summarize())["looks"]:
        shares = ", ".join(f"{kind} {pace[kind]:.0%}" for kind in options.host.samples)
        print(f"matrix multiplication, median of {pace['looks']} samples, relative to the best one: {shares}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*sys.argv[2:])
    else:
        main()
