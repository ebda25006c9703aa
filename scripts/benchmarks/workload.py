"""The fixed work that every speed comparison does: the same users, model and local steps for every system.

U users hold 50 examples of 1x28x28 each (standard normal, seed 0). A user's local training is one pass in order:
5 SGD steps of batch 10, cross entropy, learning rate 0.1. Its update is clipped to L2 norm 1.0.
`mlp`: 784-64-10, ReLU, 50,890 parameters. `cnn`: the DP-SGD tutorial CNN, tanh, 26,010 parameters.
"""

import torch
from torch import nn

EXAMPLES, BATCH, LR, CLIP = 50, 10, 0.1, 1.0


def model(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def users(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x (count, 50, 1, 28, 28) float32, y (count, 50) int64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, EXAMPLES, 1, 28, 28, generator=generator)
    y = torch.randint(0, 10, (count, EXAMPLES), generator=generator)
    return x, y
