#!/usr/bin/env python3
"""Delivers mail to a real server with clients that other people wrote, and reads it back.

    deliver.py RINGMX CLIENT            swaks, smtplib, curl, msmtp, smtp-source or ringmx-send
    deliver.py RINGMX tls CLIENT        swaks, smtplib, curl, msmtp or openssl, over STARTTLS and over
                                        TLS from the first octet, the certificate checked
    deliver.py RINGMX scram             SCRAM-SHA-256 and -PLUS (RFC 5802, RFC 7677), written here
    deliver.py RINGMX gsasl             GNU SASL over STARTTLS: SCRAM bound by tls-exporter (RFC 9266), and the others
    deliver.py RINGMX renegotiation     openssl wishes to renegotiate TLS 1.2, and is refused
    deliver.py RINGMX submission CLIENT swaks, smtplib, curl, msmtp, nodemailer, go or lettre as a user, over
                                        STARTTLS and over TLS from the first octet, the certificate checked
    deliver.py RINGMX messages DIR      the messages of DIR, see samples/fetch

RINGMX is the program. Each run has a server of its own on a free port of the loopback interface and
a ring in a temporary directory. Exit code 0: everything came back as it was sent; 77: the client is
not installed; anything else is a failure.
"""

import base64
import glob
import hashlib
import hmac
import json
import mailbox
import os
import re
import select
import shutil
import smtplib
import ssl
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
RING_READER = os.path.join(HERE, "..", "ring_reader.py")
PATIENCE = 60
MESSAGES_MIN = 250
NOT_INSTALLED = 77

SENDER, RECIPIENT = "sender@example.org", "recipient@example.net"

# Lines that are easy to get wrong: leading dots, a lone dot, octets over 127, a line longer than
# RFC 5321 4.5.3.1.6 demands, words that look like commands, empty lines at the end.
HEADER = b"""\
From: <sender@example.org>
To: <recipient@example.net>
Subject: one message from each client
Date: Mon, 23 Nov 2026 08:00:00 +0000
Message-ID: <one.message@example.org>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

"""
BODY = (
    b"first line\n.\n..\n.dot before text\n\nQUIT\nMAIL FROM:<x@example.org>\n"
    + "na\u00efve text \u2014 \u20ac\n".encode()
    + b"x" * 900
    + b"\ntrailing blank \nlast line\n\n\n"
)
LINES = HEADER + BODY


