//! The cases: what a receiver has to do, and how each of them is tried. Their numbers are those of
//! `docs/smtp-conformance.md`.
//!
//! Most are a script: steps between ` | `. `>TEXT` sends a line, `<PATTERN` takes a reply that has to match
//! (`250`, `25x`, `501/5xx`; `close` stands for a closed connection), and the words `open`, `ehlo`, `helo`, `mail`,
//! `rcpt`, `data`, `message` (a whole one), `alive`, `closed`, `stored=N` do what they say. `{from}`, `{to}`,
//! `{local}` and `{domain}` stand for the addresses that were given.

use super::content;
use super::dialogue::{Dialogue, Step, Stop};
use super::special;

/// How binding an obligation is (RFC 2119).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A server that does otherwise is wrong.
    Must,
    /// A server that does otherwise needs a reason.
    Should,
}

impl Level {
    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Level::Must => "MUST",
            Level::Should => "SHOULD",
        }
    }
}

/// How a case is tried.
#[derive(Clone, Copy)]
pub enum Play {
    /// By a script.
    Script(&'static str),
    /// By code.
    Code(fn(&mut Dialogue<'_>) -> Step),
    /// By looking at all replies of all other cases.
    Replies(fn(&super::wire::Reply) -> Option<String>),
}

/// One obligation.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its number.
    pub id: &'static str,
    /// Where it is written.
    pub source: &'static str,
    /// How binding it is.
    pub level: Level,
    /// What is done, and what has to follow.
    pub what: &'static str,
    /// Keyword that EHLO has to name for it; empty for none.
    pub needs: &'static str,
    /// How it is tried.
    pub play: Play,
}

macro_rules! cases {
    ($($id:literal $source:literal $level:ident $needs:literal $what:literal => $play:expr;)*) => {
        /// All cases.
        pub static CASES: &[Case] = &[$(Case {
            id: $id,
            source: $source,
            level: Level::$level,
            what: $what,
            needs: $needs,
            play: $play,
        },)*];
    };
}

use Play::{Code, Replies, Script};

cases! {
    "C001" "RFC 5321 3.1" Must "" "a connection is greeted with 220 before the client says anything" => Script("open");
    "C002" "RFC 5321 4.2" Must "" "the greeting begins with a domain or an address literal" => Code(special::greeting_names_the_server);
    "C003" "RFC 5321 4.2" Must "" "every reply has a code of three digits, SP or '-', CRLF, and one code on all its lines" => Replies(special::well_formed);
    "C004" "RFC 5321 4.1.1.1" Must "" "EHLO gets 250 and the server's domain first" => Code(special::ehlo_names_the_server);
    "C005" "RFC 5321 4.1.1.1" Must "" "HELO gets 250" => Script("helo");
    "C006" "RFC 5321 4.1.1.1" Should "" "HELO gets one line" => Code(special::helo_is_one_line);
    "C007" "RFC 5321 4.1.1.1" Must "" "EHLO without an argument gets 501" => Script("open | >EHLO | <501");
    "C008" "RFC 5321 4.1.1.1" Must "" "HELO without an argument gets 501" => Script("open | >HELO | <501");
    "C009" "RFC 5321 4.1.3" Must "" "EHLO takes an IPv4 literal" => Script("open | >EHLO [127.0.0.1] | <250");
    "C010" "RFC 5321 4.1.3" Must "" "EHLO takes an IPv6 literal" => Script("open | >EHLO [IPv6:::1] | <250");
    "C011" "RFC 5321 2.4" Must "" "ehlo in lower case is EHLO" => Script("open | >ehlo client.example | <250");
    "C012" "RFC 5321 2.4" Must "" "verbs count in any case" => Script("ehlo | >MaIl FrOm:<{from}> | <250 | >rCpT tO:<{to}> | <25x | >dAtA | <354");
    "C013" "RFC 5321 4.1.4" Must "" "an EHLO name that does not resolve is no reason to refuse mail" => Script("open | >EHLO no-such-host.invalid | <250 | mail | rcpt");
    "C014" "RFC 5321 4.1.4" Must "" "a second EHLO clears the transaction" => Script("ehlo | mail | rcpt | >EHLO client.example | <250 | >DATA | <503");
    "C015" "RFC 5321 4.1.4" Must "" "HELO clears the transaction" => Script("ehlo | mail | >HELO client.example | <250 | >RCPT TO:<{to}> | <503");
    "C016" "RFC 5321 4.1.1.1" Must "" "EHLO keywords are letters, digits and hyphens" => Code(special::keywords_are_well_formed);
    "C017" "RFC 5321 4.5.3.1.5" Must "" "no reply line is longer than 512 octets" => Replies(special::short_lines);
    "C018" "RFC 5321 4.1.4" Should "" "MAIL before EHLO gets 503 and no close" => Script("open | >MAIL FROM:<{from}> | <503/250 | alive");
    "C019" "RFC 5321 4.1.4" Must "" "NOOP is taken before EHLO" => Script("open | >NOOP | <250");
    "C020" "RFC 5321 4.1.4" Must "" "RSET is taken before EHLO" => Script("open | >RSET | <250");
    "C021" "RFC 5321 4.1.4" Must "" "QUIT is taken before EHLO" => Script("open | >QUIT | <221 | closed");
    "C022" "RFC 5321 4.1.4" Should "" "VRFY before EHLO is answered" => Script("open | >VRFY postmaster | <2xx/5xx | alive");
    "C023" "RFC 5321 4.1.4" Should "" "HELP before EHLO is answered" => Script("open | >HELP | <211/214/502");
    "C030" "RFC 5321 4.1.4" Must "" "RCPT before MAIL gets 503" => Script("ehlo | >RCPT TO:<{to}> | <503");
    "C031" "RFC 5321 4.1.4" Must "" "DATA before MAIL gets 503" => Script("ehlo | >DATA | <503");
    "C032" "RFC 5321 4.1.4" Must "" "DATA without a recipient gets 503 or 554" => Script("ehlo | mail | >DATA | <503/554");
    "C033" "RFC 5321 4.1.4" Must "" "MAIL inside a transaction gets 503" => Script("ehlo | mail | >MAIL FROM:<{from}> | <503");
    "C034" "RFC 5321 4.1.4" Must "" "and the first MAIL stands" => Script("ehlo | mail | >MAIL FROM:<{from}> | <503 | rcpt");
    "C035" "RFC 5321 4.1.1.5" Must "" "RSET clears the transaction" => Script("ehlo | mail | rcpt | >RSET | <250 | >DATA | <503");
    "C036" "RFC 5321 4.1.1.5" Must "" "MAIL is taken after RSET" => Script("ehlo | mail | >RSET | <250 | mail");
    "C037" "RFC 5321 4.1.1.5" Must "" "RSET keeps the EHLO" => Script("ehlo | >RSET | <250 | mail");
    "C038" "RFC 5321 4.1.1.5" Should "" "RSET with an argument gets 501" => Script("ehlo | >RSET now | <501/250");
    "C039" "RFC 5321 4.1.1.9" Must "" "the argument of NOOP is ignored" => Script("ehlo | >NOOP what ever | <250");
    "C040" "RFC 5321 4.1.1.9" Must "" "NOOP does not disturb a transaction" => Script("ehlo | mail | >NOOP | <250 | rcpt");
    "C041" "RFC 5321 4.1.1.10" Must "" "QUIT gets 221 and the server closes" => Script("ehlo | >QUIT | <221 | closed");
    "C042" "RFC 5321 4.1.1.10" Should "" "QUIT with an argument gets 501 or 221" => Script("ehlo | >QUIT now | <501/221");
    "C043" "RFC 5321 4.1.1.10" Must "" "QUIT inside a transaction stores nothing" => Script("ehlo | mail | rcpt | >QUIT | <221 | closed | stored=0");
    "C044" "RFC 5321 4.1.1.4" Must "" "the end of a message clears the buffers" => Script("ehlo | message | >RCPT TO:<{to}> | <503");
    "C045" "RFC 5321 3.3" Must "" "one connection carries three messages" => Script("ehlo | message | message | message | stored=3");
    "C046" "RFC 5321 4.2.4" Must "" "an unknown command gets 500" => Script("ehlo | >WHAT is this | <500/502");
    "C047" "RFC 5321 4.2.4" Must "" "and the session goes on" => Script("ehlo | >WHAT is this | <5xx | alive");
    "C048" "RFC 5321 4.2.4" Should "" "an empty line gets 500 and the session goes on" => Script("ehlo | > | <500/501/502 | alive");
    "C049" "RFC 5321 4.2.4" Should "" "TURN gets 502" => Script("ehlo | >TURN | <502/500");
    "C050" "RFC 5321 F.6" Should "" "SEND, SOML and SAML get 502" => Script("ehlo | >SEND FROM:<{from}> | <502/500 | >SOML FROM:<{from}> | <502/500 | >SAML FROM:<{from}> | <502/500");
    "C051" "RFC 5321 4.5.1" Must "" "VRFY is in the minimum command set" => Script("ehlo | >VRFY {to} | <25x/55x");
    "C052" "RFC 5321 3.5.3" Must "" "VRFY without verification is 252 or a refusal" => Script("ehlo | >VRFY no-such-user-here@{domain} | <252/502/55x");
    "C053" "RFC 5321 4.1.1.6" Should "" "VRFY without an argument gets 501" => Script("ehlo | >VRFY | <501/502");
    "C054" "RFC 5321 4.1.1.7" Should "" "EXPN is answered" => Script("ehlo | >EXPN list | <25x/502/55x");
    "C055" "RFC 5321 4.1.1.8" Should "" "HELP gets 211 or 214" => Script("ehlo | >HELP | <211/214");
    "C056" "RFC 5321 4.1.1.4" Should "" "DATA with an argument gets 501" => Script("ehlo | mail | rcpt | >DATA now | <501/354");
    "C057" "RFC 5321 4.1.1" Should "" "trailing spaces are tolerated" => Script("ehlo | >NOOP   | <250 | >RSET   | <250");
    "C058" "RFC 5321 4.1.1" Should "" "a space behind MAIL is tolerated" => Script("ehlo | >MAIL FROM:<{from}>  | <250");
    "C059" "RFC 5321 4.1.1.4" Should "" "a space behind DATA is tolerated" => Script("ehlo | mail | rcpt | >DATA  | <354");
    "C060" "RFC 5321 3.3" Should "" "DATA gets 503 or 554 when every recipient was refused" => Script("ehlo | mail | >RCPT TO:<@> | <5xx | >DATA | <503/554");
    "C070" "RFC 5321 4.5.5" Must "" "the null reverse-path is taken" => Script("ehlo | >MAIL FROM:<> | <250");
    "C071" "RFC 5321 4.5.1" Must "" "Postmaster without a domain is taken" => Script("ehlo | mail | >RCPT TO:<Postmaster> | <25x");
    "C072" "RFC 5321 4.5.1" Must "" "postmaster of the domain is taken in any case" => Script("ehlo | mail | >RCPT TO:<postmaster@{domain}> | <25x | >RCPT TO:<PostMaster@{domain}> | <25x");
    "C073" "RFC 5321 4.1.2" Must "" "a quoted local part with a space is understood" => Script("ehlo | mail | >RCPT TO:<\"a b\"@{domain}> | <25x/550/551/552/553/554");
    "C074" "RFC 5321 4.1.2" Must "" "a quoted local part with quote and bracket is understood" => Script("ehlo | mail | >RCPT TO:<\"a\\\"b>c\"@{domain}> | <25x/55x");
    "C075" "RFC 5321 C" Should "" "a source route is ignored or refused" => Script("ehlo | mail | >RCPT TO:<@a.example,@b.example:{to}> | <25x/55x");
    "C076" "RFC 5321 4.1.1.3" Must "" "RCPT TO:<> is refused" => Script("ehlo | mail | >RCPT TO:<> | <501/55x");
    "C077" "RFC 5321 4.1.1.2" Must "" "MAIL with an open bracket is refused" => Script("ehlo | >MAIL FROM:<{from} | <501/55x");
    "C078" "RFC 5321 4.1.1.2" Must "" "MAIL without FROM: is refused" => Script("ehlo | >MAIL <{from}> | <501/55x");
    "C079" "RFC 5321 4.1.1.2" Must "" "MAIL alone gets 501" => Script("ehlo | >MAIL | <501");
    "C080" "RFC 5321 4.1.1.3" Must "" "RCPT alone gets 501" => Script("ehlo | mail | >RCPT | <501");
    "C081" "RFC 5321 4.1.2" Must "" "an empty domain is refused" => Script("ehlo | mail | >RCPT TO:<user@> | <5xx");
    "C082" "RFC 5321 4.1.2" Must "" "an empty local part is refused" => Script("ehlo | mail | >RCPT TO:<@{domain}> | <5xx");
    "C083" "RFC 5321 4.1.2" Should "" "two @ are refused" => Script("ehlo | mail | >RCPT TO:<a@b@{domain}> | <5xx");
    "C084" "RFC 5321 4.1.2" Should "" "an unquoted space in a local part is refused" => Script("ehlo | mail | >RCPT TO:<a b@{domain}> | <5xx");
    "C085" "RFC 5321 4.5.3.1.1" Must "" "a local part of 64 octets is taken" => Code(special::local_part_of_64);
    "C086" "RFC 5321 4.5.3.1.3" Must "" "a path of 256 octets is taken" => Code(special::path_of_256);
    "C087" "RFC 5321 4.5.3.1.3" Should "" "a local part of 300 octets does not harm the session" => Code(special::local_part_of_300);
    "C088" "RFC 5321 4.1.1.11" Must "" "an unknown parameter of MAIL is refused" => Script("ehlo | >MAIL FROM:<{from}> XNOSUCH=1 | <555/501/504");
    "C089" "RFC 5321 4.1.1.11" Must "" "an unknown parameter of RCPT is refused" => Script("ehlo | mail | >RCPT TO:<{to}> XNOSUCH=1 | <555/501/504");
    "C090" "RFC 5321 4.1.1.11" Must "" "parameters after HELO are refused or understood" => Script("helo | >MAIL FROM:<{from}> SIZE=100 | <555/501/503/504/250 | alive");
    "C091" "RFC 5321 4.1.2" Should "" "an address literal is understood" => Script("ehlo | mail | >RCPT TO:<user@[127.0.0.1]> | <25x/55x");
    "C092" "RFC 5321 4.1.2" Should "" "a malformed address literal is refused" => Script("ehlo | mail | >RCPT TO:<user@[999.1]> | <5xx");
    "C093" "RFC 5321 3.6" Should "" "mail for a foreign domain is not relayed (a sink is expected to take it)" => Code(special::no_relay);
    "C094" "RFC 5321 2.3.8" Must "" "a control character in an address is refused" => Code(special::control_in_address);
    "C095" "RFC 5321 2.3.1" Must "" "an octet beyond ASCII in an address is refused without SMTPUTF8" => Code(special::eight_bit_address);
    "C100" "RFC 5321 4.5.3.1.4" Must "" "a command line of 512 octets is taken" => Code(special::line_of_512);
    "C101" "RFC 5321 4.5.3.1.4" Should "" "a command line of 5,000 octets gets one reply" => Code(special::line_of_5000);
    "C102" "RFC 5321 4.5.3.1.8" Must "" "100 recipients are taken" => Code(special::hundred_recipients);
    "C103" "RFC 5321 4.5.3.1.10" Must "" "recipients beyond the limit get a reply each" => Code(special::too_many_recipients);
    "C104" "RFC 5321 4.5.3.1.6" Must "" "a text line of 1,000 octets is stored" => Code(content::line_of_1000);
    "C105" "RFC 5321 4.5.3.1.7" Must "" "a message of 64 KiB is stored" => Code(content::message_of_64k);
    "C106" "RFC 5321 4.5.3.1.6" Should "" "a text line of 20,000 octets is stored whole or refused" => Code(content::line_of_20000);
    "C107" "RFC 5321 4.5.3.2.7" Must "" "20 s of silence are tolerated (with --slow)" => Code(special::idle);
    "C110" "RFC 5321 4.5.2" Must "" "a line of two dots is stored as one" => Code(content::two_dots);
    "C111" "RFC 5321 4.5.2" Must "" "the first dot of a line is removed" => Code(content::leading_dot);
    "C112" "RFC 5321 4.5.2" Must "" "one to six stuffed dots come out right" => Code(content::many_dots);
    "C113" "RFC 5321 4.1.1.4" Must "" "an empty message leaves the session usable" => Script("ehlo | data | >. | <250/5xx | alive");
    "C114" "RFC 5321 4.1.1.4" Should "" "a message without header fields is answered" => Script("ehlo | data | >just text | >. | <250/554 | alive");
    "C115" "RFC 5321 4.1.1.4" Must "" "a message without a body is taken" => Script("ehlo | data | >Subject: header only | >. | <250");
    "C116" "RFC 5321 2.3.8" Must "" "LF alone ends no command" => Code(special::lf_ends_no_command);
    "C117" "RFC 5321 2.3.8" Must "" "CR alone ends no command" => Code(special::cr_ends_no_command);
    "C118" "RFC 5321 4.4" Must "" "a stored message begins with Received" => Code(special::received_is_there);
    "C119" "RFC 3848" Must "" "Received says ESMTP after EHLO and SMTP after HELO" => Code(special::received_says_how);
    "C121" "RFC 5321 3.6.3" Must "" "a connection lost before the end stores nothing" => Code(content::lost_before_the_end);
    "C122" "RFC 5321 4.1.1.10" Must "" "QUIT after RCPT stores nothing" => Script("ehlo | mail | rcpt | >QUIT | <221 | stored=0");
    "C123" "RFC 5321 6.3" Must "" "30 Received fields are no loop" => Code(content::thirty_received);
    "C124" "RFC 5321 6.3" Should "" "250 Received fields are a loop, or stored by a sink" => Code(content::many_received);
    "C125" "RFC 5321 4.1.1.4" Must "" "content octet by octet is stored intact" => Code(content::octet_by_octet);
    "C126" "RFC 5321 2.4" Should "" "8-bit content without BODY is stored intact or refused" => Code(content::eight_bit_undeclared);
    "C127" "RFC 5321 4.1.1.4" Must "" "text that looks like commands is text" => Code(content::text_like_commands);
    "C128" "RFC 5321 4.1.1.4" Must "" "blank lines at the end are kept" => Code(content::blank_lines);
    "C129" "RFC 5321 4.1.1.4" Must "" "1 MiB of short lines is stored intact" => Code(content::a_mebibyte);
    "C130" "RFC 1870 3" Should "" "SIZE is offered with a number" => Code(special::size_is_offered);
    "C131" "RFC 1870 4" Must "SIZE" "SIZE=1000 is taken" => Script("ehlo | >MAIL FROM:<{from}> SIZE=1000 | <250");
    "C132" "RFC 1870 6.1" Must "SIZE" "one more than the maximum gets 552 at once" => Code(special::size_over_the_maximum);
    "C133" "RFC 1870 4" Must "SIZE" "SIZE=0 is taken" => Script("ehlo | >MAIL FROM:<{from}> SIZE=0 | <250");
    "C134" "RFC 1870 4" Must "SIZE" "SIZE=abc is refused" => Script("ehlo | >MAIL FROM:<{from}> SIZE=abc | <501/555");
    "C135" "RFC 1870 4" Must "SIZE" "SIZE=-1 is refused" => Script("ehlo | >MAIL FROM:<{from}> SIZE=-1 | <501/555");
    "C136" "RFC 1870 4" Must "SIZE" "SIZE= is refused" => Script("ehlo | >MAIL FROM:<{from}> SIZE= | <501/555");
    "C137" "RFC 1870 4" Must "SIZE" "2^64 + 1000 does not wrap" => Script("ehlo | >MAIL FROM:<{from}> SIZE=18446744073709552616 | <552/501/555");
    "C138" "RFC 1870 4" Must "SIZE" "2^32 + 1000 does not wrap" => Code(special::size_over_2_32);
    "C139" "RFC 1870 6.3" Must "SIZE" "content over the maximum is refused after its end" => Code(content::over_the_maximum);
    "C140" "RFC 1870 6.2" Should "SIZE" "content a little longer than declared is taken" => Code(content::longer_than_declared);
    "C141" "RFC 5321 4.1.1.11" Should "SIZE" "SIZE given twice is refused" => Script("ehlo | >MAIL FROM:<{from}> SIZE=1 SIZE=2 | <501/555");
    "C142" "RFC 1870 3" Must "SIZE" "size in lower case is SIZE" => Script("ehlo | >MAIL FROM:<{from}> size=1000 | <250");
    "C150" "RFC 2920 3.2" Must "PIPELINING" "MAIL, RCPT, RCPT and DATA in one write get four replies" => Code(special::pipeline_group);
    "C151" "RFC 2920 3.2" Must "PIPELINING" "a bad RCPT in the group gets its own refusal" => Code(special::pipeline_bad_rcpt);
    "C152" "RFC 2920 3.1" Must "PIPELINING" "DATA behind refused recipients is refused" => Code(special::pipeline_no_rcpt);
    "C153" "RFC 2920 3.1" Must "PIPELINING" "RSET, RSET and QUIT in one write" => Code(special::pipeline_rset);
    "C154" "RFC 2920 3.1" Must "PIPELINING" "content, dot and the next MAIL in one write" => Code(special::pipeline_behind_the_dot);
    "C155" "RFC 2920 3.2" Must "PIPELINING" "MAIL and 60 RCPT in one write get 61 replies" => Code(special::pipeline_sixty);
    "C156" "RFC 2920 3.2" Must "" "commands octet by octet are commands" => Code(special::commands_octet_by_octet);
    "C157" "RFC 2920 3.1" Should "PIPELINING" "what follows DATA is content" => Code(special::pipeline_into_data);
    "C158" "RFC 2920 3.2" Must "PIPELINING" "an error in a group does not drop the rest" => Code(special::pipeline_errors);
    "C170" "RFC 3030 2" Must "CHUNKING" "BDAT n LAST is stored" => Code(content::bdat_last);
    "C171" "RFC 3030 2" Must "CHUNKING" "three chunks, the last empty" => Code(content::bdat_three);
    "C172" "RFC 3030 2" Must "CHUNKING" "CRLF.CRLF in a chunk is content" => Code(content::bdat_dot);
    "C173" "RFC 3030 2" Must "CHUNKING" "a CRLF may be cut by two chunks" => Code(content::bdat_cut_crlf);
    "C174" "RFC 3030 2" Must "CHUNKING" "MAIL, RCPT and BDAT in one write" => Code(content::bdat_pipelined);
    "C175" "RFC 3030 2" Must "CHUNKING" "BDAT before RCPT gets 503 and its octets are dropped" => Code(content::bdat_before_rcpt);
    "C176" "RFC 3030 2" Must "CHUNKING" "BDAT before MAIL gets 503 and its octets are dropped" => Code(content::bdat_before_mail);
    "C177" "RFC 3030 2" Must "CHUNKING" "DATA after BDAT gets 503" => Code(content::data_after_bdat);
    "C178" "RFC 3030 2" Must "CHUNKING" "MAIL and RCPT between chunks get 503" => Code(content::mail_between_chunks);
    "C179" "RFC 3030 2" Must "CHUNKING" "RSET between chunks clears" => Code(content::rset_between_chunks);
    "C180" "RFC 3030 2" Must "CHUNKING" "BDAT without a size gets 501" => Script("ehlo | mail | rcpt | >BDAT | <501");
    "C181" "RFC 3030 2" Must "CHUNKING" "BDAT abc gets 501" => Script("ehlo | mail | rcpt | >BDAT abc | <501");
    "C182" "RFC 3030 2" Must "CHUNKING" "BDAT -1 LAST gets 501" => Script("ehlo | mail | rcpt | >BDAT -1 LAST | <501");
    "C183" "RFC 3030 2" Must "CHUNKING" "BDAT 5 FIRST gets 501" => Script("ehlo | mail | rcpt | >BDAT 5 FIRST | <501");
    "C184" "RFC 3030 2" Must "CHUNKING" "BDAT after BDAT LAST gets 503" => Code(content::bdat_after_last);
    "C185" "RFC 3030 2" Must "CHUNKING" "BDAT 0 LAST alone leaves the session usable" => Script("ehlo | mail | rcpt | >BDAT 0 LAST | <250/5xx | alive");
    "C186" "RFC 3030 2" Must "CHUNKING" "bdat in lower case is BDAT" => Code(content::bdat_lower_case);
    "C187" "RFC 3030 2" Must "CHUNKING" "chunks over the maximum are dropped and refused" => Code(content::bdat_over_the_maximum);
    "C188" "RFC 3030 3" Must "BINARYMIME" "DATA after BODY=BINARYMIME gets 503" => Script("ehlo | >MAIL FROM:<{from}> BODY=BINARYMIME | <250 | rcpt | >DATA | <503");
    "C189" "RFC 3030 3" Must "BINARYMIME" "binary content is stored octet for octet" => Code(content::binary);
    "C190" "RFC 3030 3" Must "BINARYMIME" "BINARYMIME is offered with CHUNKING alone" => Code(special::binarymime_needs_chunking);
    "C200" "RFC 2034 3" Should "" "ENHANCEDSTATUSCODES is offered" => Code(special::enhanced_is_offered);
    "C201" "RFC 2034 4" Must "ENHANCEDSTATUSCODES" "replies carry class.subject.detail" => Code(special::enhanced_codes);
    "C202" "RFC 2034 4" Must "ENHANCEDSTATUSCODES" "the class of the enhanced code is that of the reply" => Replies(special::enhanced_class);
    "C203" "RFC 2034 4" Must "ENHANCEDSTATUSCODES" "354 has no enhanced code" => Replies(special::no_enhanced_354);
    "C204" "RFC 3463 3.6" Should "ENHANCEDSTATUSCODES" "an unknown command is 5.5.1 or 5.5.2" => Code(special::enhanced_unknown);
    "C205" "RFC 3463 3.6" Should "ENHANCEDSTATUSCODES" "RCPT before MAIL is 5.5.1" => Code(special::enhanced_order);
    "C206" "RFC 3463 3.4" Should "ENHANCEDSTATUSCODES" "a SIZE over the maximum is 5.3.4" => Code(special::enhanced_size);
    "C207" "RFC 3463 3.2" Should "ENHANCEDSTATUSCODES" "MAIL is 2.1.0 and RCPT 2.1.5" => Code(special::enhanced_ok);
    "C210" "RFC 6152 2" Should "" "8BITMIME is offered" => Code(special::eight_bit_is_offered);
    "C211" "RFC 6152 3" Must "8BITMIME" "BODY=8BITMIME is taken" => Script("ehlo | >MAIL FROM:<{from}> BODY=8BITMIME | <250");
    "C212" "RFC 6152 3" Must "8BITMIME" "BODY=7BIT is taken" => Script("ehlo | >MAIL FROM:<{from}> BODY=7BIT | <250");
    "C213" "RFC 6152 3" Must "8BITMIME" "body=8bitmime is taken" => Script("ehlo | >MAIL FROM:<{from}> body=8bitmime | <250");
    "C214" "RFC 6152 3" Must "8BITMIME" "BODY=NONSENSE is refused" => Script("ehlo | >MAIL FROM:<{from}> BODY=NONSENSE | <501/504/555");
    "C215" "RFC 6152 3" Must "8BITMIME" "all octets beyond ASCII are stored intact" => Code(content::eight_bit);
    "C216" "RFC 6531 3.1" Must "SMTPUTF8" "SMTPUTF8 comes with 8BITMIME" => Code(special::smtputf8_needs_8bitmime);
    "C217" "RFC 6531 3.4" Must "SMTPUTF8" "a sender beyond ASCII is taken" => Script("ehlo | >MAIL FROM:<\u{fc}ser@example.org> SMTPUTF8 | <250");
    "C218" "RFC 6531 3.4" Must "SMTPUTF8" "a recipient beyond ASCII is understood" => Script("ehlo | >MAIL FROM:<{from}> SMTPUTF8 | <250 | >RCPT TO:<\u{7528}\u{6237}@{domain}> | <25x/55x");
    "C219" "RFC 6531 3.4" Must "SMTPUTF8" "a sender beyond ASCII without SMTPUTF8 is refused" => Script("ehlo | >MAIL FROM:<\u{fc}ser@example.org> | <5xx");
    "C220" "RFC 6531 3.4" Must "SMTPUTF8" "SMTPUTF8=yes gets 501" => Script("ehlo | >MAIL FROM:<{from}> SMTPUTF8=yes | <501/555");
    "C221" "RFC 6531 3.3" Must "SMTPUTF8" "ill-formed UTF-8 is refused" => Code(special::ill_formed_utf8);
    "C222" "RFC 6531 3.4" Must "SMTPUTF8" "SMTPUTF8 with ASCII addresses is taken" => Script("ehlo | >MAIL FROM:<{from}> SMTPUTF8 | <250 | rcpt");
    "C223" "RFC 6531 3.5" Must "SMTPUTF8" "header fields in UTF-8 are stored intact" => Code(content::utf8_header);
    "C224" "RFC 6531 3.7.4.2" Should "SMTPUTF8" "VRFY user SMTPUTF8 is answered" => Script("ehlo | >VRFY {local} SMTPUTF8 | <2xx/5xx | alive");
    "C225" "RFC 6531 3.7.3" Must "SMTPUTF8" "Received says UTF8SMTP" => Code(special::received_says_utf8);
    "C230" "RFC 3461 4.1" Must "DSN" "NOTIFY=SUCCESS,FAILURE,DELAY is taken" => Script("ehlo | mail | >RCPT TO:<{to}> NOTIFY=SUCCESS,FAILURE,DELAY | <25x");
    "C231" "RFC 3461 4.1" Must "DSN" "NOTIFY=NEVER is taken" => Script("ehlo | mail | >RCPT TO:<{to}> NOTIFY=NEVER | <25x");
    "C232" "RFC 3461 4.1" Must "DSN" "NOTIFY=NEVER,SUCCESS gets 501" => Script("ehlo | mail | >RCPT TO:<{to}> NOTIFY=NEVER,SUCCESS | <501/555");
    "C233" "RFC 3461 4.1" Must "DSN" "NOTIFY=FOO gets 501" => Script("ehlo | mail | >RCPT TO:<{to}> NOTIFY=FOO | <501/555");
    "C234" "RFC 3461 4.2" Must "DSN" "ORCPT in xtext is taken" => Script("ehlo | mail | >RCPT TO:<{to}> ORCPT=rfc822;a+2Bb@example.org | <25x");
    "C235" "RFC 3461 4.3" Must "DSN" "RET=HDRS ENVID=abc is taken" => Script("ehlo | >MAIL FROM:<{from}> RET=HDRS ENVID=abc | <250");
    "C236" "RFC 3461 4.3" Must "DSN" "RET=FOO gets 501" => Script("ehlo | >MAIL FROM:<{from}> RET=FOO | <501/555");
    "C237" "RFC 3461 4.4" Must "DSN" "a malformed ENVID gets 501" => Script("ehlo | >MAIL FROM:<{from}> ENVID=a+G1 | <501/555");
    "C240" "RFC 9422 3" Must "LIMITS" "LIMITS has names and numbers of one to six digits" => Code(special::limits_are_well_formed);
    "C241" "RFC 9422 4.2" Must "LIMITS" "RCPTMAX recipients are taken (up to 1,000 are tried)" => Code(special::rcptmax_is_kept);
    "C242" "RFC 8689 2" Must "" "REQUIRETLS is not offered in the clear" => Code(special::requiretls_in_the_clear);
    "C243" "RFC 7504 3" Should "" "a request of HTTP is refused" => Script("open | >GET / HTTP/1.1 | <5xx/421/close");
    "C250" "RFC 3207 4" Must "STARTTLS" "STARTTLS gets 220, the handshake succeeds, EHLO works" => Code(special::starttls_works);
    "C251" "RFC 3207 4.2" Must "STARTTLS" "STARTTLS is not offered under TLS" => Code(special::starttls_is_not_offered_again);
    "C252" "RFC 3207 4.2" Must "STARTTLS" "what was said before TLS is forgotten" => Code(special::starttls_forgets);
    "C253" "RFC 3207 4.2" Must "STARTTLS" "STARTTLS under TLS is refused" => Code(special::starttls_twice);
    "C254" "RFC 3207 4" Must "STARTTLS" "STARTTLS with an argument gets 501" => Script("ehlo | >STARTTLS now | <501");
    "C255" "RFC 8996 2" Must "STARTTLS" "TLS 1.0 and 1.1 are refused" => Code(special::old_tls_is_refused);
    "C256" "RFC 8446" Should "STARTTLS" "TLS 1.3 is spoken" => Code(special::tls_1_3);
    "C257" "RFC 5246" Must "STARTTLS" "TLS 1.2 is spoken" => Code(special::tls_1_2);
    "C258" "RFC 3207 6" Must "STARTTLS" "nothing sent in the clear behind STARTTLS is executed" => Code(special::starttls_injection);
    "C259" "RFC 3207 4" Must "STARTTLS" "a message under TLS is stored intact" => Code(content::under_tls);
    "C260" "RFC 5246 7.2.1" Should "STARTTLS" "QUIT under TLS ends with close_notify" => Code(special::close_notify);
    "C261" "RFC 3207 4.1" Should "STARTTLS" "a failed handshake closes the connection" => Code(special::failed_handshake);
    "C263" "RFC 3207 4" Must "STARTTLS" "STARTTLS after HELO is answered" => Script("helo | >STARTTLS | <220/503");
    "C264" "RFC 3207 6" Must "STARTTLS" "nothing sent in the clear after close_notify is executed" => Code(special::plaintext_after_tls);
    "C265" "RFC 8446 6.1" Must "STARTTLS" "a TLS stream cut without close_notify completes no message" => Code(content::truncated_tls);
    "C289" "RFC 4954 4" Must "AUTH" "AUTH without arguments gets 501" => Script("ehlo | >AUTH | <501");
    "C288" "RFC 4954 4" Must "AUTH" "an unknown mechanism gets 504" => Script("ehlo | >AUTH NO-SUCH-MECHANISM | <504");
    "C284" "RFC 4954 4" Must "AUTH" "AUTH cancelled by * gets 501" => Code(special::auth_cancelled);
    "C285" "RFC 4954 4" Must "AUTH" "bad base64 gets 501" => Code(special::auth_bad_base64);
    "C287" "RFC 4954 4" Must "AUTH" "AUTH inside a transaction gets 503" => Code(special::auth_in_transaction);
    "C290" "RFC 4954 4" Must "" "PLAIN and LOGIN are not offered in the clear" => Code(special::no_plain_in_the_clear);
    "E001" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: LF.LF" => Code(|d| content::smuggle(d, b"\n.\n"));
    "E002" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: LF.CR" => Code(|d| content::smuggle(d, b"\n.\r"));
    "E003" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CR.LF" => Code(|d| content::smuggle(d, b"\r.\n"));
    "E004" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CR.CR" => Code(|d| content::smuggle(d, b"\r.\r"));
    "E005" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: LF.CRLF" => Code(|d| content::smuggle(d, b"\n.\r\n"));
    "E006" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CR.CRLF" => Code(|d| content::smuggle(d, b"\r.\r\n"));
    "E007" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CRLF.LF" => Code(|d| content::smuggle(d, b"\r\n.\n"));
    "E008" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CRLF.CR" => Code(|d| content::smuggle(d, b"\r\n.\r"));
    "E009" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CRLF NUL.CRLF" => Code(|d| content::smuggle(d, b"\r\n\0.\r\n"));
    "E010" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CRLF.NUL CRLF" => Code(|d| content::smuggle(d, b"\r\n.\0\r\n"));
    "E011" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CRLF.CRCRLF" => Code(|d| content::smuggle(d, b"\r\n.\r\r\n"));
    "E012" "RFC 5321 4.1.1.4" Must "" "only CRLF.CRLF ends DATA: CRCRLF.CRCRLF" => Code(|d| content::smuggle(d, b"\r\r\n.\r\r\n"));
    "E013" "RFC 5321 2.3.8" Should "" "a bare LF in content is refused, or kept or made CRLF, and ends nothing" => Code(|d| content::bare(d, b"bare\nLF\r\n"));
    "E014" "RFC 5321 2.3.8" Should "" "a bare CR in content is refused, or kept or made CRLF, and ends nothing" => Code(|d| content::bare(d, b"bare\rCR\r\n"));
}

/// Plays a script.
///
/// # Errors
/// The first step that goes otherwise.
pub fn play(dialogue: &mut Dialogue<'_>, script: &str) -> Step {
    let (from, to) = (dialogue.options.from.clone(), dialogue.options.to.clone());
    let (local, domain) = to.rsplit_once('@').unwrap_or((&to, "localhost"));
    for step in script.split(" | ") {
        let text = step
            .replace("{from}", &from)
            .replace("{to}", &to)
            .replace("{local}", local)
            .replace("{domain}", domain);
        if let Some(line) = text.strip_prefix('>') {
            dialogue.send(format!("{line}\r\n").as_bytes())?;
            continue;
        }
        if let Some(patterns) = text.strip_prefix('<') {
            dialogue.want(patterns)?;
            continue;
        }
        if let Some(count) = text.strip_prefix("stored=") {
            dialogue.stored_count(count.parse().unwrap_or(0))?;
            continue;
        }
        match text.as_str() {
            "open" => drop(dialogue.open()?),
            "ehlo" => drop(dialogue.ehlo()?),
            "helo" => {
                dialogue.open()?;
                dialogue.say("HELO client.example", "250")?;
            }
            "mail" => drop(dialogue.say(&dialogue.mail_line(), "250")?),
            "rcpt" => drop(dialogue.say(&dialogue.rcpt_line(), "25x")?),
            "data" => dialogue.data()?,
            "message" => drop(dialogue.deliver(b"Text.\r\n", "250")?),
            "alive" => dialogue.alive()?,
            "closed" => dialogue.closed()?,
            other => return Err(Stop::Skip(format!("the script has no step '{other}'"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_number_of_its_own_and_every_script_only_known_steps() {
        let mut seen = std::collections::BTreeSet::new();
        for case in CASES {
            assert!(seen.insert(case.id), "{} stands twice", case.id);
            let Play::Script(script) = case.play else {
                continue;
            };
            for step in script.split(" | ") {
                let known = [
                    "open", "ehlo", "helo", "mail", "rcpt", "data", "message", "alive", "closed",
                ];
                assert!(
                    step.starts_with('>')
                        || step.starts_with('<')
                        || step.starts_with("stored=")
                        || known.contains(&step),
                    "{}: {step:?}",
                    case.id
                );
            }
        }
        assert!(seen.len() > 180, "{}", seen.len());
    }
}
