"""The generator's losses against loops, and a generator against experts that are right."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from disue.models import build_model, get_state
from strategies.distillation.generator import (
    LATENT_DIM,
    Centres,
    Experts,
    Generator,
    GeneratorOptions,
    GeneratorTrainer,
    Network,
    adversarial,
    diversity,
    fidelity,
    off_centre,
)

CPU = torch.device("cpu")


def logits(seed: int, samples: int = 5, classes: int = 4) -> torch.Tensor:
    return torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def shares(row: torch.Tensor) -> list[float]:
    exponentials = [math.exp(float(value)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def test_fidelity_against_a_loop() -> None:
    teacher, y = logits(0), torch.tensor([0, 3, 1, 1, 2])
    expected = -sum(math.log(shares(row)[int(label)]) for row, label in zip(teacher, y, strict=True)) / 5
    assert float(fidelity(teacher, y)) == pytest.approx(expected, rel=1e-5)


def test_adversarial_against_a_loop() -> None:
    teacher, student = logits(1), logits(2)
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(shares(t), shares(s), strict=True))
    assert float(adversarial(teacher, student)) == pytest.approx(-total / 5, rel=1e-5)
    assert float(adversarial(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)


def test_diversity_against_a_loop() -> None:
    g = torch.Generator().manual_seed(3)
    images, z = torch.rand(4, 2, 3, 3, generator=g), torch.randn(4, 6, generator=g)
    y = torch.tensor([0, 1, 0, 0])
    total = 0.0
    for i in range(4):
        for j in range(4):
            apart = sum(abs(float(a) - float(b)) for a, b in zip(images[i].flatten(), images[j].flatten(), strict=True))
            noise = sum((float(a) - float(b)) ** 2 for a, b in zip(z[i], z[j], strict=True))
            total += (apart / 18) * (noise / 6) if y[i] == y[j] else 0.0
    assert float(diversity(images, z, y)) == pytest.approx(math.exp(-10.0 * total / (3 * 3 + 1)), rel=1e-5)
    assert float(diversity(torch.ones_like(images), z, y)) == 1.0  # all the same


def test_off_centre_against_a_loop() -> None:
    g = torch.Generator().manual_seed(7)
    features, centres = torch.randn(6, 5, generator=g), torch.randn(4, 5, generator=g)
    y, counts = torch.tensor([0, 3, 0, 1, 2, 0]), torch.tensor([10.0, 30.0, 0.0, 20.0])
    centre = [sum(n * c for n, c in zip(counts.tolist(), column, strict=True)) / 60 for column in centres.T.tolist()]
    scatter = 0.0
    for n, own in zip(counts.tolist(), centres.tolist(), strict=True):
        scatter += n / 60 * sum((a - b) ** 2 for a, b in zip(own, centre, strict=True))
    total = 0.0
    for i, label in enumerate(y.tolist()):
        if counts[label] == 0:
            continue  # nobody told where the class lies
        alike = [j for j in range(6) if y[j] == y[i]]
        mean = [sum(float(features[j, f]) for j in alike) / len(alike) for f in range(5)]
        total += sum((a - b) ** 2 for a, b in zip(mean, centres[label].tolist(), strict=True))
    assert float(off_centre(features, y, centres, counts)) == pytest.approx(total / 5 / scatter, rel=1e-5)
    assert float(off_centre(centres[y], y, centres, counts)) == 0.0


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 5, 9)])
def test_sizes(shape: tuple[int, int, int]) -> None:
    with torch.no_grad():
        images = Generator(shape, 4)(torch.randn(3, LATENT_DIM), torch.tensor([0, 3, 1]))
    assert images.shape == (3, *shape)
    assert 0.0 <= float(images.min()) < float(images.max()) <= 1.0


def trainer(options: GeneratorOptions, classes: int = 3) -> GeneratorTrainer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GeneratorTrainer(Generator((1, 8, 8), classes), lambda x: 2.0 * x - 1.0, options, CPU)


def test_classes_are_drawn_in_proportion_to_the_clusters_examples() -> None:
    counts = torch.tensor([[30.0, 0.0, 10.0], [0.0, 0.0, 40.0]])
    _, y = trainer(GeneratorOptions()).draw_codes(20000, counts, torch.Generator().manual_seed(0))
    found = torch.bincount(y, minlength=3) / len(y)
    assert found.tolist() == pytest.approx([0.375, 0.0, 0.625], abs=0.02)


def experts_of_brightness() -> tuple[torch.nn.Module, Experts]:
    """Two experts for classes 0 and 1, who call bright images 1; the student calls everything 0."""
    model = build_model("mlp", (1, 8, 8), 3)
    x = torch.cat([torch.full((64, 1, 8, 8), value) for value in (-0.8, 0.8)])
    x = x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0] * 64 + [1] * 64)
    student = get_state(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    counts = torch.tensor([[50.0, 10.0, 0.0], [10.0, 50.0, 0.0]])
    return model, Experts([Network(model, get_state(model))] * 2, counts, Network(model, student))


def test_it_learns_to_draw_what_the_experts_recognise() -> None:
    model, experts = experts_of_brightness()
    made = trainer(GeneratorOptions(steps=60, samples=200, adversarial_weight=0.1))
    rng = torch.Generator().manual_seed(2)
    first = made.train(experts, rng)
    model.load_state_dict(experts.networks[0].state)
    x, y = made.sample(experts.label_counts, rng)
    assert x.shape == (200, 1, 8, 8)
    assert float((model(x).argmax(dim=1) == y).double().mean()) > 0.95
    assert first["generator_fidelity"] < 0.3
    assert first.keys() == {"generator_fidelity", "generator_adversarial", "generator_diversity"}


def test_it_goes_on_from_where_the_last_round_left_it() -> None:
    _, experts = experts_of_brightness()
    for seed in range(3):
        made, rng = trainer(GeneratorOptions(steps=20)), torch.Generator().manual_seed(seed)
        first, warm = (made.train(experts, rng)["generator_fidelity"] for _ in range(2))
        assert warm < first / 2


def test_samples_come_to_lie_where_the_clients_examples_lie() -> None:
    """Both draw what the experts recognise; only the one that is told draws what has the clients' features."""
    model, experts = experts_of_brightness()
    state = experts.networks[0].state
    examples = torch.cat([torch.full((8, 1, 8, 8), value) for value in (-0.5, 0.5)])
    model.load_state_dict(state)
    with torch.no_grad():
        means = [model.body(examples[:8]).mean(dim=0), model.body(examples[8:]).mean(dim=0)]
    counts = torch.tensor([60.0, 60.0, 0.0])
    centres = Centres(Network(model, state), torch.stack([*means, torch.zeros_like(means[0])]), counts)
    experts = replace(experts, centres=[centres])
    apart = []
    for weight in (0.0, 1.0):
        made = trainer(GeneratorOptions(steps=60, samples=300, adversarial_weight=0.1, prototype_weight=weight))
        rng = torch.Generator().manual_seed(2)
        made.train(experts, rng)
        x, y = made.sample(experts.label_counts, rng)
        with torch.no_grad():
            apart.append(float(centres.distance(x, y)))
    assert apart[1] < 0.5 * apart[0]


