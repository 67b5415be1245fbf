"""A saved model that says it was trained."""

from dataclasses import replace

import torch

import resnetkit as rk

from helpers.tiny import BASE

CLASSES = ("daisy", "rose", "tulip")


def save_trained_model(folder, seed=0):
    """Save a small network whose card says that it is trained and whose norms are not the identity."""
    torch.manual_seed(seed)
    model = rk.build(BASE, classes=CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
    model.card = replace(model.card, origin="trained for this test")
    return rk.save(model, folder)
