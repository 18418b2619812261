//! The style that no lint knows: layers, who may name what, character set, width.
//!
//! Sources are cut into code, comments and literals first, so that a word in a comment or a string counts for
//! nothing. Unit tests (`#[cfg(test)]` to the end of the file, `tests.rs`) may do what tests do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Columns of a line of code; rustfmt breaks longer ones, but not literals.
const CODE_COLUMNS_MAX: usize = 100;
/// Columns of a line with a comment.
const COMMENT_COLUMNS_MAX: usize = 120;
/// A document with this line lists every file of `src`.
const LISTS_SOURCES: &str = "<!-- tests/tidy.rs: lists every file of src -->";

/// Words that only some files may use, and why. A file matches when its path begins with an entry.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    (
        "unsafe",
        &["src/sys/", "loadgen/src/sys/", "tests/tidy.rs"],
        "unsafe code has one home, where each block is argued for",
    ),
    (
        "mio::",
        &[
            "src/net/",
            "loadgen/src/",
            "benches/null_server.rs",
            "benches/raw_generator.rs",
        ],
        "everything else of the receiver runs without sockets",
    ),
    (
        "rustls::",
        &["src/tls", "src/conformance", "loadgen/", "tests/"],
        "one place speaks TLS, and one tries how others do",
    ),
    (
        "httparse::",
        &["src/http/"],
        "one place parses what an HTTP client sends",
    ),
    (
        "toml_edit::",
        &["src/config"],
        "one place reads configuration files",
    ),
    // Named here to be found: no file may call these. A fixed wait is too short on a busy machine, too long on others.
    ("thread::sleep", &[], "wait for a condition with a deadline"),
    ("sleep_ms", &[], "wait for a condition with a deadline"),
];

/// Files that read a clock, and why.
const CLOCK_READERS: &[(&str, &str)] = &[
    ("src/clock.rs", "reads it for all others"),
    ("src/demo.rs", "measures a server from outside"),
    ("src/ring_cli.rs", "bench-disk measures a disk"),
];

/// Modules of one pure layer that may see each other: `policy` answers with the verdict type of `smtp`.
const PURE_SIBLINGS: &[(&str, &str)] = &[("policy", "smtp")];

/// Layers whose modules do not see each other.
const PURE_LAYER: u8 = 2;

struct Source {
    /// Relative to the repository, with `/`.
    path: String,
    text: String,
    /// The text with comments and literals blanked, as long as the text.
    code: String,
}

