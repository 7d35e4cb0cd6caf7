"""PAD-Net (Xu et al. 2018, arXiv 1805.04409): a shared encoder; every task makes features and a first prediction, and
its decoder sees, beside its own features, what it lets through of those of the other tasks."""

from torch import Tensor, nn

from mtrlib.models import stages
from mtrlib.models.network import MultiTaskModel
from mtrlib.tasks import Task

WIDTH = 256  # of the features of a task, at most


class Message(nn.Module):
    """What one task tells another, (B, C, H, W): a convolution of its features, let through by a gate of them."""

    def __init__(self, channels: int):
        super().__init__()
        self.told = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.told(features) * self.gate(features).sigmoid()


class Distillation(nn.Module):
    """Features of all tasks, (B, C, H, W) by letter -> those of some tasks with the messages of all others added."""

    def __init__(self, letters: str, channels: int):
        super().__init__()
        others = {to: nn.ModuleDict({t: Message(channels) for t in letters if t != to}) for to in letters}
        self.messages = nn.ModuleDict(others)

    def forward(self, features: dict[str, Tensor], tasks: str) -> dict[str, Tensor]:
        def received(letter: str) -> Tensor:
            messages = self.messages[letter]
            return sum((messages[t](features[t]) for t in sorted(messages)), start=features[letter])

        return {letter: received(letter) for letter in tasks}


class PADNet(MultiTaskModel):
    """The features of all tasks are made, whichever are asked for; messages go to these only, and first predictions
    are made in training only. The decoders are those of the other models, in place of two bottlenecks and a 1 x 1
    convolution."""

    exchanges = True

    def __init__(
        self,
        encoder: nn.Module,
        decoders: dict[str, nn.Module],
        definitions: dict[str, Task] | None = None,
        *,
        channels: int,
    ):
        super().__init__(encoder, decoders, definitions)
        width = min(WIDTH, channels)
        self.initial = nn.ModuleDict({t: _features(channels, width) for t in self.tasks})
        self.first = nn.ModuleDict({t: nn.Conv2d(width, task.channels, 1) for t, task in self.definitions.items()})
        self.distillation = Distillation(self.tasks, width)

    def decode(self, latent: Tensor, tasks: str, early: list[dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        features = {letter: initial(latent) for letter, initial in self.initial.items()}
        if early is not None:
            early.append({letter: self.first[letter](features[letter]) for letter in tasks})
        distilled = self.distillation(features, tasks)
        return {letter: self.decoders[letter](distilled[letter]) for letter in tasks}


def _features(before: int, after: int) -> nn.Module:
    return nn.Sequential(stages.block(before, after), stages.block(after, after))
