//! What a connection does with a session besides feeding it: time-outs, lost connections, content in place.

mod session_support;

use ringmx::clock::Instant;
use ringmx::smtp::data::{BareNewlines, InPlace};
use ringmx::smtp::parameter::Offered;
use ringmx::smtp::reply::{ALL, Reply};
use ringmx::smtp::session::{Context, ContextError, ContextOptions, Phase, Progress, Session};
use ringmx::smtp::sink::{Blocked, CloseReason, Verdict};
use session_support::{Connection, Manner, Recorder, WALL_NS};

fn context() -> Context {
    Context::new(ContextOptions {
        message_bytes_max: 100,
        ..ContextOptions::default()
    })
    .expect("options")
}

/// A session that has received `input`, and its recorder with the replies so far forgotten.
fn after<'a>(ctx: &'a Context, input: &[u8]) -> Connection<'a> {
    let mut connection = Connection::new(ctx, Recorder::new(Manner::default(), 1));
    connection.read(input);
    connection.out.wire.clear();
    connection
}

const ENVELOPE: &[u8] =
    b"EHLO a.example\r\nMAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n";

fn with(input: &[u8]) -> Vec<u8> {
    [ENVELOPE, input].concat()
}

#[test]
fn a_session_is_small_because_the_slab_holds_thousands() {
    assert!(
        size_of::<Session>() <= 224,
        "{} bytes",
        size_of::<Session>()
    );
}

#[test]
fn phases_follow_what_the_session_waits_for() {
    let ctx = context();
    let phase = |input: &[u8]| after(&ctx, input).session.phase();
    assert_eq!(
        Session::new("::1".parse().expect("an address")).phase(),
        Phase::Greeting
    );
    assert_eq!(phase(b""), Phase::Command);
    assert_eq!(phase(b"EHLO a.example\r\n"), Phase::Command);
    assert_eq!(phase(ENVELOPE), Phase::Envelope);
    assert_eq!(phase(&with(b"DATA\r\n")), Phase::Data);
    assert_eq!(phase(&with(b"DATA\r\n.\r\n")), Phase::Command);
    assert_eq!(phase(&with(b"BDAT 5\r\nab")), Phase::Bdat);
    assert_eq!(phase(&with(b"BDAT 2\r\nab")), Phase::Envelope);
    assert_eq!(phase(b"QUIT\r\n"), Phase::Closed);
}

#[test]
fn a_time_out_sends_its_reply_drops_the_message_and_ends_the_session() {
    let ctx = context();
    for (input, reply, reason) in [
        (&b""[..], Reply::TimedOut, CloseReason::TimedOut),
        (&with(b"DATA\r\nabc"), Reply::TooSlow, CloseReason::TimedOut),
        (
            &with(b"BDAT 9\r\nabc"),
            Reply::ShuttingDown,
            CloseReason::Refused,
        ),
    ] {
        let mut connection = after(&ctx, input);
        connection.session.timed_out(reply, &mut connection.out);
        // The second one comes too late to say anything.
        connection
            .session
            .timed_out(Reply::TimedOut, &mut connection.out);
        connection.read(b"NOOP\r\n");
        assert_eq!(connection.out.wire, reply.row().wire);
        assert_eq!(connection.out.closed, Some(reason));
        assert!(!connection.out.is_open());
        assert_eq!(connection.session.phase(), Phase::Closed);
    }
}

#[test]
fn a_lost_connection_drops_the_message_and_says_nothing() {
    let ctx = context();
    for input in [&with(b"DATA\r\nabc\r\n."), ENVELOPE, b""] {
        let mut connection = after(&ctx, input);
        connection.session.connection_lost(&mut connection.out);
        assert_eq!(connection.out.wire, b"");
        assert!(!connection.out.is_open());
        assert_eq!(connection.out.stored, []);
        assert_eq!(connection.session.phase(), Phase::Closed);
    }
}

