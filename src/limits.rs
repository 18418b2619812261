//! Every fixed bound and every default, its unit in its name. `docs/operations.md` lists them.

use core::time::Duration;

/// 2^10 bytes.
pub const KIB: u64 = 1024;
/// 2^20 bytes.
pub const MIB: u64 = 1024 * KIB;
/// 2^30 bytes.
pub const GIB: u64 = 1024 * MIB;

// Sessions.

/// Default of `--max-sessions`.
pub const SESSIONS_MAX_DEFAULT: usize = 10_000;
/// Command line with CRLF that is certainly accepted (RFC 5321 4.5.3.1.4: at least 512).
pub const COMMAND_LINE_BYTES_MIN: usize = 512;
/// Command line with CRLF beyond which one 500 is sent: 512 and what SIZE (26), BODY (17), SMTPUTF8 (10),
/// AUTH (500), DSN on MAIL (120) and on RCPT (500), DELIVERBY (17), FUTURERELEASE (34), MT-PRIORITY (15) and RRVS
/// (33) add (RFC 1870, 6152, 3030, 6531, 4954, 3461, 2852, 4865, 6710, 7293), rounded up.
pub const COMMAND_LINE_BYTES_MAX: usize = 2_048;
/// Reply line with CRLF (RFC 5321 4.5.3.1.5).
pub const REPLY_LINE_BYTES_MAX: usize = 512;
/// Local part (RFC 5321 4.5.3.1.1).
pub const LOCAL_PART_BYTES_MAX: usize = 64;
/// Domain (RFC 5321 4.5.3.1.2).
pub const DOMAIN_BYTES_MAX: usize = 255;
/// Path without brackets (RFC 5321 4.5.3.1.3 allows 256 with punctuation; UTF-8 addresses and local parts that
/// some systems make longer are taken up to this).
pub const PATH_BYTES_MAX: usize = 512;
/// Default of `--max-recipients` (RFC 5321 4.5.3.1.8: at least 100); LIMITS RCPTMAX.
pub const RECIPIENTS_MAX_DEFAULT: u32 = 1_000;
/// Default of `--max-messages-per-session`; LIMITS MAILMAX (RFC 9422: at most six digits).
pub const MESSAGES_PER_SESSION_MAX_DEFAULT: u32 = 999_999;
/// Default of `--max-hops` where mail is taken for others than a sink (RFC 5321 6.3: at least 100).
pub const HOPS_MAX_DEFAULT: u16 = 100;
/// Largest `--max-hops`.
pub const HOPS_MAX_MAX: u16 = 10_000;
/// Default of `--max-hold`, seconds: 90 days.
pub const HOLD_S_DEFAULT: u32 = 90 * 86_400;
/// Longest `--max-hold`, seconds (RFC 4865 3: nine digits).
pub const HOLD_S_MAX: u32 = 999_999_999;
/// Default of `--max-message`, bytes; the smaller of this and an eighth of the ring.
pub const MESSAGE_BYTES_MAX_DEFAULT: u64 = 50 * MIB;
/// Stored envelope of one message, bytes; past it RCPT gets 452. It fits into one record with a chunk of body.
pub const ENVELOPE_BYTES_MAX: usize = 896 * KIB as usize;
/// Errors in one session after which it is closed.
pub const SESSION_ERRORS_MAX: u32 = 100;
/// Messages of one session that may wait for a commit before the session stops being read.
pub const COMMITS_PENDING_MAX: u32 = 64;

// Users and authentication.

