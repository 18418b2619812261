//! Speed of the content decoders: `cargo bench --bench data_decoder`.
//!
//! For each body, size and way of decoding, prints the best of many rounds as nanoseconds for one
//! body and gigabytes (10^9) per second. Bodies come in parts of 64 KiB, as the receiver has them.

use std::hint::black_box;

use ringmx::clock::Clock;
use ringmx::limits::CHUNK_LARGE_BYTES;
use ringmx::smtp::data::{BareNewlines, Checker, Decoder, Piece};

const ROUNDS: usize = 200;
const SIZES: [usize; 2] = [1 << 10, 1 << 20];

fn main() {
    for size in SIZES {
        let clean = lines(size, |_| b"");
        let stuffed = lines(size, |_| b"..");
        let rarely = lines(size, |line| if line % 100 == 99 { b".." } else { b"" });
        let bare = lines(size, |_| b"\n");
        for (name, body) in [
            ("78-octet lines", &clean),
            ("a stuffed dot in every 100th line", &rarely),
            ("a stuffed dot in every line", &stuffed),
            ("a bare LF in every line", &bare),
        ] {
            println!("{name}, {size} octets");
            report("decode", size, || decode(body, BareNewlines::Reject));
            report("decode, normalize", size, || {
                decode(body, BareNewlines::Normalize)
            });
            report("check", size, || check(body));
            let mut buf = body.clone();
            report(
                "decode in place (with the copy that restores the buffer)",
                size,
                || {
                    buf.copy_from_slice(body);
                    let mut decoder = Decoder::new(BareNewlines::Reject);
                    let mut kept = 0;
                    for part in buf.chunks_mut(CHUNK_LARGE_BYTES) {
                        kept += decoder.decode_in_place(part).kept;
                    }
                    kept
                },
            );
        }
    }
}

/// At least `size` octets of lines of 78 octets, CRLF included, each begun by `start`, cut to size.
fn lines(size: usize, start: impl Fn(usize) -> &'static [u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(size + 78);
    for line in 0.. {
        if body.len() >= size {
            break;
        }
        let start = start(line);
        body.extend_from_slice(start);
        body.resize(body.len() + 76 - start.len(), b'x');
        body.extend_from_slice(b"\r\n");
    }
    body.truncate(size);
    // The cut may leave a CR behind, which would be withheld or counted by the next part.
    body[size - 1] = b'x';
    body
}

fn octets(piece: &Piece) -> usize {
    match piece {
        Piece::Input(range) => range.len(),
        Piece::Literal(octets) => octets.len(),
    }
}

fn decode(body: &[u8], mode: BareNewlines) -> usize {
    let mut decoder = Decoder::new(mode);
    let mut total = 0;
    for part in body.chunks(CHUNK_LARGE_BYTES) {
        decoder.decode(part, |piece| total += octets(&piece));
    }
    total
}

fn check(body: &[u8]) -> usize {
    let mut checker = Checker::new(BareNewlines::Reject);
    let mut total = 0;
    for part in body.chunks(CHUNK_LARGE_BYTES) {
        checker.check(part, |piece| total += octets(&piece));
    }
    total
}

fn report(name: &str, size: usize, mut run: impl FnMut() -> usize) {
    let clock = Clock::new();
    let mut best = u64::MAX;
    for _ in 0..ROUNDS {
        let start = clock.now();
        black_box(run());
        best = best.min(clock.now().since_ns(start));
    }
    println!(
        "  {name:60} {best:>9} ns  {:6.2} GB/s",
        size as f64 / best.max(1) as f64
    );
}
