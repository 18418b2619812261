//! File systems on images, for tests: made, mounted through a loop device, and taken down again.
//!
//! Needs root, loop devices and the programs that make the file systems; [`able`] says what is missing.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A file system that tests make.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Ext4,
    Xfs,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
        }
    }

    /// The smallest image that a ring of 16 MiB fits into: mkfs.xfs makes none below 300 MiB.
    pub fn bytes(self) -> u64 {
        match self {
            Kind::Ext4 => 48 << 20,
            Kind::Xfs => 300 << 20,
        }
    }

    /// Octets of the device that a loss of power leaves as it leaves the sector before them: the second half of ext4's
    /// superblock. Its checksum covers both sectors and it is written in place, also without the journal, so that ext4
    /// itself can't be mounted any more where a disk tears it ("invalid superblock checksum"; e2fsck has copies).
    pub fn torn_never(self) -> Range<u64> {
        match self {
            Kind::Ext4 => 1_536..2_048,
            Kind::Xfs => 0..0,
        }
    }

    /// Makes the file system on `image`, which has its size already.
    pub fn make(self, image: &Path) {
        let program = format!("/sbin/mkfs.{}", self.name());
        let quiet: &[&str] = match self {
            // No tables that a thread of the kernel fills in later: their writes would be the only thing recorded.
            Kind::Ext4 => &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            Kind::Xfs => &["-q", "-f"],
        };
        run(Command::new(program).args(quiet).arg(image));
    }
}

/// Runs a program that has to succeed; returns what it prints.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {} {errors}",
        output.status
    );
    String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned()
}

/// Whether images of this kind can be mounted here; says what is missing if not. With `RINGMX_IMAGES=required`, as
/// tests/run sets it for root, nothing may be missing.
pub fn able(kind: Kind, also: &[&str]) -> bool {
    let program = format!("/sbin/mkfs.{}", kind.name());
    let mut missing: Vec<&str> = ["/dev/loop-control", &program]
        .into_iter()
        .chain(also.iter().copied())
        .filter(|path| !Path::new(path).exists())
        .collect();
    if ringmx::sys::privileges::effective_user() != 0 {
        missing.push("root");
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.trim() == kind.name()) {
        missing.push("the file system in this kernel");
    }
    if missing.is_empty() {
        return true;
    }
    let required = std::env::var("RINGMX_IMAGES").is_ok_and(|value| value == "required");
    assert!(!required, "{kind:?}: {missing:?} missing");
    println!("skipped: {}: {missing:?} missing", kind.name());
    false
}

/// A loop device over a file.
pub struct Loop(String);

impl Loop {
    pub fn attach(file: &Path) -> Loop {
        // Another test may take the device that was free a moment ago: losetup finds the next one then.
        for _ in 0..20 {
            let mut command = Command::new("/sbin/losetup");
            command.args(["--find", "--show"]).arg(file);
            let output = command.stdin(Stdio::null()).output().unwrap();
            if output.status.success() {
                return Loop(
                    String::from_utf8(output.stdout)
                        .unwrap()
                        .trim_end()
                        .to_owned(),
                );
            }
        }
        panic!("no loop device");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("/sbin/losetup")
            .args(["--detach", &self.0])
            .status();
    }
}

/// A mounted file system on a loop device.
pub struct Mount {
    at: PathBuf,
    _device: Option<Loop>,
}

impl Mount {
    /// Mounts `image` at the directory `at`, which is made. What a crash left in the journal is played back.
    pub fn new(image: &Path, kind: Kind, at: &Path) -> Mount {
        fs::create_dir_all(at).unwrap();
        let device = Loop::attach(image);
        let mut command = Command::new("/bin/mount");
        command.args(["-t", kind.name(), &device.0]).arg(at);
        run(&mut command);
        Mount {
            at: at.to_owned(),
            _device: Some(device),
        }
    }

    /// Mounts a tmpfs of that size.
    #[allow(dead_code, reason = "not every test that mounts wants one")]
    pub fn memory(size: &str, at: &Path) -> Mount {
        fs::create_dir_all(at).unwrap();
        let mut command = Command::new("/bin/mount");
        command
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "ringmx-test"])
            .arg(at);
        run(&mut command);
        Mount {
            at: at.to_owned(),
            _device: None,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("/bin/umount")
            .arg(&self.at)
            .stderr(Stdio::null())
            .status();
        // A process of a failed test may still be in it.
        if !unmounted.is_ok_and(|status| status.success()) {
            let _ = Command::new("/bin/umount")
                .arg("--lazy")
                .arg(&self.at)
                .status();
        }
    }
}

/// A new, empty file of that many bytes.
pub fn empty_image(path: &Path, bytes: u64) {
    fs::File::create(path).unwrap().set_len(bytes).unwrap();
}
