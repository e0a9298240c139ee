"""What a user of PyTorch would write, from the definitions alone.

Needs torch, as ``pip install 'mujax[bench]'`` brings it; :func:`available` says whether
it is there. Kernels lie as PyTorch has them: (out, in, kh, kw) and (out, in).
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def available() -> bool:
    """Whether torch is installed."""
    return importlib.util.find_spec("torch") is not None


def device() -> str:
    """Where torch computes: a GPU if it sees one."""
    torch = _torch()
    return "cuda" if torch.cuda.is_available() else "cpu"


def finished(function: Callable[[], Any]) -> Callable[[], Any]:
    """A run that returns only when the device has done it."""
    torch = _torch()

    def run():
        found = function()
        if device() == "cuda":
            torch.cuda.synchronize()
        return found

    return run


def tensors(arrays: Sequence[Any]) -> list[Any]:
    """Arrays on torch's device; kernels HWIO and (in, out) turn to PyTorch's order."""
    torch = _torch()
    orders = {2: (1, 0), 4: (3, 2, 0, 1)}
    turned = [
        np.array(np.transpose(a, orders[a.ndim]) if a.ndim in orders else a)
        for a in map(np.asarray, arrays)
    ]
    return [torch.from_numpy(a).to(device()) for a in turned]


def mask_by_sorting(scores: Sequence[Any], fraction: float) -> list[Any]:
    """The largest scores of all tensors, by the rank of each: a double argsort."""
    torch = _torch()
    flat = torch.cat([s.flatten() for s in scores])
    ranks = torch.argsort(torch.argsort(flat, descending=True))
    kept = (ranks < int(fraction * flat.numel())).split([s.numel() for s in scores])
    return [k.view_as(s) for k, s in zip(kept, scores, strict=True)]


def mask_by_kth_value(scores: Sequence[Any], fraction: float) -> list[Any]:
    """The scores above the k-th of all; what ties with it stays out."""
    torch = _torch()
    flat = torch.cat([s.flatten() for s in scores])
    rest = flat.numel() - int(fraction * flat.numel())
    bar = flat.kthvalue(rest).values
    return [s > bar for s in scores]


def bases(kernels: Sequence[Any], energy: float) -> list[tuple[Any, Any]]:
    """Left and right singular vectors that hold a share of each kernel's energy.

    A convolution is an out × kh·kw matrix for each input channel, which share the
    largest of their ranks.
    """
    return [_basis(_matrices(k), energy) for k in kernels]


def low_rank_basis(matrix: Any, rank: int) -> tuple[Any, Any]:
    """Left and right singular vectors by torch's randomised range finder."""
    torch = _torch()
    left, _, right = torch.svd_lowrank(matrix, q=rank + 10, niter=2)
    return left[:, :rank], right[:, :rank]


def resnet18(width: int, classes: int = 10) -> Any:
    """He et al.'s ResNet-18 for small images: a 3×3 stem and no pooling before."""
    nn = _torch().nn

    def convolution(inputs, outputs, size, stride):
        padding = size // 2
        layer = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.first = convolution(inputs, outputs, 3, stride)
            self.second = convolution(outputs, outputs, 3, 1)
            same = stride == 1 and inputs == outputs
            self.shortcut = (
                nn.Identity() if same else convolution(inputs, outputs, 1, stride)
            )

        def forward(self, x):
            y = self.second(self.first(x).relu())
            return (y + self.shortcut(x)).relu()

    blocks, inputs = [], width
    for stage in range(4):
        outputs = width * 2**stage
        blocks += [Block(inputs, outputs, 2 if stage else 1)]
        blocks += [Block(outputs, outputs, 1)]
        inputs = outputs
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(convolution(3, width, 3, 1), nn.ReLU(), *blocks, *head)


def training_step(width: int, images: Any, labels: Any, half: bool) -> Callable:
    """A run that takes one step of SGD with momentum and returns the loss.

    Args:
      width: channels of the ResNet-18's stem.
      images: NHWC, NumPy.
      labels: int, NumPy.
      half: compute in bfloat16 under autocast.
    """
    torch = _torch()
    model = resnet18(width).to(device()).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    x = x.to(device()).contiguous(memory_format=torch.channels_last)
    y = torch.from_numpy(labels.astype(np.int64)).to(device())

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device(), torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return finished(step)


def _torch() -> Any:
    """The package, where it is installed; nothing else here needs it to be."""
    return importlib.import_module("torch")


def _matrices(kernel: Any) -> Any:
    """A kernel as matrices (B, m, n)."""
    if kernel.ndim == 2:
        return kernel[None]
    return kernel.permute(1, 0, 2, 3).flatten(2)


def _basis(matrices: Any, energy: float) -> tuple[Any, Any]:
    """Singular vectors (B, m, r) and (B, n, r)."""
    torch = _torch()
    left, sigma, right = torch.linalg.svd(matrices, full_matrices=False)
    held = torch.cumsum(sigma**2, 1)
    rank = int((held < energy * held[:, -1:]).sum(1).max()) + 1
    return left[..., :rank], right.mT[..., :rank]
