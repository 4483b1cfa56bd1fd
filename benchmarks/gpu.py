"""What needs a GPU, in eight minutes: training with every objective, speed of pruned models, memory, and GPU tests.

    python benchmarks/gpu.py                        # on the GPU, into benchmarks/results/gpu.json and gpu.md
    python benchmarks/gpu.py --device cpu --tiny    # checks the script in under a minute

Weights and images are random. The most important parts come first. A part is skipped if too little time is left for
it, and ended when the time is over; if one fails, its error is recorded and the next part begins. So results are never
lost.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("denoising", "distillation", "features", "first-order", "2ndmatch")


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """Raise an error inside the block after so many seconds."""

    def end(*_: object) -> None:
        raise RuntimeError("the time was over")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Bench:
    """The device, the sizes, the remaining time, and the results so far."""

    def __init__(self, device: torch.device, tiny: bool, seconds: float, out: Path) -> None:
        self.device, self.tiny, self.out = device, tiny, out
        self.end = time.perf_counter() + seconds
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        self.found: dict[str, Any] = {"device": name, "torch": torch.__version__, "tiny": tiny, "failed": {}}

    @property
    def left(self) -> float:
        return self.end - time.perf_counter()

    def part(self, name: str, seconds: float, measure: Callable[[Bench], Any]) -> None:
        """Run a part that takes about `seconds`, if as many are left, and keep its result; it ends with the time."""
        if self.left < seconds:
            self.found["failed"][name] = f"{self.left:.0f} s were left, it takes {seconds:.0f}"
            return
        begun = time.perf_counter()
        try:
            with ended_after(self.left):
                self.found[name] = measure(self)
        except Exception as error:  # a part that fails must not stop the others
            self.found["failed"][name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self.found.setdefault("seconds", {})[name] = round(time.perf_counter() - begun, 1)
        self.out.write_text(json.dumps(self.found, indent=2) + "\n")
        print(name, json.dumps(self.found.get(name, self.found["failed"].get(name))), flush=True)

    def shapes(self) -> dict[str, nn.Module]:
        """The models, on the device: CIFAR-10's U-Net, DiT-XL/2 and SD 1.5's U-Net, or small ones like them."""
        if self.tiny:
            unet = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8}
            levels = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
            dit = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "sample_size": 8}
            built: dict[str, nn.Module] = {
                "CIFAR-10 U-Net": diffusers.UNet2DModel(**unet, **levels),
                "DiT-XL/2": diffusers.DiTTransformer2DModel(**dit, out_channels=8),
            }
        else:
            attention = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D")
            cifar = {"sample_size": 32, "block_out_channels": (128, 256, 256, 256), "attention_head_dim": None}
            dit = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "sample_size": 32}
            built = {
                "CIFAR-10 U-Net": diffusers.UNet2DModel(
                    **cifar,
                    down_block_types=attention,
                    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
                ),
                "DiT-XL/2": diffusers.DiTTransformer2DModel(**dit, out_channels=8),
                "SD 1.5 U-Net": diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            }
        for model in built.values():
            for parameter in model.parameters():  # output layers are initialized to zero
                nn.init.normal_(parameter, std=0.02)
        return {name: model.to(self.device).eval() for name, model in built.items()}

    def peak(self) -> float:
        """Peak memory in GB since the last call."""
        if self.device.type != "cuda":
            return 0.0
        peak = torch.cuda.max_memory_allocated(self.device) / 1e9
        torch.cuda.reset_peak_memory_stats(self.device)
        return round(peak, 2)


def images_for(model: nn.Module, count: int) -> dict[str, Tensor]:
    """Random samples, and the labels that the model takes."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    sample = torch.rand(count, config.in_channels, config.sample_size, config.sample_size, generator=generator) * 2 - 1
    labels = {"labels": torch.arange(count) % 10} if "num_embeds_ada_norm" in config else {}
    return {"images": sample, **labels}


def samples_for(model: nn.Module, count: int) -> list[dict[str, Any]]:
    """As `images_for`, a sample each."""
    data = images_for(model, count)
    labels = [{"label": int(label)} for label in data["labels"]] if "labels" in data else [{}] * count
    return [{"images": image, **label} for image, label in zip(data["images"], labels, strict=True)]


