"""Count the bytes that tensors hold, real ones and fake ones without memory."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are made in its block; `peak` is the most after any operation.

    What an operation allocates and frees within itself is not seen. Fake tensors, which cost neither memory nor time,
    are counted like real ones, so a step of any size can be counted on any machine.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        inputs = [tensor.untyped_storage() for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)]
        input_ids = {id(storage) for storage in inputs}  # a storage is one object for as long as it is held
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            # tensors on the meta device have no memory, although they say how much it would be
            if not torch.is_tensor(tensor) or tensor.device.type == "meta":
                continue
            if id(tensor.untyped_storage()) not in input_ids:
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, storage):
        self.live += storage.nbytes()
        weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, count):
        self.live -= count
