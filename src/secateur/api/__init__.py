"""The library's functions over objects in memory, folders and hub ids alike; each is a command, too.

Each takes

- a `model`: a folder, a hub id, a module, a pipeline, or what `load` returned;
- `data`: a path, tensors, a sequence, a data set or a loader, or the word `generated` for samples of the dense model;
- the arguments of `NetworkArguments`, such as `process` (how the model was trained) and `device`.

With `out` a function writes what its command writes. Without it nothing is written but the checkpoints of a recovery,
in a temporary folder. Nothing is printed unless `progress` is True.
"""
