"""The receivers of benches/versus: where each comes from, how it is started, and what its 250 promises.

Each is configured as its documentation says it is fastest at that promise: no look-ups, no limits that the load would
meet, no log lines that can be left out. What isn't installed is fetched: Debian packages, Exim and OpenSMTPD unpacked
below the target directory because they don't go beside Postfix, Python and npm packages into folders of their own.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

from machine import Group, Missing, ROOT, pause, read, share

DISCARD, CACHE, DURABLE = "discards", "page cache", "stable storage"
START_SECONDS = 30
# Sessions that a receiver has to be prepared for.
SESSIONS_MAX = 12000


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def tail(path):
    return " ".join(read(path)[-300:].split())


def run(command, why):
    """Runs a command that installs something."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{why}: {error}") from error
    if done.returncode != 0:
        raise Missing(f"{why}: {' '.join(done.stderr.split())[-200:]}")
    return done.stdout


def package(program, name):
    """The path of a program; its Debian package is installed when it isn't there and may be."""
    path = share.tool(program)
    if not path and os.getuid() == 0 and shutil.which("apt-get"):
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        # Nothing may start a service.
        os.environ["RUNLEVEL"] = "1"
        run(["apt-get", "install", "-y", "-q", "--no-install-recommends", name], f"{name} can't be installed")
        path = share.tool(program)
    if not path:
        raise Missing(f"Debian's package {name} is not installed")
    return path


def unpacked(name, debian):
    """The root below which a Debian package lies that would take the place of another mail server."""
    if os.getuid() != 0:
        raise Missing("it needs root, for a mount namespace")
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    root = os.path.join(target, "mta", name)
    # The mark is that of tests/run, which unpacks the same.
    if not os.path.exists(os.path.join(root, "unpacked")):
        store = root + ".deb"
        shutil.rmtree(store, ignore_errors=True)
        os.makedirs(store)
        script = f"""cd '{store}'
apt-get download -q {debian} || {{ apt-get update -q && apt-get download -q {debian}; }}
mkdir -p '{root}' && dpkg-deb -x *.deb '{root}'
libraries=$(dpkg-deb -f *.deb Depends | tr ',' '\\n' | sed -n 's/^ *\\(lib[^ |]*\\).*/\\1/p')
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-upgrade --no-install-recommends $libraries
touch '{root}/unpacked'"""
        run(["sh", "-ec", script], f"Debian's package {debian} can't be unpacked")
    return root


def unpacked_version(root):
    folder = root + ".deb"
    files = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".deb")]
    return run(["dpkg-deb", "-f", *files, "Version"], "its version can't be read").strip()


