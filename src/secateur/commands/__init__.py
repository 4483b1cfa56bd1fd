"""The commands: each file parses, calls the function of the same name in `api` or `runs`, and prints."""

COMMANDS = {
    "quickstart": "the whole job on a small embedded model, offline, in two minutes",
    "compress": "prune a model to a target, recover what that cost, evaluate, and write a report",
    "best": "find the recipe that suits a model, within a budget, and compress by it",
    "sweep": "compress one model in many ways, and compare",
    "recipes": "the named recipes, and one of them as a file to start from",
    "inspect": "what a model is, and what can be removed from it",
    "rank": "which units and blocks matter least",
    "prune": "cut a model to a target in one shot, without recovery",
    "compensate": "refit a pruned model to its dense one in closed form, without training",
    "record": "a dense model's answers, written once for recoveries that read them",
    "finetune": "recover a pruned model, or train any model further",
    "evaluate": "sizes, speed, samples and distances of a model, alone or against another",
    "sample": "draw images",
    "report": "write the report of a run again, or compare several",
    "encode": "latents and text embeddings of a data set, ahead of the other commands",
    "convert": "an original DiT or SiT checkpoint as a diffusers pipeline",
    "export": "a model as a file for another runtime",
    "slice-lora": "a LoRA of a dense model for the model that was pruned from it",
    "completion": "a script by which the shell completes commands and options",
    "check-structure": "does the declaration of a model's structure tell the truth?",
}
