//! Every reply the receiver can send: one row each, encoded at compile time.
//!
//! Replies hold no bytes of the client, so no client can forge a reply line, a log line or a header through
//! them. The few replies with a variable part (greeting, EHLO, HELP, the 250 that names a message) are built
//! from server configuration and numbers alone; they share the rows' names and codes.

/// One row of the reply table.
#[derive(Debug)]
pub struct Row {
    /// Name of the reason, used in metrics and log lines.
    pub name: &'static str,
    /// Reply code (RFC 5321 4.2).
    pub code: u16,
    /// The complete reply as sent, CRLF included; empty where the text is configured.
    pub wire: &'static [u8],
}

macro_rules! replies {
    ($(
        $(#[$meta:meta])*
        $variant:ident = $name:literal $code:literal $enhanced:literal $text:literal;
    )*) => {
        /// Names a row of the reply table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reply { $($(#[$meta])* $variant,)* }

        /// All rows in the order of [`Reply`].
        pub static ROWS: &[Row] = &[$(Row {
            name: $name,
            code: $code,
            wire: concat!($code, " ", $enhanced, $text, "\r\n").as_bytes(),
        },)*];

        /// All replies in the order of [`ROWS`].
        pub static ALL: &[Reply] = &[$(Reply::$variant,)*];
    };
}

// The enhanced code (RFC 3463, registry of RFC 5248) stands with its trailing space; 220, 221-less greetings,
// HELO, EHLO and 354 carry none (RFC 2034 4).
replies! {
    /// Greeting; text from configuration.
    Greeting = "greeting" 220 "" "ready";
    /// HELO accepted; text from configuration.
    Helo = "helo" 250 "" "ok";
    /// EHLO accepted; text from configuration.
    Ehlo = "ehlo" 250 "" "ok";
    /// HELP; text from configuration.
    Help = "help" 214 "2.0.0 " "See RFC 5321";
    /// NOOP.
    Noop = "noop" 250 "2.0.0 " "Ok";
    /// RSET.
    Rset = "rset" 250 "2.0.0 " "Ok";
    /// QUIT.
    Quit = "quit" 221 "2.0.0 " "Bye";
    /// STARTTLS: the handshake may begin (RFC 3207 4).
    StartTls = "starttls" 220 "2.0.0 " "Ready to start TLS";
    /// STARTTLS under TLS (RFC 3207 4.2).
    TlsActive = "tls_active" 503 "5.5.1 " "TLS is active already";
    /// STARTTLS while no further handshake is taken (RFC 3207 4).
    TlsUnavailable = "tls_unavailable" 454 "4.7.0 " "TLS not available due to temporary reason";
    /// Octets behind STARTTLS that did not wait for its reply (RFC 3207 4, RFC 2920 3.1).
    StartTlsPipelined = "starttls_pipelined" 554 "5.5.1 " "Nothing may follow STARTTLS before its reply; closing";
    /// A command that the listener takes under TLS alone (RFC 3207 4).
    NeedTls = "need_tls" 530 "5.7.0 " "Must issue a STARTTLS command first";
    /// MAIL accepted.
    MailOk = "mail_ok" 250 "2.1.0 " "Ok";
    /// RCPT accepted.
    RcptOk = "rcpt_ok" 250 "2.1.5 " "Ok";
    /// VRFY is answered without looking anything up (RFC 5321 3.5.3).
    VrfyUnverified = "vrfy" 252 "2.1.5 " "Not verified; send mail to try";
    /// MAIL accepted, its priority not: an untrusted client may not raise it (RFC 6710 4.1).
    PriorityLowered = "priority_lowered" 250 "2.3.6 " "0 is the priority of this message; mail from here can't have more";
    /// ETRN without a domain, `@domain` or `#queue`.
    EtrnSyntax = "etrn_syntax" 501 "5.5.4 " "Syntax: ETRN domain, ETRN @domain or ETRN #queue";
    /// ETRN accepted by policy.
    EtrnStarted = "etrn_started" 250 "2.0.0 " "Queuing started";
    /// ETRN: nothing waits here for anybody (RFC 1985 5.1).
    EtrnUnable = "etrn_unable" 458 "4.3.3 " "Unable to queue messages: mail is kept for its consumers here";
    /// ETRN: policy does not allow this node.
    EtrnNotAllowed = "etrn_not_allowed" 459 "4.7.1 " "Node not allowed";
    /// ETRN inside a transaction (RFC 1985 5).
    NotInTransaction = "not_in_transaction" 503 "5.5.1 " "Not inside a transaction; RSET clears it";
    /// HELO or EHLO on a listener for LMTP, LHLO on one for SMTP (RFC 2033 4.1).
    WrongProtocol = "wrong_protocol" 500 "5.5.1 " "Wrong greeting: SMTP begins with EHLO or HELO, LMTP with LHLO";
    /// DATA: the message may follow.
    DataStart = "data_start" 354 "" "End data with <CR><LF>.<CR><LF>";
    /// BDAT chunk taken, more may follow.
    ChunkOk = "chunk_ok" 250 "2.0.0 " "Chunk ok";
    /// Message accepted; the connection appends the message's id.
    Stored = "stored" 250 "2.0.0 " "Ok: stored";
    /// XFORWARD accepted.
    XforwardOk = "xforward_ok" 250 "2.0.0 " "Ok";
    /// XCLIENT or XFORWARD with attributes that are malformed, unknown, or given twice.
    AttributesMalformed = "attributes_malformed" 501 "5.5.4 " "Bad attribute";
    /// AUTH: a challenge follows the code.
    AuthChallenge = "auth_challenge" 334 "" "";
    /// AUTH succeeded.
    AuthOk = "auth_ok" 235 "2.7.0 " "Authentication successful";
    /// AUTH failed: wrong name, wrong password, or not allowed to act as that name.
    AuthFailed = "auth_failed" 535 "5.7.8 " "Authentication credentials invalid";
    /// AUTH failed too often in one session.
    TooManyAuthFailures = "too_many_auth_failures" 421 "4.7.0 " "Too many failed authentications; closing";
    /// AUTH: too many passwords wait to be checked.
    AuthBusy = "auth_busy" 454 "4.7.0 " "Temporary authentication failure; try again later";
    /// AUTH was cancelled by the client.
    AuthCancelled = "auth_cancelled" 501 "5.7.0 " "Authentication cancelled";
    /// AUTH: not base64, or not the syntax of the mechanism.
    AuthMalformed = "auth_malformed" 501 "5.5.2 " "Bad authentication exchange: base64 of the mechanism's message expected";
    /// AUTH with more than a mechanism and an initial response.
    AuthSyntax = "auth_syntax" 501 "5.5.4 " "Syntax: AUTH mechanism [initial-response]";
    /// AUTH: a line longer than the buffer for it (RFC 4954 4).
    AuthLineTooLong = "auth_line_too_long" 500 "5.5.6 " "Authentication exchange line is too long";
    /// AUTH with a mechanism that is not offered.
    MechanismUnknown = "mechanism_unknown" 504 "5.5.4 " "Authentication mechanism not supported";
    /// AUTH after it succeeded.
    AlreadyAuthenticated = "already_authenticated" 503 "5.5.1 " "Already authenticated";
    /// AUTH without TLS (RFC 4954 4).
    EncryptionRequired = "encryption_required" 538 "5.7.11 " "Encryption required for authentication; use STARTTLS first";
    /// MAIL before AUTH where it is demanded (RFC 6409 4.3).
    AuthRequired = "auth_required" 530 "5.7.0 " "Authentication required";
    /// No command of this name.
    CommandUnknown = "command_unknown" 500 "5.5.1 " "Command not recognized";
    /// A command line that ends in LF alone.
    LineEndsInLf = "line_ends_in_lf" 500 "5.5.2 " "Line ended by LF alone; SMTP needs CRLF (nc -C sends it)";
    /// CR that is not followed by LF, NUL, or another control octet in a command line.
    LineHasControls = "line_has_controls" 500 "5.5.2 " "Command line holds a control character";
    /// A command line longer than its limit (RFC 5321 4.5.3.1.4).
    LineTooLong = "line_too_long" 500 "5.5.2 " "Command line too long";
    /// EXPN, TURN, SEND, SOML, SAML and what else is known but not provided.
    NotImplemented = "not_implemented" 502 "5.5.1 " "Command not implemented";
    /// HELO or EHLO without a domain or address literal.
    HeloSyntax = "helo_syntax" 501 "5.5.4 " "Syntax: EHLO domain-or-address-literal";
    /// An argument where none is allowed.
    NoArgumentAllowed = "no_argument_allowed" 501 "5.5.4 " "No argument allowed";
    /// An argument is missing.
    ArgumentNeeded = "argument_needed" 501 "5.5.4 " "Argument needed";
    /// MAIL without `FROM:<path>`.
    MailSyntax = "mail_syntax" 501 "5.5.2 " "Syntax: MAIL FROM:<address> [parameters]";
    /// RCPT without `TO:<path>`.
    RcptSyntax = "rcpt_syntax" 501 "5.5.2 " "Syntax: RCPT TO:<address> [parameters]";
    /// The reverse-path does not follow RFC 5321 4.1.2.
    SenderMalformed = "sender_malformed" 501 "5.1.7 " "Bad sender address syntax";
    /// The forward-path does not follow RFC 5321 4.1.2.
    RecipientMalformed = "recipient_malformed" 501 "5.1.3 " "Bad recipient address syntax";
    /// A path longer than RFC 5321 4.5.3.1.3 allows, or a local part or domain beyond its limit.
    PathTooLong = "path_too_long" 501 "5.1.3 " "Address too long";
    /// An address holds octets beyond ASCII, SMTPUTF8 was not given (RFC 6531 3.5).
    SenderNeedsUtf8 = "sender_needs_smtputf8" 553 "5.6.7 " "Sender address needs SMTPUTF8";
    /// As above, for a recipient.
    RecipientNeedsUtf8 = "recipient_needs_smtputf8" 553 "5.6.7 " "Recipient address needs SMTPUTF8";
    /// A parameter nobody offers (RFC 5321 4.1.1.11).
    ParameterUnknown = "parameter_unknown" 555 "5.5.4 " "Parameter not recognized or not implemented";
    /// A parameter given twice.
    ParameterTwice = "parameter_twice" 501 "5.5.4 " "Parameter given twice";
    /// A parameter with a value that its extension does not allow.
    ParameterMalformed = "parameter_malformed" 501 "5.5.4 " "Bad parameter value";
    /// HELO or EHLO has not been given (RFC 5321 4.1.4).
    NeedHelo = "need_helo" 503 "5.5.1 " "Send EHLO or HELO first";
    /// RCPT, DATA or BDAT without MAIL.
    NeedMail = "need_mail" 503 "5.5.1 " "Need MAIL first";
    /// DATA or BDAT without an accepted RCPT.
    NeedRcpt = "need_rcpt" 503 "5.5.1 " "Need an accepted RCPT first";
    /// MAIL inside a transaction.
    NestedMail = "nested_mail" 503 "5.5.1 " "A transaction is open; RSET clears it";
    /// A command between BDAT chunks that only RSET, NOOP, QUIT and BDAT may interrupt (RFC 3030 2).
    BdatOpen = "bdat_open" 503 "5.5.1 " "BDAT in progress; only BDAT or RSET may follow";
    /// A command in a transaction whose BDAT was refused (RFC 3030 2).
    BdatFailed = "bdat_failed" 503 "5.5.1 " "A BDAT was refused; RSET clears the transaction";
    /// DATA for a BINARYMIME message (RFC 3030 3).
    BinaryNeedsBdat = "binary_needs_bdat" 503 "5.5.1 " "BINARYMIME needs BDAT";
    /// BDAT arguments are not a size and an optional LAST.
    BdatSyntax = "bdat_syntax" 501 "5.5.4 " "Syntax: BDAT size [LAST]";
    /// The declared SIZE, or what arrived, is over the maximum (RFC 1870 6).
    TooBig = "too_big" 552 "5.3.4 " "Message too big";
    /// The message came with more Received fields than `--max-hops` (RFC 5321 6.3).
    TooManyHops = "too_many_hops" 554 "5.4.6 " "Too many Received fields; the message seems to be in a loop";
    /// More recipients than RCPTMAX.
    TooManyRecipients = "too_many_recipients" 452 "4.5.3 " "Too many recipients";
    /// The envelope has outgrown its limit.
    EnvelopeFull = "envelope_full" 452 "4.5.3 " "Envelope too big";
    /// More messages than MAILMAX in one session.
    TooManyMessages = "too_many_messages" 451 "4.7.0 " "Too many messages in this session; reconnect";
    /// Bare LF, bare CR or NUL in content under `--bare-newlines reject`.
    BareNewline = "bare_newline" 550 "5.6.0 " "Content holds a bare CR, bare LF or NUL; lines must end in CRLF";
    /// Ring or pool are past their high-water mark.
    NoSpace = "no_space" 452 "4.3.1 " "Insufficient system storage; try again later";
    /// The commit that would have covered this message failed.
    CommitFailed = "commit_failed" 451 "4.3.0 " "Storage failed; not stored";
    /// The log stopped after a storage failure, or syncs take too long.
    StorageDown = "storage_down" 451 "4.3.0 " "Storage is not available; try again later";
    /// The same, as the greeting of a new session.
    StorageDownClose = "storage_down_close" 421 "4.3.0 " "Storage is not available; closing";
    /// All session places are taken.
    TooManySessions = "too_many_sessions" 421 "4.3.2 " "Too many sessions; try again later";
    /// This listener takes connections through a proxy only.
    ProxyNeeded = "proxy_needed" 554 "5.7.1 " "Connections to this port come through a proxy";
    /// The server is stopping.
    ShuttingDown = "shutting_down" 421 "4.3.2 " "Server is shutting down";
    /// The client was silent for too long (RFC 5321 4.5.3.2.7).
    TimedOut = "timed_out" 421 "4.4.2 " "Timed out; closing";
    /// The client's data came more slowly than the minimum rate.
    TooSlow = "too_slow" 421 "4.4.2 " "Data arrived too slowly; closing";
    /// Too many errors in one session.
    TooManyErrors = "too_many_errors" 421 "4.7.0 " "Too many errors; closing";
    /// Too many commands in one session that brought no mail.
    TooManyIdleCommands = "too_many_idle_commands" 421 "4.7.0 " "Too many commands without mail; closing";
    /// The client sent something before the greeting was due (RFC 5321 3.1, 4.3.1).
    EarlyTalker = "early_talker" 554 "5.5.1 " "You talked before the greeting";
    /// The client, or its network, has too many sessions open.
    ClientSessions = "client_sessions" 421 "4.7.0 " "Too many sessions from your network; try again later";
    /// The client, or its network, connects too often.
    ClientConnections = "client_connections" 421 "4.7.0 " "Too many connections from your network; try again later";
    /// The client, or its network, sends too many messages.
    ClientMessages = "client_messages" 450 "4.7.1 " "Too many messages from your network; try again later";
    /// The client, or its network, names too many recipients.
    ClientRecipients = "client_recipients" 452 "4.7.1 " "Too many recipients from your network; try again later";
    /// The client, or its network, has sent too many octets.
    ClientBytes = "client_bytes" 450 "4.7.1 " "Too much data from your network; try again later";
    /// The client, or its network, begins too many TLS handshakes (RFC 3207 4: 454).
    ClientHandshakes = "client_handshakes" 454 "4.7.0 " "Too many TLS handshakes from your network; try again later";
    /// Something that is not SMTP at all, such as an HTTP request line.
    NotSmtp = "not_smtp" 554 "5.5.0 " "This is an SMTP server";
    /// The client's network may not connect (`--deny-from`, `--allow-from`).
    AccessDenied = "access_denied" 554 "5.7.1 " "Access denied";
    /// The recipient is not one of ours, and the client may not relay (RFC 5321 3.6.2).
    RelayDenied = "relay_denied" 550 "5.7.1 " "Relaying denied";
    /// The domain is ours, the mailbox is not (RFC 5321 4.1.1.3).
    UserUnknown = "user_unknown" 550 "5.1.1 " "No such user here";
    /// Mail from this sender is refused by policy.
    SenderRefused = "sender_refused" 550 "5.7.1 " "Sender refused";
    /// Mail for this recipient is refused by policy.
    RecipientRefused = "recipient_refused" 550 "5.7.1 " "Recipient refused";
    /// The content is refused by policy.
    ContentRefused = "content_refused" 550 "5.7.1 " "Message refused";
}

impl Reply {
    /// This reply's row.
    pub fn row(self) -> &'static Row {
        &ROWS[self as usize]
    }

    /// Reply code (RFC 5321 4.2).
    pub fn code(self) -> u16 {
        self.row().code
    }
}
