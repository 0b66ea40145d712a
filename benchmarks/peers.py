"""ResNet-20 and its training in plain PyTorch, written as usual, to compare imae with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut that takes every second pixel and appends zero channels."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.stride, self.added_channels = stride, width - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added_channels))
        return F.relu(y + x)


def resnet(depth: int = 20) -> nn.Module:
    """The net of prototxt/models/resnet.py, shortcut A."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for width in WIDTHS:
        for block in range((depth - 2) // 6):
            layers.append(Block(inputs, width, 2 if width > 16 and block == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def training_step(
    batch: int,
    depth: int = 20,
    channels_last: bool = False,
    compiled: bool = False,
    device: str = "cpu",
    reduced: torch.dtype | None = None,
) -> Callable[[], None]:
    """A function that runs one iteration of SGD on a fixed batch: it reads no data and logs nothing.

    reduced   the type of autocast; None: single precision
    """
    net = resnet(depth).to(device)
    images = torch.randn(batch, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)
    if channels_last:
        net, images = (
            net.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device, reduced, enabled=reduced is not None):
            scores = net(x)
        return F.cross_entropy(scores.float(), y)

    loss = torch.compile(loss_of) if compiled else loss_of

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(images, labels).backward()
        optimizer.step()

    return step


def operations(depth: int, batch: int) -> int:
    """Multiplications and additions of a training iteration: one forward pass, and twice that backward."""
    total, inputs, size = 16 * 27 * 1024, 16, 32
    for width in WIDTHS:
        for block in range((depth - 2) // 6):
            size //= 2 if width > 16 and block == 0 else 1
            total += (inputs + width) * width * 9 * size * size
            inputs = width
    return 2 * 3 * (total + 640) * batch
