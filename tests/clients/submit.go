// Sends the message on standard input with Go's net/smtp, as a user:
//
//	submit PORT IMPLICIT AUTHORITY USER SENDER RECIPIENT
//
// The password is in RINGMX_PASSWORD. Exit code 0 when the server took the message.
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/smtp"
	"os"
)

func main() {
	if err := submit(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func submit(arguments []string) error {
	if len(arguments) != 6 {
		return errors.New("usage: submit PORT IMPLICIT AUTHORITY USER SENDER RECIPIENT")
	}
	address, user := "localhost:"+arguments[0], arguments[3]
	authority, err := os.ReadFile(arguments[2])
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return errors.New("no certificate in PEM")
	}
	settings := &tls.Config{RootCAs: roots, ServerName: "localhost"}
	message, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	message = bytes.ReplaceAll(message, []byte("\n"), []byte("\r\n"))
	client, err := connect(address, arguments[1] == "yes", settings)
	if err != nil {
		return err
	}
	defer client.Close()
	password := os.Getenv("RINGMX_PASSWORD")
	if err := client.Auth(smtp.PlainAuth("", user, password, "localhost")); err != nil {
		return err
	}
	if err := client.Mail(arguments[4]); err != nil {
		return err
	}
	if err := client.Rcpt(arguments[5]); err != nil {
		return err
	}
	content, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := content.Write(message); err != nil {
		return err
	}
	if err := content.Close(); err != nil {
		return err
	}
	return client.Quit()
}

// connect returns a client under TLS.
func connect(address string, implicit bool, settings *tls.Config) (*smtp.Client, error) {
	if implicit {
		stream, err := tls.Dial("tcp", address, settings)
		if err != nil {
			return nil, err
		}
		return smtp.NewClient(stream, "localhost")
	}
	client, err := smtp.Dial(address)
	if err != nil {
		return nil, err
	}
	return client, client.StartTLS(settings)
}