class Server:
    """A `ringmx serve` process; its directory goes with it."""

    def __init__(self, program, *options, listen="127.0.0.1:0"):
        self.program = program
        self.scratch = tempfile.TemporaryDirectory(prefix="ringmx-clients-")
        self.ring = os.path.join(self.scratch.name, "ring-data")
        command = [program, "serve", "--listen", listen, "--http", "off"]
        command += ["--ring", self.ring, "--ring-size", "64MiB", *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline().decode() if ready else ""
        found = re.fullmatch(
            r"ringmx \S+ on 127\.0\.0\.1:(\d+)(?:, 127\.0\.0\.1:(\d+))?\n", line
        )
        if not found:
            self.process.kill()
            _, errors = self.process.communicate(timeout=PATIENCE)
            raise SystemExit(f"the server did not start: {line!r} {errors!r}")
        self.port = int(found[1])
        self.tls_port = int(found[2]) if found[2] else None
        # Of the server's own making; clients are told to trust it and nothing else.
        self.certificate = os.path.join(self.ring, "tls", "self-signed.crt")

    def __enter__(self):
        return self

    def __exit__(self, kind, _value, _trace):
        self.process.terminate()
        try:
            _, errors = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            self.scratch.cleanup()
        if kind is None:
            assert self.process.returncode == 0, (self.process.returncode, errors)

    def ringmx(self, *arguments):
        return run([self.program, *arguments, "--ring", self.ring])

    def listed(self):
        """What `ringmx log ls` says about each message, oldest first."""
        return [json.loads(line) for line in self.ringmx("log", "ls", "--json").splitlines()]

    def stored(self):
        """The content of each message without the Received field that the server put before it."""
        return [
            content(self.ringmx("log", "cat", entry["id"], "--raw"), entry["trace_octets"])
            for entry in self.listed()
        ]


def content(stored, trace_octets):
    trace, rest = stored[:trace_octets], stored[trace_octets:]
    # One field, folded as it may be (RFC 5322 2.2.3), and nothing else.
    assert re.fullmatch(rb"Received: [^\r\n]+\r\n([ \t][^\r\n]+\r\n)*", trace), trace
    return rest


def run(command, stdin=b""):
    done = subprocess.run(
        command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE
    )
    assert done.returncode == 0, (command, done.returncode, done.stdout[-2000:], done.stderr)
    return done.stdout


def crlf(lines):
    return re.sub(rb"(?<!\r)\n", b"\r\n", lines)


def tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        print(f"{name} is not installed")
        sys.exit(NOT_INSTALLED)
    return path


def needs_tls_of_swaks():
    """swaks speaks TLS with a library of Perl's that it can be installed without."""
    if subprocess.run(["perl", "-MNet::SSLeay", "-e", "1"], stderr=subprocess.DEVNULL).returncode != 0:
        print("swaks has no TLS without libnet-ssleay-perl")
        sys.exit(NOT_INSTALLED)


def hand_over(server, clients, client, path):
    """Lets a client send the lines; returns what was stored, which has to be what the client says it sent."""
    with tempfile.NamedTemporaryFile(suffix=".eml") as file:
        # curl and smtplib are given what goes over the wire, the others lines of a text file.
        file.write(crlf(LINES) if client == "curl" else LINES)
        file.flush()
        expected = clients[client](server, path, file.name)
        stored = server.stored()
        assert stored == expected, (stored, expected)
        return stored


def deliver(program, client):
    tools = {"smtplib": None, "ringmx-send": program}
    path = tools[client] if client in tools else tool(client)
    with Server(program) as server:
        stored = hand_over(server, CLIENTS, client, path)
        for entry in server.listed():
            recipients = [recipient["forward_path"] for recipient in entry["recipients"]]
            assert (entry["reverse_path"], recipients) == (SENDER, [RECIPIENT]), entry
        print(f"{client}: {len(stored)} messages came back as they were sent")


def swaks(server, path, file):
    command = [path, "--server", "127.0.0.1", "--port", str(server.port), "--helo", "localhost"]
    command += ["--from", SENDER, "--to", RECIPIENT, "--data", "@" + file]
    run(command)
    run([*command, "--pipeline"])
    # swaks sends CRLF "." CRLF even behind a whole line: one more empty line.
    return [crlf(LINES) + b"\r\n"] * 2


def python_smtplib(server, _path, _file):
    with smtplib.SMTP("127.0.0.1", server.port, "localhost", timeout=PATIENCE) as client:
        for _ in range(3):
            refused = client.sendmail(SENDER, RECIPIENT, crlf(LINES), ["BODY=8BITMIME"])
            assert refused == {}, refused
    return [crlf(LINES)] * 3


def curl(server, path, file):
    command = [path, "--silent", "--show-error", "--url", f"smtp://127.0.0.1:{server.port}/localhost"]
    command += ["--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--upload-file", file]
    run(command)
    return [crlf(LINES)]


def msmtp(server, path, _file):
    command = [path, "--file=/dev/null", "--host=127.0.0.1", f"--port={server.port}"]
    command += ["--domain=localhost", "--tls=off", "--auth=off", f"--from={SENDER}", RECIPIENT]
    run(command, LINES)
    return [crlf(LINES)]


def smtp_source(server, path, file):
    # 3 sessions at a time, 30 messages, several of them over each connection (-d).
    command = [path, "-s", "3", "-m", "30", "-f", SENDER, "-t", RECIPIENT, "-F", file]
    run([*command, "-d", f"inet:127.0.0.1:{server.port}"])
    run([*command, f"inet:127.0.0.1:{server.port}"])
    # smtp-source too sends CRLF "." CRLF behind the last line.
    return [crlf(LINES) + b"\r\n"] * 60


def ringmx_send(server, path, _file):
    command = [path, "send", "--server", f"127.0.0.1:{server.port}", "--from", SENDER]
    command += ["--to", RECIPIENT]
    run(command, LINES)
    return [crlf(LINES)]


CLIENTS = {
    "swaks": swaks,
    "smtplib": python_smtplib,
    "curl": curl,
    "msmtp": msmtp,
    "smtp-source": smtp_source,
    "ringmx-send": ringmx_send,
}


def deliver_over_tls(program, client):
    path = None if client == "smtplib" else tool(client)
    options = ["--listen-tls", "127.0.0.1:0", "--tls-self-signed", "--server-name", "mx.example.org"]
    with Server(program, *options) as server:
        stored = hand_over(server, TLS_CLIENTS, client, path)
        for entry in server.listed():
            assert re.fullmatch(r"TLSv1\.[23] TLS_[A-Z0-9_]+", entry["tls"]), entry
            cipher = entry["tls"].split(" ")[1]
            trace = server.ringmx("log", "cat", entry["id"], "--raw")[: entry["trace_octets"]]
            assert b" with ESMTPS\r\n" in trace, trace
            assert f"\r\n\ttls {cipher};".encode() in trace, trace
        print(f"{client}: {len(stored)} messages came back as they were sent under TLS")


def tls_swaks(server, path, file):
    needs_tls_of_swaks()
    command = [path, "--server", "localhost", "--helo", "localhost", "--tls-verify"]
    command += ["--tls-ca-path", server.certificate, "--from", SENDER, "--to", RECIPIENT]
    command += ["--data", "@" + file]
    run([*command, "--port", str(server.port), "--tls"])
    run([*command, "--port", str(server.tls_port), "--tls-on-connect"])
    return [crlf(LINES) + b"\r\n"] * 2


def tls_smtplib(server, _path, _file):
    context = ssl.create_default_context(cafile=server.certificate)
    with smtplib.SMTP("localhost", server.port, "localhost", timeout=PATIENCE) as client:
        client.starttls(context=context)
        assert not client.has_extn("starttls")
        assert client.sendmail(SENDER, RECIPIENT, crlf(LINES), ["BODY=8BITMIME"]) == {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        with smtplib.SMTP_SSL(
            "localhost", server.tls_port, "localhost", timeout=PATIENCE, context=context
        ) as client:
            assert client.sendmail(SENDER, RECIPIENT, crlf(LINES), ["BODY=8BITMIME"]) == {}
    # Who was not told to trust the certificate does not.
    try:
        strangers = ssl.create_default_context()
        smtplib.SMTP_SSL("localhost", server.tls_port, timeout=PATIENCE, context=strangers)
        raise AssertionError("a certificate that nobody vouched for was trusted")
    except ssl.SSLCertVerificationError:
        pass
    return [crlf(LINES)] * 3


def tls_curl(server, path, file):
    command = [path, "--silent", "--show-error", "--ssl-reqd", "--cacert", server.certificate]
    command += ["--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--upload-file", file, "--url"]
    run([*command, f"smtp://localhost:{server.port}/localhost"])
    run([*command, f"smtps://localhost:{server.tls_port}/localhost"])
    return [crlf(LINES)] * 2


def tls_msmtp(server, path, _file):
    command = [path, "--file=/dev/null", "--host=localhost", "--domain=localhost", "--tls=on"]
    command += [f"--tls-trust-file={server.certificate}", "--auth=off", f"--from={SENDER}"]
    run([*command, f"--port={server.port}", "--tls-starttls=on", RECIPIENT], LINES)
    run([*command, f"--port={server.tls_port}", "--tls-starttls=off", RECIPIENT], LINES)
    return [crlf(LINES)] * 2


def help_of(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE)
    return done.stdout.decode()


def talk(command, dialogue):
    """Sends lines to a program and waits for the last line of each reply."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        def reply():
            while True:
                ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
                line = process.stdout.readline() if ready else b""
                assert line, "no reply"
                if line[3:4] == b" ":
                    return line

        # What s_client heard before STARTTLS it keeps to itself.
        if "-starttls" not in command:
            assert reply().startswith(b"220 ")
        for line, expected in dialogue:
            process.stdin.write(line + b"\r\n")
            process.stdin.flush()
            heard = reply()
            assert heard.startswith(expected), (line, heard)
        process.stdin.close()
        assert process.wait(PATIENCE) == 0, process.returncode


def tls_openssl(server, path, _file):
    # s_client takes a line that begins with R as the wish to renegotiate, unless it is told not to.
    command = [path, "s_client", "-quiet", "-ign_eof", "-nocommands", "-CAfile", server.certificate]
    command += ["-verify_return_error", "-verify_hostname", "localhost", "-servername", "localhost"]
    ways = (
        ["-starttls", "smtp", "-connect", f"127.0.0.1:{server.port}"],
        ["-tls1_2", "-connect", f"127.0.0.1:{server.tls_port}"],
        ["-tls1_3", "-connect", f"127.0.0.1:{server.tls_port}"],
    )
    if "-nocommands" not in help_of([path, "s_client", "-help"]):
        command.remove("-nocommands")
    for way in ways:
        talk(
            [*command, *way],
            [
                (b"EHLO localhost", b"250 "),
                (f"MAIL FROM:<{SENDER}>".encode(), b"250 "),
                (f"RCPT TO:<{RECIPIENT}>".encode(), b"250 "),
                (b"DATA", b"354 "),
                (re.sub(rb"(?m)^\.", b"..", crlf(LINES)) + b".", b"250 "),
                (b"QUIT", b"221 "),
            ],
        )
    return [crlf(LINES)] * 3


TLS_CLIENTS = {
    "swaks": tls_swaks,
    "smtplib": tls_smtplib,
    "curl": tls_curl,
    "msmtp": tls_msmtp,
    "openssl": tls_openssl,
}


def renegotiation(program):
    """RFC 5746, CVE-2011-1473: a session under TLS 1.2 has one handshake. s_client asks for another where a line begins
    with R; the server answers with the alert no_renegotiation, which s_client takes for the end."""
    path = tool("openssl")
    with Server(program, "--listen-tls", "127.0.0.1:0", "--tls-self-signed") as server:
        command = [path, "s_client", "-tls1_2", "-CAfile", server.certificate, "-verify_return_error"]
        command += ["-connect", f"localhost:{server.tls_port}"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            heard = b""
            while b"220 " not in heard:
                ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
                more = os.read(process.stdout.fileno(), 65536) if ready else b""
                assert more, heard
                heard += more
            rest, _ = process.communicate(b"R\n", PATIENCE)
        assert b"RENEGOTIATING" in rest and b"no renegotiation" in rest, rest
        assert process.returncode != 0
        context = ssl.create_default_context(cafile=server.certificate)
        with smtplib.SMTP_SSL("localhost", server.tls_port, timeout=PATIENCE, context=context) as client:
            assert client.sendmail(SENDER, RECIPIENT, crlf(PLAIN_LINES)) == {}
        assert server.stored() == [crlf(PLAIN_LINES)]
    print("openssl: renegotiation was refused, and others were served")


USER, PASSWORD = "jim@example.org", "correct horse, battery & st\u00e4ple"
WRONG = PASSWORD + "!"
# CRLF in front of each line, no octets over 127 and none but whole lines: what every client sends alike.
PLAIN_LINES = b"Subject: as a user\n\n.\n..two\nlast line\n"


def file_of_one_user(program, scratch):
    users = os.path.join(scratch, "users")
    # Few rounds: a wrong password costs as much as a right one.
    add = [program, "users", "add", "--file", users, USER, "--iterations", "4096"]
    run(add, PASSWORD.encode() + b"\n")
    return users


def submit(program, client):
    """As a user of a submission listener. `SUBMITTERS` gives, for each way in, the command that sends one message;
    each is run with the right password, with a wrong one, and against a certificate that it can't trust."""
    prepare = SUBMITTERS[client]
    with tempfile.TemporaryDirectory(prefix="ringmx-submission-") as scratch:
        users = file_of_one_user(program, scratch)
        options = ["--users", users, "--tls-self-signed", "--server-name", "mx.example.org"]
        options += ["--listen", "127.0.0.1:0,role=submission,tls=implicit"]
        with Server(program, *options, listen="127.0.0.1:0,role=submission,tls=required") as server:
            # A certificate that nothing here was made with.
            strange = os.path.join(scratch, "strange")
            with Server(program, "--tls-self-signed", "--server-name", "mx.example.org") as other:
                shutil.copy(other.certificate, strange)
            ways = prepare(server, scratch)
            for name, send in ways.items():
                send(PASSWORD, server.certificate, True)
                count = len(server.listed())
                send(WRONG, server.certificate, False)
                send(PASSWORD, strange, False)
                assert len(server.listed()) == count, f"{name}: something was stored for nobody"
            listed = server.listed()
            assert len(listed) == len(ways), (list(ways), listed)
            for name, entry in zip(ways, listed, strict=True):
                assert entry["user"] == USER, (name, entry)
                assert entry["role"] == "submission", (name, entry)
                assert entry["reverse_path"] == SENDER, (name, entry)
                recipients = [recipient["forward_path"] for recipient in entry["recipients"]]
                assert recipients == [RECIPIENT], (name, entry)
                stored = server.ringmx("log", "cat", entry["id"], "--raw")
                trace, rest = stored[: entry["trace_octets"]], stored[entry["trace_octets"] :]
                # Go asks for SMTPUTF8 wherever it is offered.
                assert re.search(rb" with (UTF8SMTPSA|ESMTPSA)\r\n", trace), (name, trace)
                assert f"\r\n\tfor <{RECIPIENT}>\r\n".encode() in trace, (name, trace)
                header, body = rest.split(b"\r\n\r\n", 1)
                assert re.search(rb"(?mi)^Subject: as a user\r?$", header), (name, rest)
                assert body.rstrip() == b".\r\n..two\r\nlast line", (name, rest)
    print(f"{client}: {', '.join(ways)} stored a message of the user, and nothing for anybody else")


class Scram:
    """A client of RFC 5802 and RFC 7677, from their text."""

    def __init__(self, flag, binding=b""):
        self.header = flag.encode() + b",,"
        self.binding = binding
        self.nonce = base64.b64encode(os.urandom(18))

    def first(self):
        name = USER.replace("=", "=3D").replace(",", "=2C").encode()
        self.first_bare = b"n=" + name + b",r=" + self.nonce
        return self.header + self.first_bare

    def final(self, server_first, password):
        fields = dict(field.split(b"=", 1) for field in server_first.split(b","))
        assert fields[b"r"].startswith(self.nonce) and fields[b"r"] != self.nonce, fields
        salt, rounds = base64.b64decode(fields[b"s"]), int(fields[b"i"])
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        bound = base64.b64encode(self.header + self.binding)
        without_proof = b"c=" + bound + b",r=" + fields[b"r"]
        message = self.first_bare + b"," + server_first + b"," + without_proof
        signature = hmac.digest(hashlib.sha256(client_key).digest(), message, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        self.expected = b"v=" + base64.b64encode(hmac.digest(server_key, message, "sha256"))
        return without_proof + b",p=" + base64.b64encode(proof)


def authenticate(client, mechanism, scram, password):
    """Plays the exchange; the last reply, with the server's signature checked."""

    def say(octets):
        code, text = client.docmd(base64.b64encode(octets).decode() or "=")
        return code, base64.b64decode(text) if code == 334 else text

    code, text = client.docmd("AUTH", mechanism + " " + base64.b64encode(scram.first()).decode())
    if code != 334:
        return code
    code, text = say(scram.final(base64.b64decode(text), password))
    if code != 334:
        return code
    assert text == scram.expected, "the server does not know the password"
    return client.docmd("")[0]


def scram(program):
    with tempfile.TemporaryDirectory(prefix="ringmx-scram-") as scratch:
        users = file_of_one_user(program, scratch)
        options = ["--users", users, "--tls-self-signed"]
        with Server(program, *options, listen="127.0.0.1:0,role=submission,tls=implicit") as server:
            context = ssl.create_default_context(cafile=server.certificate)
            end_point = hashlib.sha256(ssl.PEM_cert_to_DER_cert(read(server.certificate).decode())).digest()
            plain, plus = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
            bound = "p=tls-server-end-point"
            for mechanism, scram, password, code in (
                (plus, Scram(bound, end_point), PASSWORD, 235),
                (plus, Scram(bound, end_point), WRONG, 535),
                # Somebody between has a certificate of his own.
                (plus, Scram(bound, hashlib.sha256(b"another").digest()), PASSWORD, 535),
                # By what this channel has not, or by nothing.
                (plus, Scram("p=tls-unique", end_point), PASSWORD, 535),
                (plus, Scram("n"), PASSWORD, 501),
                # Who can't bind may do without; who could, and was told that the server can't, was lied to.
                (plain, Scram("n"), PASSWORD, 235),
                (plain, Scram("y"), PASSWORD, 535),
                (plain, Scram(bound, end_point), PASSWORD, 501),
            ):
                with smtplib.SMTP_SSL("localhost", server.port, timeout=PATIENCE, context=context) as client:
                    client.ehlo("localhost")
                    assert client.esmtp_features["auth"].split() == [plus, plain, "PLAIN", "LOGIN"]
                    got = authenticate(client, mechanism, scram, password)
                    assert got == code, (mechanism, scram.header, got, code)
                    if code == 235:
                        assert client.sendmail(SENDER, RECIPIENT, crlf(PLAIN_LINES)) == {}
            assert [entry["user"] for entry in server.listed()] == [USER] * 2
            # TLS 1.2 has no binding here, so that a client may say that it would have bound.
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            with smtplib.SMTP_SSL("localhost", server.port, timeout=PATIENCE, context=context) as client:
                client.ehlo("localhost")
                assert client.esmtp_features["auth"].split() == [plain, "PLAIN", "LOGIN"]
                assert authenticate(client, plus, Scram(bound, end_point), PASSWORD) == 504
                assert authenticate(client, plain, Scram("y"), PASSWORD) == 235
    print("SCRAM-SHA-256 and -PLUS: who is bound to this channel is let in, nobody who is bound to another")


def gsasl(program):
    """A SCRAM client of other people's making, over a TLS library of other people's making (GnuTLS), that binds to the
    channel by its exporter: both ends have to have made the same octets of it."""
    path = tool("gsasl")
    with tempfile.TemporaryDirectory(prefix="ringmx-gsasl-") as scratch:
        users = file_of_one_user(program, scratch)
        options = ["--users", users, "--tls-self-signed"]
        with Server(program, *options, listen="127.0.0.1:0,role=submission,tls=required") as server:
            with Server(program, "--tls-self-signed") as other:
                strange = os.path.join(scratch, "strange")
                shutil.copy(other.certificate, strange)
            plain, plus = "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"
            tls_1_2 = ["--priority", "NORMAL:-VERS-TLS1.3"]
            failed, unknown = "535 5.7.8 Authentication credentials invalid", "504 5.5.4"
            for mechanism, password, authority, more, reply in (
                (plus, PASSWORD, server.certificate, [], "235 2.7.0"),
                (plus, WRONG, server.certificate, [], failed),
                (plus, PASSWORD, strange, [], None),
                # Not offered under TLS 1.2: docs/smtp-conformance.md, "Deviations and choices".
                (plus, PASSWORD, server.certificate, tls_1_2, unknown),
                # Who can bind refuses to do without; --no-cb makes it one that can't.
                (plain, PASSWORD, server.certificate, ["--no-cb"], "235 2.7.0"),
                (plain, WRONG, server.certificate, ["--no-cb"], failed),
                ("PLAIN", PASSWORD, server.certificate, [], "235 2.7.0"),
                ("PLAIN", WRONG, server.certificate, [], failed),
                ("LOGIN", PASSWORD, server.certificate, [], "235 2.7.0"),
                ("LOGIN", WRONG, server.certificate, [], failed),
            ):
                command = [path, "--smtp", "--client", "--mechanism", mechanism, "--x509-ca-file", authority]
                command += ["--authentication-id", USER, "--password", password, "--verbose", *more]
                command += ["--connect", f"localhost:{server.port}"]
                said = succeeds(command, reply is not None and reply.startswith("235"))
                lines = [line.rstrip("\r") for line in said.decode("utf-8", "replace").splitlines()]
                asked = f"AUTH {mechanism}" in lines
                assert asked == (reply is not None), (command, lines)
                got = [line for line in lines if re.match(r"(235|5\d\d) ", line)]
                # What the server refuses is printed twice by gsasl.
                assert bool(got) == asked and all(line.startswith(reply) for line in got), (command, got, lines)
                if mechanism == plus and reply != unknown and asked:
                    first = lines[lines.index(f"AUTH {mechanism}") + 2]
                    assert base64.b64decode(first).startswith(b"p=tls-exporter,,n="), first
            assert server.listed() == []
    print("gsasl: bound by tls-exporter or not at all, with the password and not without")


def succeeds(command, right, stdin=b"", environment=None):
    """Runs a command that has to succeed exactly when it is `right`; what it said."""
    done = subprocess.run(
        command,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        env={**os.environ, **(environment or {})},
    )
    assert (done.returncode == 0) == right, (command, right, done.returncode, done.stdout)
    return done.stdout


def submit_swaks(server, _scratch):
    path = tool("swaks")
    needs_tls_of_swaks()

    def way(mechanism, more):
        def send(password, authority, right):
            command = [path, "--server", "localhost", "--helo", "localhost", "--tls-verify"]
            command += ["--tls-ca-path", authority, "--from", SENDER, "--to", RECIPIENT, "--auth", mechanism]
            command += ["--auth-user", USER, "--auth-password", password, "--data", "-", *more]
            succeeds(command, right, PLAIN_LINES)

        return send

    clear, implicit = str(server.port), str(server.tls_port)
    return {
        "PLAIN over STARTTLS": way("PLAIN", ["--port", clear, "--tls"]),
        "LOGIN over STARTTLS": way("LOGIN", ["--port", clear, "--tls"]),
        "PLAIN over TLS": way("PLAIN", ["--port", implicit, "--tls-on-connect"]),
    }


def submit_smtplib(server, _scratch):
    def way(is_implicit, mechanism):
        def send(password, authority, right):
            context = ssl.create_default_context(cafile=authority)
            name = ("localhost", server.tls_port if is_implicit else server.port, "localhost")
            try:
                if is_implicit:
                    client = smtplib.SMTP_SSL(*name, timeout=PATIENCE, context=context)
                else:
                    client = smtplib.SMTP(*name, timeout=PATIENCE)
                    client.starttls(context=context)
                with client:
                    client.ehlo_or_helo_if_needed()
                    client.user, client.password = USER.encode(), password.encode()
                    # Its own methods take ASCII alone.
                    plain = f"\0{USER}\0{password}".encode().decode("latin-1")
                    login = [text.encode().decode("latin-1") for text in (USER, password)]
                    if mechanism == "PLAIN":
                        client.auth(mechanism, lambda _=None: Octets(plain))
                    else:
                        client.auth(mechanism, lambda challenge=None: Octets(login.pop(0)), initial_response_ok=False)
                    assert client.sendmail(SENDER, RECIPIENT, crlf(PLAIN_LINES)) == {}
                done = True
            except (ssl.SSLCertVerificationError, smtplib.SMTPAuthenticationError) as error:
                done = False
                expected = ssl.SSLError if password == PASSWORD else smtplib.SMTPAuthenticationError
                assert isinstance(error, expected), error
            assert done == right

        return send

    return {
        "PLAIN over STARTTLS": way(False, "PLAIN"),
        "LOGIN over TLS": way(True, "LOGIN"),
    }


class Octets(str):
    """Text whose characters are octets: smtplib encodes as ASCII whatever it is given."""

    def encode(self, *_):
        return str.encode(self, "latin-1")


def submit_curl(server, scratch):
    path = tool("curl")
    file = os.path.join(scratch, "message.eml")
    with open(file, "wb") as message:
        message.write(crlf(PLAIN_LINES))

    def way(url, mechanism):
        def send(password, authority, right):
            command = [path, "--silent", "--show-error", "--ssl-reqd", "--cacert", authority, "--url", url]
            command += ["--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--upload-file", file]
            command += ["--user", f"{USER}:{password}", "--login-options", "AUTH=" + mechanism]
            succeeds(command, right)

        return send

    clear, implicit = f"smtp://localhost:{server.port}/localhost", f"smtps://localhost:{server.tls_port}/localhost"
    return {
        "PLAIN over STARTTLS": way(clear, "PLAIN"),
        "LOGIN over TLS": way(implicit, "LOGIN"),
    }


def submit_msmtp(server, _scratch):
    path = tool("msmtp")
    said = run([path, "--version"]).decode()
    # What its GNU SASL was built with.
    mechanisms = [name for name in ("plain", "login", "scram-sha-256") if name in said.split()]

    def way(port, starttls, mechanism):
        def send(password, authority, right):
            command = [path, "--file=/dev/null", "--host=localhost", "--domain=localhost", "--tls=on"]
            command += [f"--tls-starttls={starttls}", f"--port={port}", f"--tls-trust-file={authority}"]
            command += [f"--auth={mechanism}", f"--user={USER}", "--passwordeval=printenv RINGMX_PASSWORD"]
            command += [f"--from={SENDER}", RECIPIENT]
            succeeds(command, right, PLAIN_LINES, {"RINGMX_PASSWORD": password})

        return send

    ways = {f"{name} over STARTTLS": way(server.port, "on", name) for name in mechanisms}
    return {**ways, "plain over TLS": way(server.tls_port, "off", "plain")}


def submit_nodemailer(server, _scratch):
    node = tool("node")
    modules = os.environ.get("RINGMX_NODE_MODULES", "")
    if not os.path.isdir(os.path.join(modules, "nodemailer")):
        print("nodemailer is not in RINGMX_NODE_MODULES")
        sys.exit(NOT_INSTALLED)
    script = os.path.join(HERE, "submit.js")

    def way(port, is_implicit, mechanism):
        def send(password, authority, right):
            arguments = [str(port), is_implicit, authority, mechanism, USER, SENDER, RECIPIENT]
            secret = {"RINGMX_PASSWORD": password, "NODE_PATH": modules}
            succeeds([node, script, *arguments], right, PLAIN_LINES, secret)

        return send

    return {
        "PLAIN over STARTTLS": way(server.port, "no", "PLAIN"),
        "LOGIN over STARTTLS": way(server.port, "no", "LOGIN"),
        "PLAIN over TLS": way(server.tls_port, "yes", "PLAIN"),
    }


def submit_go(server, scratch):
    go = tool("go")
    program = os.path.join(scratch, "submit")
    # Its cache would otherwise be made anew, or be missing where there is no home.
    home = {"HOME": os.environ.get("HOME", scratch), "GO111MODULE": "off"}
    environment = {**os.environ, **home}
    built = subprocess.run(
        [go, "build", "-o", program, os.path.join(HERE, "submit.go")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        timeout=5 * PATIENCE,
    )
    assert built.returncode == 0, built.stdout
    return submit_program(server, [program])


def submit_lettre(server, _scratch):
    program = os.environ.get("RINGMX_LETTRE", "")
    if not os.path.isfile(program):
        print("RINGMX_LETTRE names no program; see tests/clients/lettre")
        sys.exit(NOT_INSTALLED)
    return submit_program(server, [program])


def submit_program(server, command):
    """A program of ours around a library: PORT IMPLICIT AUTHORITY USER SENDER RECIPIENT."""

    def way(port, is_implicit):
        def send(password, authority, right):
            arguments = [str(port), is_implicit, authority, USER, SENDER, RECIPIENT]
            succeeds([*command, *arguments], right, PLAIN_LINES, {"RINGMX_PASSWORD": password})

        return send

    return {"STARTTLS": way(server.port, "no"), "TLS": way(server.tls_port, "yes")}


SUBMITTERS = {
    "swaks": submit_swaks,
    "smtplib": submit_smtplib,
    "curl": submit_curl,
    "msmtp": submit_msmtp,
    "nodemailer": submit_nodemailer,
    "go": submit_go,
    "lettre": submit_lettre,
}


class Sender:
    """One session: whole messages by DATA and by BDAT, with no regard to what is in them."""

    def __init__(self, port):
        self.smtp = smtplib.SMTP("127.0.0.1", port, "localhost", timeout=PATIENCE)
        assert self.smtp.ehlo()[0] == 250

    def send(self, message, chunked):
        body = " BODY=8BITMIME" if any(octet > 127 for octet in message) else ""
        self.command(f"MAIL FROM:<{SENDER}> SIZE={len(message)}{body}", 250)
        self.command(f"RCPT TO:<{RECIPIENT}>", 250)
        if chunked:
            half = len(message) // 2
            for part, last in ((message[:half], ""), (message[half:], " LAST")):
                self.smtp.send(f"BDAT {len(part)}{last}\r\n".encode() + part)
                self.expect(self.smtp.getreply(), 250)
        else:
            self.command("DATA", 354)
            # RFC 5321 4.5.2: a leading dot is doubled.
            self.smtp.send(re.sub(rb"(?m)^\.", b"..", message) + b".\r\n")
            self.expect(self.smtp.getreply(), 250)

    def command(self, line, code):
        self.expect(self.smtp.docmd(line), code)

    def expect(self, reply, code):
        assert reply[0] == code, (reply, code)


def messages(program, directory):
    """Sends every sample message and reads each of them back in three ways."""
    clean, odd = [], []
    seen = set()
    for path in sorted(glob.glob(os.path.join(directory, "*.eml"))):
        with open(path, "rb") as file:
            message = crlf(file.read())
        if message in seen or not message:
            continue
        seen.add(message)
        # Every third goes by BDAT, where the last line may end without CRLF; DATA has whole lines.
        chunked = len(seen) % 3 == 0
        if not chunked and not message.endswith(b"\r\n"):
            message += b"\r\n"
        bare = b"\0" in message or re.search(rb"\r(?!\n)", message)
        (odd if bare else clean).append((message, chunked))
    send_and_read(program, clean, [])
    # A bare CR or NUL is refused unless the operator asks to keep it.
    send_and_read(program, odd, ["--bare-newlines", "keep"])
    count = len(clean) + len(odd)
    print(
        f"{count} messages came back octet for octet: {len(clean)} as ordinary mail,"
        f" {len(odd)} with bare CR or NUL under --bare-newlines keep"
    )
    assert count >= MESSAGES_MIN, f"{count} messages; at least {MESSAGES_MIN} are wanted"


def send_and_read(program, sent, options):
    with Server(program, *options) as server:
        sender = Sender(server.port)
        for message, chunked in sent:
            sender.send(message, chunked)
        sender.smtp.quit()
        expected = [message for message, _ in sent]
        listed = server.listed()
        trace_octets = [entry["trace_octets"] for entry in listed]
        assert len(listed) == len(expected), (len(listed), len(expected))

        compare("ringmx log cat --raw", server.stored(), expected)

        eml = os.path.join(server.scratch.name, "eml")
        ring = os.path.join(server.ring, "shard-0", "ring")
        run([sys.executable, RING_READER, ring, "--eml", eml])
        names = [f"{entry['number']}.eml" for entry in listed]
        assert sorted(os.listdir(eml)) == sorted(names)
        found = [read(os.path.join(eml, name)) for name in names]
        compare("ring_reader.py", map(content, found, trace_octets), expected)

        maildir = os.path.join(server.scratch.name, "maildir")
        target = "maildir:" + maildir
        server.ringmx("consume", "clients", "--create", "--to", target, "--until-empty")
        box = mailbox.Maildir(maildir, create=False)
        keys = {re.search(r"-0-(\d+)\.", key)[1]: key for key in box.keys()}
        assert len(box) == len(keys) == len(listed)
        found = [box.get_bytes(keys[str(entry["number"])]) for entry in listed]
        compare("Maildir", map(content, found, trace_octets), expected)


def compare(where, found, expected):
    for number, (got, want) in enumerate(zip(found, expected, strict=True), 1):
        assert got == want, f"{where}: message {number}: {got[:200]!r}... for {want[:200]!r}..."


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main(arguments):
    program, what, *rest = arguments
    if what == "messages":
        messages(program, *rest)
    elif what == "tls":
        deliver_over_tls(program, *rest)
    elif what == "scram":
        scram(program)
    elif what == "gsasl":
        gsasl(program)
    elif what == "renegotiation":
        renegotiation(program)
    elif what == "submission":
        submit(program, *rest)
    else:
        deliver(program, what)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(sys.argv[1:])
