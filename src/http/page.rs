//! `/`: one plain page without scripts: what is here, how safe it is, the newest messages.

use super::status::{NEWEST_MAX, Status, path_text};
use super::{ROUTES, Route, push_html, push_line};
use crate::clock::rfc3339;

pub(super) fn render(status: &Status<'_>) -> String {
    let mut out = String::with_capacity(8_192);
    out.push_str(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>ringmx</title>\n\
         <style>body{font:15px sans-serif;margin:2em;max-width:70em}table{border-collapse:collapse}\n\
         td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}\n\
         td.n{text-align:right}</style></head><body>\n<h1>",
    );
    push_html(&mut out, status.server_name);
    push_line(&mut out, format_args!("</h1>"));
    state(&mut out, status);
    messages(&mut out, status);
    out.push_str("<h2>Pages</h2>\n<ul>\n");
    for (route, path, about) in ROUTES {
        if route != Route::Home {
            push_line(
                &mut out,
                format_args!("<li><a href=\"{path}\">{path}</a>: {about}</li>"),
            );
        }
    }
    push_line(
        &mut out,
        format_args!(
            "</ul>\n<p>ringmx {}</p>\n</body></html>",
            env!("CARGO_PKG_VERSION")
        ),
    );
    out
}

fn state(out: &mut String, status: &Status<'_>) {
    out.push_str("<table>\n");
    let mut row = |name: &str, value: &str| {
        out.push_str("<tr><th>");
        push_html(out, name);
        out.push_str("</th><td>");
        push_html(out, value);
        out.push_str("</td></tr>\n");
    };
    let open: u64 = status.sessions.iter().map(|(_, count)| count).sum();
    row("Takes mail on", &status.listen.join(", "));
    row(
        "State",
        match (status.unhealthy, status.unready) {
            (Some(fault), _) => fault,
            (None, Some(fault)) => fault,
            (None, None) => "takes mail",
        },
    );
    row("A 250 means", promise(status.survive));
    let several = status.rings.len() > 1;
    let of_shard = |name: String, shard: u32| match several {
        true => format!("{name}, shard {shard}"),
        false => name,
    };
    for ring in status.rings {
        let percent = (u128::from(ring.used_bytes) * 100)
            .checked_div(u128::from(ring.bytes))
            .unwrap_or(0);
        row(
            &of_shard("Ring".to_owned(), ring.shard),
            &format!(
                "{}: {} of {} bytes used ({percent} %), messages {} to {}",
                ring.directory,
                ring.used_bytes,
                ring.bytes,
                ring.oldest_number,
                ring.next_number.saturating_sub(1)
            ),
        );
    }
    row("Sessions", &format!("{open} of {}", status.sessions_max));
    row(
        "Messages",
        &format!(
            "{} accepted, {} refused, {} never ended, since {}",
            status.metrics.messages_accepted,
            status.metrics.messages_refused,
            status.metrics.messages_aborted,
            rfc3339(status.started_ns)
        ),
    );
    for consumer in status.consumers {
        let connected = if consumer.connected {
            ""
        } else {
            " (not connected)"
        };
        row(
            &of_shard(format!("Consumer {}", consumer.name), consumer.shard),
            &format!("{} messages behind{connected}", consumer.lag_messages),
        );
    }
    out.push_str("</table>\n");
}

/// What a client may rely on, in words.
fn promise(survive: &str) -> &'static str {
    match survive {
        "power" => "the message is on stable storage (survive power)",
        "process" => "the message outlives this process, not a power loss (survive process)",
        "nothing" => "the message is in memory (survive nothing)",
        _ => "nothing: messages are discarded",
    }
}

fn messages(out: &mut String, status: &Status<'_>) {
    out.push_str("<h2>Newest messages</h2>\n");
    if status.newest.is_empty() {
        out.push_str("<p>None yet. <code>ringmx send</code> delivers one.</p>\n");
        return;
    }
    out.push_str(
        "<table>\n<tr><th>Id</th><th>Received</th><th>Octets</th><th>From</th><th>To</th></tr>\n",
    );
    for message in status.newest.iter().take(NEWEST_MAX) {
        out.push_str("<tr><td>");
        push_html(out, &format!("{}-{}", message.shard, message.number));
        out.push_str("</td><td>");
        push_html(out, &rfc3339(message.received_ns));
        out.push_str("</td><td class=\"n\">");
        push_html(out, &message.octets.to_string());
        out.push_str("</td><td>");
        push_html(out, &format!("<{}>", path_text(message.from)));
        out.push_str("</td><td>");
        push_html(out, &path_text(message.to));
        if message.recipients > 1 {
            push_html(out, &format!(" and {} more", message.recipients - 1));
        }
        out.push_str("</td></tr>\n");
    }
    out.push_str("</table>\n<p><code>ringmx log cat ID</code> shows one.</p>\n");
}