/// Line of an authentication exchange with CRLF, the AUTH command with an initial response included, beyond which one
/// 500 5.5.6 is sent: what RFC 4954 4 names as enough for any mechanism in use. Such a line takes a chunk of the pool
/// while it comes, as all input that waits, and nothing of a session.
pub const AUTH_LINE_BYTES_MAX: usize = 12_288;
/// First message of a SCRAM client, octets; longer ones are refused.
pub const SCRAM_FIRST_BYTES_MAX: usize = 1_024;
/// Nonce of a SCRAM client, octets.
pub const SCRAM_NONCE_BYTES_MAX: usize = 200;
/// Failed authentications of one session; the last of them is answered with 421.
pub const AUTH_FAILURES_MAX: u32 = 5;
/// Passwords that may wait to be checked; more get 454. Half a second of work with the default iterations.
pub const PASSWORD_CHECKS_MAX: usize = 32;
/// Of these, passwords from one client (an IPv4 address or an IPv6 /64) that limits hold for: who guesses on all of his
/// sessions leaves the others room.
pub const PASSWORD_CHECKS_CLIENT_MAX: usize = 8;
/// Time a password may wait for its turn; then it gets 454.
pub const PASSWORD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Name of a user, bytes (RFC 4616 2: a server takes 255).
pub const USER_NAME_BYTES_MAX: usize = 255;
/// Password, bytes.
pub const PASSWORD_BYTES_MAX: usize = 1_024;
/// Users of one server.
pub const USERS_MAX: usize = 100_000;
/// File of users, bytes: as many of the longest lines.
pub const USERS_FILE_BYTES_MAX: u64 = 64 * MIB;
/// Fewest rounds of PBKDF2 (RFC 7677 4).
pub const USER_ITERATIONS_MIN: u32 = 4_096;
/// Default of `ringmx users add --iterations`.
pub const USER_ITERATIONS_DEFAULT: u32 = 65_536;
/// Most rounds of PBKDF2: about a second of work for one password.
pub const USER_ITERATIONS_MAX: u32 = 1_000_000;
/// Shortest salt, bytes.
pub const SALT_BYTES_MIN: usize = 8;
/// Longest salt, bytes.
pub const SALT_BYTES_MAX: usize = 64;

// Access rules.

/// Values of `--accept-domain`.
pub const ACCEPTED_DOMAINS_MAX: usize = 1_024;
/// Entries of one list of recipients.
pub const RECIPIENT_ENTRIES_MAX: usize = 4_000_000;
/// Networks of one list.
pub const NETWORK_ENTRIES_MAX: usize = 1_000_000;
/// A file of recipients or networks, bytes.
pub const RULE_FILE_BYTES_MAX: u64 = 256 * MIB;
/// A line of such a file with its end, bytes.
pub const RULE_LINE_BYTES_MAX: usize = 1_024;
/// How often files of rules, users and certificates are looked at, milliseconds.
pub const FILES_LOOK_MS: u64 = 2_000;

// Buffers.

/// Small chunk of the pool, bytes: a first chunk, a reply buffer, or input that waits.
pub const CHUNK_SMALL_BYTES: usize = 4_096;
/// Large chunk of the pool, bytes.
pub const CHUNK_LARGE_BYTES: usize = 65_536;
/// Default of `--pool`, bytes.
pub const POOL_BYTES_DEFAULT: u64 = 256 * MIB;
/// Largest configured reply (greeting, EHLO, HELP), bytes. One reply buffer holds several.
pub const CONFIGURED_REPLY_BYTES_MAX: usize = 1_024;

// Connections.

/// Longest header of the PROXY protocol, bytes. Version 2 could be 64 KiB long; addresses and the usual fields
/// need some hundred.
pub const PROXY_HEADER_BYTES_MAX: usize = 4_096;
/// A proxy has to send its header within this, seconds.
pub const PROXY_HEADER_SECONDS_MAX: u64 = 5;
/// Where a header may come or not, the greeting waits this long for it, milliseconds: SMTP servers speak first.
pub const PROXY_DETECT_MS: u64 = 500;
/// Networks of one option.
pub const NETWORKS_MAX: usize = 256;

// TLS.

/// One record with its header (RFC 5246 6.2.3: 2^14 + 2048; RFC 8446 5.2 allows less), bytes.
pub const TLS_RECORD_BYTES_MAX: usize = 5 + 16_384 + 2_048;
/// Octets of a client's handshake that wait to be used, bytes: a ClientHello, or its certificates.
pub const TLS_HANDSHAKE_BYTES_MAX: usize = 20_480;
/// Certificate chain that is sent, bytes of DER.
pub const TLS_CHAIN_BYTES_MAX: usize = 16_384;
/// File of certificates or keys, bytes.
pub const TLS_FILE_BYTES_MAX: u64 = MIB;
/// Certificates that one server chooses from.
pub const TLS_CERTIFICATES_MAX: usize = 256;
/// Default of `--tls-handshakes`: handshakes under way at the same time.
pub const TLS_HANDSHAKES_DEFAULT: usize = 1_000;
/// Steps of handshakes that the loop makes in one turn; each takes up to 200 us.
pub const TLS_TURN_STEPS: u32 = 16;
/// Jobs on the helper's queue beside one for each handshake.
pub const OFFLOAD_JOBS_MAX: usize = 256;

