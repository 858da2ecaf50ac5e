"""The tasks of the training study, and one whose layers differ in size."""

from __future__ import annotations

from examples.study.digits import digits
from examples.study.resnet import resnet
from examples.study.tasks import TASKS as STUDIED
from examples.study.tasks import Task

RESNET = Task(
    "resnet",
    "Digits, ResNet",
    resnet,
    digits,
    600,
    64,
    "sgd",
    0.1,
    5e-4,
    2e-3,
    ("stem", "head"),
    "accuracy",
)
TASKS = {"cnn": STUDIED["cnn"], "resnet": RESNET, "vit": STUDIED["vit"], "gpt": STUDIED["gpt"]}
#: Allocation needs layers to choose between.
ALLOCATED = ("resnet", "vit", "gpt")
