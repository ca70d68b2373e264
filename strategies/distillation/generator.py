"""A proxy set without data: a generator that is trained, every round, to draw what the experts know.

FedFTG (Zhang et al., "Fine-tuning Global Model via Data-Free Knowledge Distillation for Non-IID Federated Learning",
CVPR 2022), section 3.2, whose losses the data-free DisUE uses. Ours: samples that lie where the clients' examples lie,
diversity within a class, and a smaller weight of the adversarial loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from disue.config import Settings
from disue.covariance import looked_at
from disue.models import Classifier, Shape, State, for_torch, get_state
from disue.optimizers import Adam
from strategies.distillation.teachers import Weighing, class_weights, vote
from strategies.stored import stored

LATENT_DIM = 100
WIDTH = 32


class Generator(nn.Module):
    """From noise and a class to an image.

    Parameters
    ----------
    shape : tuple of int
        Channels, height and width of an image.
    num_classes : int
    """

    def __init__(self, shape: Shape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.num_classes = num_classes
        self.small = (-(-height // 4), -(-width // 4))
        self.project = nn.Linear(LATENT_DIM + num_classes, 2 * WIDTH * self.small[0] * self.small[1])
        self.body = nn.Sequential(
            nn.GroupNorm(8, 2 * WIDTH),
            nn.Upsample((-(-height // 2), -(-width // 2))),
            nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, padding=1),
            nn.GroupNorm(8, 2 * WIDTH),
            nn.LeakyReLU(0.2),
            nn.Upsample((height, width)),
            nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1),
            nn.GroupNorm(8, WIDTH),
            nn.LeakyReLU(0.2),
            nn.Conv2d(WIDTH, channels, 3, padding=1),
            nn.Sigmoid(),
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Return images with pixels in 0..1, (samples, channels, height, width).

        ``z``: (samples, 100) noise; ``y``: (samples,) classes.
        """
        code = torch.cat([z, F.one_hot(y, self.num_classes).to(z)], dim=1)
        images: Tensor = self.body(self.project(code).view(-1, 2 * WIDTH, *self.small))
        return images


def fidelity(teacher: Tensor, y: Tensor) -> Tensor:
    """Return the mean cross-entropy (nats) of the teacher's logits, (samples, classes), with the intended classes."""
    return F.cross_entropy(teacher, y)