def test_different_noise_gives_different_images() -> None:
    _, experts = experts_of_brightness()
    spreads = []
    for weight in (0.0, 5.0):
        made = trainer(GeneratorOptions(steps=60, adversarial_weight=0.0, diversity_weight=weight))
        made.train(experts, torch.Generator().manual_seed(2))
        sheet = made.sheet(16, torch.Generator().manual_seed(3))
        assert sheet.shape == (3, 16, 1, 8, 8)
        spreads.append(float(sheet.std(dim=1).mean()))
    assert spreads[1] > spreads[0]


def test_equal_seeds_give_equal_samples_and_the_experts_stay_as_they_are() -> None:
    _, experts = experts_of_brightness()
    before = [tensor.clone() for tensor in experts.networks[0].state.values()]
    samples = []
    for _ in range(2):
        made, rng = trainer(GeneratorOptions(steps=5, samples=10)), torch.Generator().manual_seed(4)
        made.train(experts, rng)
        samples.append(made.sample(experts.label_counts, rng)[0])
    assert torch.equal(*samples)
    assert all(torch.equal(old, new) for old, new in zip(before, experts.networks[0].state.values(), strict=True))


def test_it_learns_from_experts_of_different_architectures() -> None:
    """The vote is the class-weighted mean of what each says with its own architecture, taken here one by one."""
    models = [build_model(name, (1, 8, 8), 3, seed=5) for name in ("mlp", "cnn")]
    states = [get_state(model) for model in models]
    counts = torch.tensor([[30.0, 5.0, 10.0], [10.0, 15.0, 10.0]])
    networks = [Network(model, state) for model, state in zip(models, states, strict=True)]
    made = trainer(GeneratorOptions(steps=1, batch_size=6, adversarial_weight=0.0))
    z, y = made.draw_codes(6, counts, torch.Generator().manual_seed(6))
    with torch.no_grad():
        x = 2.0 * made.generator(z, y) - 1.0
        said = [model.eval()(x) for model in models]
    expected = 0.0
    for i, label in enumerate(y.tolist()):
        vote = sum(counts[k, label] / counts[:, label].sum() * said[k][i] for k in range(2))
        expected -= math.log(shares(vote)[label]) / 6
    losses = made.train(Experts(networks, counts, networks[1]), torch.Generator().manual_seed(6))
    assert losses["generator_fidelity"] == pytest.approx(expected, rel=1e-4)
