//! Full disks: ext4, XFS and tmpfs of their own, too small or filled up, under a ring and under a Maildir.
//!
//! Needs root and loop devices; says so and does nothing otherwise.

#[allow(dead_code, reason = "each test crate uses a part of it")]
#[path = "power_loss/mounts.rs"]
mod mounts;
#[allow(dead_code, reason = "other tests use what this one does not")]
mod process;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use mounts::{Kind, Mount};
use process::{
    Client, Key, Known, Process, RINGMX, Server, TestDir, content, key_of, number_in, output_of,
    refused_start, verify, wait_until, without_trace,
};

const SMALL_RING: [&str; 4] = ["--ring-size", "16MiB", "--log-level", "error"];

/// A small file system of each kind, mounted at `at`; `None` where it can't be made.
fn small(kind: Option<Kind>, dir: &TestDir, at: &Path) -> Option<Mount> {
    let Some(kind) = kind else {
        return mounts::able(Kind::Ext4, &[]).then(|| Mount::memory("48m", at));
    };
    if !mounts::able(kind, &[]) {
        return None;
    }
    let image = PathBuf::from(dir.join("image"));
    mounts::empty_image(&image, kind.bytes());
    kind.make(&image);
    Some(Mount::new(&image, kind, at))
}

fn name(kind: Option<Kind>) -> &'static str {
    kind.map_or("tmpfs", Kind::name)
}

/// Fills the file system with one file, to the last block.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for piece in [1 << 20, 4_096, 512, 1] {
        let zeros = vec![0; piece];
        loop {
            match file.write(&zeros) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
        // Blocks that were promised and not allocated yet.
        let _ = file.sync_all();
    }
}

/// Delivers `count` messages of `client`; each has to get its 250.
fn deliver(server: &Server, client: u32, count: u32, known: &mut Known) {
    let mut connection = Client::open(server.address).unwrap();
    for sequence in 0..count {
        let key = (client, sequence);
        let reply = connection.deliver(&content(key)).unwrap();
        known.acknowledged.insert(key);
        known.numbers.insert(key, number_in(&reply));
    }
}

fn a_file_system_that_is_too_small(kind: Option<Kind>) {
    let dir = TestDir::new();
    let at = PathBuf::from(dir.ring());
    let Some(mount) = small(kind, &dir, &at) else {
        return;
    };
    let (code, out, errors) = refused_start(&["--ring", &dir.ring(), "--ring-size", "512MiB"]);
    assert_eq!((code, &out[..]), (Some(74), ""), "{}: {errors}", name(kind));
    let last = errors.lines().last().unwrap();
    assert!(
        last.ends_with("creating the ring: No space left on device (os error 28)"),
        "{}: {errors}",
        name(kind)
    );
    let left: Vec<_> = fs::read_dir(at.join("shard-0")).unwrap().collect();
    assert!(left.is_empty(), "{}: {left:?}", name(kind));
    // The space is free again: a ring that fits is made in its place.
    let server = Server::start(&dir, &SMALL_RING);
    let mut known = Known::default();
    deliver(&server, 1, 1, &mut known);
    server.stop();
    known.check(&dir, name(kind));
    drop(mount);
}

/// The ring has all its blocks from its creation on: whoever fills the rest of the disk can't harm it.
fn a_file_system_that_is_filled_beside_the_ring(kind: Option<Kind>) {
    let dir = TestDir::new();
    let at = PathBuf::from(dir.ring());
    let Some(mount) = small(kind, &dir, &at) else {
        return;
    };
    let mut known = Known::default();
    let server = Server::start(&dir, &SMALL_RING);
    deliver(&server, 1, 20, &mut known);
    fill(&at.join("filler"));
    deliver(&server, 2, 60, &mut known);
    // As a crash would leave it: there is room for recovery as well.
    server.process.kill();
    known.check(&dir, name(kind));
    if kind == Some(Kind::Xfs) {
        // It has no room for the entry of the control socket. Whoever starts the server again waits for some.
        start_without_room_for_the_socket(&dir);
        let filler = File::options().write(true).open(at.join("filler")).unwrap();
        filler
            .set_len(filler.metadata().unwrap().len() - (1 << 20))
            .unwrap();
    }
    let server = Server::start(&dir, &SMALL_RING);
    known.check(&dir, name(kind));
    deliver(&server, 3, 20, &mut known);
    server.stop();
    known.check(&dir, name(kind));
    verify(&dir);
    // Once around: old messages give way, new ones are taken all the same.
    let server = Server::start(&dir, &SMALL_RING);
    deliver(&server, process::LARGE, 30, &mut known);
    server.stop();
    verify(&dir);
    let oldest = process::stored(&dir).keys().next().copied().unwrap();
    known.check_from(&dir, oldest, name(kind));
    assert!(oldest > 100, "{}: the ring has not wrapped", name(kind));
    drop(mount);
}