impl Source {
    /// The code without unit tests.
    fn shipped(&self) -> &str {
        if self.path.ends_with("/tests.rs") {
            return "";
        }
        let end = self.code.find("#[cfg(test)]\nmod ");
        &self.code[..end.unwrap_or(self.code.len())]
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `folders` whose name ends so, sorted. Fuzz corpora and the like hold data, not sources.
fn files(folders: &[&str], ends: &[&str]) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() {
                if !matches!(name.as_str(), "corpus" | "target" | "__pycache__") {
                    open.push(entry.path());
                }
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn sources() -> Vec<Source> {
    let found = files(&["src", "tests", "benches", "loadgen"], &[".rs"]);
    assert!(found.len() > 50, "{} sources found", found.len());
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            Source {
                path: relative(&path),
                code: code_of(&text),
                text,
            }
        })
        .collect()
}

/// Blanks comments, strings and character literals; line ends stay where they are.
fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let len = match rest {
            [b'/', b'/', ..] => length_until(rest, b"\n"),
            [b'/', b'*', ..] => block_comment(rest),
            [b'r', b'"' | b'#', ..] if !continues_word(bytes, at) => raw_string(rest),
            [b'"', ..] => string(rest),
            [b'\'', ..] => character(rest),
            _ => 0,
        };
        for byte in &mut out[at..at + len] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at += len.max(1);
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Whether the byte at `at` is inside a word, where `r` does not begin a raw string (but `br` does).
fn continues_word(bytes: &[u8], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map(|index| bytes[index]);
    let word = |byte: Option<u8>| byte.is_some_and(|b| b == b'_' || b.is_ascii_alphanumeric());
    word(before(1)) && (before(1) != Some(b'b') || word(before(2)))
}

fn length_until(rest: &[u8], end: &[u8]) -> usize {
    rest.windows(end.len())
        .position(|window| window == end)
        .unwrap_or(rest.len())
}

fn block_comment(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at + 1 < rest.len() {
        match &rest[at..at + 2] {
            b"/*" => depth += 1,
            b"*/" => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> usize {
    let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return 0; // A raw identifier.
    }
    let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
    let begin = 2 + hashes;
    begin + length_until(&rest[begin..], &end) + end.len()
}

fn string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// A character literal; 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    match rest {
        [_, b'\\', _, ..] => 3 + length_until(&rest[3..], b"'") + 1,
        [_, first, ..] => {
            let width = match first {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                _ => 4,
            };
            if rest.get(1 + width) == Some(&b'\'') {
                width + 2
            } else {
                0
            }
        }
        _ => 0,
    }
}

/// Whether `word` stands in `line` and is not part of a longer name.
fn names(line: &str, word: &str) -> bool {
    let part = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
    line.match_indices(word).any(|(at, _)| {
        let before = at.checked_sub(1).map(|index| line.as_bytes()[index]);
        let after = line.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(part) && (word.ends_with(':') || !after.is_some_and(part))
    })
}

/// Lines of `code` for which `wrong` holds, as `path:line: text`.
fn lines(source: &Source, code: &str, wrong: impl Fn(&str) -> bool) -> Vec<String> {
    code.lines()
        .zip(source.text.lines())
        .enumerate()
        .filter(|(_, (code, _))| wrong(code))
        .map(|(index, (_, text))| format!("{}:{}: {}", source.path, index + 1, text.trim()))
        .collect()
}

fn assert_none(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn comments_and_literals_are_told_from_code() {
    let text = "a // \"b\n/* c /* d */ e */ f(\"\\\"g\", 'h', '\\'', b\"i\", r#\"j\"k\"#, &'l m)";
    let code = code_of(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(
        code.split_whitespace().collect::<Vec<_>>(),
        ["a", "f(", ",", ",", ",", "b", ",", ",", "&'l", "m)"]
    );
}

#[test]
fn sources_and_documents_are_ascii() {
    let ends = [".rs", ".toml", ".py", ".md", ".sh", "run", "fetch"];
    let mut found = Vec::new();
    let mut paths = files(&["src", "tests", "benches", "loadgen", "docs"], &ends);
    paths.extend(["Cargo.toml", "README.md", ".ci/run"].map(|name| root().join(name)));
    for path in paths.iter().filter(|path| path.exists()) {
        let text = fs::read(path).unwrap();
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            if !line.is_ascii() {
                found.push(format!("{}:{}", relative(path), index + 1));
            }
        }
    }
    assert_none("characters outside ASCII", found);
}

#[test]
fn lines_are_no_longer_than_a_reader_can_take() {
    let mut found = Vec::new();
    for source in sources() {
        for (index, (text, code)) in source.text.lines().zip(source.code.lines()).enumerate() {
            let columns = text.chars().count();
            let comment = text.trim_start().starts_with("//");
            let literal = !comment && text.trim_end() != code.trim_end();
            let max = if comment {
                COMMENT_COLUMNS_MAX
            } else if literal {
                // What a program prints is written as it is printed.
                usize::MAX
            } else {
                CODE_COLUMNS_MAX
            };
            if columns > max {
                found.push(format!("{}:{}: {columns}", source.path, index + 1));
            }
        }
    }
    assert_none("too many columns", found);
}

#[test]
fn words_stay_where_they_belong() {
    for (word, homes, why) in ONLY_IN {
        let mut found = Vec::new();
        for source in sources() {
            if !homes.iter().any(|home| source.path.starts_with(home)) {
                found.extend(lines(&source, &source.code, |line| names(line, word)));
            }
        }
        assert_none(&format!("`{word}` only in {homes:?}: {why}"), found);
    }
}

#[test]
fn the_system_is_called_in_sys_alone() {
    // Constants of libc are no calls: error numbers and open flags are passed on to std.
    let call = |line: &str| {
        line.match_indices("libc::").any(|(at, word)| {
            let next = line[at + word.len()..].bytes().next();
            !next.is_some_and(|byte| byte.is_ascii_uppercase())
        })
    };
    let mut found = Vec::new();
    for source in sources() {
        let sys = ["src/sys/", "loadgen/src/sys/"];
        let ours = source.path.contains("src/");
        if ours && !sys.iter().any(|home| source.path.starts_with(home)) {
            found.extend(lines(&source, source.shipped(), call));
        }
    }
    assert_none("functions and types of libc outside sys", found);
}

#[test]
fn clocks_are_read_in_one_place() {
    let reads = |line: &str| names(line, "Instant::now") || names(line, "SystemTime::now");
    let mut found = Vec::new();
    let mut readers = BTreeSet::new();
    for source in sources() {
        if !source.path.starts_with("src/") {
            continue;
        }
        let hits = lines(&source, source.shipped(), reads);
        if CLOCK_READERS.iter().any(|(path, _)| *path == source.path) {
            readers.extend((!hits.is_empty()).then_some(source.path));
        } else {
            found.extend(hits);
        }
    }
    assert_none("clocks read outside src/clock.rs", found);
    let listed: BTreeSet<String> = CLOCK_READERS
        .iter()
        .map(|(path, _)| (*path).into())
        .collect();
    assert_eq!(readers, listed, "files listed as reading a clock");
}

/// The layer of every module, as `src/lib.rs` declares them.
fn layers() -> BTreeMap<String, u8> {
    let mut layers = BTreeMap::new();
    let mut layer = None;
    for line in fs::read_to_string(root().join("src/lib.rs"))
        .unwrap()
        .lines()
    {
        if let Some(rest) = line.strip_prefix("// L") {
            layer = rest.split(':').next().and_then(|digit| digit.parse().ok());
        } else if let Some((_, name)) = line.split_once("mod ").filter(|(before, _)| {
            // Comments hold the word as well.
            matches!(*before, "" | "pub ")
        }) {
            let layer = layer.expect("a layer above the first module");
            layers.insert(name.trim_end_matches(';').to_owned(), layer);
        }
    }
    layers
}

/// The modules of this crate that the code names: `crate::a::B`, `crate::{a, b::C}`.
fn used_modules(code: &str) -> BTreeSet<String> {
    let name = |text: &str| -> String {
        text.chars()
            .take_while(|&c| c == '_' || c.is_ascii_alphanumeric())
            .collect()
    };
    let mut used = BTreeSet::new();
    for (at, word) in code.match_indices("crate::") {
        let rest = &code[at + word.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(name(rest));
            continue;
        };
        let mut depth = 0;
        let mut begins = true;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && !c.is_whitespace() => {
                    used.insert(name(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    used
}

#[test]
fn used_modules_are_found_in_groups_too() {
    let code = "use crate::{cli, ringlog::{reader::{Reader, Walk}, writer}, smtp}; crate::sys::f()";
    let expected = ["cli", "ringlog", "smtp", "sys"].map(str::to_owned);
    assert_eq!(used_modules(code), BTreeSet::from(expected));
}

#[test]
fn a_module_uses_lower_layers_only() {
    let layers = layers();
    let mut found = Vec::new();
    for source in sources() {
        let Some(path) = source.path.strip_prefix("src/") else {
            continue;
        };
        let module = path.split('/').next().unwrap().trim_end_matches(".rs");
        if matches!(module, "lib" | "main") {
            continue;
        }
        let Some(&own) = layers.get(module) else {
            found.push(format!("{}: src/lib.rs gives it no layer", source.path));
            continue;
        };
        for used in used_modules(source.shipped()) {
            let Some(&layer) = layers.get(&used) else {
                found.push(format!("{}: {used} has no layer", source.path));
                continue;
            };
            let edge = (module, used.as_str());
            let sibling = own == layer && own == PURE_LAYER && module != used;
            if layer > own || sibling && !PURE_SIBLINGS.contains(&edge) {
                found.push(format!("{}: L{own} uses L{layer} {used}", source.path));
            }
        }
    }
    assert_none("uses of a higher layer, or between pure modules", found);
}

#[test]
fn the_architecture_document_lists_every_source() {
    let Ok(document) = fs::read_to_string(root().join("docs/architecture.md")) else {
        return;
    };
    if !document.lines().any(|line| line == LISTS_SOURCES) {
        return;
    }
    let found = files(&["src"], &[".rs"])
        .iter()
        .map(|path| relative(path))
        .filter(|path| !document.contains(&format!("`{path}`")))
        .collect();
    assert_none("files that docs/architecture.md does not list", found);
}
