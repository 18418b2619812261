"""What benches/versus needs of the machine: who used which core, processes that can be ended for certain, disks of
their own, and how long a sync takes."""

import importlib.machinery
import importlib.util
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TICKS = os.sysconf("SC_CLK_TCK")
# How long processes may take to go once they were killed.
END_SECONDS = 20


def load_share():
    """What benches/generator_share knows of cores, foreign work and builds."""
    path = os.path.join(ROOT, "benches", "generator_share")
    loader = importlib.machinery.SourceFileLoader("generator_share", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("generator_share", loader))
    loader.exec_module(module)
    return module


sys.dont_write_bytecode = True
share = load_share()


class Missing(Exception):
    """Why a peer can't be tried, or has no figure."""


def pause(seconds):
    """Waits where there is nothing but time to wait for: between two looks at a condition."""
    select.select([], [], [], seconds)


def read(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def tree(pid):
    """A process and all below it."""
    children, found, wait = {}, [], [pid]
    for name in filter(str.isdigit, os.listdir("/proc")):
        words = read(f"/proc/{name}/stat").rpartition(")")[2].split()
        if words:
            children.setdefault(int(words[1]), []).append(int(name))
    while wait:
        found.append(wait.pop())
        wait += children.get(found[-1], [])
    return found


class Group:
    """A server with everything it starts: a control group where there is one, else the tree below its process.

    A group counts CPU time to the nanosecond, also of processes that have ended, and knows every process, also those
    that were given away. A tree loses what its members did not wait for.
    """

    v1, v2 = "/sys/fs/cgroup/cpuacct", "/sys/fs/cgroup"

    def __init__(self, name):
        self.folder, self.root = None, None
        kind = self.v2 if os.path.exists(self.v2 + "/cgroup.controllers") else self.v1
        folder = os.path.join(kind, f"ringmx-versus-{os.getpid()}-{name}")
        try:
            os.mkdir(folder)
            self.folder = folder
        except OSError:
            pass

    def start(self, command, log, **more):
        """Starts `command` in the group, on the server's core, with as many descriptors as may be."""
        pin = share.pinned(share.SERVER_CPU)

        def prepare():
            if self.folder:
                with open(self.folder + "/cgroup.procs", "w", encoding="ascii") as file:
                    file.write(str(os.getpid()))
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            # Nothing below takes part in what a terminal sends to this program.
            os.setsid()
            pin()

        with open(log, "ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, preexec_fn=prepare, **more
            )
        self.root = self.root or process
        return process

    def pids(self):
        if self.folder:
            return [int(word) for word in read(self.folder + "/cgroup.procs").split()]
        return tree(self.root.pid) if self.root and self.root.poll() is None else []

    def cpu_seconds(self):
        """CPU time that the group has used."""
        if self.folder and self.folder.startswith(self.v1):
            return int(read(self.folder + "/cpuacct.usage") or 0) / 1e9
        if self.folder:
            words = read(self.folder + "/cpu.stat").split()
            return int(words[words.index("usage_usec") + 1]) / 1e6 if words else 0
        total = 0
        for pid in self.pids():
            words = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            total += sum(map(int, words[11:15])) / TICKS if words else 0
        return total

    def threads(self):
        """CPU time by name of thread, in seconds."""
        found = {}
        for pid in self.pids():
            try:
                tasks = os.listdir(f"/proc/{pid}/task")
            except OSError:
                continue
            for task in tasks:
                name = read(f"/proc/{pid}/task/{task}/comm").strip()
                words = read(f"/proc/{pid}/task/{task}/schedstat").split()
                found[name] = found.get(name, 0) + (int(words[0]) / 1e9 if words else 0)
        return found

    def pss_bytes(self):
        """Memory, what is shared divided among those who share it."""
        total = 0
        for pid in self.pids():
            for line in read(f"/proc/{pid}/smaps_rollup").splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def end(self):
        """Kills every member and waits until none is left."""
        end = time.monotonic() + END_SECONDS
        while True:
            pids = self.pids()
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
            if self.root:
                self.root.poll()
            if not pids or time.monotonic() > end:
                break
            pause(0.01)
        if self.root:
            self.root.wait(END_SECONDS)
        if self.folder:
            try:
                os.rmdir(self.folder)
            except OSError:
                pass
        if pids:
            raise RuntimeError(f"processes {pids} could not be ended")


def kernel_threads_seconds():
    """CPU time of all threads of the kernel: work that it does for whoever asked, a server among them."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        words = read(f"/proc/{name}/stat").rpartition(")")[2].split()
        # The parent of them all is kthreadd, process 2.
        if words and words[1] == "2":
            total += int((read(f"/proc/{name}/schedstat").split() or ["0"])[0]) / 1e9
    return total


def stolen_seconds(cpu):
    """Time for which the machine below had a core that something was to run on, to a tick."""
    return share.core_ticks(cpu)[7] / TICKS


class Watch:
    """What happened on the server's core between two looks, and who did it; what was taken from the generator's."""

    def __init__(self, group):
        self.group = group
        self.kernel = kernel_threads_seconds()
        self.threads, self.cpu = group.threads(), group.cpu_seconds()
        self.stolen = stolen_seconds(share.GENERATOR_CPU)
        self.busy, self.begin = share.busy_ns(share.SERVER_CPU), time.monotonic()

    def end(self):
        """Seconds: wall, of the server, of its thread `sync`; share of the core that others had, or of the generator's
        that the machine below took, whichever is more."""
        wall = time.monotonic() - self.begin
        busy = (share.busy_ns(share.SERVER_CPU) - self.busy) / 1e9
        cpu = self.group.cpu_seconds() - self.cpu
        threads = self.group.threads()
        kernel = kernel_threads_seconds() - self.kernel
        sync = threads.get("sync", 0) - self.threads.get("sync", 0)
        stolen = stolen_seconds(share.GENERATOR_CPU) - self.stolen
        return {"wall": wall, "cpu": cpu, "sync": sync, "foreign": max(busy - cpu - kernel, stolen, 0) / wall}


class Disk:
    """Where durable servers keep their mail: a folder, or a file system of its own in a file behind a loop device."""

    def __init__(self, folder, kind=None, mib=3072):
        self.folder, self.kind, self.image, self.loop = folder, kind, None, None
        if kind is None:
            self.name = self.describe(folder)
            return
        if os.getuid() != 0:
            sys.exit("--disk makes and mounts a file system, which only root may")
        self.image = os.path.join(folder, f"{kind}-{os.getpid()}.image")
        self.folder = tempfile.mkdtemp(prefix=f"{kind}-", dir=folder)
        try:
            # Written, not allocated: the file below must not have to grow at a sync.
            zeros = bytes(1 << 20)
            with open(self.image, "wb") as file:
                for _ in range(mib):
                    file.write(zeros)
                file.flush()
                os.fsync(file.fileno())
            self.call(["mkfs." + kind, "-q", self.image])
            words = ["losetup", "--find", "--show", "--direct-io=on", self.image]
            self.loop = self.call(words).stdout.strip()
            self.call(["mount", self.loop, self.folder])
            os.chmod(self.folder, 0o755)
        except BaseException:
            self.close()
            raise
        self.name = f"{self.describe(self.folder)} in a file on {self.describe(folder)}"

    @staticmethod
    def call(command):
        path = share.tool(command[0]) or "/sbin/" + command[0]
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done

    @staticmethod
    def describe(folder):
        """File system and whether it has a journal, as far as can be told."""
        device, place, kind = "", "", "unknown"
        for line in read("/proc/mounts").splitlines():
            words = line.split()
            inside = folder == words[1] or folder.startswith(words[1].rstrip("/") + "/")
            if inside and len(words[1]) >= len(place):
                device, place, kind = words[:3]
        if kind == "ext4":
            name = os.path.basename(os.path.realpath(device)) if device != "/dev/root" else ""
            if not name:
                number = os.stat(folder).st_dev
                name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}"))
            # A journal has a directory there, and a thread of its own.
            journal = any(
                entry.startswith(name + "-")
                for entry in (os.listdir("/proc/fs/jbd2") if os.path.isdir("/proc/fs/jbd2") else [])
            )
            return "ext4 with a journal" if journal else "ext4 without a journal"
        return kind

    def close(self):
        if not self.image:
            return
        if self.loop:
            subprocess.run([share.tool("umount") or "/bin/umount", self.folder], capture_output=True, check=False)
            subprocess.run(
                [share.tool("losetup") or "/sbin/losetup", "-d", self.loop], capture_output=True, check=False
            )
        for path in (self.image,):
            if os.path.exists(path):
                os.unlink(path)
        shutil.rmtree(self.folder, ignore_errors=True)


PROBE = """
import os, sys, time
path, size, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
span = max(64 << 20, size * 4)
file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
zeros, data = bytes(1 << 20), os.urandom(size)
for _ in range(span >> 20):
    os.write(file, zeros)
os.fsync(file)
times, at, end = [], 0, time.monotonic() + seconds
while time.monotonic() < end:
    at = at + size if at + 2 * size <= span else 0
    os.pwrite(file, data, at)
    begin = time.monotonic_ns()
    os.fdatasync(file)
    times.append(time.monotonic_ns() - begin)
times.sort()
pick = lambda share: times[min(int(len(times) * share), len(times) - 1)]
print(len(times), pick(0.5), pick(0.99))
"""


def sync_times(folder, size, seconds):
    """How long fdatasync takes behind a write of `size` octets over ones that are there: count, p50, p99 in ns."""
    path = os.path.join(folder, "probe")
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, path, str(size), str(seconds)],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=share.pinned(share.SERVER_CPU),
        )
    finally:
        if os.path.exists(path):
            os.unlink(path)
    count, p50, p99 = map(int, done.stdout.split())
    return {"syncs": count, "p50_ns": p50, "p99_ns": p99}
