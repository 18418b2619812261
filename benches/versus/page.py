"""What a run of benches/versus looks like: text, and one page without scripts that needs no network."""

import html
import math

ORDER = {"discards": 0, "page cache": 1, "stable storage": 2}
TITLES = {
    "discards": "Discards: a 250 promises nothing",
    "page cache": "Page cache: outlives the process, not the power",
    "stable storage": "Stable storage: outlives a loss of power",
}
CLASSES = {"discards": "discard", "page cache": "cache", "stable storage": "durable"}
GENERATOR_BUSY = 0.90


def tail(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return " ".join(file.read()[-300:].split())
    except OSError:
        return ""


def outcomes(report):
    """What went wrong, in a few words."""
    found = []
    for row in report.get("outcomes", []):
        code = row.get("code") or row.get("fault")
        if not str(code)[:1] in "23":
            text = row.get("text") or row.get("sample") or ""
            found.append(f"{row.get('phase')} {code} x {row.get('count')} {str(text)[:60]}".strip())
    return "; ".join(found[:3]) or report.get("verdict", {}).get("state", "")


def ranked(rows):
    """Like with like, fastest first; each driver ranks for itself."""
    rows = sorted(rows, key=lambda r: (ORDER[r["promise"]], r["driver"] != "smtp-loadgen", -(r.get("rate") or 0)))
    seen = {}
    for row in rows:
        key = (row["promise"], row["driver"])
        if row.get("rate"):
            seen[key] = seen.get(key, 0) + 1
            row["rank"] = seen[key]
    return rows


def ns(value):
    if value is None:
        return "-"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} ns"


def number(value, form=",.0f"):
    return "-" if value is None else format(value, form)


def marks(row):
    return ("g" if (row.get("generator") or 0) > GENERATOR_BUSY else "") + ("!" if row.get("noisy") else "")


def cpu(row):
    """CPU a message; of two threads, loop and sync thread apart."""
    if row.get("cpu_us") is None:
        return "-"
    sync = row.get("sync_us") or 0
    return f"{row['cpu_us']:.1f}" if sync < 0.05 else f"{row['cpu_us']:.1f} ({row['cpu_us'] - sync:.1f}+{sync:.1f})"


def driver(row):
    return "" if row["driver"] == "smtp-loadgen" else ", by smtp-source"


def workload_text(workload):
    lines = [
        (
            f"{workload['name']}: smtp-loadgen run {' '.join(workload['options'])}"
            if workload["options"]
            else workload["name"]
        )
    ]
    if workload["rows"]:
        lines.append(
            f"  {'promise':<15}{'':>3}{'receiver':<40}{'msg/s':>9}{'MB/s':>8}{'CPU us (loop+sync)':>21}"
            f"{'p50':>9}{'p99':>9}{'p99.9':>9}{'memory':>10}{'failed':>7}  rounds"
        )
    for row in workload["rows"]:
        begin = f"  {row['promise']:<15}{row.get('rank') or '':>2} {(row['name'] + driver(row))[:39]:<40}"
        if row.get("rate") is None:
            lines.append(f"{begin}not measured: {row['fault'] or 'no round'}")
            continue
        speed = row.get("bytes_per_s")
        lines.append(
            f"{begin}{row['rate']:>9,.0f}{number(speed and speed / 1e6, '.1f'):>8}{cpu(row):>21}"
            f"{ns(row['p50_ns']):>9}{ns(row['p99_ns']):>9}{ns(row['p999_ns']):>9}"
            f"{row['pss_bytes'] / 1e6:>7.1f} MB{row['failures']:>7}  {row['kept']}/{row['rounds']} {marks(row)}"
            + (f"  {row['fault']}" if row["fault"] else "")
        )
    if workload.get("note"):
        lines.append("  " + workload["note"])
    return "\n".join(lines) + "\n"


def figure(row):
    if row["figure"] is None:
        return "-"
    form = ".3g" if row["figure"] < 10 else ",.1f"
    return (
        f"{row['figure']:{form}}{' ' + row['unit'] if row['unit'] else ''} [{row['low']:{form}}-{row['high']:{form}}]"
    )


def verdict(row):
    return "not measured" if row["met"] is None else "met" if row["met"] else "NOT MET"


def limit(row):
    return row["note"] if row["group"] == "the yardstick" else f"{row['kind']} {row['bar']:g}"