/// How much room a socket's entry takes is the kernel's affair: a start either has it or says that it has not.
fn start_without_room_for_the_socket(dir: &TestDir) {
    match Server::start_by(Command::new(RINGMX), dir, &SMALL_RING) {
        Ok(server) => drop(server.stop()),
        Err(process) => {
            let (code, _, errors) = process.wait();
            assert_eq!(code, Some(1), "{errors}");
            let expected = "/shard-0/ctl: no space left on device\n";
            assert!(errors.ends_with(expected), "{errors}");
        }
    }
}

fn keys_in(mail: &Path) -> Vec<Key> {
    let Ok(files) = fs::read_dir(mail.join("new")) else {
        return Vec::new();
    };
    files
        .map(|file| {
            let octets = fs::read(file.unwrap().path()).unwrap();
            key_of(without_trace(&octets)).expect("a whole message of the test")
        })
        .collect()
}

/// Bytes of the ring that the consumer holds.
fn lag(dir: &TestDir) -> u64 {
    let rows = output_of(&["consumers", "list", "--json", "--ring", &dir.ring()]);
    let rows: serde_json::Value = serde_json::from_slice(&rows).unwrap();
    let rows = rows.as_array().or(rows["consumers"].as_array()).unwrap();
    rows[0]["lag_messages"].as_u64().unwrap()
}

/// What a full disk does not take stays with the ring, and the cursor stays before it.
fn a_maildir_on_a_full_file_system(kind: Option<Kind>) {
    let (dir, place) = (TestDir::new(), TestDir::new());
    let at = PathBuf::from(place.join("target"));
    let Some(mount) = small(kind, &place, &at) else {
        return;
    };
    let mail = at.join("mail");
    let mut known = Known::default();
    let server = Server::start(&dir, &SMALL_RING);
    deliver(&server, 1, 5, &mut known);
    let target = format!("maildir:{}", mail.display());
    let ring = dir.ring();
    let consume = [
        "consume", "archive", "--create", "--to", &target, "--ring", &ring,
    ];
    let consumer = Process::start(&consume);
    wait_until("the first messages are delivered", || {
        mail.join("new").exists() && keys_in(&mail).len() == 5 && lag(&dir) == 0
    });
    fill(&at.join("filler"));
    deliver(&server, 3, 60, &mut known);
    // It tries, and tells its cursor nothing that is not so.
    for _ in 0..20 {
        let delivered = keys_in(&mail);
        let behind = lag(&dir);
        assert!(
            65 - behind as usize <= delivered.len().max(keys_in(&mail).len()),
            "{}: {} delivered, {behind} behind",
            name(kind),
            delivered.len()
        );
    }
    assert!(lag(&dir) > 0, "{}: the disk was not full", name(kind));
    // One that is killed in this state leaves nothing that counts.
    consumer.kill();
    let consumer = Process::start(&consume);
    fs::remove_file(at.join("filler")).unwrap();
    wait_until("everything is delivered", || lag(&dir) == 0);
    consumer.terminate();
    let (code, _, errors) = consumer.wait();
    assert_eq!(code, Some(0), "{}: {errors}", name(kind));
    let found = keys_in(&mail);
    assert_eq!(found.len(), 65, "{}: {found:?}", name(kind));
    let found: BTreeSet<Key> = found.into_iter().collect();
    assert_eq!(found, known.acknowledged, "{}", name(kind));
    server.stop();
    drop(mount);
}

#[test]
fn a_ring_that_does_not_fit_on_ext4_is_not_created_and_leaves_nothing_behind() {
    a_file_system_that_is_too_small(Some(Kind::Ext4));
}

#[test]
fn a_ring_that_does_not_fit_on_xfs_is_not_created_and_leaves_nothing_behind() {
    a_file_system_that_is_too_small(Some(Kind::Xfs));
}

#[test]
fn a_ring_that_does_not_fit_on_tmpfs_is_not_created_and_leaves_nothing_behind() {
    a_file_system_that_is_too_small(None);
}

#[test]
fn filling_ext4_beside_a_ring_does_not_matter_to_it() {
    a_file_system_that_is_filled_beside_the_ring(Some(Kind::Ext4));
}

#[test]
fn filling_xfs_beside_a_ring_does_not_matter_to_it() {
    a_file_system_that_is_filled_beside_the_ring(Some(Kind::Xfs));
}

#[test]
fn filling_tmpfs_beside_a_ring_does_not_matter_to_it() {
    a_file_system_that_is_filled_beside_the_ring(None);
}

#[test]
fn a_maildir_on_full_ext4_loses_nothing_and_goes_on_when_there_is_room() {
    a_maildir_on_a_full_file_system(Some(Kind::Ext4));
}

#[test]
fn a_maildir_on_full_xfs_loses_nothing_and_goes_on_when_there_is_room() {
    a_maildir_on_a_full_file_system(Some(Kind::Xfs));
}

#[test]
fn a_maildir_on_full_tmpfs_loses_nothing_and_goes_on_when_there_is_room() {
    a_maildir_on_a_full_file_system(None);
}