// Ring log.

/// Header of a record, and the alignment of records in the ring.
pub const RECORD_HEADER_BYTES: usize = 64;
/// Writes are filled with zeros to this boundary, so that no page is read before it is written.
pub const PAGE_BYTES: u64 = 4_096;
/// Default of `--ring-size`, bytes.
pub const RING_BYTES_DEFAULT: u64 = GIB;
/// The data area is a multiple of this.
pub const RING_BYTES_STEP: u64 = 2 * MIB;
/// Smallest `--ring-size`, bytes.
pub const RING_BYTES_MIN: u64 = 2 * MIB;
/// A message with more payload than this is written as FIRST, MID and LAST records.
pub const RECORD_PAYLOAD_BYTES_MAX: u64 = MIB;
/// Bytes of large messages written in one turn.
pub const LOG_WRITE_BYTES_MAX: u64 = 4 * MIB;
/// Message numbers that recovery skips after an unclean stop.
pub const NUMBERS_SKIPPED_BY_RECOVERY: u64 = 65_536;
/// Damaged ranges, incomplete messages and stretches of numbers that `ringmx log rescue` lists; more are counted.
pub const RESCUE_LIST_MAX: usize = 10_000;
/// Named consumers of one ring.
pub const CONSUMERS_MAX: usize = 32;
/// Name of a consumer, bytes.
pub const CONSUMER_NAME_BYTES_MAX: usize = 31;

// Scheduling.

/// Slice of the sync thread's time that the kernel is asked for, nanoseconds. A tenth of a millisecond is the least
/// that it takes; between its sleeps a sync has less to do than that.
pub const SYNC_SLICE_NS: u64 = 100_000;

// Workers.

/// Largest `--workers`.
pub const WORKERS_MAX: usize = 64;
/// Shards that tools look at below one directory; numbers from here on are no shards.
pub const SHARDS_MAX: usize = 1_024;
/// Unasked ends of one worker within [`WORKER_WINDOW`]; with this many it is not started again.
pub const WORKER_ENDS_MAX: usize = 5;
/// Time over which the ends of a worker are counted.
pub const WORKER_WINDOW: Duration = Duration::from_secs(60);
/// Wait before a worker is started again; doubled each time within the window.
pub const WORKER_RESTART_MIN: Duration = Duration::from_millis(100);
/// A worker that has not told its state within this is shown as it was, and as not answering.
pub const WORKER_ANSWER_WAIT: Duration = Duration::from_secs(2);
/// After a hand-over, a session that is silent between messages for this long is told goodbye.
pub const HANDOVER_IDLE: Duration = Duration::from_secs(1);
/// After a hand-over, all sessions that are not sending a message are told goodbye when this is over.
pub const HANDOVER_GRACE: Duration = Duration::from_secs(10);
/// A frame between a worker and its parent, bytes: its whole state with every histogram filled takes 0.6 MiB.
pub const LINK_FRAME_BYTES_MAX: usize = MIB as usize;

const _: () = assert!(COMMAND_LINE_BYTES_MAX >= COMMAND_LINE_BYTES_MIN);
const _: () = assert!(COMMAND_LINE_BYTES_MAX + CONFIGURED_REPLY_BYTES_MAX <= CHUNK_SMALL_BYTES);
const _: () = assert!(AUTH_LINE_BYTES_MAX <= CHUNK_LARGE_BYTES);
const _: () = assert!(CHUNK_SMALL_BYTES.is_multiple_of(RECORD_HEADER_BYTES));
const _: () = assert!(CHUNK_LARGE_BYTES.is_multiple_of(RECORD_HEADER_BYTES));
const _: () = assert!(RING_BYTES_STEP.is_multiple_of(PAGE_BYTES));
