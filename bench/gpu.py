"""Everything that needs a GPU, in parts; each part writes its table before the next begins.

    make gpu                # one H100-class card, some 8 minutes → figures/gpu.<card>.<part>.csv
    make gpu SHAPE=tiny     # the same parts at toy size, on a CPU too

A part is a process with a time limit of its own, so that one which fails or runs out of time loses only itself. Where
kedit's dependencies are installed but kedit is not: `PYTHONPATH=.:tests python3 bench/gpu.py`.
"""

import argparse
import re
import subprocess
import sys
import time
import warnings
from itertools import product
from pathlib import Path
from unittest.mock import patch

import llama_shape
import pandas as pd
import speed
import torch

import kedit_lib as kedit
from kedit_lib.analysis.runs import outcome, setting_of, tidy
from kedit_lib.editing.engine import Suffix

SECONDS = {"tests": 60, "shape": 150, "batch": 160, "streams": 110}  # on one H100-class card
TESTS = ["tests/test_gpu.py", "tests/models/test_model.py"]  # those that hold tests marked "gpu"
STREAMS = [f"{name}{rho}" for rho in ("-rho2", "") for name in ("memit", "rome", "memit-share", "pmet", "memit-mass")]
CARD = re.sub(r"[^A-Za-z0-9]+", "-", speed.device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def tests(shape: str, out: Path, until: float) -> None:
    """Exact restore, originals on the host, smaller batches when memory is short, float32 targets on bf16 weights."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *TESTS]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    passed = sum(map(int, re.findall(r"(\d+) passed", done.stdout)))
    save([{"part": "tests", "exit code": done.returncode, "passed": passed}], "tests", out)
    if done.returncode:
        raise SystemExit(done.returncode)


def shape(shape: str, out: Path, until: float) -> None:
    """Seconds per edit, peak memory and roofline at Llama-2-7B's shape, and how far apart repeated runs are there."""
    model, edits = llama_shape.made_up(shape)
    methods, moments = llama_shape.methods_with_moments(model)
    save(repeats(model, methods, moments, edits[0]), "repeats", out)
    save(replay(model, methods, moments, edits), "replay", out)
    for table in llama_shape.large(shape, model, methods, moments, edits):  # a limit of time loses no row
        save(table, "shape", out)


def batch(shape: str, out: Path, until: float) -> None:
    """A batch of 1,000 by MEMIT at Llama-2-7B's shape: seconds per edit, peak memory and roofline."""
    model, edits = llama_shape.made_up(shape)
    for table in llama_shape.large(shape, model, *llama_shape.methods_with_moments(model), edits, batch=True):
        save(table, "batch", out)


def repeats(model, methods, moments, edit) -> list[dict]:
    """How far apart three runs of the same edit are on this device: atomic additions take sums in no fixed order."""
    rows = []
    for name, method in methods.items():
        found, given = [], {"moments": moments, "contexts": llama_shape.made_up_contexts(5, ["and"])}
        for _ in range(3):
            deltas = method.apply(model, [edit], **given).deltas.values()
            found.append(torch.cat([delta.flatten().double().cpu() for delta in deltas]))
            model.restore()
        far = [speed.relative(x, found[0]) for x in found]
        rows += [{"method": name, "run": i, "relative difference": x} for i, x in enumerate(far)]
    return rows


def replay(model, methods, moments, edits, n=3) -> list[dict]:
    """Single edits with their steps replayed as CUDA graphs, and launched one kernel at a time."""
    rows, weights = [], sum(p.numel() * p.element_size() for p in model.hf.parameters()) / 2**30
    for method in methods.values():
        paths, row = speed.Paths(model, method, moments, llama_shape.made_up_contexts(5, ["and"])), {}
        for how, replays in {"replayed": True, "launched": False}.items():
            with patch.object(Suffix, "replays", replays), speed.Peak(model.device) as memory:
                paths.ours(edits[:1])
                found = [paths.ours([edit]) for edit in edits[1 : n + 1]]
            row[f"s/edit {how}"] = sum(seconds for seconds, _ in found) / n
            row.setdefault("peak over weights, GiB", memory.mb / 1024 - weights)
        steps = found[0][1].targets[0].steps
        rows.append({"model": model.name, "method": method.name, "steps": steps} | row)
    return rows


def streams(shape: str, out: Path, until: float) -> None:
    """The real model's edit sequences, order by order, until the time is up. What is not finished resumes next time."""
    tiny, device = shape == "tiny", "cuda" if torch.cuda.is_available() else "cpu"
    profile, given = ("smoke", {"n_edits": 2, "batch_sizes": [1, 2]}) if tiny else ("smollm2", {"device": device})
    real, rows = kedit.Bench(profile, progress=False, **given), []
    for order, name in product(real.profile.orders, STREAMS[:1] if tiny else STREAMS):
        if time.time() > until:
            print(f"streams: no time for {name}, order {order}; the same command goes on from here")
            return
        run = real.run(name, order)
        real.commit(name, order, out / "data")
        labels = dict(zip(("stream", "setting"), setting_of(name), strict=True))
        labels = {"model": real.label, **labels, "order": order}
        rows.append(labels | outcome(tidy(run, **labels)))
        save(rows, "streams", out)


def save(rows, part: str, out: Path) -> None:
    speed.save(pd.DataFrame(rows).assign(card=CARD), f"gpu.{CARD}.{part}.csv", out)


PARTS = {"tests": tests, "shape": shape, "batch": batch, "streams": streams}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-2-7b", choices=llama_shape.SHAPES)
    parser.add_argument("--part", choices=PARTS, help="this part alone, in this process")
    parser.add_argument("--out", type=Path, default=speed.FIGURES, help="folder of the tables")
    args = parser.parse_args(argv)
    if args.part:
        warnings.simplefilter("ignore")
        try:
            PARTS[args.part](args.shape, args.out, time.time() + 0.8 * SECONDS[args.part])
        except kedit.KeditError as error:
            print(f"kedit: {error}")
            return 1
        return 0
    failed = []
    for part, seconds in SECONDS.items():
        command = [sys.executable, __file__, "--shape", args.shape, "--out", str(args.out), "--part", part]
        try:
            code = subprocess.run(command, timeout=seconds * (4 if args.shape == "tiny" else 1), check=False).returncode
        except subprocess.TimeoutExpired:
            code = "out of time"
        print(f"part {part}: {'done' if code == 0 else code}", flush=True)
        failed += [part] if code else []
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
