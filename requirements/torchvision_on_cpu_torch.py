"""Makes torchvision's ordinary wheel importable beside the CPU-only build of torch, which has no torchvision of its own.

The wheel's compiled operators do not load there, and torchvision fails at import because it describes two of them that then do not exist.
This declares the two, without an implementation, just before torchvision is imported: its transforms work, and a call of an operator
says that it has none. `make test-vllm` puts this file into site-packages, with a `.pth` file that imports it when Python starts; so it must
not import torch itself.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


class _BeforeTorchvision:
    """Finds no module; declares the operators when torchvision is looked for."""

    def find_spec(self, name: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.library = library  # the declaration lives as long as this object
            sys.modules[__name__].library = library  # type: ignore[attr-defined]
        return None


sys.meta_path.insert(0, _BeforeTorchvision())  # type: ignore[arg-type]