def adversarial(teacher: Tensor, student: Tensor) -> Tensor:
    """Return minus the mean divergence KL(teacher || student) (nats): the generator looks for where they differ."""
    teacher, student = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
    return -F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def diversity(images: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """Return exp(-10 mean_ij |x_i - x_j| (z_i - z_j)^2): small when different noise gives different images.

    Distances are means over pixels and over the dimensions of the noise. Unlike in FedFTG, the mean is over pairs of
    one class: else images that differ by their class alone, and not within it, are diverse enough. The factor makes
    the exponent about one for images as different as real ones are.
    """
    flat = images.flatten(start_dim=1)
    apart = torch.cdist(flat, flat, p=1) / flat.shape[1]
    noise = torch.cdist(z, z).square() / z.shape[1]
    same_class = y.unsqueeze(0) == y.unsqueeze(1)
    return torch.exp(-10.0 * (apart * noise)[same_class].mean())


def off_centre(features: Tensor, y: Tensor, centres: Tensor, label_counts: Tensor) -> Tensor:
    """Return how far the samples of a class lie from where the clients' examples of it lie, on the mean.

    Zero where, for each class, the mean features of the samples are those of the examples; one where they are as far
    away as the classes are from each other: the mean of |mean_i f_i(y) - c(y)|^2 over the samples, divided by that of
    |c(y) - c|^2 over the examples, c their mean. The same idea as matching the statistics of normalisation layers
    (DeepInversion, Yin et al. 2020, eq. 4), for models without them.

    Parameters
    ----------
    features : (samples, features) tensor
    y : (samples,) tensor
        Classes; samples of one that has no centre do not count.
    centres : (classes, features) tensor
    label_counts : (classes,) tensor
        How many examples each centre is the mean of; zero: there is no centre.
    """
    shares = (label_counts / label_counts.sum()).unsqueeze(1)
    scatter = (shares * (centres - (shares * centres).sum(dim=0)).square()).sum()
    members = F.one_hot(y, len(centres)).to(features) * (label_counts > 0).to(features)
    sizes = members.sum(dim=0)
    means = members.T @ features / sizes.clamp(min=1.0).unsqueeze(1)
    apart = ((means - centres).square().sum(dim=1) * sizes).sum() / sizes.sum().clamp(min=1.0)
    return apart / scatter.clamp(min=1e-12)


class GeneratorSettings(Settings):
    """The generator of proxy sets."""

    generator_steps: int = Field(100, ge=1, le=10**6, description="steps of the generator per round (proxy=generator)")
    generator_batch_size: int = Field(64, ge=2, le=10**6, description="mini-batch of the generator")
    generator_learning_rate: float = Field(0.001, ge=1e-9, le=1e3, description="Adam learning rate of the generator")
    generator_adversarial: float = Field(
        0.1, ge=0.0, le=1e6, description="weight of looking for where student and teacher differ; fidelity has weight 1"
    )
    generator_diversity: float = Field(
        1.0, ge=0.0, le=1e6, description="weight of different images for different noise"
    )
    generator_prototypes: float = Field(
        1.0,
        ge=0.0,
        le=1e6,
        description="weight of images whose features have the clients' prototypes as their means",
    )


@dataclass(frozen=True)
class GeneratorOptions:
    """How a generator is trained each round.

    Parameters
    ----------
    steps : int (default: 100)
    learning_rate : float (default: 0.001)
        Of Adam.
    batch_size : int (default: 64)
    adversarial_weight : float (default: 0.1)
        Beside the fidelity, which has weight 1.
    diversity_weight : float (default: 1.0)
    prototype_weight : float (default: 1.0)
        Of the distance from the clients' prototypes.
    samples : int (default: 2000)
        Size of the proxy set that it draws.
    """

    steps: int = 100
    learning_rate: float = 1e-3
    batch_size: int = 64
    adversarial_weight: float = 0.1
    diversity_weight: float = 1.0
    prototype_weight: float = 1.0
    samples: int = 2000


@dataclass(frozen=True)
class Network:
    """An architecture, and the parameters that it is called with."""

    model: Classifier
    state: State

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits, (samples, classes)."""
        logits: Tensor = functional_call(self.model, for_torch(self.state), (x,))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """Return the body's features, (samples, features)."""
        parts = for_torch(self.state).items()
        own = {name.removeprefix("body."): tensor for name, tensor in parts if name.startswith("body.")}
        features: Tensor = functional_call(self.model.body, own, (x,))
        return features

    def on(self, device: torch.device) -> "Network":
        """Return the network on a device, ready to predict."""
        return Network(self.model.to(device).eval(), {name: tensor.to(device) for name, tensor in self.state.items()})


@dataclass(frozen=True)
class Centres:
    """Where the clients' examples of each class lie in a feature space.

    Attributes
    ----------
    network : Network
        Its body gives the features.
    points : (classes, features) tensor
        The mean features of all clients' examples of each class.
    label_counts : (classes,) tensor
        How many these are.
    """

    network: Network
    points: Tensor
    label_counts: Tensor

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return how far samples lie from them, as `off_centre` does."""
        return off_centre(looked_at(self.network.features(x)), y, self.points, self.label_counts)

    def on(self, device: torch.device) -> "Centres":
        """Return them on a device."""
        return Centres(self.network.on(device), self.points.to(device), self.label_counts.to(device))


@dataclass(frozen=True)
class Experts:
    """What a generator learns from.

    Attributes
    ----------
    networks : list of Network
    label_counts : (experts, classes) tensor
        Training examples per class in each expert's cluster.
    student : Network
        The weighted average, which is to be taught.
    log_priors : (experts, classes) tensor, optional
        What is taken out of the experts' logits.
    centres : sequence of Centres
        In every feature space that clients told of.
    """

    networks: Sequence[Network]
    label_counts: Tensor
    student: Network
    log_priors: Tensor | None = None
    centres: Sequence[Centres] = ()


@stored
@dataclass(frozen=True)
class GeneratorState:
    """What a generator comes to in a round: its parameters, and the state of its optimiser."""

    parameters: State
    optimizer: dict[str, list[Tensor]]


class GeneratorTrainer:
    """Trains a generator. The network and its optimiser are tools: their state goes in and comes out.

    Parameters
    ----------
    generator : Generator
    normalise : callable
        From pixels in 0..1 to what the models take.
    options : GeneratorOptions
    device : torch.device
    """

    def __init__(
        self,
        generator: Generator,
        normalise: Callable[[Tensor], Tensor],
        options: GeneratorOptions,
        device: torch.device,
    ) -> None:
        self.generator = generator.to(device)
        self.normalise = normalise
        self.options = options
        self.device = device
        self.optimizer = Adam(self.generator.parameters())

    @property
    def state(self) -> GeneratorState:
        """A copy of the present state; or what it is to go on from."""
        optimizer = {name: [tensor.clone() for tensor in own] for name, own in self.optimizer.state_dict().items()}
        return GeneratorState(get_state(self.generator), optimizer)

    @state.setter
    def state(self, state: GeneratorState) -> None:
        self.generator.load_state_dict(state.parameters)
        self.optimizer.load_state_dict(state.optimizer)

    def train(self, experts: Experts, rng: torch.Generator) -> dict[str, float]:
        """Train against the experts and return the losses of the last step by name.

        Parameters
        ----------
        experts : Experts
        rng : torch.Generator
            On the CPU; decides noise and classes.
        """
        networks = [network.on(self.device) for network in experts.networks]
        student = experts.student.on(self.device)
        centres = [centre.on(self.device) for centre in experts.centres]
        last: dict[str, Tensor] = {}
        for _ in range(self.options.steps):
            z, y = self.draw_codes(self.options.batch_size, experts.label_counts, rng)
            images = self.generator(z, y)
            x = self.normalise(images)
            logits = torch.stack([network(x) for network in networks])
            teacher = self._vote(logits, y, experts)
            last = {
                "generator_fidelity": fidelity(teacher, y),
                "generator_adversarial": adversarial(teacher, student(x)),
                "generator_diversity": diversity(images, z, y),
            }
            if centres:
                last["generator_prototypes"] = torch.stack([centre.distance(x, y) for centre in centres]).mean()
            loss = (
                last["generator_fidelity"]
                + self.options.adversarial_weight * last["generator_adversarial"]
                + self.options.diversity_weight * last["generator_diversity"]
                + self.options.prototype_weight * last.get("generator_prototypes", torch.zeros(()))
            )
            self.optimizer.step(torch.autograd.grad(loss, self.optimizer.parameters), self.options.learning_rate)
        return {name: float(value.detach()) for name, value in last.items()}

    @torch.no_grad()
    def sample(self, label_counts: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a proxy set on the CPU: inputs as the models take them, and their classes."""
        z, y = self.draw_codes(self.options.samples, label_counts, rng)
        images = [self.generator(z[part], y[part]) for part in torch.arange(len(y)).split(256)]
        return self.normalise(torch.cat(images)).cpu(), y.cpu()

    @torch.no_grad()
    def sheet(self, per_class: int, rng: torch.Generator) -> Tensor:
        """Return pictures with pixels in 0..1, (classes, per class, channels, height, width)."""
        y = torch.arange(self.generator.num_classes).repeat_interleave(per_class).to(self.device)
        z = torch.randn(len(y), LATENT_DIM, generator=rng).to(self.device)
        images: Tensor = self.generator(z, y).cpu()
        return images.view(self.generator.num_classes, per_class, *images.shape[1:])

    def draw_codes(self, count: int, label_counts: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return noise, and classes drawn in proportion to the clusters' examples of them."""
        z = torch.randn(count, LATENT_DIM, generator=rng)
        y = torch.multinomial(label_counts.sum(dim=0), count, replacement=True, generator=rng)
        return z.to(self.device), y.to(self.device)

    def _vote(self, logits: Tensor, y: Tensor, experts: Experts) -> Tensor:
        """Return the class-weighted vote of logits, (experts, samples, classes), on samples of known class."""
        counts = experts.label_counts.to(self.device)
        log_priors = None if experts.log_priors is None else experts.log_priors.to(self.device)
        return vote(logits, Weighing(class_weights(counts, logits, y)), log_priors)