def remark(row):
    return "" if row["group"] == "the yardstick" else row["note"]


def bars_text(bars):
    lines, group = [
        f"Bars: {sum(1 for b in bars if b['met'])} met, {sum(1 for b in bars if b['met'] is False)} not met, "
        f"{sum(1 for b in bars if b['met'] is None)} not measured. Median and 95 % interval"
    ], None
    for row in bars:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"  {group}")
        lines.append(
            f"    {row['what'][:86]:<88}{limit(row):>14}  {figure(row):<26}{row['rounds']:>3} rounds  "
            f"{verdict(row)}{'  ' + remark(row) if remark(row) else ''}"
        )
    return "\n".join(lines) + "\n"


def text_of(results):
    parts = [results["title"] + "\n", bars_text(results["bars"])]
    parts += [workload_text(workload) for workload in results["workloads"]]
    parts += [f"{peer}: not tried: {why}" for peer, why in results["missing"].items()]
    parts.append(
        "g: the generator used more than 90 % of its core, so that the CPU figure says more than the rate. "
        "!: others took more than 12 % of the server's core."
    )
    return "\n".join(parts) + "\n"


STYLE = """:root{color-scheme:light dark;--discard:#7d9cc9;--durable:#2f8f5b;--cache:#b58a3a;--line:#8884;--bad:#c4432b}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:86rem;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1rem}
h3{font-size:1rem;margin-bottom:.2rem}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}
td,th{padding:.2rem .5rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;
font-variant-numeric:tabular-nums}
td:first-child,th:first-child,td.l,th.l{text-align:left}td.w{white-space:normal;text-align:left}
.scroll{overflow-x:auto}svg{display:block;width:100%;height:auto;max-width:60rem}
svg text{fill:currentColor;font:12px system-ui,sans-serif}svg text.s{font-size:10px;opacity:.7}
.discard{fill:var(--discard)}.durable{fill:var(--durable)}.cache{fill:var(--cache)}
.met{color:var(--durable);font-weight:600}.no{color:var(--bad);font-weight:600}.key{display:inline-block;width:.8em;
height:.8em;margin:0 .3em 0 1em}small{opacity:.75}nav a{margin-right:.8em}"""


def scale(low, high, left, right):
    """A logarithmic axis: where a value is, and its decades."""
    low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high * 1.0001))
    per = (right - left) / max(math.log10(high / low), 1)
    decades = []
    at = low
    while at <= high * 1.0001:
        decades.append(at)
        at *= 10
    return (lambda value: left + per * math.log10(max(value, low) / low)), decades


LEFT, WIDTH, STEP = 250, 900, 22


def frame(names, x, decades, form, body, what):
    """An SVG with one row for each name."""
    height = STEP * len(names) + 26
    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(what)}">']
    for at in decades:
        out.append(
            f'<line x1="{x(at):.0f}" x2="{x(at):.0f}" y1="0" y2="{height - 20}" stroke="var(--line)"/>'
            f'<text x="{x(at):.0f}" y="{height - 6}" text-anchor="middle">{form(at)}</text>'
        )
    for at, name in enumerate(names):
        out.append(f'<text x="{LEFT - 8}" y="{at * STEP + 15}" text-anchor="end">{html.escape(name)}</text>')
    return "".join(out) + body + "</svg>"


def bars_svg(rows, key, form, what):
    """Bars on a logarithmic scale, coloured by promise."""
    known = [row for row in rows if row.get(key)]
    if not known:
        return ""
    values = [row[key] for row in known]
    x, decades = scale(min(values) * 0.8, max(values), LEFT, WIDTH - 90)
    body = []
    for at, row in enumerate(known):
        long = max(x(row[key]) - LEFT, 2)
        body.append(
            f'<rect class="{CLASSES[row["promise"]]}" x="{LEFT}" y="{at * STEP + 4}" width="{long:.0f}" '
            f'height="{STEP - 8}"/><text x="{LEFT + long + 6:.0f}" y="{at * STEP + 15}">{form(row[key])}</text>'
        )
        if key == "rate" and row.get("spread") and row["spread"][0]:
            low, high = (x(value) for value in row["spread"])
            body.append(f'<path d="M{low:.0f} {at * STEP + 11}H{high:.0f}" stroke="currentColor" stroke-width="1.5"/>')
    return frame([row["name"] for row in known], x, decades, form, "".join(body), what)


