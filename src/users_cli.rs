//! `ringmx users`: makes and edits the file of users that `serve --users` reads.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, IsTerminal, Read, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::cli::words::Words;
use crate::cli::{EXIT_FAILURE, EXIT_USAGE, complain, print};
use crate::limits::{
    PASSWORD_BYTES_MAX, USER_ITERATIONS_DEFAULT, USER_ITERATIONS_MAX, USER_ITERATIONS_MIN,
};
use crate::server::auth::read;
use crate::sys::file::{Lock, random, try_lock};
use crate::users::{KEY_BYTES, SALT_BYTES, Users, Verifier, is_user_name, prepared};

/// Text of `ringmx users --help`.
pub const HELP: &str = "\
Usage: ringmx users add --file FILE NAME [--iterations N]
       ringmx users passwd --file FILE NAME [--iterations N]
       ringmx users remove --file FILE NAME
       ringmx users list --file FILE

add         adds a user; makes FILE (mode 0600) where there is none
passwd      gives a user another password
remove      removes a user
list        prints the names, one a line

The password is the first line of standard input. FILE keeps no password, only what
it is checked with: SCRAM-SHA-256 (RFC 5803) after N rounds of PBKDF2, 4096 to 1000000
(65536 if not given). The file is replaced in one step; a running server reads it
again by itself.

Exit codes: 0 done, 1 the file can't be read or written, 2 usage, or no such user.
";

/// Parsed arguments.
#[derive(Debug, PartialEq, Eq)]
struct Args {
    command: Command,
    file: PathBuf,
    name: String,
    iterations: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Add,
    Passwd,
    Remove,
    List,
}

/// Runs `ringmx users`; returns the exit code.
pub fn run(args: &[String]) -> i32 {
    if args.iter().any(|arg| arg == "--help" || arg == "-h") {
        return print(HELP);
    }
    let args = match parse(args) {
        Ok(args) => args,
        Err(reason) => return usage(&reason),
    };
    let password = if matches!(args.command, Command::Add | Command::Passwd) {
        match read_password(&mut io::stdin().lock()) {
            Ok(password) => Some(password),
            Err(reason) => return usage(&reason),
        }
    } else {
        None
    };
    match edit(&args, password.as_deref().map(String::as_str)) {
        Ok(text) => print(&text),
        Err(Failed::Usage(reason)) => usage(&reason),
        Err(Failed::File(reason)) => {
            complain(&format!("ringmx: users: {reason}\n"));
            EXIT_FAILURE
        }
    }
}

fn usage(reason: &str) -> i32 {
    complain(&format!("ringmx: users: {reason}\n"));
    EXIT_USAGE
}

/// Why nothing was changed.
enum Failed {
    Usage(String),
    File(String),
}

fn parse(args: &[String]) -> Result<Args, String> {
    let (mut file, mut name, mut command) = (None, None, None);
    let mut iterations = USER_ITERATIONS_DEFAULT;
    let mut args = Words::new(args);
    while let Some((flag, arg)) = args.next() {
        match flag {
            "--file" | "--iterations" => {
                let value = args.value(flag)?;
                if flag == "--file" {
                    file = Some(PathBuf::from(value));
                } else {
                    let allowed = USER_ITERATIONS_MIN..=USER_ITERATIONS_MAX;
                    let number = value.parse().ok().filter(|n| allowed.contains(n));
                    iterations = number.ok_or_else(|| {
                        format!(
                            "--iterations: allowed: {USER_ITERATIONS_MIN} to {USER_ITERATIONS_MAX}"
                        )
                    })?;
                }
            }
            "add" if command.is_none() => command = Some(Command::Add),
            "passwd" if command.is_none() => command = Some(Command::Passwd),
            "remove" if command.is_none() => command = Some(Command::Remove),
            "list" if command.is_none() => command = Some(Command::List),
            _ if command.is_some() && name.is_none() && !flag.starts_with("--") => {
                name = Some(arg.to_owned());
            }
            _ => return Err(format!("unexpected argument '{}'", arg.escape_debug())),
        }
    }
    let command = command.ok_or("add, passwd, remove or list?")?;
    let file = file.ok_or("--file FILE is needed")?;
    let name = match (command, name) {
        (Command::List, None) => String::new(),
        (Command::List, Some(_)) => return Err("list takes no name".to_owned()),
        (_, None) => return Err("a name is needed".to_owned()),
        (_, Some(name)) => {
            let name = prepared(&name).filter(|name| is_user_name(name));
            name.ok_or("not a name for a user: 1 to 255 bytes without ':', control characters or blanks at an end")?
                .into_owned()
        }
    };
    let iterations = NonZeroU32::new(iterations).ok_or("--iterations: not 0")?;
    Ok(Args {
        command,
        file,
        name,
        iterations,
    })
}

