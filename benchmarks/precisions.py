"""Size, speed and outputs of a pruned and recovered model in several precisions, compared with float32.

    python benchmarks/precisions.py
    python benchmarks/precisions.py --models fashion-unet --target macs=50% --steps 200

int8 and float8 are torchao's, for the weights of linear layers: pip install 'secateur[int8]'. Latency is that of this
machine, with all precisions timed in turn; without kernels for a precision, a machine is slower in it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

import secateur
from bench import EVALUATION, RECOVERY, RESULTS, Bench, write_json, write_text

PRECISIONS = ("bfloat16", "int8", "float8")
METRICS = ("latency", "loss", "output-error", "consistency", "frechet")


def measure(name: str, target: str, steps: int, rounds: int, precisions: tuple[str, ...]) -> list[dict[str, object]]:
    """One row per precision."""
    bench = Bench(name)
    pruned = bench.pruned(bench.rank("magnitude"), target)
    model = bench.recovered(pruned, replace(RECOVERY, steps=steps))
    latency = secateur.LatencyOptions(rounds=rounds, batch_sizes=(1, 32))
    result = secateur.evaluate(
        model,
        data=bench.data,
        process=bench.process,
        evaluation=replace(EVALUATION, metrics=METRICS, latency=latency, num_images=500),
        precisions=precisions,
    )
    print(result, flush=True)
    rows: list[dict[str, object]] = []
    for precision, found in result.models.items():
        compared = {key: found[key].value for key in ("output_error", "ssim") if key in found.estimates}
        rows.append(
            {
                "model": name,
                "precision": "float32" if precision == result.reference else precision,
                "weights_MB": round(found.weights_bytes / 1e6, 2),
                "ms_batch_1": round(found.latency["1"].median_ms, 2),
                "ms_batch_32": round(found.latency["32"].median_ms, 1),
                "output_error": f"{compared.get('output_error', 0.0):.1e}",
                "ssim": round(compared.get("ssim", 1.0), 4),
                "fd": round(found["fd"].value, 2),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-sit", "fashion-unet"])
    parser.add_argument("--target", default="macs=50%")
    parser.add_argument("--steps", type=int, default=200, help="of recovery")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    rows = [
        row
        for name in arguments.models
        for row in measure(name, arguments.target, arguments.steps, arguments.rounds, tuple(arguments.precisions))
    ]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(arguments)}
    write_json(RESULTS / "precisions.json", {"environment": about, "rows": rows})
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows]
    write_text(RESULTS / "precisions.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
