//! Pre-flight: one polite connection that learns the banner and what EHLO offers.

use crate::plan::{Plan, Protocol, TlsMode};
use crate::reply::ReplyReader;
use crate::wire::Address;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What the target says of itself.
#[derive(Clone, Debug, Default)]
pub struct Greeting {
    /// Text of its greeting.
    pub banner: Option<String>,
    /// Lines of its reply to EHLO.
    pub ehlo: Vec<String>,
}

trait Both: Read + Write {}
impl<T: Read + Write> Both for T {}

/// Asks the target. With implicit TLS only the connection is tried.
///
/// **Errors**: the target can't be reached, or does not greet with 220.
pub fn ask(address: &Address, plan: &Plan) -> io::Result<Greeting> {
    let limit = Duration::from_nanos(plan.timeout_ns.min(10_000_000_000));
    let mut stream: Box<dyn Both> = match address {
        Address::Tcp(addr) => {
            let stream = TcpStream::connect_timeout(addr, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Box::new(stream)
        }
        Address::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Box::new(stream)
        }
    };
    if plan.tls == TlsMode::Implicit {
        return Ok(Greeting::default());
    }
    let mut reader = ReplyReader::default();
    let (code, banner) = reply(&mut stream, &mut reader)?;
    let text = banner.last().cloned().unwrap_or_default();
    if code != 220 {
        return Err(io::Error::other(format!("it greets with {code} {text}")));
    }
    let verb = if plan.protocol == Protocol::Lmtp {
        "LHLO"
    } else {
        "EHLO"
    };
    stream.write_all(format!("{verb} {}\r\n", plan.helo).as_bytes())?;
    let (_, ehlo) = reply(&mut stream, &mut reader)?;
    stream.write_all(b"QUIT\r\n")?;
    // Its words don't matter any more; wait for them so that the server sees an orderly end.
    let _ = reply(&mut stream, &mut reader);
    Ok(Greeting {
        banner: Some(text),
        ehlo,
    })
}

fn reply(stream: &mut dyn Both, reader: &mut ReplyReader) -> io::Result<(u16, Vec<String>)> {
    let mut lines = Vec::new();
    let mut byte = [0; 1];
    loop {
        if stream.read(&mut byte)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "it closes the connection",
            ));
        }
        let mut end = None;
        reader
            .feed(&byte, |line| {
                lines.push(String::from_utf8_lossy(line.text).into_owned());
                end = line.last.then_some(line.code);
                true
            })
            .map_err(|error| io::Error::other(error.to_string()))?;
        if let Some(code) = end {
            return Ok((code, lines));
        }
    }
}