def latency_svg(rows):
    """From the end of data to 250: p50, p99, p99.9 of each receiver on a line."""
    known = [row for row in rows if row.get("p50_ns")]
    if not known:
        return ""
    values = [row[key] for row in known for key in ("p50_ns", "p99_ns", "p999_ns") if row.get(key)]
    x, decades = scale(min(values), max(values), LEFT, WIDTH - 40)
    body = []
    for at, row in enumerate(known):
        y = at * STEP + 11
        last = row.get("p999_ns") or row.get("p99_ns") or row["p50_ns"]
        kind = CLASSES[row["promise"]]
        body.append(
            f'<line x1="{x(row["p50_ns"]):.0f}" x2="{x(last):.0f}" y1="{y}" y2="{y}" stroke="var(--{kind})" '
            'stroke-width="3"/>'
        )
        for key, radius in (("p50_ns", 5), ("p99_ns", 4), ("p999_ns", 2.5)):
            if row.get(key):
                body.append(
                    f'<circle class="{kind}" cx="{x(row[key]):.0f}" cy="{y}" r="{radius}"><title>'
                    f"{key[:-3]} {ns(row[key])}</title></circle>"
                )
    return frame([row["name"] for row in known], x, decades, ns, "".join(body), "time from the end of data to 250")


def overview_svg(workloads):
    """Messages/s of the five that every bar is about, workload by workload."""
    chosen = [
        ("null", "null server", "discard", 3),
        ("ringmx-discard", "ringmx --discard", "discard", 6),
        ("smtp-sink", "smtp-sink", "cache", 4),
        ("null-durable", "null server, durable", "durable", 3),
        ("ringmx", "ringmx, durable", "durable", 6),
        ("postfix-hold", "Postfix, HOLD", "cache", 6),
    ]
    lines, values = [], []
    for workload in workloads:
        found = {
            row["peer"]: row["rate"] for row in workload["rows"] if row.get("rate") and row["driver"] == "smtp-loadgen"
        }
        points = [(name, kind, size, found[peer]) for peer, name, kind, size in chosen if peer in found]
        if points:
            lines.append((workload["name"], points))
            values += [point[3] for point in points]
    if not lines:
        return ""
    x, decades = scale(min(values), max(values), LEFT, WIDTH - 40)
    body = []
    for at, (_, points) in enumerate(lines):
        y = at * STEP + 11
        for name, kind, size, rate in points:
            shape = (
                f'<circle class="{kind}" cx="{x(rate):.1f}" cy="{y}" r="{size}"'
                if name != "Postfix, HOLD"
                else f'<rect fill="var(--bad)" x="{x(rate) - 4:.1f}" y="{y - 4}" width="8" height="8"'
            )
            body.append(f"{shape}><title>{html.escape(name)}: {rate:,.0f}</title></{shape[1:].split()[0]}>")
    return frame([name for name, _ in lines], x, decades, lambda v: f"{v:,.0f}", "".join(body), "messages a second")


def bars_html(bars):
    parts, group = [
        '<div class="scroll"><table><tr><th>what</th><th>bar</th><th>median</th><th>95 % interval</th>'
        "<th>rounds</th><th>verdict</th></tr>"
    ], None
    for row in bars:
        if row["group"] != group:
            group = row["group"]
            parts.append(f'<tr><th colspan="6">{html.escape(group)}</th></tr>')
        value = figure(row).partition(" [")
        kind = {True: "met", False: "no", None: ""}[row["met"]]
        more = f" <small>{html.escape(remark(row))}</small>" if remark(row) else ""
        parts.append(
            f'<tr><td>{html.escape(row["what"])}{more}</td><td>{limit(row)}</td><td>{value[0]}</td>'
            f'<td>{value[2].rstrip("]")}</td><td>{row["rounds"]}</td><td class="{kind}">{verdict(row)}</td></tr>'
        )
    return "".join(parts) + "</table></div>"


