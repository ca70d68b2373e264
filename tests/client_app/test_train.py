import hashlib
import hmac
import re
import struct

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from tests_support import numbered_classes
from torch import nn

from client_app.client import LocalClient, own_model
from client_app.describe import BATCH, DESCRIPTIONS, early_signature, make_signature
from client_app.train import train
from disue.config import ClientConfig
from disue.covariance import covariance_within, covariances_of_strata, from_triangle, looked_at
from disue.data import ClientData, Examples
from disue.errors import ConfigError
from disue.models import State, build_model, flatten, get_state, num_parameters
from disue.nodes import NodeConfig
from disue.objective import PLAIN, LocalObjective
from disue.signature import SignatureParts
from strategies.distillation.server import Server

CPU = torch.device("cpu")
TASK = numbered_classes(3)


def node(partition: int, partitions: int, model: str | None = None) -> NodeConfig:
    return NodeConfig(partition_id=partition, num_partitions=partitions, model=model)


def test_a_clients_own_model_is_the_node_configs_then_the_listed_ones_then_the_runs() -> None:
    config = ClientConfig(model="resnet18", client_models="mlp,cnn")
    assert own_model(node(1, 2, model="resnet18"), config) == "resnet18"
    assert own_model(node(1, 2), config) == "cnn"
    assert own_model(node(1, 2), ClientConfig(model="mlp")) == "mlp"
    with pytest.raises(ConfigError, match="^model in the node config: 'mpl' does not exist .*'mlp'.*; choose from mlp"):
        own_model(node(0, 2, model="mpl"), config)


def examples(count: int = 40, classes: int = 3) -> Examples:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (count,), generator=g)
    x = torch.randn(count, 1, 4, 4, generator=g) + y.view(-1, 1, 1, 1)
    return Examples(x, y)


def trained(
    config: ClientConfig,
    seed: int = 0,
    data: Examples | None = None,
    objective: LocalObjective = PLAIN,
    anchor: State | None = None,
) -> tuple[nn.Module, float, int]:
    model, rng = build_model("mlp", (1, 4, 4), 3), torch.Generator().manual_seed(seed)
    result = train(model, data or examples(), config, objective, rng, CPU, TASK, anchor=anchor)
    return model, result.loss, result.steps


def test_one_full_batch_step_is_gradient_descent() -> None:
    config = ClientConfig(local_epochs=1, batch_size=1000, momentum=0.0, weight_decay=0.01, learning_rate=0.1)
    data = examples()
    reference = build_model("mlp", (1, 4, 4), 3)
    nn.functional.cross_entropy(reference(data.x), data.y).backward()
    with torch.no_grad():
        for p in reference.parameters():
            p -= 0.1 * (p.grad + 0.01 * p)
    model, _, steps = trained(config)
    assert steps == 1
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)


def test_proximal_term_against_autograd() -> None:
    config = ClientConfig(local_epochs=3, batch_size=1000, momentum=0.0, learning_rate=0.05)
    data = examples()
    reference = build_model("mlp", (1, 4, 4), 3)
    anchor = [p.detach().clone() for p in reference.parameters()]
    for _ in range(3):
        reference.zero_grad()
        penalty = sum(((p - a) ** 2).sum() for p, a in zip(reference.parameters(), anchor, strict=True))
        (nn.functional.cross_entropy(reference(data.x), data.y) + 0.7 / 2.0 * penalty).backward()
        with torch.no_grad():
            for p in reference.parameters():
                p -= 0.05 * p.grad
    model, _, _ = trained(config, objective=LocalObjective(prox_mu=0.7))
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_a_proximal_term_to_another_model_than_the_start() -> None:
    config = ClientConfig(local_epochs=2, batch_size=1000, momentum=0.0, learning_rate=0.05)
    data, reference = examples(), build_model("mlp", (1, 4, 4), 3)
    anchor = get_state(build_model("mlp", (1, 4, 4), 3, seed=5))
    for _ in range(2):
        reference.zero_grad()
        penalty = sum(((p - anchor[name]) ** 2).sum() for name, p in reference.named_parameters())
        (nn.functional.cross_entropy(reference(data.x), data.y) + 0.7 / 2.0 * penalty).backward()
        with torch.no_grad():
            for p in reference.parameters():
                p -= 0.05 * p.grad
    model, _, _ = trained(config, objective=LocalObjective(prox_mu=0.7), anchor=anchor)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_first_the_head_alone_and_then_the_body_alone() -> None:
    config = ClientConfig(local_epochs=2, batch_size=1000, momentum=0.9, learning_rate=0.05)
    data, reference = examples(), build_model("mlp", (1, 4, 4), 3)
    for part, epochs in ((reference.head, 3), (reference.body, 2)):
        optimizer = torch.optim.SGD(part.parameters(), lr=0.05, momentum=0.9)
        for _ in range(epochs):
            reference.zero_grad()
            nn.functional.cross_entropy(reference(data.x), data.y).backward()
            optimizer.step()
    model, _, steps = trained(config, objective=LocalObjective(head_epochs=3))
    assert steps == 5
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-4)


