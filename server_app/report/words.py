"""The outcome of a run in words and in a few numbers."""

from dataclasses import dataclass

from disue.errors import one_line
from disue.runs.reading import ENDED_EARLY
from server_app.callbacks.report_data import NAMES
from server_app.report.intervals import examples_tested, in_words, is_over_clients, of_examples, of_metric, overlap
from server_app.report.reading import Row, RunRecord

AVERAGE = "untaught average of this run's client models"
PHASES = {
    "local": "local training",
    "clustering": "clustering",
    "distillation": "distillation",
    "evaluation": "evaluation",
}


@dataclass(frozen=True)
class Card:
    """A number that stands out, with what it is."""

    value: str
    title: str
    note: str


def percent(value: float | None) -> str:
    """Return a share as a percentage with one decimal; a dash for none.

    Examples
    --------
    >>> percent(0.8126)
    '81.3 %'
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def size(count: float) -> str:
    """Return bytes in a unit that suits them.

    Examples
    --------
    >>> [size(count) for count in (999, 12_345, 7_250_000, 3.1e9)]
    ['999 B', '12.3 kB', '7.2 MB', '3.1 GB']
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Return seconds in units that suit them.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.04, 9.6, 75, 7384)]
    ['0.0 s', '9.6 s', '1 min 15 s', '2 h 3 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {round(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def counted(count: int, what: str) -> str:
    """Return a count with its noun, in the plural if need be.

    Examples
    --------
    >>> counted(1, "client"), counted(3, "client")
    ('1 client', '3 clients')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def last_of(record: RunRecord, key: str) -> float | None:
    """Return the last number that is known of a metric."""
    return next((row[key] for row in reversed(record.rows) if row.get(key) is not None), None)


def has_own_average(record: RunRecord) -> bool:
    """Return whether the average was another model than the universal one in some round."""
    return any(row.get("average_accuracy") not in (None, row.get("universal_accuracy")) for row in record.rows)


def total_of(record: RunRecord, key: str) -> float:
    """Return the sum of a metric over the rounds."""
    return sum(row.get(key) or 0 for row in record.rows)


def status_of(record: RunRecord) -> str:
    """Return how the run ended, or that it has not."""
    return str(record.summary.get("status", "not finished"))


def ending(record: RunRecord) -> str:
    """Return how a run ended early, and of which round its models are; nothing of one that is completed or goes on."""
    status, rounds = status_of(record), len(record.rows)
    if status not in ENDED_EARLY:
        return ""
    where = (
        f"after round {rounds} of {record.config.get('num-server-rounds', rounds)}" if rounds else "in its first round"
    )
    why = f": {one_line(str(record.summary.get('error')))}" if status == "failed" else ", as was asked"
    models = (
        f" Its models are those of round {rounds}."
        if (record.directory / "universal.safetensors").exists()
        else " It left no models."
    )
    return f"The run {'failed' if status == 'failed' else 'was stopped'} {where}{why}.{models} It can go on (--resume)."


def is_written(record: RunRecord) -> bool:
    """Return whether what a run writes at its end is there."""
    return status_of(record) == "completed" or (record.directory / NAMES).exists()


def unwritten(record: RunRecord) -> str:
    """Return why what a run writes at its end is not there; nothing if it is."""
    if is_written(record):
        return ""
    return (
        "Not known: the run ended without it." if record.summary else "Not known yet: it is written when the run ends."
    )


def measured(record: RunRecord, key: str) -> tuple[float | None, str]:
    """Return the last number that is known of a metric of clients or models, and what is special about it.

    The remark, which begins with a comma, says so if it is of an earlier round than the models, or of some clients.
    """
    row = next((row for row in reversed(record.rows) if row.get(key) is not None), None)
    if row is None:
        return None, ""
    last = record.rows[-1]["round"]
    remark = "" if row["round"] == last else f", in round {row['round']} of {last}"
    sampled = (
        row["round"] != record.config.get("num-server-rounds") and record.config.get("fraction-evaluate", 1.0) < 1.0
    )
    by_clients = ("expert", "personal", "worst", *(["universal"] if record.config.get("dataset") == "own" else []))
    return row[key], f"{remark}, of the clients that were asked" if sampled and key.startswith(by_clients) else remark


def cards(record: RunRecord) -> list[Card]:
    """Return the numbers that stand out."""
    universal, of = measured(record, "universal_accuracy")
    (expert, of_experts), worst = measured(record, "expert_accuracy"), last_of(record, "worst_decile_accuracy")
    ari, clusters = last_of(record, "ari"), last_of(record, "num_clusters")
    spent = last_of(record, "epsilon")
    own = ["mean over clients, each on its own test data"]
    own += [sure] if (sure := interval(record, "expert_accuracy", expert)) else []
    own += _against_baselines(record, "expert_accuracy")
    shown = [
        Card(percent(universal), "universal expert", f"{_of_universal(record)}{of}"),
        Card(percent(expert), "own expert", f"{'; '.join(own)}{of_experts}"),
        Card(
            percent(worst),
            "worst tenth",
            f"own expert, mean over the tenth that it serves least{of_experts or ' of the clients'}",
        ),
        Card("–" if clusters is None else str(clusters), "clusters" if clusters != 1 else "cluster", _agreement(ari)),
    ]
    return shown if spent is None else [*shown, Card(f"{spent:,.3g}", "epsilon", budget(record))]


def sentences(record: RunRecord) -> list[str]:
    """Return the outcome in plain words."""
    if not record.rows:
        return [*filter(None, [ending(record)]), "No round is finished yet."]
    words = [
        ending(record),
        _what_was_run(record),
        _universal(record),
        _baselines(record),
        _experts(record),
        _clusters(record),
        _cost(record),
    ]
    words.append(privacy(record))
    return [sentence for sentence in words if sentence]


def budget(record: RunRecord) -> str:
    """Return what an epsilon is of."""
    releases = counted(int(last_of(record, "releases") or 0), "noisy release")
    return f"at delta {record.config.get('dp-delta', 0.0):g}, of the client that sent most: {releases}"


def privacy(record: RunRecord) -> str:
    """Return what is known of the privacy of clients, where what they send is noisy; else nothing."""
    spent = last_of(record, "epsilon")
    if spent is None:
        return ""
    releases, delta = counted(int(last_of(record, "releases") or 0), "release"), record.config.get("dp-delta", 0.0)
    return (
        f"What leaves a client is clipped and noisy: ({spent:,.3g}, {delta:g})-differential "
        f"privacy for all the data of a client, towards the server too, after {releases} of the client that sent most. "
        "Accuracies that clients measured are noisy, too."
    )


def interval(record: RunRecord, key: str, value: float | None) -> str:
    """Return the interval of an accuracy of a run, or of its baseline, in words; nothing where it is not known."""
    sure = in_words(of_metric(record, key, value))
    return sure and f"95 % interval {'over clients ' if is_over_clients(record, key) else ''}{sure}"


def _of_universal(record: RunRecord) -> str:
    universal, average = last_of(record, "universal_accuracy"), last_of(record, "average_accuracy")
    notes = ["one model for anyone"]
    if sure := interval(record, "universal_accuracy", universal):
        notes.append(sure)
    notes += _against_baselines(record, "universal_accuracy")
    if universal is not None and average is not None and not record.baselines:
        notes.append(f"{_points(universal - average)} the {AVERAGE}")
    return "; ".join(notes)


def _against_baselines(record: RunRecord, key: str) -> list[str]:
    value = last_of(record, key)
    known = [(name, summary.get(key)) for name, summary in record.baselines.items()]
    return [f"{_points(value - other)} {name}" for name, other in known if value is not None and other is not None]


def _points(difference: float) -> str:
    points = 100 * difference
    return "as good as" if abs(points) < 0.05 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"


def _agreement(ari: float | None) -> str:
    if ari is None:
        return "no planted groups to compare with"
    if ari > 0.9999:
        return "exactly the planted groups"
    return f"agreement with the planted groups {ari:.2f} (1: equal, 0: chance)"


def _what_was_run(record: RunRecord) -> str:
    config, rounds = record.config, len(record.rows)
    planned = int(config.get("num-server-rounds", rounds))
    done = counted(rounds, "round") if rounds >= planned else f"{rounds} of {planned} rounds"
    clients = counted(len(record.clients) or len(record.client_names), "client")
    return (
        f"The method {config.get('method')} ran {done} with {clients} on {config.get('dataset')} "
        f"(scenario {record.summary.get('scenario', config.get('scenario'))}, seed {config.get('seed')})."
    )


def _universal(record: RunRecord) -> str:
    (universal, remark), average = measured(record, "universal_accuracy"), last_of(record, "average_accuracy")
    if universal is None:
        return ""
    examples = examples_tested(record)
    of = f"{percent(universal)} of the {f'{examples:,} ' if examples else ''}test examples"
    sentence = f"The universal expert, the one model for anyone, is right on {of}"
    if average is None:
        known = interval(record, "universal_accuracy", universal)
        return f"{sentence} of the clients{f' ({known})' if known else ''}{remark}."
    sure, other = of_examples(universal, examples), of_examples(average, examples)
    if sure:
        sentence += f" (95 % interval {in_words(sure)})"
    difference = 100 * (universal - average)
    if abs(difference) < 0.05:
        return f"{sentence}, as often as the {AVERAGE} in the same round."
    compared = "more" if difference > 0 else "fewer"
    sentence += (
        f"; the {AVERAGE} in the same round on {percent(average)}{f' ({in_words(other)})' if other else ''}, so "
        f"the universal expert is right on {abs(difference):.1f} {compared} in a hundred."
    )
    return f"{sentence} The intervals overlap: the difference may be chance." if overlap(sure, other) else sentence


def _baselines(record: RunRecord) -> str:
    words = [_baseline(record, name, summary) for name, summary in record.baselines.items()]
    words += [f"The run of {name} is not compared with: {why}." for name, why in record.unlike.items()]
    if words:
        return " ".join(filter(None, words))
    if not has_own_average(record):
        return ""
    return (
        f"The {AVERAGE} is not FedAvg, which trains its clients from their average in every round; to compare with it, "
        "with the same clients and seed: disue simulate --baseline fedavg."
    )


def _baseline(record: RunRecord, name: str, summary: Row) -> str:
    sure = in_words(of_examples(summary.get("universal_accuracy"), examples_tested(record)))
    parts = [
        f"{what} is right on {percent(summary[key])} of {of}, here {percent(last_of(record, key))}"
        for what, key, of in (
            ("the universal model", "universal_accuracy", f"the test examples{f' ({sure})' if sure else ''}"),
            ("the model that a client uses", "expert_accuracy", "its own test data"),
        )
        if summary.get(key) is not None
    ]
    return f"In a run of {name} with the same clients and seed {'; '.join(parts)}." if parts else ""


def _experts(record: RunRecord) -> str:
    (expert, of), worst = measured(record, "expert_accuracy"), last_of(record, "worst_decile_accuracy")
    if expert is None or worst is None:
        return ""
    sure = interval(record, "expert_accuracy", expert)
    sentence = (
        f"A client's own expert is right on {percent(expert)} of that client's test data on average"
        f"{f' ({sure})' if sure else ''}, and on "
        f"{percent(worst)} for the tenth of the clients that it serves least{of}"
    )
    known = [client for client in record.clients if client.expert is not None and client.universal is not None]
    if known:
        better = sum((client.expert or 0.0) > (client.universal or 0.0) for client in known)
        sentence += f"; it beats the universal expert for {better:,} of {counted(len(known), 'client')}"
    personal, of = measured(record, "personal_accuracy")
    if personal is not None:
        sentence += f". After one more local training it is right on {percent(personal)}{of}"
    return f"{sentence}."


def _clusters(record: RunRecord) -> str:
    last: Row = record.rows[-1]
    clusters, ari = last.get("num_clusters"), last.get("ari")
    if not clusters:
        return ""
    moved = [row["round"] for row in record.rows if row.get("churn")]
    sentence = f"The clients are in {counted(clusters, 'cluster')}"
    if ari is not None:
        exact = ari > 0.9999
        sentence += ", exactly the planted groups" if exact else f"; with the planted groups they agree to {ari:.2f}"
    if moved:
        return f"{sentence}. Clients last changed their cluster in round {moved[-1]}."
    return f"{sentence}. No client ever changed its cluster." if len(record.rows) > 1 else f"{sentence}."


def _cost(record: RunRecord) -> str:
    seconds = {phase: total_of(record, f"seconds_{phase}") for phase in PHASES}
    longest = max(seconds, key=seconds.__getitem__)
    total = sum(seconds.values())
    lost = total_of(record, "clients_failed") + total_of(record, "clients_rejected")
    sentence = (
        f"All rounds took {duration(total)}, most of it {PHASES[longest]} ({duration(seconds[longest])}). Training "
        f"sent {size(total_of(record, 'bytes_down'))} to the clients and {size(total_of(record, 'bytes_up'))} back"
    )
    return f"{sentence}; {int(lost):,} updates were lost." if lost else f"{sentence}; no update was lost."
