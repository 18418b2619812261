// Sends the message on standard input with nodemailer, as a user:
//     submit.js PORT IMPLICIT AUTHORITY MECHANISM USER SENDER RECIPIENT
// The password is in RINGMX_PASSWORD. Exit code 0 when the server took the message.
"use strict";

const fs = require("fs");
const nodemailer = require("nodemailer");

const [port, implicit, authority, mechanism, user, sender, recipient] = process.argv.slice(2);
const transport = nodemailer.createTransport({
    host: "localhost",
    port: Number(port),
    secure: implicit === "yes",
    requireTLS: true,
    name: "localhost",
    authMethod: mechanism,
    auth: { user, pass: process.env.RINGMX_PASSWORD },
    tls: { ca: fs.readFileSync(authority), servername: "localhost" },
});
transport
    .sendMail({ envelope: { from: sender, to: [recipient] }, raw: fs.readFileSync(0) })
    .then((info) => process.exit(info.accepted.length === 1 ? 0 : 1))
    .catch((error) => {
        console.error(error.message);
        process.exit(1);
    });