def test_a_large_mu_keeps_the_client_near_its_start() -> None:
    start = flatten(list(get_state(build_model("mlp", (1, 4, 4), 3)).values()))

    def moved(mu: float) -> float:
        model, _, _ = trained(ClientConfig(local_epochs=5, momentum=0.0), objective=LocalObjective(prox_mu=mu))
        return float((flatten(list(get_state(model).values())) - start).norm())

    assert moved(20.0) < 0.5 * moved(0.0)


def test_the_balanced_loss_is_cross_entropy_on_shifted_logits() -> None:
    data = examples()
    config = ClientConfig(local_epochs=1, batch_size=1000, momentum=0.0, learning_rate=0.1)
    reference = build_model("mlp", (1, 4, 4), 3)
    counts = np.bincount(data.y.numpy(), minlength=3) + 0.1
    shift = torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)
    nn.functional.cross_entropy(reference(data.x) + shift, data.y).backward()
    with torch.no_grad():
        for p in reference.parameters():
            p -= 0.1 * p.grad
    model, _, _ = trained(config, objective=LocalObjective("balanced"))
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-4)


def test_the_balanced_loss_takes_the_prior_out() -> None:
    """With inputs that tell nothing, plain training learns the label shares and balanced training does not."""
    y = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    data = Examples(torch.zeros(100, 1, 4, 4), y)
    config = {"local_epochs": 300, "batch_size": 100, "learning_rate": 0.1}
    plain, _, _ = trained(ClientConfig(**config), data=data)
    balanced, _, _ = trained(ClientConfig(**config), data=data, objective=LocalObjective("balanced"))
    with torch.no_grad():
        torch.testing.assert_close(plain(data.x[:1]).log_softmax(1)[0], TASK.log_prior(y), atol=0.05, rtol=0.0)
        assert float(balanced(data.x[:1]).softmax(1).max()) < 0.36


def test_the_seed_alone_decides() -> None:
    config = ClientConfig(local_epochs=2, batch_size=8)
    torch.manual_seed(0)
    first, _, _ = trained(config, seed=5)
    torch.manual_seed(1)
    again, _, _ = trained(config, seed=5)
    other, _, _ = trained(config, seed=6)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("count", "batch_size", "epochs", "steps"), [(40, 16, 2, 6), (5, 32, 3, 3), (1, 1, 1, 1)])
def test_steps_are_counted(count: int, batch_size: int, epochs: int, steps: int) -> None:
    _, loss, counted = trained(ClientConfig(local_epochs=epochs, batch_size=batch_size), data=examples(count))
    assert counted == steps
    assert np.isfinite(loss)


def test_signature_is_counts_and_class_means() -> None:
    data, model = examples(20, classes=2), build_model("mlp", (1, 4, 4), 3, 1)
    signature = make_signature(model, data, CPU, TASK)
    assert signature.label_counts.tolist() == np.bincount(data.y.numpy(), minlength=3).tolist()
    with torch.no_grad():
        features = model.body(data.x)
    for label in range(2):
        torch.testing.assert_close(signature.prototypes[label], features[data.y == label].mean(dim=0))
    assert torch.equal(signature.prototypes[2], torch.zeros(64))


