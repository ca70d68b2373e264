"""The outcome of a run in words and in a few numbers."""

from dataclasses import dataclass

from disue.errors import one_line
from disue.runs import ENDED_EARLY
from server_app.portrait import NAMES
from server_app.report.reading import Row, RunRecord

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
    (universal, of), average = measured(record, "universal_accuracy"), last_of(record, "average_accuracy")
    (expert, of_experts), worst = measured(record, "expert_accuracy"), last_of(record, "worst_decile_accuracy")
    ari, clusters = last_of(record, "ari"), last_of(record, "num_clusters")
    spent = last_of(record, "epsilon")
    shown = [
        Card(percent(universal), "universal expert", f"{_against(universal, average)}{of}"),
        Card(percent(expert), "own expert", f"mean over clients, each on its own test data{of_experts}"),
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


def _against(universal: float | None, average: float | None) -> str:
    if universal is None or average is None:
        return "one model for anyone"
    difference = 100 * (universal - average)
    if abs(difference) < 0.05:
        return "one model for anyone; as good as the plain average"
    return f"one model for anyone; {difference:+.1f} points against the plain average"


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
    (universal, of), average = measured(record, "universal_accuracy"), last_of(record, "average_accuracy")
    if universal is None:
        return ""
    sentence = f"The universal expert, the one model for anyone, is right on {percent(universal)} of the test examples"
    if average is None:
        return f"{sentence} of the clients{of}."
    difference = 100 * (universal - average)
    if abs(difference) < 0.05:
        return f"{sentence}, as often as the plain average of the clients' models (FedAvg) in the same round."
    compared = "more" if difference > 0 else "fewer"
    return (
        f"{sentence}; the plain average of the clients' models (FedAvg) in the same round on {percent(average)}, so "
        f"the universal expert is right on {abs(difference):.1f} {compared} in a hundred."
    )


def _experts(record: RunRecord) -> str:
    (expert, of), worst = measured(record, "expert_accuracy"), last_of(record, "worst_decile_accuracy")
    if expert is None or worst is None:
        return ""
    sentence = (
        f"A client's own expert is right on {percent(expert)} of that client's test data on average, and on "
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
