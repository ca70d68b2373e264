"""The Flower ClientApp. The same code answers in a Ray actor, in the inline engine and on a real machine."""

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client_app.client import LocalClient, own_model
from client_app.data import introduce
from client_app.describe import DESCRIPTIONS
from client_app.memory import Prepared
from client_app.node import this_node
from client_app.packing import answer_for_all
from client_app.release import choose_policy, withhold_errors
from client_app.secagg import mask, share_out, unmask
from client_app.store import ClientStore, check_state_path
from client_app.training_job import TrainingJob
from disue.config import ClientConfig
from disue.errors import FederationError
from disue.metrics import Evaluation, evaluate
from disue.models import interpolate
from disue.wire import (
    CompareReply,
    CompareRequest,
    DescribeReply,
    DescribeRequest,
    EarlyReply,
    EarlyRequest,
    EvaluateReply,
    EvaluateRequest,
    FeaturesReply,
    FeaturesRequest,
    ForgetRequest,
    HelloRequest,
    Parcels,
    ShareRequest,
    UnmaskRequest,
)
from disue.wire.compare import SHARES

app = ClientApp(mods=[answer_for_all])


@app.query()
@withhold_errors
def hello(message: Message, context: Context) -> Message:
    """Say who this is."""
    asked = HelloRequest.from_message(message)
    config, node = ClientConfig.from_flower(context.run_config), this_node(context)
    check_state_path(node)
    reply = introduce(config, node, own_model(node, config))
    return choose_policy(config, node, "hello").hello(reply, asked).to_message(message)


@app.query("describe")
@withhold_errors
def describe(message: Message, context: Context) -> Message:
    """Say what the data are like."""
    request = DescribeRequest.from_message(message)
    client = LocalClient(context, request.task)
    description = DESCRIPTIONS[request.description]
    share = client.config.share_label_counts
    signature = description(client.initial_model(), client.data.train, client.device, client.task, share)
    policy = client.policy("describe")
    told = policy.description(request.description, signature)
    return DescribeReply(told, policy.digest(client.digest(request.run))).to_message(message)


@app.train()
@withhold_errors
def train_locally(message: Message, context: Context) -> Message:
    """Phase L: train from the given start, or from the best candidate, on this client's data."""
    job = TrainingJob(message, context)
    return job.reply(job.run())


@app.query("share")
@withhold_errors
def share_secrets(message: Message, context: Context) -> Message:
    """Secure aggregation: share secrets out among the members of a sum."""
    name = this_node(context).client
    return share_out(ShareRequest.from_message(message), name, context).to_message(message)


@app.query("mask")
@withhold_errors
def mask_vector(message: Message, context: Context) -> Message:
    """Secure aggregation: send what was trained, under masks."""
    name = this_node(context).client
    return mask(Parcels.from_request(message), name, context).to_message(message)


@app.query("unmask")
@withhold_errors
def unmask_sum(message: Message, context: Context) -> Message:
    """Secure aggregation: help to take the masks off the sum."""
    return unmask(UnmaskRequest.from_message(message), context).to_message(message)


@app.query("compare")
@withhold_errors
def compare(message: Message, context: Context) -> Message:
    """Say how well the mixtures of two models fit the training data."""
    request = CompareRequest.from_message(message)
    client = LocalClient(context, request.task)
    mixtures = (interpolate(request.average, request.student, share) for share in SHARES)
    reply = CompareReply(tuple(map(client.fit, mixtures)))
    return client.policy("compare", request.server_round).comparison(reply).to_message(message)


@app.query("features")
@withhold_errors
def features(message: Message, context: Context) -> Message:
    """Say what the features of the training data are like under a model."""
    request = FeaturesRequest.from_message(message)
    client = LocalClient(context, request.task)
    policy, model = client.policy("features", request.server_round), client.model(request.state)
    told = policy.features(model, client.data.train, client.device, client.task)
    return FeaturesReply(told).to_message(message)


@app.query("early")
@withhold_errors
def early(message: Message, context: Context) -> Message:
    """Say what early features of the training data are like."""
    request = EarlyRequest.from_message(message)
    client = LocalClient(context, request.task)
    policy, initial = client.policy("early", request.server_round), client.initial_model()
    told = policy.early(initial, client.data.train, client.device, client.task, request.most, request.covariance)
    return EarlyReply(told).to_message(message)


@app.query("forget")
@withhold_errors
def forget(message: Message, context: Context) -> Message:
    """Delete what was kept for a run that is over."""
    request, node = ForgetRequest.from_message(message), this_node(context)
    ClientStore(context, node.client, request.run, node.state_path).forget()
    return Message(RecordDict(), reply_to=message)


@app.evaluate()
@withhold_errors
def evaluate_locally(message: Message, context: Context) -> Message:
    """Evaluate the universal expert, the own expert and, if asked, the own expert after fine-tuning.

    Where the client uses an expert of its own, its label prior stands for the one in the expert's logits; a model
    trained with the balanced loss carries none. The universal expert is for anyone and gets none.
    """
    request = EvaluateRequest.from_message(message)
    client = LocalClient(context, request.task)
    test = client.data.test
    universal = client.evaluate(request.universal, test)
    expert = client.own_expert(request)
    own = client.evaluate(expert, test, client.prior_shift(request))
    universal_fit, expert_fit = client.fits(request, expert) if request.compare else (None, None)
    personal_accuracy, personal_steps = None, 0
    if request.personalise:
        rng = client.rng("personalise", request.server_round)
        personal, result = client.train(Prepared(expert), request.objective, rng, request.server_round)
        personal_steps = result.steps
        shift = client.own_prior(request.objective)
        personal_accuracy = _accuracy(evaluate(client.task, personal, test, client.device, shift))
    reply = EvaluateReply(
        num_examples=len(test),
        universal_accuracy=_accuracy(universal),
        universal_loss=universal.loss,
        expert_accuracy=_accuracy(own),
        personal_accuracy=personal_accuracy,
        personal_steps=personal_steps,
        universal_fit=universal_fit,
        expert_fit=expert_fit,
    )
    return client.policy("evaluate", request.server_round).evaluation(reply, client.task).to_message(message)


def _accuracy(evaluation: Evaluation) -> float:
    """Return the one metric that the reply has room for; raise `FederationError` for a task with others."""
    accuracy = evaluation.metrics.get("accuracy")
    if accuracy is None:
        raise FederationError(f"the reply tells accuracies; the task has {', '.join(evaluation.metrics)}")
    return accuracy