@pytest.mark.parametrize("share_label_counts", [True, False])
def test_the_covariance_is_that_of_the_examples_around_the_mean_of_their_class(share_label_counts: bool) -> None:
    data, model = examples(20, classes=2), build_model("mlp", (1, 4, 4), 3, 1)
    assert make_signature(model, data, CPU, TASK).covariance is None
    signature = make_signature(model, data, CPU, TASK, share_label_counts, covariance="all")
    assert signature.covariance is not None
    with torch.no_grad():
        features = model.body(data.x).double().numpy()
    for label in range(2):
        features[data.y.numpy() == label] -= features[data.y.numpy() == label].mean(axis=0)
    expected = np.cov(features.T, bias=True)
    np.testing.assert_allclose(signature.covariance.numpy(), expected[np.triu_indices(64)], atol=1e-6)
    assert set(signature.label_counts.tolist()) == ({0.0, 1.0} if not share_label_counts else {0.0, 9.0, 11.0})


def test_of_many_features_the_covariance_is_that_of_a_projection_that_keeps_lengths() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 512, generator=rng), torch.zeros(50, dtype=torch.int64)
    means = x.mean(dim=0, keepdim=True)
    basis = looked_at(torch.eye(512))
    torch.testing.assert_close(basis.T @ basis, torch.eye(128), atol=1e-5, rtol=0.0)
    found = from_triangle(covariance_within(x, y, means))
    expected = np.cov((x @ basis).double().numpy().T, bias=True)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    assert torch.equal(looked_at(x[:, :128]), x[:, :128])


