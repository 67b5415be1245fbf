"""Random weights and images for networks."""

import torch
from torch import nn


def randomize_norms(model, seed=0):
    """Draw the statistics and weights of all norms, so that no norm is the identity; return it in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def fill_weights(model, seed=0):
    """Fill an empty network from a small pool of random numbers: to draw each of a hundred million takes seconds."""
    pool = torch.randn(100_003, generator=torch.Generator().manual_seed(seed))
    for i, parameter in enumerate(model.parameters()):
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2
        numbers = (scale * pool).roll(i * 997).repeat(parameter.numel() // len(pool) + 1)
        parameter.data.copy_(numbers[: parameter.numel()].reshape(parameter.shape))
    return randomize_norms(model, seed)


def make_images(model, count=2, **kwargs):
    """Return random images (N, C, H, W) of the input size of a network."""
    return torch.randn(count, *model.plan.input, generator=torch.Generator().manual_seed(1), **kwargs)