def namespace(root, place, users, settings, script):
    """A command that runs `script` where `settings` and `users` lie over /etc and the root's programs over /usr."""
    for name in ("passwd", "group"):
        text = read("/etc/" + name)
        for user, number in users:
            more = ":x:{0}:{0}::/nonexistent:/bin/false" if name == "passwd" else ":x:{0}:"
            text += user + more.format(number) + "\n"
        settings = {**settings, name: text}
    # Names are looked up in files alone: there is no resolver to wait for.
    settings = {"resolv.conf": "lookup file\n", "hosts": "127.0.0.1 localhost\n", **settings}
    for name, text in settings.items():
        path = os.path.join(place, "etc", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii", errors="replace") as file:
            file.write(text)
    head = f"""mount -t overlay overlay -o lowerdir='{place}/etc':/etc /etc
mount -t overlay overlay -o lowerdir='{root}/usr':/usr /usr
"""
    return ["unshare", "-m", "sh", "-ec", head + script]


class Running:
    """A peer that takes mail on `port` of 127.0.0.1."""

    def __init__(self, peer, group, port, place, log, http=None):
        self.peer, self.group, self.port, self.place, self.log, self.http = peer, group, port, place, log, http
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as probe:
                    probe.settimeout(START_SECONDS)
                    if probe.recv(3) == b"220":
                        return
            except OSError:
                pass
            if time.monotonic() > end or not self.alive():
                why = tail(log)
                self.end()
                raise Missing("does not start: " + why)
            pause(0.02)

    def alive(self):
        return bool(self.group.pids())

    def settle(self):
        """Waits until what it took does not keep it busy any more."""
        self.peer.settle(self)

    def end(self):
        self.group.end()
        shutil.rmtree(self.place, ignore_errors=True)


class Peer:
    """A receiver."""

    # What a 250 promises, options of smtp-loadgen it can't serve, whether it works on when nobody sends.
    name, promise, version, lacks, restless = "", DISCARD, "", (), False
    # What smtp-loadgen is told besides, for its sake.
    options = ()

    def start(self, place, tls=None, http=False):
        """Starts it with its files in `place`; `tls` is a folder with cert.pem and key.pem."""
        os.chmod(place, 0o755)
        port = free_port()
        log = os.path.join(place, "log")
        web = free_port() if http else None
        command = self.command(place, port, tls, web)
        group = Group(os.path.basename(place))
        try:
            group.start(command, log, cwd=place)
        except OSError as error:
            group.end()
            raise Missing(f"does not start: {error}") from error
        return Running(self, group, port, place, log, web)

    def command(self, place, port, tls, web):
        raise NotImplementedError

    def settle(self, running):
        pass


class Null(Peer):
    """The least that an SMTP server can do on this kernel."""

    version, lacks = "this repository", ("tls",)

    def __init__(self, tools, durable, *more):
        self.more = more
        self.name = "null server, durable" if durable else "null server"
        self.promise, self.tools, self.durable = (DURABLE if durable else DISCARD), tools, durable

    def command(self, place, port, tls, web):
        more = ["--durable", os.path.join(place, "file"), "--file-size", "512"] if self.durable else []
        return [self.tools["null"], f"127.0.0.1:{port}", *more, *self.more]


class NullC(Peer):
    """The same least, in another language and with nothing of this repository's: a check of the yardstick."""

    name, version, lacks = "null server in C", "benches/versus/null.c", ("tls", "bdat")

    def __init__(self, tools):
        self.path = os.path.join(tools["work"], "null-c")
        compiler = share.tool("cc")
        if not compiler:
            raise Missing("there is no C compiler (cc)")
        source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "null.c")
        run([compiler, "-O2", "-o", self.path, source], "benches/versus/null.c can't be compiled")

    def command(self, place, port, tls, web):
        return [self.path, str(port)]


class Ringmx(Peer):
    """This receiver."""

    version = "this repository"

    def __init__(self, tools, survive, *more):
        self.name = {"power": "ringmx", "process": "ringmx --survive process", None: "ringmx --discard"}[survive]
        self.promise = {"power": DURABLE, "process": CACHE, None: DISCARD}[survive]
        self.tools, self.survive, self.more = tools, survive, more

    def command(self, place, port, tls, web):
        listen = f"127.0.0.1:{port}" + (",tls=offered" if tls else "")
        command = [self.tools["ringmx"], "serve", "--listen", listen, "--log-level", "warning"]
        command += ["--http", f"127.0.0.1:{web}" if web else "off", *self.more]
        if "--max-sessions" not in self.more:
            command += ["--max-sessions", str(SESSIONS_MAX)]
        if tls:
            command += ["--tls-cert", tls + "/cert.pem", "--tls-key", tls + "/key.pem"]
        if not self.survive:
            return command + ["--discard"]
        return command + [
            "--ring",
            os.path.join(place, "ring"),
            "--ring-size",
            "512MiB",
            "--full",
            "overwrite",
            "--survive",
            self.survive,
        ]


class SmtpSink(Peer):
    """Postfix's own test receiver."""

    name, lacks = "smtp-sink", ("tls", "bdat")

    def __init__(self, _tools):
        self.path = package("smtp-sink", "postfix")
        self.version = postfix_version()

    def command(self, place, port, tls, web):
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        # Left alone it serves 256 sessions at a time, and others wait for one of these to end.
        return [self.path, *user, "-m", str(SESSIONS_MAX), f"127.0.0.1:{port}", "10000"]


