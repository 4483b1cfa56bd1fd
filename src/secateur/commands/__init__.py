"""The commands: each file parses, calls the function of the same name in `api` or `runs`, and prints."""

COMMANDS = {
    "quickstart": "do all of it on a small embedded model, offline, in two minutes",
    "compress": "prune a model to a target, recover what that cost, evaluate, and write a report",
    "best": "find the recipe that suits a model, within a budget, and compress by it",
    "sweep": "compress one model in many ways, and compare",
    "recipes": "list the named recipes, or write one as a file to start from",
    "inspect": "show a model's size, and what can be removed from it",
    "rank": "score units and blocks by how much they matter",
    "prune": "cut a model to a target in one shot, without recovery",
    "compensate": "refit a pruned model to its dense one in closed form, without training",
    "record": "write a dense model's answers once, for recoveries that train on them",
    "finetune": "recover a pruned model, or train any model further",
    "evaluate": "measure size, speed and sample quality of a model, alone or against another",
    "sample": "draw images",
    "report": "write the report of a run again, or compare several",
    "encode": "compute latents and text embeddings of a data set, ahead of the other commands",
    "convert": "convert an original DiT or SiT checkpoint to a diffusers pipeline",
    "export": "write a model as a file for another runtime",
    "slice-lora": "cut a LoRA of a dense model to fit the model that was pruned from it",
    "completion": "print a script that lets the shell complete commands and options",
    "check-structure": "check the declared structure of a model against its outputs",
}

# Those that write into a folder, and go on from what is there.
RESUMING = frozenset(
    {
        "quickstart",
        "compress",
        "best",
        "sweep",
        "rank",
        "prune",
        "compensate",
        "record",
        "finetune",
        "evaluate",
        "sample",
        "encode",
    }
)