#[test]
fn a_verdict_that_comes_after_the_close_changes_nothing() {
    let ctx = context();
    let mut out = Recorder::new(
        Manner {
            late: true,
            ..Manner::default()
        },
        1,
    );
    let mut session = Session::new("192.0.2.1".parse().expect("an address"));
    session.start(&ctx, &mut out);
    let progress = session.receive(&ctx, b"NOOP\r\n", Instant(0), WALL_NS, &mut out);
    assert_eq!(
        progress,
        Progress {
            consumed: 0,
            blocked: Some(Blocked::Verdict)
        }
    );
    session.timed_out(Reply::TimedOut, &mut out);
    session.answer(&ctx, Verdict::Accept, &mut out);
    session.completed(Ok(()), &mut out);
    assert_eq!(out.wire, Reply::TimedOut.row().wire);
    let progress = session.receive(&ctx, b"NOOP\r\n", Instant(0), WALL_NS, &mut out);
    assert_eq!(
        progress,
        Progress {
            consumed: 0,
            blocked: Some(Blocked::Closed)
        }
    );
}

#[test]
fn a_partial_line_is_left_to_be_presented_again() {
    let ctx = context();
    let mut out = Recorder::new(Manner::default(), 1);
    let mut session = Session::new("192.0.2.1".parse().expect("an address"));
    session.start(&ctx, &mut out);
    let progress = session.receive(&ctx, b"NOOP\r\nNOO", Instant(0), WALL_NS, &mut out);
    assert_eq!(
        progress,
        Progress {
            consumed: 6,
            blocked: None
        }
    );
}

#[test]
fn content_is_taken_in_place_until_it_has_to_be_dropped() {
    let ctx = context();
    let mut connection = after(&ctx, &with(b"DATA\r\n"));
    let session = &mut connection.session;
    assert!(session.can_receive_in_place());
    let mut buf = *b"ab\r\n..c\r\n";
    let taken = session.receive_in_place(&ctx, &mut buf);
    assert_eq!(
        taken,
        InPlace {
            consumed: 9,
            kept: 8,
            end: false
        }
    );
    assert_eq!(&buf[..8], b"ab\r\n.c\r\n");

    // One octet over the maximum: nothing is kept, and no more storage is asked for.
    let taken = session.receive_in_place(&ctx, &mut [b'x'; 93]);
    assert_eq!(
        taken,
        InPlace {
            consumed: 93,
            kept: 0,
            end: false
        }
    );
    assert!(!session.can_receive_in_place() && session.is_discarding());
    let nothing = session.receive_in_place(&ctx, &mut [b'x'; 5]);
    assert_eq!(
        nothing,
        InPlace {
            consumed: 0,
            kept: 0,
            end: false
        }
    );
    connection.read(b"x");
    assert!(!connection.out.is_open());
    connection.read(b"\r\n.\r\n");
    assert_eq!(connection.out.wire, Reply::TooBig.row().wire);
}

#[test]
fn a_chunk_in_place_ends_where_its_size_says() {
    let ctx = context();
    let mut connection = after(&ctx, &with(b"BDAT 4 LAST\r\n"));
    let mut buf = *b"a\r\n.NOOP\r\n";
    let taken = connection.session.receive_in_place(&ctx, &mut buf);
    assert_eq!(
        taken,
        InPlace {
            consumed: 4,
            kept: 4,
            end: true
        }
    );
    assert!(!connection.session.can_receive_in_place());
    connection.session.end_in_place(&ctx, &mut connection.out);
    assert_eq!(connection.out.wire, Reply::Stored.row().wire);
    assert_eq!(connection.session.phase(), Phase::Command);
}

#[test]
fn content_that_normalizing_may_lengthen_is_not_taken_in_place() {
    let ctx = Context::new(ContextOptions {
        bare_newlines: BareNewlines::Normalize,
        ..ContextOptions::default()
    })
    .expect("options");
    assert!(
        !after(&ctx, &with(b"DATA\r\n"))
            .session
            .can_receive_in_place()
    );
    assert!(
        !after(&ctx, &with(b"BDAT 5\r\n"))
            .session
            .can_receive_in_place()
    );
    assert!(!after(&ctx, &with(b"")).session.can_receive_in_place());
}

#[test]
fn a_long_helo_name_is_kept_whole() {
    let ctx = context();
    for len in [1, 46, 47, 200] {
        let label = "a".repeat(len.min(60));
        let name = [&label[..]; 4].join(".")[..len]
            .trim_end_matches('.')
            .to_owned();
        let connection = after(&ctx, format!("EHLO {name}\r\n").as_bytes());
        assert_eq!(connection.session.helo(), name.as_bytes());
    }
}

