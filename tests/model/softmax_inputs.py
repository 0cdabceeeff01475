"""Sees in which dtype a module runs its softmax: on a CPU the values alone do not tell."""

import torch


class SoftmaxInputs(torch.overrides.TorchFunctionMode):
    """Remembers the dtype of every torch.softmax's input while it is active."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.softmax:
            self.dtypes.append(args[0].dtype)
        return function(*args, **(kwargs or {}))