/// The first line of `input`, as it is compared.
fn read_password(input: &mut (impl Read + ?Sized)) -> Result<Zeroizing<String>, String> {
    if io::stdin().is_terminal() {
        complain("Password (it is shown as you type): ");
    }
    // Room for everything from the start: growing would leave copies behind.
    let mut line = Zeroizing::new([0u8; PASSWORD_BYTES_MAX + 2]);
    let mut len = 0;
    while len < line.len() && !line[..len].contains(&b'\n') {
        match input.read(&mut line[len..len + 1]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("can't read the password: {error}")),
        }
    }
    let line = line[..len].strip_suffix(b"\n").unwrap_or(&line[..len]);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let text = std::str::from_utf8(line).ok().and_then(prepared);
    let text = text.ok_or_else(|| {
        format!(
            "not a password: 1 to {PASSWORD_BYTES_MAX} bytes of UTF-8 without what SASLprep (RFC 4013) forbids"
        )
    })?;
    Ok(Zeroizing::new(text.into_owned()))
}

/// Does what is asked; returns what is printed.
fn edit(args: &Args, password: Option<&str>) -> Result<String, Failed> {
    let path = &args.file;
    let shown = path.display().to_string();
    let at = |error: io::Error| Failed::File(format!("{shown}: {error}"));
    // Held until the end: two editors would lose what one of them wrote. The file itself is replaced, so that its
    // lock would not hold.
    let lock = match args.command {
        Command::List => None,
        _ => Some(open_private(&beside(path, ".lock"), false).map_err(at)?),
    };
    if let Some(lock) = &lock
        && !try_lock(lock, Lock::Exclusive).map_err(at)?
    {
        return Err(Failed::File(format!("{shown}: somebody else edits it")));
    }
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && args.command == Command::Add => {
            String::new()
        }
        Err(error) => return Err(at(error)),
    };
    let users = Users::parse(&text, &[0; KEY_BYTES])
        .map_err(|error| Failed::File(format!("{shown}:{}: {}", error.line, error.reason)))?;
    let exists = users.contains(&args.name);
    let name = &args.name;
    match args.command {
        Command::List => {
            let names = users.names().map(|name| format!("{name}\n"));
            return Ok(names.collect());
        }
        Command::Add if exists => {
            let reason =
                format!("{name} is there already; 'ringmx users passwd' changes the password");
            return Err(Failed::Usage(reason));
        }
        Command::Passwd | Command::Remove if !exists => {
            return Err(Failed::Usage(format!("{shown} has no user {name}")));
        }
        _ => {}
    }
    let line = match password {
        None => None,
        Some(password) => {
            let mut salt = [0; SALT_BYTES];
            random(&mut salt).map_err(at)?;
            let verifier = Verifier::new(password, &salt, args.iterations);
            Some(format!("{name}:{}", verifier.to_text()))
        }
    };
    let edited = replaced(&text, name, line.as_deref());
    // What can't be read back must not replace what can.
    Users::parse(&edited, &[0; KEY_BYTES])
        .map_err(|error| Failed::File(format!("{shown}:{}: {}", error.line, error.reason)))?;
    replace(path, edited.as_bytes()).map_err(at)?;
    drop(lock);
    Ok(String::new())
}