#[test]
fn a_context_needs_a_name_that_can_stand_in_a_reply_and_limits_above_zero() {
    let error = |server_name: &str, recipients_max| {
        Context::new(ContextOptions {
            server_name: server_name.to_owned(),
            recipients_max,
            ..ContextOptions::default()
        })
        .err()
    };
    assert_eq!(error("mx.example.org", 1), None);
    assert_eq!(error("[192.0.2.1]", 1), None);
    for name in ["", "a b", "a\r\n250 x", "\u{fc}.example", &"a".repeat(256)] {
        assert_eq!(error(name, 1), Some(ContextError::ServerName));
    }
    assert_eq!(error("a.example", 0), Some(ContextError::LimitIsZero));
}

/// The replies to `input` (RSET has the text of NOOP) when the sink is short of something, and whether a message
/// was left open.
fn replies_when(input: &[u8], shortage: impl FnOnce(&mut Recorder)) -> (Vec<Reply>, bool) {
    let ctx = context();
    let mut connection = after(&ctx, b"EHLO a.example\r\n");
    shortage(&mut connection.out);
    connection.read(input);
    let wire = &connection.out.wire;
    let lines = wire.split_inclusive(|octet| *octet == b'\n');
    let known = lines.map(|line| {
        *ALL.iter()
            .find(|reply| reply.row().wire == line)
            .expect("a row")
    });
    (known.collect(), connection.out.is_open())
}

#[test]
fn a_recipient_that_is_half_stored_fails_the_transaction_for_now() {
    // The pool runs dry between the recipient and its parameters: the recipient was refused, yet stands in the
    // envelope, so the message must never be delivered.
    let input = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n\
        RCPT TO:<c@example.org> NOTIFY=NEVER\r\nRCPT TO:<d@example.org>\r\nDATA\r\nBDAT 2 LAST\r\nab\
        RSET\r\nMAIL FROM:<a@example.org>\r\n";
    let (replies, is_open) = replies_when(input, |out| out.fields_max = 4);
    let refused = [Reply::NoSpace; 4];
    let before = [Reply::MailOk, Reply::RcptOk];
    let behind = [Reply::Noop, Reply::MailOk];
    assert_eq!(replies, [&before[..], &refused, &behind].concat());
    assert!(is_open);
}

#[test]
fn without_a_chunk_for_the_trace_field_data_and_bdat_are_refused_for_now() {
    let envelope = "MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\n";
    let shortage = |out: &mut Recorder| out.has_body_storage = false;
    let (replies, is_open) =
        replies_when(format!("{envelope}DATA\r\nRSET\r\n").as_bytes(), shortage);
    assert_eq!(
        replies,
        [Reply::MailOk, Reply::RcptOk, Reply::NoSpace, Reply::Noop]
    );
    assert!(!is_open);
    let (replies, is_open) = replies_when(
        format!("{envelope}BDAT 4 LAST\r\nNOOP\r\n").as_bytes(),
        shortage,
    );
    // The octets are dropped; what is left of the line is an empty command.
    assert_eq!(
        replies,
        [
            Reply::MailOk,
            Reply::RcptOk,
            Reply::NoSpace,
            Reply::CommandUnknown
        ]
    );
    assert!(!is_open);
}

#[test]
fn storage_is_given_back_as_soon_as_content_is_certain_to_be_refused() {
    let ctx = context();
    for content in [
        &b"DATA\r\na\nb"[..],
        b"DATA\r\n\0",
        b"BDAT 9\r\na\nb",
        b"BDAT 101\r\n",
        &[b"DATA\r\n", &[b'x'; 101][..]].concat(),
    ] {
        let connection = after(&ctx, &with(content));
        assert!(!connection.out.is_open(), "{}", content.escape_ascii());
        assert!(connection.session.is_discarding());
    }
}

#[test]
fn an_empty_last_chunk_without_room_for_its_end_is_refused_for_now() {
    let ctx = Context::new(ContextOptions {
        bare_newlines: BareNewlines::Normalize,
        ..ContextOptions::default()
    })
    .expect("options");
    let mut connection = after(&ctx, &with(b"BDAT 2\r\na\r"));
    connection.out.wire.clear();
    connection.out.body_room = 0;
    connection.read(b"BDAT 0 LAST\r\n");
    assert_eq!(connection.out.wire, Reply::NoSpace.row().wire);
    assert!(!connection.out.is_open());
    assert_eq!(connection.session.phase(), Phase::Command);
}

