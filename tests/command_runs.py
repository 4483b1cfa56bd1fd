"""Folders of small models, and short commands on them."""

from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler

import secateur
from models import dit, unet
from secateur.cli import main

QUICK = [
    *("--scoring.num-timesteps", "4", "--scoring.num-images", "8"),
    *("--recovery.batch-size", "8", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"),
    *("--evaluation.num-images", "12", "--evaluation.num-inference-steps", "2", "--evaluation.latency.rounds", "2"),
]
RANKED = QUICK[:4]


def saved_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    ddpm = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}
    flow = dict(FlowMatchEulerDiscreteScheduler().config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    secateur.save_pretrained(unet(), folder / "unet", ddpm)
    secateur.save_pretrained(dit(), folder / "sit", flow)
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder / "pipeline")
    return folder


def compress(model, out, *more):
    main(
        [
            "compress",
            str(model),
            "--target",
            "macs=60%",
            "--data",
            "digits",
            "--out",
            str(out),
            "--recipe",
            "diff-pruning",
            "--steps",
            "4",
            *QUICK,
            *more,
        ]
    )
