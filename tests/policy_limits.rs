//! The limits on clients, through the turn of the server, on a clock that is set by hand: exact replies, exact times,
//! and nobody else who notices.

#[expect(dead_code, reason = "this test needs a part of it")]
#[path = "support/server.rs"]
mod support;
#[path = "support/tls.rs"]
mod tls_support;

use std::num::NonZeroU32;
use std::time::Duration;

use ringmx::base64;
use ringmx::clock::Clock;
use ringmx::ip_prefix::IpPrefix;
use ringmx::logger::{LogFormat, LogLevel, Logger};
use ringmx::metrics::{CloseCause, Limited, Scope, StressCause};
use ringmx::policy::clients::{ClientLimits, ClientTable, Limit, Rate};
use ringmx::policy::networks::Networks;
use ringmx::policy::recipients::Recipients;
use ringmx::policy::rules::Rules;
use ringmx::ringlog::writer::Survive;
use ringmx::server::Options;
use ringmx::server::auth::Accounts;
use ringmx::server::limiter::Limiter;
use ringmx::server::listener::TlsMode;
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::sasl::Mechanisms;
use ringmx::smtp::session::{ContextOptions, Role};
use ringmx::users::{Users, Verifier};
use support::{Client, Rig, options};
use tls_support::{Cut, Identity, TlsClient, security};

const GREETING: &str = "220 mx.example ESMTP ringmx ready\r\n";
const ENVELOPE: &[u8] = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\n";
const MESSAGE: &[u8] =
    b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\nSubject: t\r\n\r\nText.\r\n.\r\n";
const USER_UNKNOWN: &str = "550 5.1.1 No such user here\r\n";

fn both(value: u64) -> Limit {
    Limit {
        normal: value,
        stress: value,
    }
}

fn rate(rate: Rate, limit: u64) -> ClientLimits {
    let mut limits = ClientLimits::default();
    limits.rates[rate as usize] = both(limit);
    limits
}

/// A server whose one listener is an mx for x.example, with these limits.
fn rig_with(options: Options, limits: ClientLimits, set: impl FnOnce(&mut Limiter)) -> Rig {
    let mut rig = Rig::new(options, Survive::Process);
    rig.syncs.at_once.set(true);
    let mut recipients = Recipients::new(None);
    recipients.add(b"b@x.example").expect("an address");
    let rules = Rules {
        recipients: Some(recipients),
        unlimited: Networks::new([IpPrefix::of([127, 0, 0, 0].into(), 8)]),
        ..Rules::default()
    };
    let table = ClientTable::new(rig.server.shared.options.sessions_max, (3, 5), limits);
    let mut limiter = Limiter::new(table);
    set(&mut limiter);
    rig.server.shared.listeners[0].role = Role::Mx;
    rig.server.shared.rules = rules.into();
    rig.server.shared.limiter = Some(Box::new(limiter));
    rig
}

fn rig(limits: ClientLimits) -> Rig {
    rig_with(options(), limits, |_| {})
}

fn connect(rig: &mut Rig, host: u8) -> Client {
    rig.connect_from(([10, 0, 0, host], 4_242).into(), b"")
}

/// A client of this address that has said EHLO and read everything.
fn greeted(rig: &mut Rig, host: u8) -> Client {
    let client = connect(rig, host);
    assert_eq!(client.read(), GREETING);
    rig.send(&client, b"EHLO c.example\r\n");
    assert!(client.read().starts_with("250-mx.example "));
    client
}

fn quit(rig: &mut Rig, client: &Client) {
    rig.send(client, b"QUIT\r\n");
    assert!(client.read().ends_with("221 2.0.0 Bye\r\n"));
    assert!(client.pipe.borrow().dropped);
}

fn say(rig: &mut Rig, client: &Client, line: &str) -> String {
    rig.send(client, format!("{line}\r\n").as_bytes());
    client.read()
}

fn limited(rig: &Rig, limited: Limited, scope: Scope) -> u64 {
    rig.server.shared.metrics.limited[limited as usize][scope as usize]
}

/// Sessions that wait in the tarpit now.
fn tarpitted(rig: &Rig) -> u32 {
    rig.server.shared.limiter.as_ref().expect("set").tarpitted()
}