fn tls_context() -> Context {
    let offered = ringmx::smtp::extension::ALL.with(Offered::STARTTLS);
    Context::new(ContextOptions {
        offered,
        ..ContextOptions::default()
    })
    .expect("options")
}

/// CVE-2011-0411: what was sent in the clear behind STARTTLS was executed under TLS, as if the client had sent it
/// there. Octets that came with the line end the session; octets that come later reach the handshake, not the session.
#[test]
fn what_stands_behind_starttls_is_never_executed_however_it_is_cut() {
    const REFUSED: &str = "554 5.5.1 Nothing may follow STARTTLS before its reply; closing\r\n";
    let ctx = tls_context();
    let line = b"STARTTLS\r\n".len();
    let injections: [&[u8]; 4] = [
        b"EHLO injected.example\r\nMAIL FROM:<a@example.org>\r\n",
        b"NOOP\r\n",
        b"\n",
        b"\x16\x03\x01\x00\x05hello",
    ];
    for injection in injections {
        let sent = [b"STARTTLS\r\n", injection].concat();
        for at in 1..=sent.len() {
            let mut connection = after(&ctx, b"EHLO client.example\r\n");
            connection.read(&sent[..at]);
            connection.read(&sent[at..]);
            let wire = String::from_utf8(connection.out.wire.clone()).expect("ASCII");
            if at == line {
                assert_eq!(wire, "220 2.0.0 Ready to start TLS\r\n");
                assert_eq!(connection.unread(), injection.len());
                assert_eq!(connection.out.closed, None);
                connection.secure();
                assert_eq!(connection.session.helo(), b"");
                assert_eq!(connection.session.phase(), Phase::Command);
                let wire = String::from_utf8(connection.out.wire).expect("ASCII");
                assert_eq!(wire, "220 2.0.0 Ready to start TLS\r\n");
            } else {
                assert_eq!(wire, REFUSED, "cut at {at}");
                assert_eq!(connection.out.closed, Some(CloseReason::Refused));
                assert_eq!(connection.session.phase(), Phase::Closed);
            }
            let ehlo = ringmx::smtp::sink::Verb::Ehlo as usize;
            assert_eq!(connection.out.verbs[ehlo], 1, "cut at {at}");
        }
    }
}

#[test]
fn starttls_waits_for_the_commits_that_are_pending() {
    let ctx = tls_context();
    let mut recorder = Recorder::new(Manner::default(), 1);
    recorder.commits_pending = 1;
    let mut session = Session::new("::1".parse().expect("an address"));
    session.start(&ctx, &mut recorder);
    recorder.wire.clear();
    let waits = Progress {
        consumed: 6,
        blocked: Some(Blocked::Commits),
    };
    let progress = session.receive(
        &ctx,
        b"NOOP\r\nSTARTTLS\r\n",
        Instant(1),
        WALL_NS,
        &mut recorder,
    );
    assert_eq!(progress, waits);
    assert_eq!(recorder.wire, b"250 2.0.0 Ok\r\n");
    recorder.commits_pending = 0;
    let progress = session.receive(&ctx, b"STARTTLS\r\n", Instant(1), WALL_NS, &mut recorder);
    assert_eq!(progress.consumed, 10);
    assert_eq!(progress.blocked, Some(Blocked::Tls));
    assert_eq!(
        recorder.wire,
        b"250 2.0.0 Ok\r\n220 2.0.0 Ready to start TLS\r\n"
    );
    assert_eq!(
        recorder.verbs[ringmx::smtp::sink::Verb::StartTls as usize],
        1
    );
    assert_eq!(session.phase(), Phase::Handshake);
}

#[test]
fn starttls_gets_454_while_no_handshake_can_be_taken_and_the_session_goes_on() {
    let ctx = tls_context();
    let mut connection = after(&ctx, b"EHLO client.example\r\n");
    connection.out.takes_tls = false;
    connection.read(b"STARTTLS\r\nNOOP\r\n");
    assert_eq!(connection.out.closed, Some(CloseReason::Refused));
    let mut connection = after(&ctx, b"EHLO client.example\r\n");
    connection.out.takes_tls = false;
    connection.read(b"STARTTLS\r\n");
    connection.read(b"NOOP\r\n");
    assert_eq!(
        connection.out.wire,
        b"454 4.7.0 TLS not available due to temporary reason\r\n250 2.0.0 Ok\r\n"
    );
    assert_eq!(connection.out.closed, None);
}