def postfix_version():
    postconf = share.tool("postconf")
    if not postconf:
        return ""
    done = subprocess.run([postconf, "-d", "mail_version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().rpartition(" ")[2]


POSTFIX_MAIN = """compatibility_level = 3.6
queue_directory = {place}/queue
data_directory = {place}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.example
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
default_process_limit = 1100
in_flow_delay = 0
smtpd_client_connection_count_limit = 0
smtpd_client_restrictions =
smtpd_recipient_restrictions = {rule}, permit_mynetworks, reject
smtpd_peername_lookup = no
default_transport = {transport}
relay_domains = test.example, loadgen.example
message_size_limit = 0
maillog_file = {place}/mail/log
maillog_file_prefixes = {place}
"""
POSTFIX_TLS = """smtpd_tls_security_level = may
smtpd_tls_cert_file = {tls}/cert.pem
smtpd_tls_key_file = {tls}/key.pem
"""
POSTFIX_MASTER = """127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix(Peer):
    """Postfix itself."""

    # Kind: name, promise, rule about recipients, transport.
    KINDS = {
        "hold": ("Postfix, HOLD queue", DURABLE, "check_client_access static:HOLD", "error"),
        # It writes and syncs each message before it throws it away.
        "transport": ("Postfix, queue to discard(8)", DURABLE, "permit_mynetworks", "discard"),
        "drop": ("Postfix, DISCARD action", DISCARD, "check_client_access static:DISCARD", "error"),
    }

    def __init__(self, _tools, kind):
        self.name, self.promise, self.rule, self.transport = self.KINDS[kind]
        # Mail is still on its way through the queue when the last 250 has gone.
        self.restless = kind == "transport"
        self.path = package("postfix", "postfix")
        if os.getuid() != 0:
            raise Missing("Postfix starts only as root")
        self.version = postfix_version()

    def command(self, place, port, tls, web):
        for name in ("queue", "data", "mail"):
            os.mkdir(os.path.join(place, name))
        shutil.chown(os.path.join(place, "data"), "postfix")
        main = POSTFIX_MAIN + (POSTFIX_TLS if tls else "")
        with open(os.path.join(place, "main.cf"), "w", encoding="ascii") as file:
            file.write(main.format(place=place, rule=self.rule, transport=self.transport, tls=tls))
        with open(os.path.join(place, "master.cf"), "w", encoding="ascii") as file:
            file.write(POSTFIX_MASTER.format(port=port))
        return [self.path, "-c", place, "start-fg"]

    def settle(self, running):
        if self.restless:
            end = time.monotonic() + START_SECONDS
            folders = [os.path.join(running.place, "queue", name) for name in ("incoming", "active")]
            while any(os.listdir(folder) for folder in folders) and time.monotonic() < end:
                pause(0.02)


EXIM = """primary_hostname = exim.test.example
exim_path = /usr/sbin/exim4
spool_directory = {place}/spool
log_file_path = {place}/spool/%s.log
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
keep_environment =
never_users =
host_lookup =
rfc1413_query_timeout = 0s
dns_dnssec_ok = 0
smtp_accept_max = 0
smtp_accept_max_per_connection = 0
smtp_accept_queue_per_connection = 0
smtp_connect_backlog = 4096
smtp_enforce_sync = false
check_spool_space = 0
check_spool_inodes = 0
check_log_space = 0
check_log_inodes = 0
message_size_limit = 0
split_spool_directory = true
message_logs = false
write_rejectlog = false
log_selector = -all
pipelining_advertise_hosts = *
chunking_advertise_hosts = *
tls_advertise_hosts = {hosts}
{certificate}
acl_smtp_rcpt = accept
acl_smtp_data = {data}
{queue}
begin routers
none:
  driver = accept
  transport = none
begin transports
none:
  driver = appendfile
  file = /dev/null
"""


class Exim(Peer):
    """Exim: a process for each connection."""

    def __init__(self, _tools, durable):
        self.name = "Exim, queue_only" if durable else "Exim, ACL discard"
        self.promise, self.durable = (DURABLE if durable else DISCARD), durable
        self.root = unpacked("exim", "exim4-daemon-light")
        self.version = unpacked_version(self.root)

    def command(self, place, port, tls, web):
        os.mkdir(os.path.join(place, "spool"))
        user = ("Debian-exim", 61998)
        certificate = f"tls_certificate = {tls}/cert.pem\ntls_privatekey = {tls}/key.pem" if tls else ""
        config = EXIM.format(
            place=place,
            port=port,
            hosts="*" if tls else "",
            certificate=certificate,
            data="accept" if self.durable else "discard",
            queue="queue_only = true" if self.durable else "",
        )
        script = f"chown -R {user[1]}:{user[1]} '{place}/spool'\nexec /usr/sbin/exim4 -bdf"
        return namespace(self.root, place, [user], {"exim4/exim4.conf": config}, script)


OPENSMTPD = """table catch {{ "@" = "nobody" }}
smtp max-message-size 64M
smtp limit max-mails 100000000
queue ttl 1h
listen on 127.0.0.1 port {port} hostname opensmtpd.test.example
action "keep" maildir "{place}/mail" virtual <catch>
match from any for any action "keep"
"""
OPENSMTPD_START = """mount -t tmpfs tmpfs /run
mount --bind '{place}/spool' /var/spool
mount -t tmpfs tmpfs /var/lib
mkdir -p /var/spool/smtpd /var/lib/opensmtpd/empty
chmod 711 /var/spool/smtpd
exec /usr/sbin/smtpd -d -P mda -P mta -f '{place}/smtpd.conf'
"""


class OpenSmtpd(Peer):
    """OpenSMTPD: its queue, with delivery paused."""

    # Debian 12's does no handshake with Debian 12's OpenSSL, and has no CHUNKING. Its queue files are renamed into
    # place without a sync of any kind (strace), so that its 250 outlives the process and not the power.
    name, promise, lacks = "OpenSMTPD, delivery paused", CACHE, ("tls", "bdat")
    # Its listen queue has room for a handful; what does not fit tries again after a second.
    options = ("--connect-burst", "4")

    def __init__(self, _tools):
        self.root = unpacked("opensmtpd", "opensmtpd")
        self.version = unpacked_version(self.root)

    def command(self, place, port, tls, web):
        os.mkdir(os.path.join(place, "spool"))
        path = os.path.join(place, "smtpd.conf")
        with open(path, "w", encoding="ascii") as file:
            file.write(OPENSMTPD.format(port=port, place=place))
        os.chmod(path, 0o600)
        users = [("opensmtpd", 61996), ("opensmtpq", 61997)]
        return namespace(self.root, place, users, {}, OPENSMTPD_START.format(place=place))


def npm_package(tools, name):
    """Folder of an npm package; the node program beside it."""
    node, npm = package("node", "nodejs"), package("npm", "npm")
    folder = os.path.join(tools["work"], "node")
    path = os.path.join(folder, "node_modules", name)
    if not os.path.exists(os.path.join(path, "package.json")):
        os.makedirs(folder, exist_ok=True)
        run(
            [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, name],
            f"{name} can't be installed from the npm registry",
        )
    with open(os.path.join(path, "package.json"), encoding="utf-8") as file:
        version = json.load(file)["version"]
    major = run([node, "--version"], "node does not run").strip()
    return node, path, f"{version}, Node {major}"


NODEMAILER = """
const {{ SMTPServer }} = require({package});
const fs = require("fs");
const tls = {tls};
new SMTPServer({{
  disabledCommands: tls ? ["AUTH"] : ["AUTH", "STARTTLS"], disableReverseLookup: true, maxClients: {sessions},
  size: 64 << 20,
  ...(tls ? {{ cert: fs.readFileSync(tls + "/cert.pem"), key: fs.readFileSync(tls + "/key.pem") }} : {{}}),
  onData(stream, session, done) {{ stream.resume(); stream.on("end", done); }},
}}).on("error", () => {{}}).listen({port}, "127.0.0.1");
"""


class Nodemailer(Peer):
    """nodemailer's smtp-server; content is drained and dropped."""

    name, lacks = "nodemailer smtp-server", ("bdat",)

    def __init__(self, tools):
        self.node, self.path, self.version = npm_package(tools, "smtp-server")

    def command(self, place, port, tls, web):
        script = os.path.join(place, "sink.js")
        with open(script, "w", encoding="ascii") as file:
            file.write(
                NODEMAILER.format(package=json.dumps(self.path), tls=json.dumps(tls), port=port, sessions=SESSIONS_MAX)
            )
        return [self.node, script]


class Haraka(Peer):
    """Haraka, one process, every recipient taken, queue/discard."""

    name, lacks = "Haraka, queue/discard", ("bdat",)

    def __init__(self, tools):
        self.node, self.path, self.version = npm_package(tools, "Haraka")

    def command(self, place, port, tls, web):
        plugins = (["tls"] if tls else []) + ["accept", "queue/discard"]
        files = {
            "config/smtp.ini": f"listen=127.0.0.1:{port}\nnodes=0\n",
            "config/plugins": "\n".join(plugins) + "\n",
            "config/loglevel": "LOGCRIT\n",
            "config/me": "haraka.test.example\n",
            # Its own settings, without which it falls over; one value differs.
            "config/connection.ini": read(os.path.join(self.path, "config", "connection.ini")).replace(
                "bytes=26214400", "bytes=67108864"
            ),
            "plugins/accept.js": "exports.hook_rcpt = (next) => next(OK);\n",
        }
        if tls:
            files["config/tls.ini"] = f"key={tls}/key.pem\ncert={tls}/cert.pem\n"
        for name, text in files.items():
            path = os.path.join(place, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        return ["env", "YES_REALLY_DO_DISCARD=1", self.node, os.path.join(self.path, "bin", "haraka"), "-c", place]


AIOSMTPD = """
import asyncio, ssl, sys
from aiosmtpd.smtp import SMTP
class Sink:
    async def handle_DATA(self, server, session, envelope):
        return "250 Ok"
async def main(port, tls):
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls + "/cert.pem", tls + "/key.pem")
    loop = asyncio.get_running_loop()
    make = lambda: SMTP(Sink(), enable_SMTPUTF8=True, data_size_limit=64 << 20, tls_context=context)
    server = await loop.create_server(make, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()
asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


class Aiosmtpd(Peer):
    """Python's SMTP server; messages are collected and dropped."""

    name, lacks = "aiosmtpd", ("bdat",)

    def __init__(self, tools):
        venv = os.path.join(tools["work"], "venv")
        self.python = os.path.join(venv, "bin", "python")
        if not os.path.exists(os.path.join(venv, "installed")):
            run([sys.executable, "-m", "venv", venv], "no virtual environment can be made")
            run([self.python, "-m", "pip", "install", "-q", "aiosmtpd"], "aiosmtpd can't be installed from PyPI")
            with open(os.path.join(venv, "installed"), "w", encoding="ascii"):
                pass
        text = run([self.python, "-c", "import aiosmtpd; print(aiosmtpd.__version__)"], "aiosmtpd does not run")
        self.version = f"{text.strip()}, Python {sys.version_info.major}.{sys.version_info.minor}"

    def command(self, place, port, tls, web):
        return [self.python, "-c", AIOSMTPD, str(port), tls or ""]


class Bhm(Peer):
    """postal's black hole for mail: a thread for each connection."""

    name, lacks = "bhm (postal)", ("tls", "bdat")
    # It offers SIZE and answers 501 to a MAIL that has it.
    options = ("--ignore", "SIZE")

    def __init__(self, _tools):
        self.path = package("bhm", "postal")
        text = run(["dpkg-query", "-W", "-f", "${Version}", "postal"], "postal's version")
        self.version = text.strip()

    def command(self, place, port, tls, web):
        users = os.path.join(place, "users")
        with open(users, "w", encoding="ascii") as file:
            file.write("".join(f"user{n}@test.example\n" for n in range(1, 1001)))
        return [self.path, "-b", "127.0.0.1", "-p", str(port), "-m", "32767", users]


# Those that every figure is about, then the field.
PEERS = {
    "null": lambda tools: Null(tools, False),
    "null-c": NullC,
    "ringmx-discard": lambda tools: Ringmx(tools, None),
    "smtp-sink": SmtpSink,
    "null-durable": lambda tools: Null(tools, True),
    "ringmx": lambda tools: Ringmx(tools, "power"),
    "ringmx-process": lambda tools: Ringmx(tools, "process"),
    "postfix-drop": lambda tools: Postfix(tools, "drop"),
    "postfix-hold": lambda tools: Postfix(tools, "hold"),
    "postfix-transport": lambda tools: Postfix(tools, "transport"),
    "exim-discard": lambda tools: Exim(tools, False),
    "exim-queue": lambda tools: Exim(tools, True),
    "opensmtpd": OpenSmtpd,
    "haraka": Haraka,
    "aiosmtpd": Aiosmtpd,
    "nodemailer": Nodemailer,
    "bhm": Bhm,
}