fn free(rig: &Rig) -> u64 {
    rig.server.shared.pool.free_bytes()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn a_session_too_many_of_one_client_is_told_so_and_others_are_served() {
    let mut rig = rig(ClientLimits {
        sessions: both(2),
        ..ClientLimits::default()
    });
    let (one, _two) = (greeted(&mut rig, 1), greeted(&mut rig, 1));
    let refused = connect(&mut rig, 1);
    let reply = "421 4.7.0 Too many sessions from your network; try again later\r\n";
    assert_eq!(refused.read(), reply);
    // Who is refused holds no place, not even until the next turn.
    assert!(refused.pipe.borrow().dropped);
    assert_eq!(rig.server.connections(), 2);
    let other = greeted(&mut rig, 2);
    rig.send(&other, MESSAGE);
    assert!(other.read().ends_with("250 2.0.0 Ok: stored as 0-1\r\n"));
    quit(&mut rig, &one);
    greeted(&mut rig, 1);
    assert_eq!(connect(&mut rig, 1).read(), reply);
    assert_eq!(limited(&rig, Limited::Sessions, Scope::Client), 2);
    assert_eq!(limited(&rig, Limited::Sessions, Scope::Network), 0);
    rig.pass(ms(10_000));
    assert_eq!(
        rig.server.shared.metrics.connections_closed[CloseCause::Refused as usize],
        2
    );
}

#[test]
fn a_network_has_a_limit_of_its_own() {
    let mut rig = rig(ClientLimits {
        sessions: both(1),
        network_factor: 2,
        ..ClientLimits::default()
    });
    let _open = (greeted(&mut rig, 1), greeted(&mut rig, 2));
    let reply = "421 4.7.0 Too many sessions from your network; try again later\r\n";
    assert_eq!(connect(&mut rig, 3).read(), reply);
    assert_eq!(limited(&rig, Limited::Sessions, Scope::Network), 1);
    let elsewhere = rig.connect_from(([10, 0, 1, 3], 4_242).into(), b"");
    assert_eq!(elsewhere.read(), GREETING);
}

#[test]
fn who_connects_too_often_is_sent_away_until_time_has_passed() {
    let mut rig = rig(rate(Rate::Connections, 3));
    for _ in 0..3 {
        let client = greeted(&mut rig, 1);
        quit(&mut rig, &client);
    }
    let reply = "421 4.7.0 Too many connections from your network; try again later\r\n";
    assert_eq!(connect(&mut rig, 1).read(), reply);
    assert_eq!(connect(&mut rig, 2).read(), GREETING);
    // Three a minute: the next in twenty seconds.
    rig.pass(ms(19_999));
    assert_eq!(connect(&mut rig, 1).read(), reply);
    rig.pass(ms(1));
    assert_eq!(connect(&mut rig, 1).read(), GREETING);
    assert_eq!(connect(&mut rig, 1).read(), reply);
    assert_eq!(limited(&rig, Limited::Connections, Scope::Client), 3);
}

#[test]
fn messages_recipients_and_octets_are_refused_for_a_while_and_the_session_goes_on() {
    let mut rig = rig(rate(Rate::Messages, 2));
    let client = greeted(&mut rig, 1);
    for number in 1..=2 {
        rig.send(&client, MESSAGE);
        let stored = format!("250 2.0.0 Ok: stored as 0-{number}\r\n");
        assert!(client.read().ends_with(&stored));
    }
    rig.send(&client, ENVELOPE);
    let refused = "450 4.7.1 Too many messages from your network; try again later\r\n\
                   503 5.5.1 Need MAIL first\r\n";
    assert_eq!(client.read(), refused);
    // A second session of the same client shares the limit, another client does not.
    let second = greeted(&mut rig, 1);
    rig.send(&second, ENVELOPE);
    assert_eq!(second.read(), refused);
    let other = greeted(&mut rig, 2);
    rig.send(&other, ENVELOPE);
    assert_eq!(other.read(), "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n");
    rig.pass(ms(30_000));
    rig.send(&client, MESSAGE);
    assert!(client.read().ends_with("stored as 0-3\r\n"));
    assert_eq!(limited(&rig, Limited::Messages, Scope::Client), 2);

    let mut rig = self::rig(rate(Rate::Recipients, 3));
    let client = greeted(&mut rig, 1);
    let rcpt = b"MAIL FROM:<>\r\nRCPT TO:<b@x.example>\r\nRCPT TO:<c@x.example>\r\nRCPT TO:<b@x.example>\r\n\
                 RCPT TO:<b@x.example>\r\nRCPT TO:<b@x.example>\r\n";
    rig.send(&client, rcpt);
    // A recipient that the rules refuse is refused before anything is counted.
    assert_eq!(
        client.read(),
        "250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n550 5.1.1 No such user here\r\n250 2.1.5 Ok\r\n250 2.1.5 Ok\r\n\
         452 4.7.1 Too many recipients from your network; try again later\r\n"
    );
    rig.send(&client, b"DATA\r\nx\r\n.\r\n");
    assert!(client.read().ends_with("250 2.0.0 Ok: stored as 0-1\r\n"));

    let mut rig = self::rig(rate(Rate::Bytes, 10_000));
    let client = greeted(&mut rig, 1);
    rig.send(
        &client,
        b"MAIL FROM:<>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n",
    );
    rig.send(&client, &b"x\r\n".repeat(10_000));
    // Thrown away again; it came all the same.
    rig.send(&client, b".\r\nMAIL FROM:<>\r\n");
    let replies = client.read();
    assert!(
        replies.ends_with(
            "250 2.0.0 Ok: stored as 0-1\r\n450 4.7.1 Too much data from your network; try again later\r\n"
        ),
        "{replies}"
    );
    quit(&mut rig, &client);
    let again = greeted(&mut rig, 1);
    rig.send(&again, b"MAIL FROM:<>\r\n");
    assert!(again.read().starts_with("450 4.7.1 Too much data "));
    // Three minutes' worth was sent: in two more there is something again.
    rig.pass(ms(122_000));
    rig.send(&again, b"MAIL FROM:<>\r\n");
    assert_eq!(again.read(), "250 2.1.0 Ok\r\n");
}

#[test]
fn octets_of_a_message_that_never_ends_count_as_well() {
    let mut rig = rig(rate(Rate::Bytes, 10_000));
    let client = greeted(&mut rig, 1);
    rig.send(
        &client,
        b"MAIL FROM:<>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n",
    );
    rig.send(&client, &b"x\r\n".repeat(10_000));
    client.pipe.borrow_mut().input_ended = true;
    rig.send(&client, b"");
    assert!(client.pipe.borrow().dropped);
    let again = greeted(&mut rig, 1);
    rig.send(&again, b"MAIL FROM:<>\r\n");
    assert!(again.read().starts_with("450 4.7.1 Too much data "));
}

#[test]
fn errors_end_a_session_and_unknown_users_are_errors() {
    let mut rig = rig_with(options(), ClientLimits::default(), |limiter| {
        limiter.session_errors = both(3);
    });
    let client = greeted(&mut rig, 1);
    rig.send(&client, b"MAIL FROM:<>\r\n");
    assert_eq!(client.read(), "250 2.1.0 Ok\r\n");
    let guess = b"RCPT TO:<c@x.example>\r\n";
    rig.send(&client, &guess.repeat(6));
    assert_eq!(
        client.read(),
        format!("{USER_UNKNOWN}{USER_UNKNOWN}{USER_UNKNOWN}421 4.7.0 Too many errors; closing\r\n")
    );
    assert!(client.pipe.borrow().output_ended);
    // A client that is exempt may err more often.
    let exempt = rig.connect_from(([127, 0, 0, 1], 4_242).into(), b"");
    rig.send(&exempt, &b"BOGUS\r\n".repeat(6));
    let unknown = "500 5.5.1 Command not recognized\r\n";
    assert_eq!(exempt.read(), format!("{GREETING}{}", unknown.repeat(6)));
}

#[test]
fn commands_that_bring_no_mail_end_a_session_unless_mail_comes_between() {
    let mut rig = rig_with(options(), ClientLimits::default(), |limiter| {
        limiter.session_idle_commands = both(3);
    });
    let client = greeted(&mut rig, 1);
    rig.send(&client, b"NOOP\r\nRSET\r\nVRFY x\r\n");
    assert_eq!(client.read().lines().count(), 3);
    rig.send(&client, MESSAGE);
    assert!(client.read().ends_with("stored as 0-1\r\n"));
    rig.send(&client, b"NOOP\r\nEHLO d.example\r\nHELP\r\n");
    assert!(client.read().contains("250-mx.example "));
    rig.send(&client, b"MAIL FROM:<>\r\nNOOP\r\nNOOP\r\n");
    let end = "250 2.1.0 Ok\r\n421 4.7.0 Too many commands without mail; closing\r\n";
    assert_eq!(client.read(), end);
    assert!(client.pipe.borrow().output_ended);
}

fn tarpit_rig() -> Rig {
    rig_with(options(), ClientLimits::default(), |limiter| {
        limiter.tarpit = Duration::from_secs(2);
        limiter.tarpit_after = 1;
    })
}

#[test]
fn a_refusal_is_held_back_and_nobody_else_waits() {
    let mut rig = tarpit_rig();
    let start = free(&rig);
    let client = greeted(&mut rig, 1);
    let other = greeted(&mut rig, 1);
    let guess = "RCPT TO:<c@x.example>\r\n";
    rig.send(
        &client,
        format!("MAIL FROM:<>\r\n{guess}{guess}NOOP\r\n{guess}").as_bytes(),
    );
    // The first refusal leaves at once, the second waits, and with it everything behind it.
    assert_eq!(client.read(), format!("250 2.1.0 Ok\r\n{USER_UNKNOWN}"));
    rig.send(&client, b"NOOP\r\n");
    rig.pass(ms(1_999));
    assert_eq!(client.read(), "");
    rig.send(&other, MESSAGE);
    assert!(other.read().ends_with("stored as 0-1\r\n"));
    rig.pass(ms(51));
    assert_eq!(client.read(), format!("{USER_UNKNOWN}250 2.0.0 Ok\r\n"));
    rig.pass(ms(2_050));
    assert_eq!(client.read(), format!("{USER_UNKNOWN}250 2.0.0 Ok\r\n"));
    assert_eq!(rig.server.shared.metrics.tarpitted, 2);
    // Its silence was ours: it is not timed out for it.
    rig.pass(ms(290_000));
    assert_eq!(client.read(), "");
    quit(&mut rig, &client);
    quit(&mut rig, &other);
    assert_eq!(free(&rig), start);
    assert_eq!(tarpitted(&rig), 0);
}

#[test]
fn a_250_that_was_promised_is_not_held_back_with_a_refusal_behind_it() {
    let mut rig = tarpit_rig();
    let client = greeted(&mut rig, 1);
    rig.send(
        &client,
        &[&b"BOGUS\r\n"[..], MESSAGE, b"BOGUS\r\nNOOP\r\n"].concat(),
    );
    let replies = client.read();
    assert!(
        replies.ends_with("250 2.0.0 Ok: stored as 0-1\r\n"),
        "{replies}"
    );
    rig.pass(ms(2_050));
    assert_eq!(
        client.read(),
        "500 5.5.1 Command not recognized\r\n250 2.0.0 Ok\r\n"
    );
}

#[test]
fn a_commit_that_fails_meanwhile_leaves_the_held_refusal_whole() {
    let mut rig = tarpit_rig();
    let mut failing = Rig::new(options(), Survive::Power);
    failing.server.shared.listeners[0].role = Role::Mx;
    failing.server.shared.rules = rig.server.shared.rules.clone();
    failing.server.shared.limiter = rig.server.shared.limiter.take();
    let client = greeted(&mut failing, 1);
    failing.send(
        &client,
        &[&b"BOGUS\r\n"[..], MESSAGE, b"BOGUS\r\n"].concat(),
    );
    let replies = client.read();
    assert!(
        replies.ends_with("354 End data with <CR><LF>.<CR><LF>\r\n"),
        "{replies}"
    );
    // The 250 becomes a 451 of another length.
    failing.sync(false);
    assert_eq!(client.read(), "451 4.3.0 Storage failed; not stored\r\n");
    failing.pass(ms(2_050));
    assert_eq!(client.read(), "500 5.5.1 Command not recognized\r\n");
}

#[test]
fn a_client_that_leaves_the_tarpit_is_gone_and_counted_no_more() {
    let mut rig = tarpit_rig();
    let start = free(&rig);
    let client = greeted(&mut rig, 1);
    client.pipe.borrow_mut().input_ended = true;
    rig.send(&client, &b"BOGUS\r\n".repeat(3));
    assert_eq!(tarpitted(&rig), 1);
    rig.pass(ms(2_050));
    rig.pass(ms(2_050));
    assert!(client.pipe.borrow().dropped);
    assert_eq!(
        client.read(),
        "500 5.5.1 Command not recognized\r\n".repeat(3)
    );
    assert_eq!(free(&rig), start);
    assert_eq!(tarpitted(&rig), 0);
}

#[test]
fn the_tarpit_takes_a_part_of_the_pool_and_no_more() {
    let mut options = options();
    options.sessions_max = 1_000;
    // A sixteenth of 16 MiB at 68 KiB each.
    let most = (16 << 20) / 16 / (68 * 1_024);
    let mut rig = rig_with(options, ClientLimits::default(), |limiter| {
        limiter.tarpit = Duration::from_secs(2);
    });
    let clients: Vec<Client> = (0..most + 10).map(|_| greeted(&mut rig, 1)).collect();
    for client in &clients {
        rig.send(client, b"BOGUS\r\n");
    }
    let answered = clients.iter().filter(|client| !client.read().is_empty());
    assert_eq!(answered.count(), 10);
    assert_eq!(rig.server.shared.metrics.tarpitted, most as u64);
}

#[test]
fn a_server_that_stops_lets_the_tarpit_go() {
    let mut rig = tarpit_rig();
    let client = greeted(&mut rig, 1);
    rig.send(&client, &b"BOGUS\r\n".repeat(2));
    client.read();
    rig.server.begin_drain();
    rig.turn();
    assert_eq!(
        client.read(),
        "500 5.5.1 Command not recognized\r\n421 4.3.2 Server is shutting down\r\n"
    );
    assert!(rig.server.is_drained());
}

fn delay_rig() -> Rig {
    rig_with(options(), ClientLimits::default(), |limiter| {
        limiter.greeting_delay = Duration::from_secs(3);
    })
}

#[test]
fn a_client_that_waits_gets_its_greeting_late() {
    let mut rig = delay_rig();
    let client = connect(&mut rig, 1);
    rig.pass(ms(2_999));
    assert_eq!(client.read(), "");
    let exempt = rig.connect_from(([127, 0, 0, 1], 4_242).into(), b"");
    assert_eq!(exempt.read(), GREETING);
    rig.pass(ms(51));
    assert_eq!(client.read(), GREETING);
    rig.send(&client, MESSAGE);
    assert!(
        client
            .read()
            .starts_with("503 5.5.1 Send EHLO or HELO first\r\n")
    );
    assert_eq!(rig.server.shared.metrics.early_talkers, 0);
}

#[test]
fn a_client_that_talks_before_its_greeting_is_refused_and_not_obeyed() {
    let mut rig = delay_rig();
    let start = free(&rig);
    let early = [&b"EHLO c.example\r\n"[..], MESSAGE].concat();
    let reply = "554 5.5.1 You talked before the greeting\r\n";
    // Octets that were there before the connection was accepted, some that come later, and one alone.
    let first = rig.connect_from(([10, 0, 0, 1], 1).into(), &early);
    rig.send(&first, b"");
    assert_eq!(first.read(), reply);
    let second = connect(&mut rig, 1);
    rig.pass(ms(2_900));
    rig.send(&second, &early);
    assert_eq!(second.read(), reply);
    let third = connect(&mut rig, 1);
    rig.send(&third, b"E");
    assert_eq!(third.read(), reply);
    rig.pass(ms(10_000));
    for client in [first, second, third] {
        assert_eq!(client.read(), "");
        assert!(client.pipe.borrow().dropped);
    }
    let metrics = &rig.server.shared.metrics;
    assert_eq!((metrics.early_talkers, metrics.messages_accepted), (3, 0));
    assert_eq!((rig.server.connections(), free(&rig)), (0, start));
}

#[test]
fn a_client_that_leaves_before_its_greeting_is_gone_at_once() {
    let mut rig = delay_rig();
    let client = connect(&mut rig, 1);
    client.pipe.borrow_mut().input_ended = true;
    rig.send(&client, b"");
    assert!(client.pipe.borrow().dropped);
    assert_eq!(client.read(), "");
    let metrics = &rig.server.shared.metrics;
    assert_eq!(
        metrics.connections_closed[CloseCause::PeerClosed as usize],
        1
    );
    assert_eq!(metrics.early_talkers, 0);
}

#[test]
fn a_server_that_stops_says_so_instead_of_a_late_greeting() {
    let mut rig = delay_rig();
    let client = connect(&mut rig, 1);
    rig.server.begin_drain();
    rig.turn();
    assert_eq!(client.read(), "421 4.3.2 Server is shutting down\r\n");
    assert!(rig.server.is_drained());
}

#[test]
fn limits_become_narrower_under_load_and_it_is_said_once() {
    let mut options = options();
    options.sessions_max = 10;
    let limits = ClientLimits {
        sessions: Limit {
            normal: 100,
            stress: 2,
        },
        ..ClientLimits::default()
    };
    let mut rig = rig_with(options, limits, |limiter| {
        limiter.session_errors = Limit {
            normal: 20,
            stress: 1,
        };
        limiter.tarpit = Duration::from_secs(2);
        limiter.greeting_delay = Duration::from_secs(2);
    });
    rig.server.shared.logger = Logger::to_memory(LogFormat::Text, LogLevel::Info, Clock::new());
    let mut clients = Vec::new();
    for host in 1..=8 {
        clients.push(connect(&mut rig, host));
    }
    rig.pass(ms(2_100));
    assert!(clients.iter().all(|client| client.read() == GREETING));
    // Eight of ten places are taken: what was patient is not any more.
    let hasty = connect(&mut rig, 9);
    assert_eq!(hasty.read(), GREETING, "greetings are not held back");
    rig.send(&hasty, b"BOGUS\r\nBOGUS\r\nBOGUS\r\n");
    assert_eq!(
        hasty.read(),
        "500 5.5.1 Command not recognized\r\n421 4.7.0 Too many errors; closing\r\n",
        "nor are refusals, and the second error ends a session"
    );
    let (second, third) = (connect(&mut rig, 1), connect(&mut rig, 1));
    assert_eq!(second.read(), GREETING);
    assert_eq!(
        third.read(),
        "421 4.7.0 Too many sessions from your network; try again later\r\n"
    );
    let shared = &mut rig.server.shared;
    assert_eq!(shared.metrics.stress_began, [1, 0, 0]);
    let lines = shared.logger.take_lines();
    let said = |class: &str| lines.iter().filter(|line| line.contains(class)).count();
    assert_eq!(
        (
            said(" class=stress cause=sessions sessions=8"),
            said(" class=stress ")
        ),
        (1, 1)
    );
    for client in &clients[..5] {
        quit(&mut rig, client);
    }
    rig.pass(ms(5_000));
    assert!(
        rig.server
            .shared
            .limiter
            .as_ref()
            .expect("set")
            .stress
            .is_on()
    );
    rig.pass(ms(15_000));
    assert!(
        !rig.server
            .shared
            .limiter
            .as_ref()
            .expect("set")
            .stress
            .is_on()
    );
    let lines = rig.server.shared.logger.take_lines();
    let over: Vec<&String> = lines
        .iter()
        .filter(|line| line.contains("class=stress"))
        .collect();
    assert_eq!(over.len(), 1, "{lines:?}");
    assert!(over[0].contains(" class=stress_over "));
}

#[test]
fn a_slow_sync_and_a_low_pool_are_stress_too() {
    let mut options = options();
    options.sessions_max = 1_000;
    let mut rig = Rig::new(options, Survive::Power);
    let table = ClientTable::new(1_000, (3, 5), ClientLimits::default());
    rig.server.shared.limiter = Some(Box::new(Limiter::new(table)));
    let client = rig.connect();
    rig.send(&client, &[&b"EHLO c.example\r\n"[..], MESSAGE].concat());
    rig.now = rig.now.after(ms(1_001));
    rig.turn();
    let began =
        |rig: &Rig, cause: StressCause| rig.server.shared.metrics.stress_began[cause as usize];
    assert_eq!(
        (
            began(&rig, StressCause::Sync),
            began(&rig, StressCause::Pool)
        ),
        (1, 0)
    );
    rig.syncs.at_once.set(true);
    rig.pass(ms(12_000));
    assert!(
        !rig.server
            .shared
            .limiter
            .as_ref()
            .expect("set")
            .stress
            .is_on()
    );
    // Large messages that never end take the pool away.
    let hungry: Vec<Client> = (0..60)
        .map(|host| {
            let client = connect(&mut rig, host);
            rig.send(
                &client,
                b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n",
            );
            client
        })
        .collect();
    let lines = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n".repeat(4_000);
    for client in &hungry {
        rig.send(client, &lines);
        rig.turn();
    }
    assert_eq!(began(&rig, StressCause::Pool), 1);
}

#[test]
fn a_sink_has_no_limits_unless_they_are_asked_for() {
    let limits = ClientLimits {
        sessions: both(1),
        ..rate(Rate::Messages, 1)
    };
    let mut rig = rig_with(options(), limits, |limiter| {
        limiter.session_errors = both(1);
        limiter.greeting_delay = Duration::from_secs(1);
    });
    rig.server.shared.listeners[0].role = Role::Sink;
    let _first = greeted(&mut rig, 1);
    let client = greeted(&mut rig, 1);
    rig.send(&client, &[MESSAGE, MESSAGE, b"BOGUS\r\nBOGUS\r\n"].concat());
    let replies = client.read();
    assert!(replies.contains("stored as 0-2\r\n"), "{replies}");
    assert!(!replies.contains("421"), "{replies}");
    rig.server.shared.limiter.as_mut().expect("set").on_sinks = true;
    let limited = connect(&mut rig, 1);
    rig.pass(ms(1_050));
    assert_eq!(limited.read(), GREETING);
    let refused = connect(&mut rig, 1);
    assert_eq!(
        refused.read(),
        "421 4.7.0 Too many sessions from your network; try again later\r\n"
    );
}

#[test]
fn a_client_that_may_not_connect_is_not_counted() {
    let mut rig = rig(rate(Rate::Connections, 1));
    let mut rules = (*rig.server.shared.rules).clone();
    rules.denied = Networks::new([IpPrefix::single([10, 0, 0, 1].into())]);
    rig.server.shared.rules = rules.into();
    for _ in 0..3 {
        assert_eq!(connect(&mut rig, 1).read(), "554 5.7.1 Access denied\r\n");
    }
    assert_eq!(limited(&rig, Limited::Connections, Scope::Client), 0);
}

#[test]
fn tls_handshakes_are_counted_when_they_are_asked_for() {
    let mut rig = rig(rate(Rate::Handshakes, 2));
    let client = greeted(&mut rig, 1);
    let reply = ringmx::smtp::reply::Reply::ClientHandshakes;
    assert_eq!(rig.server.admit_handshake(client.token), None);
    assert_eq!(rig.server.admit_handshake(client.token), None);
    assert_eq!(rig.server.admit_handshake(client.token), Some(reply));
    assert_eq!(limited(&rig, Limited::Handshakes, Scope::Client), 1);
    let exempt = rig.connect_from(([127, 0, 0, 1], 4_242).into(), b"");
    for _ in 0..10 {
        assert_eq!(rig.server.admit_handshake(exempt.token), None);
    }
    let wire = "454 4.7.0 Too many TLS handshakes from your network; try again later\r\n";
    assert_eq!(reply.row().wire, wire.as_bytes());
    assert_eq!(say(&mut rig, &client, "NOOP"), "250 2.0.0 Ok\r\n");
}

#[test]
fn an_mx_gives_the_same_replies_however_its_input_is_cut() {
    let dialogue = b"EHLO c.example\r\nMAIL FROM:<>\r\nRCPT TO:<c@x.example>\r\nRCPT TO:<b@y.example>\r\nDATA\r\n\
                     RCPT TO:<postmaster>\r\nRCPT TO:<B@X.example>\r\nDATA\r\nSubject: t\r\n\r\nText.\r\n.\r\n\
                     MAIL FROM:<>\r\nRCPT TO:<b@y.example>\r\nBDAT 3 LAST\r\nabcRSET\r\nQUIT\r\n";
    let mut expected = None;
    // Whole, octet by octet, and in parts of every small length.
    for part in [dialogue.len(), 1, 2, 3, 5, 7, 11, 13, 64] {
        let mut rig = rig_with(options(), ClientLimits::default(), |_| {});
        let client = connect(&mut rig, 1);
        let mut replies = client.read();
        for octets in dialogue.chunks(part) {
            rig.send(&client, octets);
            replies += &client.read();
        }
        rig.turn();
        replies += &client.read();
        let refusals: Vec<&str> = replies
            .lines()
            .filter(|line| line.starts_with('5'))
            .collect();
        assert_eq!(
            refusals,
            [
                "550 5.1.1 No such user here",
                "550 5.7.1 Relaying denied",
                "503 5.5.1 Need an accepted RCPT first",
                "550 5.7.1 Relaying denied",
                "503 5.5.1 Need an accepted RCPT first",
            ]
        );
        assert!(
            replies.contains("250 2.0.0 Ok: stored as 0-1\r\n"),
            "{replies}"
        );
        assert!(replies.ends_with("221 2.0.0 Bye\r\n"), "{replies}");
        assert_eq!(rig.server.shared.metrics.messages_accepted, 1);
        assert_eq!(
            expected.get_or_insert_with(|| replies.clone()),
            &replies,
            "in parts of {part}"
        );
    }
}

/// A server with TLS and these limits.
fn tls_rig(mode: TlsMode, identity: &Identity, limits: ClientLimits) -> Rig {
    let offered = match mode {
        TlsMode::Implicit => Offered::NONE,
        _ => Offered::STARTTLS,
    };
    let mut rig = Rig::with_listener(options(), Survive::Process, 16 << 20, mode, offered);
    rig.server.secure(security(&[identity]));
    let mut limiter = Limiter::new(ClientTable::new(64, (3, 5), limits));
    limiter.on_sinks = true;
    rig.server.shared.limiter = Some(Box::new(limiter));
    rig
}

#[test]
fn starttls_beyond_the_limit_gets_454_and_the_session_goes_on() {
    let identity = Identity::new(&["mx.example"]);
    let mut rig = tls_rig(TlsMode::Offered, &identity, rate(Rate::Handshakes, 1));
    let first = greeted(&mut rig, 1);
    assert_eq!(
        say(&mut rig, &first, "STARTTLS"),
        "220 2.0.0 Ready to start TLS\r\n"
    );
    let second = greeted(&mut rig, 1);
    assert_eq!(
        say(&mut rig, &second, "STARTTLS"),
        "454 4.7.0 Too many TLS handshakes from your network; try again later\r\n"
    );
    assert_eq!(say(&mut rig, &second, "NOOP"), "250 2.0.0 Ok\r\n");
    assert_eq!(limited(&rig, Limited::Handshakes, Scope::Client), 1);
}

#[test]
fn implicit_tls_is_refused_before_its_handshake_costs_anything() {
    let identity = Identity::new(&["mx.example"]);
    let mut limits = rate(Rate::Connections, 2);
    limits.sessions = both(1);
    let mut rig = tls_rig(TlsMode::Implicit, &identity, limits);
    let mut client = TlsClient::new(connect(&mut rig, 1), &identity, Cut::Whole);
    client.shake_hands(&mut rig);
    assert_eq!(client.hear(&mut rig), GREETING);
    // A second session of the client is closed without a word: nothing may be said in the clear.
    let refused = connect(&mut rig, 1);
    rig.turn();
    assert_eq!(refused.read(), "");
    assert!(refused.pipe.borrow().dropped);
    assert_eq!(limited(&rig, Limited::Sessions, Scope::Client), 1);
    client.say(&mut rig, "QUIT\r\n");
    assert_eq!(client.hear(&mut rig), "221 2.0.0 Bye\r\n");
    // Each connection was counted once, before its handshake: this is the second of two a minute.
    let again = connect(&mut rig, 1);
    rig.turn();
    assert!(!again.pipe.borrow().dropped);
    assert_eq!(limited(&rig, Limited::Connections, Scope::Client), 0);
    let mut rules = (*rig.server.shared.rules).clone();
    rules.denied = Networks::new([IpPrefix::single([10, 0, 0, 2].into())]);
    rig.server.shared.rules = rules.into();
    let denied = connect(&mut rig, 2);
    rig.turn();
    assert!(denied.pipe.borrow().dropped);
    assert_eq!(denied.read(), "");
}

/// Behind a proxy that speaks XCLIENT every client had the proxy's address for access rules and limits: networks of
/// `deny-from` got in, and with the proxy on the same machine nobody had a limit at all.
#[test]
fn rules_and_limits_are_about_the_client_that_xclient_names() {
    let mut rig = rig(ClientLimits {
        sessions: both(1),
        ..ClientLimits::default()
    });
    let shared = &mut rig.server.shared;
    shared.xclient_from = [IpPrefix::of([127, 0, 0, 0].into(), 8)].into();
    let recipients = Recipients::new(None);
    shared.rules = Rules {
        denied: Networks::new([IpPrefix::of([192, 0, 2, 0].into(), 24)]),
        unlimited: Networks::new([IpPrefix::of([127, 0, 0, 0].into(), 8)]),
        recipients: Some(recipients),
        ..Rules::default()
    }
    .into();
    let proxied = |rig: &mut Rig, attributes: &str| {
        let proxy = rig.connect_from(([127, 0, 0, 1], 4_242).into(), b"");
        rig.send(&proxy, b"EHLO proxy.example\r\n");
        assert!(proxy.read().contains("250-XCLIENT "));
        let reply = say(rig, &proxy, &format!("XCLIENT {attributes}"));
        (proxy, reply)
    };
    let (one, greeted) = proxied(&mut rig, "ADDR=198.51.100.7 PORT=4");
    assert_eq!(greeted, GREETING);
    let too_many = "421 4.7.0 Too many sessions from your network; try again later\r\n";
    let (refused, reply) = proxied(&mut rig, "ADDR=IPV6:::ffff:198.51.100.7");
    assert_eq!(reply, too_many);
    assert!(refused.pipe.borrow().dropped);
    assert_eq!(limited(&rig, Limited::Sessions, Scope::Client), 1);
    let (denied, reply) = proxied(&mut rig, "ADDR=192.0.2.9");
    assert_eq!(reply, "554 5.7.1 Access denied\r\n");
    assert!(denied.pipe.borrow().dropped);
    // Who is not named is the proxy, and what is not about an address leaves the client as it was.
    for attributes in ["ADDR=[UNAVAILABLE]", "HELO=c.example"] {
        for _ in 0..2 {
            assert_eq!(proxied(&mut rig, attributes).1, GREETING);
        }
    }
    rig.send(&one, b"EHLO proxy.example\r\n");
    one.read();
    assert_eq!(say(&mut rig, &one, "XCLIENT HELO=c.example"), GREETING);
    // The place is free again when the session of that client ends, or becomes another's.
    rig.send(&one, b"EHLO proxy.example\r\n");
    one.read();
    assert_eq!(say(&mut rig, &one, "XCLIENT ADDR=198.51.100.8"), GREETING);
    let (_seven, reply) = proxied(&mut rig, "ADDR=198.51.100.7");
    assert_eq!(reply, GREETING);
    assert_eq!(proxied(&mut rig, "ADDR=198.51.100.8").1, too_many);
    quit(&mut rig, &one);
    assert_eq!(proxied(&mut rig, "ADDR=198.51.100.8").1, GREETING);
    assert_eq!(limited(&rig, Limited::Sessions, Scope::Client), 2);
}

/// One client with 32 sessions kept the helper busy with wrong passwords, and everybody else was told 454.
#[test]
fn a_client_that_guesses_on_many_sessions_leaves_others_room_to_authenticate() {
    const ROOM: usize = 8;
    const BUSY: &str = "454 4.7.0 Temporary authentication failure; try again later\r\n";
    let context = ContextOptions {
        role: Role::Submission,
        mechanisms: Mechanisms::ALL,
        auth_without_tls: true,
        ..ContextOptions::default()
    };
    let survive = Survive::Process;
    let mut rig = Rig::with_context(options(), survive, 16 << 20, TlsMode::Off, context);
    let rounds = NonZeroU32::new(4_096).expect("not zero");
    let text = format!(
        "jim:{}\n",
        Verifier::new("right", b"0123456789abcdef", rounds).to_text()
    );
    let users = Users::parse(&text, &[7; 32]).expect("a file of one user");
    let shared = &mut rig.server.shared;
    shared.accounts = Accounts::Users(Box::new(users));
    shared.listeners[0].role = Role::Submission;
    let table = ClientTable::new(shared.options.sessions_max, (3, 5), ClientLimits::default());
    shared.limiter = Some(Box::new(Limiter::new(table)));
    shared.rules = Rules {
        unlimited: Networks::new([IpPrefix::of([10, 0, 0, 3].into(), 32)]),
        ..Rules::default()
    }
    .into();
    let auth = |password: &str| {
        let message = base64::text(format!("\0jim\0{password}").as_bytes());
        format!("AUTH PLAIN {message}\r\n")
    };
    let mut clients = |host: u8, count: usize| -> Vec<Client> {
        (0..count).map(|_| greeted(&mut rig, host)).collect()
    };
    // All that a client without limits sends is let in as long as there is room at all.
    let (guesser, user, exempt) = (clients(1, ROOM + 4), clients(2, 1), clients(3, ROOM + 4));
    // Passwords are checked behind the turn in which they came.
    rig.server.begin_turn(rig.now, rig.now.0);
    for (client, password) in guesser
        .iter()
        .map(|client| (client, "wrong"))
        .chain(user.iter().chain(&exempt).map(|client| (client, "right")))
    {
        client.feed(auth(password).as_bytes());
        rig.server.ready(client.token, true, false, false);
    }
    rig.server.end_turn();
    rig.turn();
    rig.turn();
    let replies: Vec<String> = guesser.iter().map(Client::read).collect();
    let wrong = "535 5.7.8 Authentication credentials invalid\r\n";
    assert_eq!(replies, [[wrong; ROOM].as_slice(), &[BUSY; 4]].concat());
    for client in user.iter().chain(&exempt) {
        assert_eq!(client.read(), "235 2.7.0 Authentication successful\r\n");
    }
    // Who was told to come back may, when the others' are checked.
    for client in &guesser[ROOM..] {
        rig.send(client, auth("right").as_bytes());
        rig.turn();
        assert_eq!(client.read(), "235 2.7.0 Authentication successful\r\n");
    }
}
