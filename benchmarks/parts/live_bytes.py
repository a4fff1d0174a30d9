"""Counts the bytes that tensors hold, of real ones and of tensors without memory."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within it, `peak` is the most that the storages made within held at a time, after any operation.

    What an operation needs only within itself is not seen. Works on fake tensors too, which cost neither memory nor
    time: a step of any size can be counted on any machine.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # tensors of the meta device have no storage, though they say what it would measure
            if not torch.is_tensor(tensor) or tensor.device.type == "meta":
                continue
            if tensor.untyped_storage()._cdata not in inputs:
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, storage):
        self.live += storage.nbytes()
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, count):
        self.live -= count