/// `text` with the line of this user replaced, added at the end, or left out. Comments stay where they are.
fn replaced(text: &str, name: &str, line: Option<&str>) -> String {
    let mut out = String::with_capacity(text.len() + line.map_or(0, str::len) + 2);
    let mut line = line;
    for old in text.lines() {
        let is_it = !old.starts_with('#') && old.split_once(':').is_some_and(|(n, _)| n == name);
        let new = if is_it { line.take() } else { Some(old) };
        if let Some(new) = new {
            out.push_str(new);
            out.push('\n');
        }
    }
    if let Some(line) = line {
        out.push_str(line);
        out.push('\n');
    }
    out
}

/// The path with `suffix` behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn open_private(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(truncate)
        .mode(0o600)
        .open(path)
}

/// Replaces a file in one step: a reader sees the old one or the new one, also after a crash. Owner and mode stay; a
/// new file is for its owner alone.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = beside(path, ".new");
    let mut file = open_private(&new, true)?;
    if let Ok(old) = std::fs::metadata(path) {
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
        let own = file.metadata()?;
        if (old.uid(), old.gid()) != (own.uid(), own.gid()) {
            chown(&new, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    let directory = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &[&str]) -> Result<Args, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse(&words)
    }

    #[test]
    fn arguments_are_a_command_a_file_and_a_name() {
        assert_eq!(
            args(&["add", "--file", "u", "J\u{ad}im", "--iterations=4096"]),
            Ok(Args {
                command: Command::Add,
                file: PathBuf::from("u"),
                name: "Jim".to_owned(),
                iterations: NonZeroU32::new(4_096).unwrap(),
            })
        );
        for (words, reason) in [
            (&["--file", "u"][..], "add, passwd, remove or list?"),
            (&["add", "jim"], "--file FILE is needed"),
            (&["add", "--file"], "--file needs a value"),
            (&["add", "--file=u"], "a name is needed"),
            (&["list", "--file=u", "jim"], "list takes no name"),
            (&["add", "--file=u", "a", "b"], "unexpected argument 'b'"),
            (&["sing", "--file=u"], "unexpected argument 'sing'"),
            (
                &["add", "--file=u", "--iterations=1", "a"],
                "--iterations: allowed: 4096 to 1000000",
            ),
        ] {
            assert_eq!(args(words), Err(reason.to_owned()), "{words:?}");
        }
        for name in ["", "a:b", "#a", "a\n", " a", "a "] {
            let error = args(&["add", "--file=u", name]).unwrap_err();
            assert!(error.starts_with("not a name for a user"), "{error}");
        }
    }

    #[test]
    fn the_password_is_the_first_line() {
        let read = |input: &[u8]| read_password(&mut &*input).map(|password| password.to_string());
        for input in [&b"pencil"[..], b"pencil\n", b"pencil\r\nmore"] {
            assert_eq!(read(input), Ok("pencil".to_owned()));
        }
        let longest = vec![b'p'; PASSWORD_BYTES_MAX];
        assert_eq!(read(&longest).unwrap().len(), PASSWORD_BYTES_MAX);
        for bad in [
            &b""[..],
            b"\n",
            b"\xff\n",
            b"a\x07\n",
            &[&longest[..], b"p"].concat(),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.starts_with("not a password"), "{error}");
        }
    }

    #[test]
    fn a_line_is_replaced_where_it_stands_and_comments_stay() {
        let text = "# first\na:1\n\n#a:0\nb:2";
        assert_eq!(
            replaced(text, "a", Some("a:3")),
            "# first\na:3\n\n#a:0\nb:2\n"
        );
        assert_eq!(replaced(text, "b", None), "# first\na:1\n\n#a:0\n");
        assert_eq!(
            replaced(text, "c", Some("c:3")),
            "# first\na:1\n\n#a:0\nb:2\nc:3\n"
        );
    }
}
