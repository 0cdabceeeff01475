"""Speed, measured in the open: one run that times this project beside its peers and checks every answer it times.

The flow: `shapes` says what is computed, `cases` computes it in PyTorch, `workload` exports it and draws its inputs,
the contenders (`ort_contenders`, `torch_contenders`) run it, `clock` times them in turn, `accuracy` judges their
answers, `work` and `ceilings` say what the machine could do, and `measure` puts that together as a `result`.
"""
