"""What ringmx has to reach, and whether a run of benches/versus shows it.

A bar is met when the median of its rounds meets it. Ratios are taken between runs of one round, which follow each
other within seconds, and get a 95 % interval by resampling rounds. A bar whose workload was not measured has no figure,
and one that was measured in fewer rounds than asked for says how many.
"""

import random
import statistics

DRAWS = 2000
# Against a server of the same kind in C that was measured on another day: smtp-sink's CPU by the null server's.
YARDSTICK = {"lock-step-64": 2.0, "pipelined-64": 2.4, "per-message-64": 2.5, "1MiB": 26.0}
YARDSTICK_TOLERANCE = 0.10


def interval(values):
    """Median and the 95 % interval of it, by resampling with a fixed seed."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(DRAWS))
    return statistics.median(values), medians[int(DRAWS * 0.025)], medians[int(DRAWS * 0.975)]


class Judge:
    """The rounds of a run, and what was said about them."""

    def __init__(self, results):
        self.workloads = {workload["name"]: workload for workload in results["workloads"]}
        self.limit, self.wanted = results["foreign_max"], results["rounds"]
        self.found = []
        # Workloads and peers that a bar is about.
        self.asked = set()

    def runs(self, workload, peer):
        """Rounds of a peer by number: the quiet ones, or all when those are too few."""
        self.asked.add((workload, peer))
        runs = self.workloads.get(workload, {}).get("rounds", {}).get(peer, [])
        calm = [run for run in runs if run["foreign"] <= self.limit]
        runs = calm if len(calm) >= max(3, len(runs) // 3) else runs
        return {run["round"]: run for run in runs}

    def ratios(self, workload, above, below, key):
        """`key` of one peer by that of another, in each round that has both; peers may be (workload, peer)."""
        one, other = (who if isinstance(who, tuple) else (workload, who) for who in (above, below))
        one, other = self.runs(*one), self.runs(*other)
        return [
            one[n][key] / other[n][key]
            for n in sorted(one)
            if n in other and one[n].get(key) is not None and other[n].get(key)
        ]

    def say(self, group, what, values, at_least=None, at_most=None, unit="", note=""):
        """One bar. `values` are its rounds."""
        bar = at_least if at_least is not None else at_most
        row = {
            "group": group,
            "what": what,
            "bar": bar,
            "kind": "at least" if at_least is not None else "at most",
            "unit": unit,
            "rounds": len(values),
            "note": note,
            "figure": None,
            "met": None,
        }
        if values:
            row["figure"], row["low"], row["high"] = interval(values)
            row["met"] = row["figure"] >= bar if at_least is not None else row["figure"] <= bar
        self.found.append(row)

    def is_at_generators_limit(self, workload, peer):
        """Whether the generator used more than 90 % of its core in most rounds of this peer."""
        used = [run["generator"] > 0.9 for run in self.runs(workload, peer).values()]
        return sum(used) * 2 > len(used)

    def ratio(self, group, what, workload, above, below, key, at_least):
        limited = key == "rate" and any(self.is_at_generators_limit(workload, peer) for peer in (above, below))
        note = "generator at its limit" if limited else ""
        self.say(group, f"{what}, {workload}", self.ratios(workload, above, below, key), at_least=at_least, note=note)


def asked():
    """Workloads and peers that a bar is about: what needs all of its rounds."""
    return judged({"workloads": [], "foreign_max": 0, "rounds": 0}).asked


def judge(results):
    """All bars with their figures."""
    return judged(results).found


def judged(results):
    j = Judge(results)
    group = "discarding, CPU of the null server by that of ringmx --discard"
    for workload in (
        "lock-step-64",
        "lock-step-1000",
        "pipelined-64",
        "pipelined-1000",
        "bdat-64",
        "bdat-1000",
        "per-message-64",
        "per-message-1000",
        "10KiB",
        "100KiB",
        "1MiB",
    ):
        j.ratio(group, "CPU", workload, "null", "ringmx-discard", "cpu_us", 0.92)
    group = "durable, the null server's group commit and ringmx --survive power"
    for workload, bar in (
        ("pipelined-1000", 1.0),
        ("10KiB", 1.0),
        ("pipelined-64", 0.95),
        ("100KiB", 0.95),
        ("1MiB", 0.95),
    ):
        j.ratio(group, "CPU", workload, "null-durable", "ringmx", "cpu_us", bar)
        j.ratio(group, "messages/s", workload, "ringmx", "null-durable", "rate", bar)
    group = "durable ringmx by the discarding null server"
    j.ratio(group, "messages/s", "pipelined-1000", "ringmx", "null", "rate", 0.80)
    group = "durable ringmx by smtp-sink, which stores nothing"
    for workload, bar in (
        ("lock-step-1000", 2.3),
        ("pipelined-1000", 2.3),
        ("per-message-1000", 1.0),
        ("lock-step-10000", 1.0),
        ("pipelined-10000", 1.0),
        ("100KiB", 7),
        ("1MiB", 7),
    ):
        j.ratio(group, "messages/s", workload, "ringmx", "smtp-sink", "rate", bar)
    group = "durable ringmx by Postfix's HOLD queue"
    for workload, bar in (("pipelined-64", 40), ("pipelined-1000", 55), ("lock-step-64", 25), ("lock-step-1000", 30)):
        j.ratio(group, "messages/s", workload, "ringmx", "postfix-hold", "rate", bar)
    j.say(
        group,
        "p99 from end of data to 250 at the same rate, Postfix's by ringmx's",
        j.ratios("same-rate", "postfix-hold", "ringmx", "p99_ns"),
        at_least=10,
    )
    group = "discarding, CPU of others by that of ringmx --discard"
    for peer, bar in (("haraka", 10), ("aiosmtpd", 10), ("exim-discard", 10), ("postfix-drop", 10), ("nodemailer", 3)):
        for workload in ("lock-step-64", "pipelined-64"):
            j.ratio(group, peer, workload, peer, "ringmx-discard", "cpu_us", bar)
    scan(j)
    one_session(j)
    idle(j)
    group = "latency at 70 % of capacity, durable"
    disk = {round_["round"]: round_ for round_ in j.workloads.get("inet2002-70", {}).get("disk", [])}
    runs = j.runs("inet2002-70", "ringmx")
    values = [runs[n]["p99_ns"] / disk[n]["p99_ns"] for n in sorted(runs) if n in disk and runs[n]["p99_ns"]]
    j.say(group, "p99 from end of data to 250 by the disk's own fdatasync p99", values, at_most=3)
    yardstick(j)
    return j


def scan(j):
    facts = j.workloads.get("scan", {}).get("facts") or {}
    values = [speed for name, speed in facts.items() if name.startswith("78-octet lines, decode in place")]
    j.say(
        "end of data and unstuffing",
        "1 MiB of lines of 78 octets, bare newlines checked",
        values,
        at_least=8,
        unit="GB/s",
    )


def one_session(j):
    group = "one session"
    busy = j.runs("one-session", "busy")
    j.say(
        group, "--busy-poll, generator spins: a transaction, us", [1e6 / r["rate"] for r in busy.values()], at_most=40
    )
    j.say(
        group,
        "the same: end of data to 250 p99, us",
        [r["p99_ns"] / 1e3 for r in busy.values() if r["p99_ns"]],
        at_most=10,
    )
    j.say(
        group,
        "--busy-poll: messages/s by those of the null server that polls beside it",
        j.ratios("one-session", "busy", "null-busy", "rate"),
        at_least=0.92,
    )
    j.say(
        group,
        "--spin-us 50: messages/s by those without",
        j.ratios("one-session", "spin-us", "plain", "rate"),
        at_least=2.5,
    )
    j.say(
        group,
        "durable, pipelined: messages/s by the durable null server's",
        j.ratios("pipelined-1", "ringmx", "null-durable", "rate"),
        at_least=0.9,
    )


def idle(j):
    group = "idle sessions"
    facts = j.workloads.get("idle", {}).get("facts") or {}
    per = {n: facts[f"pss_{n}"] / n for n in (10000, 19000) if f"pss_{n}" in facts}
    j.say(group, "memory of 10,000, MiB over the empty server", [facts["pss_10000"] / 2**20] if per else [], at_most=4)
    null = {key: facts.get(f"null_{key}", []) for key in ("seconds", "pairs")}

    def beside(figures):
        """What the null server has in the same run."""
        return f"null server {statistics.median(figures):.2f}" if figures else ""

    j.say(
        group,
        "time until 10,000 are greeted, s",
        facts.get("seconds", []),
        at_most=0.3,
        note=beside(null["seconds"]),
    )
    j.say(
        group,
        "memory of each of 19,000 by that of each of 10,000",
        [per[19000] / per[10000]] if len(per) == 2 and per[10000] else [],
        at_most=1.1,
    )
    pairs = facts.get("pairs", [])
    j.say(
        group,
        "greeting to a newcomer beside 19,000 idle and 64 active sessions, p99 ms",
        [pair["greeting_p99_ns"] / 1e6 for pair in pairs],
        at_most=5,
        note=beside([pair["greeting_p99_ns"] / 1e6 for pair in null["pairs"]]),
    )
    j.say(
        group,
        "64 active sessions beside 19,000 idle ones, by their rate alone",
        [pair["beside"] / pair["alone"] for pair in pairs],
        at_least=0.95,
        note=beside([pair["beside"] / pair["alone"] for pair in null["pairs"]]),
    )


def yardstick(j):
    """The null server itself: what it is to smtp-sink here and was elsewhere, so that it isn't ringmx's own measure."""
    note = f"{1 - YARDSTICK_TOLERANCE:.1f} to {1 + YARDSTICK_TOLERANCE:.1f}"
    for workload, known in YARDSTICK.items():
        values = [ratio / known for ratio in j.ratios(workload, "smtp-sink", "null", "cpu_us")]
        what = f"smtp-sink's CPU by the null server's, {workload}, as a share of {known}"
        j.say("the yardstick", what, values, at_least=1 - YARDSTICK_TOLERANCE, note=note)
        within(j.found[-1])
        values = j.ratios(workload, "null-c", "null", "cpu_us")
        what = f"CPU of a null server in C by that of the null server, {workload}"
        j.say("the yardstick", what, values, at_least=1 - YARDSTICK_TOLERANCE, note=note)
        within(j.found[-1])


def within(row):
    """A yardstick may be off to either side."""
    if row["figure"] is not None:
        row["met"] = abs(row["figure"] - 1) <= YARDSTICK_TOLERANCE