def rows_html(rows):
    parts = [
        '<div class="scroll"><table><tr><th>receiver</th><th class="l">version</th><th>rank</th><th>msg/s</th>'
        "<th>MB/s</th><th>CPU us a message</th><th>p50</th><th>p99</th><th>p99.9</th><th>memory</th><th>failed</th>"
        "<th>rounds</th><th></th></tr>"
    ]
    promise = None
    for row in rows:
        if row["promise"] != promise:
            promise = row["promise"]
            parts.append(
                f'<tr><th colspan="13"><span class="key" style="background:var(--{CLASSES[promise]})"></span>'
                f"{TITLES[promise]}</th></tr>"
            )
        begin = f'<tr><td>{html.escape(row["name"] + driver(row))}</td><td class="l">{html.escape(row["version"])}</td>'
        if row.get("rate") is None:
            parts.append(
                f'{begin}<td colspan="11" class="w">not measured: {html.escape(row["fault"] or "no round")}</td></tr>'
            )
            continue
        speed = row.get("bytes_per_s")
        parts.append(
            f"{begin}<td>{row.get('rank', '')}</td><td>{row['rate']:,.0f}</td>"
            f"<td>{number(speed and speed / 1e6, '.1f')}</td><td>{cpu(row)}</td><td>{ns(row['p50_ns'])}</td>"
            f"<td>{ns(row['p99_ns'])}</td><td>{ns(row['p999_ns'])}</td><td>{row['pss_bytes'] / 1e6:.1f} MB</td>"
            f"<td>{row['failures']}</td><td>{row['kept']}/{row['rounds']}</td><td>{marks(row)}</td></tr>"
        )
        if row["fault"]:
            parts.append(f'<tr><td colspan="13" class="w"><small>{html.escape(row["fault"])}</small></td></tr>')
    return "".join(parts) + "</table></div>"


def html_of(results):
    workloads = results["workloads"]
    parts = [
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>SMTP receivers compared</title>'
        f"<style>{STYLE}</style></head><body><h1>SMTP receivers compared</h1>"
        f"<p>{html.escape(results['title'])}.</p><p>Each receiver has one core with everything it starts, "
        "smtp-loadgen the other. What a 250 promises is the colour:"
        + "".join(
            f'<span class="key" style="background:var(--{CLASSES[promise]})"></span>{promise}' for promise in ORDER
        )
        + ". Only like is ranked with like. Medians of quiet rounds; CPU is that of the whole process tree, in "
        "brackets that of loop and sync thread. <b>g</b>: the generator used more than 90 % of its core, so that the "
        "CPU figure says more than the rate. <b>!</b>: others took more than 12 % of the server's core.</p><nav>"
        + "".join(f'<a href="#{w["name"]}">{w["name"]}</a>' for w in workloads)
        + "</nav>"
    ]
    parts.append(
        "<h2>Messages a second, workload by workload</h2>"
        "<p>Large dots: ringmx; small ones: the null server, the least that an SMTP server can do on this kernel; "
        "blue discards, green is durable; brown: smtp-sink, which discards; red squares: Postfix's durable "
        f"queue.</p>{overview_svg(workloads)}"
    )
    parts.append(f"<h2>What had to be reached</h2>{bars_html(results['bars'])}")
    for workload in workloads:
        parts.append(f'<h2 id="{workload["name"]}">{html.escape(workload["name"])}</h2>')
        if workload["options"]:
            parts.append(f"<p><code>smtp-loadgen run {html.escape(' '.join(workload['options']))}</code></p>")
        rows = [row for row in workload["rows"] if row["driver"] == "smtp-loadgen"]
        for what, svg in (
            (
                "Messages a second (lines: extremes of the rounds)",
                bars_svg(rows, "rate", lambda v: f"{v:,.0f}", "messages a second"),
            ),
            (
                "CPU a message, us",
                bars_svg(
                    sorted(rows, key=lambda r: (ORDER[r["promise"]], r.get("cpu_us") or 0)),
                    "cpu_us",
                    lambda v: f"{v:,.1f}" if v < 100 else f"{v:,.0f}",
                    "CPU a message",
                ),
            ),
            ("End of data to 250: p50, p99, p99.9", latency_svg(rows)),
        ):
            if svg:
                parts.append(f"<h3>{what}</h3>{svg}")
        if workload["rows"]:
            parts.append(rows_html(workload["rows"]))
        if workload.get("note"):
            parts.append("".join(f"<p>{html.escape(part)}</p>" for part in workload["note"].split("; ")))
    for peer, why in results["missing"].items():
        parts.append(f"<p>{html.escape(peer)}: not tried: {html.escape(why)}</p>")
    return "".join(parts) + "</body></html>\n"