def test_of_so_many_classes_that_no_axis_of_each_has_room_one_covariance_is_told() -> None:
    task, model = numbered_classes(100), build_model("lenet", (1, 28, 28), 100)
    data = Examples(torch.randn(200, 1, 28, 28), torch.arange(200) % 100)
    told = make_signature(model, data, CPU, task, covariance="axes").covariance
    asked = SignatureParts(100, "axes").covariance_shape(model.state_dict())
    assert told is not None
    assert told.shape == asked == (84 * 85 // 2,)
    assert told.numel() <= num_parameters(model.state_dict()) / 10


def test_the_covariance_of_each_class_is_the_unbiased_one_and_nothing_for_a_single_example() -> None:
    data, model = examples(20, classes=2), build_model("mlp", (1, 4, 4), 4, 1)
    y = data.y.clone()
    y[0] = 3
    signature = make_signature(model, Examples(data.x, y), CPU, numbered_classes(4), covariance="each")
    with torch.no_grad():
        features = model.body(data.x).double().numpy()
    assert signature.covariance is not None
    for label in range(2):
        expected = np.cov(features[y.numpy() == label].T, ddof=1)
        np.testing.assert_allclose(from_triangle(signature.covariance[label]).numpy(), expected, atol=1e-6)
    assert not signature.covariance[2:].any()


def test_the_covariance_of_each_class_is_of_all_features() -> None:
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    found = from_triangle(covariances_of_strata(x, torch.zeros(50, dtype=torch.int64), x.mean(dim=0, keepdim=True)))
    np.testing.assert_allclose(found[0].numpy(), np.cov(x.double().numpy().T, ddof=1), atol=1e-5)


def test_what_is_told_of_early_features_is_their_means_and_covariance_in_the_servers_space() -> None:
    data, server = examples(40, classes=2), Server(TASK, "mlp", CPU, 7)
    initial = build_model("mlp", (1, 4, 4), 3, 7)
    told = early_signature(initial, data, CPU, TASK, 20, covariance=True)
    seen = server.early_features(data.x, 20).double().numpy()
    assert told.label_counts.tolist() == TASK.count_strata(data.y).tolist()
    off = seen.copy()
    for label in (0, 1):
        of_class = data.y.numpy() == label
        np.testing.assert_allclose(told.prototypes[label].numpy(), seen[of_class].mean(axis=0), atol=1e-6)
        off[of_class] -= seen[of_class].mean(axis=0)
    assert told.prototypes[2].tolist() == [0.0] * 20
    assert told.covariance is not None
    np.testing.assert_allclose(from_triangle(told.covariance).numpy(), off.T @ off / 40, atol=1e-6)
    assert early_signature(initial, data, CPU, TASK, 20, covariance=False).covariance is None


def test_initial_prototypes_are_those_less_the_clients_mean_and_the_roots_of_the_shares() -> None:
    data, model = examples(20, classes=2), build_model("mlp", (1, 4, 4), 3, 2)
    signature = make_signature(model, data, CPU, TASK)
    shares, points = signature.label_counts.numpy() / 20, signature.prototypes.numpy()
    described = DESCRIPTIONS["initial-prototypes"](model, data, CPU, TASK)
    with torch.no_grad():
        mean = model.body(data.x).mean(dim=0).numpy()
    expected = np.sqrt(shares)[:, None] * (points - mean)
    assert described.shape == (3, 65)
    np.testing.assert_allclose(
        described[:, :64].numpy(), expected / np.linalg.norm(expected) / np.sqrt(2), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(described[:, 64].numpy(), np.sqrt(shares / 2), atol=1e-6)
    assert float(described.norm()) == pytest.approx(1.0, abs=1e-6)


def test_initial_prototypes_of_one_class_are_that_prototype() -> None:
    data, model = examples(20, classes=1), build_model("mlp", (1, 4, 4), 3, 2)
    described = DESCRIPTIONS["initial-prototypes"](model, data, CPU, TASK)
    point = make_signature(model, data, CPU, TASK).prototypes[0]
    torch.testing.assert_close(described[0, :64], point / point.norm() / 2**0.5)
    assert described[:, 64].tolist() == pytest.approx([0.5**0.5, 0.0, 0.0])


def test_the_anchor_gradient_is_that_of_the_loss_and_may_tell_classes_alone() -> None:
    """In batches as at once; by labels nothing but which there are, if that is wished."""
    data, model = examples(BATCH + 30), build_model("mlp", (1, 4, 4), 3, 2)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(flatten(torch.autograd.grad(loss, list(model.parameters()))), dim=0)

    told = DESCRIPTIONS["anchor-gradient"](model, data, CPU, TASK)
    torch.testing.assert_close(told[0], gradient(nn.functional.cross_entropy(model(data.x), data.y)), atol=1e-6, rtol=0)
    few = [nn.functional.cross_entropy(model(data.x[data.y == label]), data.y[data.y == label]) for label in range(3)]
    without = DESCRIPTIONS["anchor-gradient"](model, data, CPU, TASK, False)
    torch.testing.assert_close(without[0], gradient(torch.stack(few).mean()), atol=1e-6, rtol=0)
    assert not torch.allclose(told, without, atol=1e-4)


def test_the_subspace_is_that_of_the_leading_singular_vectors() -> None:
    data, model = examples(20), build_model("mlp", (1, 4, 4), 3)
    basis = DESCRIPTIONS["subspace"](model, data, CPU, TASK).double().numpy()
    vectors, _, _ = np.linalg.svd(data.x.flatten(1).double().numpy().T)
    np.testing.assert_allclose(basis @ basis.T, vectors[:, :3] @ vectors[:, :3].T, atol=1e-6)
    unlabelled = Examples(data.x, torch.zeros_like(data.y))
    assert np.array_equal(DESCRIPTIONS["subspace"](model, unlabelled, CPU, TASK).double().numpy(), basis)


def test_the_subspace_of_two_examples_has_two_dimensions() -> None:
    basis = DESCRIPTIONS["subspace"](build_model("mlp", (1, 4, 4), 3), examples(2), CPU, TASK)
    assert basis.shape == (16, 3)
    torch.testing.assert_close(basis.T @ basis, torch.diag(torch.tensor([1.0, 1.0, 0.0])), atol=1e-6, rtol=0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_trains_to_nearly_the_same_model() -> None:
    config = ClientConfig(local_epochs=2, batch_size=16)
    on_cpu, _, _ = trained(config)
    on_gpu = build_model("mlp", (1, 4, 4), 3)
    train(on_gpu, examples(), config, LocalObjective(), torch.Generator().manual_seed(0), torch.device("cuda"), TASK)
    for name, tensor in get_state(on_gpu).items():
        torch.testing.assert_close(tensor, get_state(on_cpu)[name], atol=1e-3, rtol=1e-3)


def test_training_leaves_the_start_as_it_was() -> None:
    """It is what the client's update is measured from, after it has trained."""
    context = Context(1, 1, {"partition-id": 0, "num-partitions": 4}, RecordDict(), ClientConfig().to_flower())
    client = LocalClient(context, None)
    start = get_state(client.initial_model())
    before = {name: tensor.clone() for name, tensor in start.items()}
    model = client.model(start)
    train(model, client.data.train, client.config, PLAIN, client.rng("train", 1), client.device, client.task)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.items())
    assert not torch.equal(before["head.weight"], get_state(model)["head.weight"])


def client_with(data: ClientData, monkeypatch: pytest.MonkeyPatch, name: str = "a") -> LocalClient:
    """Return a client of this name with these data."""
    monkeypatch.setattr("client_app.client.open_data", lambda config, node, task: (TASK, data))
    node = {"name": name, "data-path": "somewhere"}
    return LocalClient(Context(1, 1, node, RecordDict(), ClientConfig().to_flower()), None)


def test_a_digest_tells_training_data_from_others_of_the_client_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = examples(), examples(41)
    one = data.x.clone()
    one[7, 0, 3, 3] += 1e-6
    wrong = data.y.clone()
    wrong[-1] = (wrong[-1] + 1) % 3
    kinds = {
        "as they are": ClientData(data, data, -1),
        "a pixel": ClientData(Examples(one, data.y), data, -1),
        "a label": ClientData(Examples(data.x, wrong), data, -1),
        "one more": ClientData(other, data, -1),
        "another form": ClientData(Examples(data.x.view(-1, 1, 2, 8), data.y), data, -1),
    }
    told = [client_with(own, monkeypatch).digest(run) for own in kinds.values() for run in ("0" * 16, "1" * 16)]
    told += [client_with(kinds["as they are"], monkeypatch, "b").digest("0" * 16)]
    assert len(set(told)) == len(told), "of two runs, or of two clients, they cannot be compared"
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in told)
    copied = ClientData(Examples(data.x.clone(), data.y.clone()), other, -1)  # other test data
    assert client_with(copied, monkeypatch).digest("0" * 16) == told[0]
    strided = Examples(data.x.repeat(1, 2, 1, 1)[:, :1], data.y)
    assert client_with(ClientData(strided, data, -1), monkeypatch).digest("0" * 16) == told[0]


def test_a_digest_is_an_hmac_of_name_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it stays what it is when a process starts anew, or another version of the code goes on."""
    data = Examples(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([1]))
    content = b"torch.float32 (1, 1, 1, 2)" + struct.pack("<2f", 1.0, 2.0) + b"torch.int64 (1,)" + struct.pack("<q", 1)
    expected = hmac.new(b"0" * 16, b"a\0" + hashlib.sha256(content).digest(), hashlib.sha256).hexdigest()[:16]
    assert client_with(ClientData(data, data, -1), monkeypatch).digest("0" * 16) == expected


def test_it_goes_the_way_of_the_optimizer_of_that_name() -> None:
    """Also where a part of the model is frozen, and with decay."""
    config = ClientConfig.from_flower({"weight-decay": 0.01, "batch-size": 4, "local-epochs": 2})
    ours, theirs = (build_model("mlp", (1, 4, 4), 3) for _ in range(2))
    for model in (ours, theirs):
        next(model.parameters()).requires_grad_(False)
    data = examples()
    train(ours, data, config, LocalObjective(), torch.Generator().manual_seed(0), torch.device("cpu"), TASK)
    optimizer = torch.optim.SGD(theirs.parameters(), config.learning_rate, config.momentum, weight_decay=0.01)
    rng = torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(len(data), generator=rng).split(4):
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(data.x[batch]), data.y[batch]).backward()
            optimizer.step()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in theirs.state_dict().items())