def train(model: nn.Module, config: secateur.RecoveryConfig, teacher: nn.Module | None, folder: Path) -> dict[str, Any]:
    """Milliseconds of a step, the first and last loss, and the peak memory in the log."""
    secateur.finetune(
        copy.deepcopy(model),
        data=samples_for(model, 4 * config.batch_size),
        teacher=teacher,
        recovery=config,
        process=secateur.DiffusionProcess(),
        out=folder,
    )
    lines = [json.loads(line) for line in (folder / "recovery" / "log.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-1]
    milliseconds = 1000 * (last["seconds"] - first["seconds"]) / max(1, last["step"] - first["step"])
    return {
        "ms": round(milliseconds, 2),
        "first": round(first["loss"], 4),
        "last": round(last["loss"], 4),
        "peak_gib": last["peak_gib"],
    }


def objectives(bench: Bench) -> dict[str, Any]:
    """Each objective in each precision on the CIFAR-10 U-Net, student and teacher of one size."""
    model = bench.shapes()["CIFAR-10 U-Net"]
    precisions = ("no", "bf16") if bench.device.type == "cpu" else ("no", "bf16", "fp16")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        for objective in OBJECTIVES:
            for precision in precisions:
                config = secateur.RecoveryConfig(
                    steps=4 if bench.tiny else 25,
                    batch_size=4 if bench.tiny else 64,
                    objective=objective,
                    mixed_precision=precision,
                    log_every=1 if bench.tiny else 5,
                    grad_norms_every=0,
                    checkpoint_every=10**6,
                )
                name = f"{objective}, {precision}"
                teacher = None if objective == "denoising" else model
                found[name] = train(model, config, teacher, Path(place, name))
    return found


def bare_loop(bench: Bench) -> dict[str, float]:
    """Our trainer beside a loop of only a pass, clipping, AdamW and an average, in bfloat16."""
    model = bench.shapes()["CIFAR-10 U-Net"]
    steps, batch_size = (4, 4) if bench.tiny else (60, 128)
    student = copy.deepcopy(model).train()
    average = [parameter.detach().clone() for parameter in student.parameters()]
    optimizer = torch.optim.AdamW(student.parameters(), 2e-4, fused=True)
    x = images_for(model, batch_size)["images"].to(bench.device)
    target, t = torch.randn_like(x), torch.randint(1000, (batch_size,), device=bench.device)
    begun = 0.0
    for step in range(steps + 10):
        if step == 10:
            synchronize(bench.device)
            begun = time.perf_counter()
        with torch.autocast(bench.device.type, torch.bfloat16):
            loss = F.mse_loss(student(x, t, return_dict=False)[0], target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(student.parameters()), 0.01)
    synchronize(bench.device)
    bare = 1000 * (time.perf_counter() - begun) / steps
    config = secateur.RecoveryConfig(
        steps=steps + 10, batch_size=batch_size, mixed_precision="bf16", log_every=10, grad_norms_every=0
    )
    with tempfile.TemporaryDirectory() as place:
        ours = train(model, config, None, Path(place, "run"))["ms"]
        found = {"bare_ms": round(bare, 2), "trainer_ms": ours, "ratio": round(ours / bare, 3)}
        if not bench.tiny:
            compiled = replace(config, compile=True)
            found["compiled_ms"] = train(model, compiled, None, Path(place, "compiled"))["ms"]
    return found


def speed(bench: Bench) -> dict[str, Any]:
    """Latency of each model and of its half, eager and compiled, at batch 1 and 32, in bfloat16 on a GPU."""
    found: dict[str, Any] = {}
    for name, model in bench.shapes().items():
        half = secateur.prune(
            model, target="macs=70%" if bench.tiny else "macs=50%", criterion="magnitude", process="ddpm"
        )
        dtype = torch.bfloat16 if bench.device.type == "cuda" else torch.float32
        for batch_size in (1, 2 if bench.tiny else 32):
            for compiles in (False,) if bench.tiny else (False, True):
                if bench.left < 60 and not bench.tiny:
                    return found
                times = [latency(bench, each.to(dtype).eval(), batch_size, compiles) for each in (model, half)]
                key = f"{name}, batch {batch_size}, {'compiled' if compiles else 'eager'}"
                found[key] = {
                    "dense_ms": times[0],
                    "half_ms": times[1],
                    "speed_up": round(times[0] / times[1], 3),
                    "peak_gb": bench.peak(),
                }
    return found


@torch.inference_mode()
def latency(bench: Bench, model: nn.Module, batch_size: int, compiles: bool) -> float:
    """Median milliseconds of a call."""
    torch._dynamo.reset()
    call: Any = torch.compile(model) if compiles else model
    inputs = secateur.example_inputs(model, batch_size)
    times = []
    for number in range(4 if bench.tiny else 25):
        synchronize(bench.device)
        begun = time.perf_counter()
        call(**inputs)
        synchronize(bench.device)
        if number >= (2 if bench.tiny else 10):
            times.append(time.perf_counter() - begun)
    return round(1000 * statistics.median(times), 3)


def memory(bench: Bench) -> dict[str, Any]:
    """The count of `recovery_memory` beside the allocator's peak, for the CIFAR-10 U-Net and DiT-XL/2."""
    found: dict[str, Any] = {}
    process = secateur.DiffusionProcess()
    names = ("CIFAR-10 U-Net", "DiT-XL/2")
    ways: dict[str, dict[str, Any]] = {
        "distillation": {},
        "2ndmatch": {"objective": "2ndmatch"},
        "checkpointing": {"gradient_checkpointing": True},
        "offload": {"offload": ("ema", "teacher")},
        "bf16 weights": {"weight_precision": "bf16"},
    }
    models = bench.shapes()
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            for way, changes in ways.items():
                if changes.get("gradient_checkpointing") and "U-Net" in name:
                    continue
                options = {"objective": "distillation", "mixed_precision": "bf16", **changes}
                config = secateur.RecoveryConfig(
                    steps=2, batch_size=4, log_every=1, grad_norms_every=0, checkpoint_every=10**6, **options
                )
                model, teacher = models[name], copy.deepcopy(models[name])
                counted = secateur.recovery_memory(model, teacher, process, config, bench.device)
                measured = train(model, config, teacher, Path(place, f"{name.replace('/', '-')} {way}"))["peak_gib"]
                found[f"{name}, {way}"] = {
                    "counted_gb": round(counted.total / 1e9, 2),
                    "measured_gb": round(measured * 2**30 / 1e9, 2),
                }
    return found


def stages(bench: Bench) -> dict[str, Any]:
    """Rankings of DiT-XL/2 in bfloat16: memory counted and measured, and operations a second by the count of a plan.

    docs/gpu-and-clusters.md predicts times by such counts, and an assumed share of the peak that the maker states.
    """
    model = bench.shapes()["DiT-XL/2"].to(torch.bfloat16)
    count = 2 if bench.tiny else 8
    about: dict[str, Any] = {"data": samples_for(model, count), "process": secateur.DiffusionProcess()}
    ways: dict[str, tuple[str, Any]] = {
        "taylor": ("taylor", secateur.TaylorOptions("abs-then-sum")),
        "gradient flow": ("gradient-flow", secateur.GradientFlowOptions()),
        "gradient flow, streamed": ("gradient-flow", secateur.GradientFlowOptions(hessian_product="streamed")),
    }
    found: dict[str, Any] = {}
    for name, (criterion, options) in ways.items():
        scoring = secateur.ScoringConfig(num_timesteps=count, num_images=count, batch_size=count, options=options)
        asked: dict[str, Any] = {"criterion": criterion, "scoring": scoring}
        counted = secateur.ranking_memory(model, about["process"], criterion, scoring)
        flops = secateur.plan_rank(copy.deepcopy(model).to("meta"), **about, **asked).flops["rank"]
        bench.peak()
        begun = time.perf_counter()
        secateur.rank(model, **about, **asked)
        synchronize(bench.device)
        seconds = time.perf_counter() - begun
        found[name] = {
            "counted_gb": round((counted.peak if counted else 0) / 1e9, 2),
            "measured_gb": bench.peak(),
            "seconds": round(seconds, 2),
            "tflops": round(flops / seconds / 1e12, 1),
        }
    return found


def suite(bench: Bench) -> str:
    """The last line of the tests that need a GPU."""
    selected = ["-q", "-m", "not torture", "-k", "device or cuda or gpu", "tests"]
    command = [sys.executable, "-m", "pytest", *selected]
    root = Path(__file__).resolve().parents[1]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=max(10.0, bench.left - 5))
    return ran.stdout.strip().splitlines()[-1]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(found: dict[str, Any]) -> str:
    """The tables of the results."""
    lines = [f"{found['device']}, torch {found['torch']}", ""]
    tables = {
        "objectives": ("ms", "first", "last", "peak_gib"),
        "speed": ("dense_ms", "half_ms", "speed_up", "peak_gb"),
        "memory": ("counted_gb", "measured_gb"),
        "stages": ("counted_gb", "measured_gb", "seconds", "tflops"),
    }
    for part, columns in tables.items():
        if part in found:
            lines += [f"| {part} | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
            for name, entry in found[part].items():
                lines.append(f"| {name} | " + " | ".join(str(entry[column]) for column in columns) + " |")
            lines.append("")
    lines += [f"{part}: {found[part]}" for part in ("loop", "suite") if part in found]
    lines += [f"not measured: {part}: {reason}" for part, reason in found["failed"].items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps")
    parser.add_argument("--seconds", type=float, default=460)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(torch.device(asked.device), asked.tiny, asked.seconds, asked.out / "gpu.json")
    bench.part("loop", 0 if asked.tiny else 60, bare_loop)
    bench.part("objectives", 0 if asked.tiny else 100, objectives)
    bench.part("memory", 0 if asked.tiny else 60, memory)
    bench.part("stages", 0 if asked.tiny else 40, stages)
    bench.part("speed", 0 if asked.tiny else 90, speed)
    if not asked.tiny:
        bench.part("suite", 40, suite)
    text = report(bench.found)
    (asked.out / "gpu.md").write_text(text)
    print(text)
    return 1 if bench.found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
