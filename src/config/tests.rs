use super::*;

fn args(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn config(words: &[&str]) -> Config {
    match Config::from_args(&args(words)) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{words:?} gave {other:?}"),
    }
}

fn flag_error(words: &[&str]) -> String {
    Config::from_args(&args(words)).unwrap_err().to_string()
}

fn file_error(text: &str) -> String {
    let mut config = Config::default();
    let applied = config.apply_file(Path::new("r.toml"), text);
    let checked = applied.and_then(|()| config.validate("mx.example"));
    checked.expect_err(text).to_string()
}

#[test]
fn no_flags_give_the_defaults_and_a_server_name() {
    let mut expected = Config::default();
    expected.validate(&host_name()).unwrap();
    assert_eq!(config(&[]), expected);
    assert!(is_domain(&expected.server_name));
    assert_eq!(expected.given, []);
}

#[test]
fn every_default_reads_back_as_a_flag_and_as_a_line_of_a_file() {
    let mut defaults = Config::default();
    defaults.validate("mx.example").unwrap();
    let mut from_file = Config::default();
    let text = defaults.to_toml();
    from_file.apply_file(Path::new("r.toml"), &text).unwrap();
    from_file.validate("other.example").unwrap();
    for option in OPTIONS {
        assert_eq!(option.text(&from_file), option.text(&defaults));
        if option.toml(&defaults).is_some() {
            let line = 1 + text
                .lines()
                .position(|line| line.starts_with(&format!("{} =", option.name)))
                .unwrap();
            assert_eq!(from_file.source(option.name), Some(Source::File { line }));
            let value = option.text(&defaults);
            let words = option.kind.words(&value);
            let flags: Vec<Setting> = words.map(|word| option.kind.parse(word).unwrap()).collect();
            let mut again = Config::default();
            option.store(&mut again, &flags);
            assert_eq!(option.text(&again), value);
        }
    }
}

#[test]
fn every_option_changes_its_own_field_and_no_other() {
    let values = [
        ("listen", "127.0.0.1:1"),
        ("listen-tls", "127.0.0.1:1"),
        ("listen-submission", "127.0.0.1:1"),
        ("http", "off"),
        ("proxy-from", "10.0.0.0/8"),
        ("xclient-from", "10.0.0.0/8"),
        ("xforward-from", "10.0.0.0/8"),
        ("server-name", "a.example"),
        ("group", "mail"),
        ("user", "nobody"),
        ("core-dumps", "true"),
        ("tls-cert", "/x"),
        ("tls-key", "/x"),
        ("tls-self-signed", "true"),
        ("tls-client-ca", "/x"),
        ("tls-client-cert", "request"),
        ("tls-handshakes", "1"),
        ("users", "/x"),
        ("auth", "any"),
        ("auth-without-tls", "true"),
        ("accept-domain", ".example.org"),
        ("recipients-file", "/r"),
        ("subaddress-separator", "-"),
        ("accept-any-recipient", "true"),
        ("allow-from", "192.0.2.0/24"),
        ("allow-from-file", "/a"),
        ("deny-from", "2001:db8::/32"),
        ("deny-from-file", "/d"),
        ("ring", "/x"),
        ("ring-size", "2MiB"),
        ("survive", "process"),
        ("full", "defer"),
        ("keep-for", "off"),
        ("ring-write", "map"),
        ("commit-align", "4096"),
        ("discard", "true"),
        ("on-storage-failure", "stay"),
        ("failed-grace", "0s"),
        ("accept-loss", "true"),
        ("max-sessions", "1"),
        ("max-message", "64KiB"),
        ("max-recipients", "1"),
        ("max-messages-per-session", "1"),
        ("max-hops", "0"),
        ("max-hold", "1s"),
        ("hide", "SIZE"),
        ("only", "SIZE"),
        ("pool", "4MiB"),
        ("bare-newlines", "keep"),
        ("limit-sinks", "true"),
        ("unlimited-from", "10.0.0.0/8"),
        ("client-sessions", "7,3"),
        ("client-connections", "off"),
        ("client-messages", "9,9"),
        ("client-recipients", "off,1"),
        ("client-bytes", "1KiB,1B"),
        ("client-handshakes", "1,1"),
        ("network-factor", "0"),
        ("session-errors", "5,1"),
        ("session-idle-commands", "5,2"),
        ("tarpit", "0s"),
        ("tarpit-after", "0"),
        ("greeting-delay", "3s"),
        ("timeout-greeting", "1s"),
        ("timeout-command", "1s"),
        ("timeout-data", "1s"),
        ("timeout-reply", "1s"),
        ("timeout-tls", "1s"),
        ("request-deadline", "1s"),
        ("min-data-rate", "0B"),
        ("min-data-rate-grace", "1s"),
        ("pool-wait-max", "1s"),
        ("drain-deadline", "0s"),
        ("workers", "4"),
        ("takeover", "true"),
        ("spin-us", "50"),
        ("busy-poll", "true"),
        ("log-format", "json"),
        ("log-level", "error"),
    ];
    let names: Vec<&str> = OPTIONS.iter().map(|option| option.name).collect();
    assert_eq!(names, values.map(|(name, _)| name));
    let defaults = Config::default();
    for (option, (_, value)) in OPTIONS.iter().zip(values) {
        let mut changed = Config::default();
        option.store(&mut changed, &[option.kind.parse(value).unwrap()]);
        assert_eq!(option.text(&changed), value);
        for other in OPTIONS.iter().filter(|other| other.name != option.name) {
            assert_eq!(other.text(&changed), other.text(&defaults));
        }
        assert_ne!(changed, defaults, "{}", option.name);
    }
}

#[test]
fn a_flag_counts_more_than_the_file_and_the_file_more_than_the_default() {
    let mut config = Config::default();
    let text = "pool = \"64MiB\"\nlisten = [\"127.0.0.1:1\", \"[::1]:2\"]\nkeep-for = \"1h\"\n";
    config.apply_file(Path::new("r.toml"), text).unwrap();
    let flags = ["listen", "listen"].map(str::to_owned);
    let values = ["127.0.0.1:3", "127.0.0.1:4"].map(|value| Some(value.to_owned()));
    let flags: Vec<_> = flags.into_iter().zip(values).collect();
    config.apply_flags(&flags).unwrap();
    assert_eq!(config.pool, 64 * MIB);
    assert_eq!(config.keep_for, Some(Duration::from_secs(3_600)));
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:3", "127.0.0.1:4"]);
    assert_eq!(config.source("listen"), Some(Source::Flag));
    assert_eq!(config.source("pool"), Some(Source::File { line: 1 }));
    assert_eq!(config.source("ring"), None);
}

/// A submission server had a sink on 127.0.0.1:2525 besides, which takes everything without AUTH, and two servers with
/// `listen-tls` alone could not run at the same time: the default of `listen` counted whatever else was given.
#[test]
fn the_default_of_listen_counts_only_where_no_listening_address_was_given() {
    let places = |words: &[&str]| -> Vec<String> {
        let listeners = config(words).listeners().into_iter();
        listeners.map(|(_, place, _)| place.to_string()).collect()
    };
    let tls = ["--tls-self-signed", "--listen-tls", "127.0.0.1:1"];
    let submission = [
        "--listen-submission",
        "127.0.0.1:2",
        "--tls-self-signed",
        "--users",
        "users",
    ];
    assert_eq!(places(&[]), ["127.0.0.1:2525"]);
    assert_eq!(places(&tls), ["127.0.0.1:1"]);
    assert_eq!(places(&submission), ["127.0.0.1:2"]);
    let listen = ["--listen", "127.0.0.1:3"];
    assert_eq!(
        places(&[&tls[..], &listen].concat()),
        ["127.0.0.1:3", "127.0.0.1:1"]
    );
    // The printed file means the same when it is read.
    let only_tls = config(&tls);
    let mut again = Config::default();
    let text = only_tls.to_toml();
    again.apply_file(Path::new("r.toml"), &text).unwrap();
    again.validate("mx.example").unwrap();
    assert_eq!(again.listen, []);
    assert_eq!(again.listen_tls, only_tls.listen_tls);
}

#[test]
fn lmtp_is_taken_everywhere_but_on_port_25() {
    let on = |place: &str| {
        let mut config = Config {
            listen: vec![Listen::parse(&format!("{place},lmtp")).unwrap()],
            ..Config::default()
        };
        config.validate("mx.example").map_err(|e| e.to_string())
    };
    assert_eq!(on("127.0.0.1:24"), Ok(()));
    assert_eq!(on("unix:/run/lmtp"), Ok(()));
    let reason = "--listen: 127.0.0.1:25: LMTP must not be on port 25";
    assert_eq!(on("127.0.0.1:25"), Err(reason.to_owned()));
}

#[test]
fn authentication_needs_users_and_tls_unless_said_otherwise() {
    let with = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Config::from_args(&args)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let plain = "--listen=127.0.0.1:1,role=submission";
    for (args, reason) in [
        (
            &["--listen-submission=127.0.0.1:1", "--tls-self-signed"][..],
            "--listen-submission: 127.0.0.1:1: a listener for submission needs --users",
        ),
        (
            &[plain, "--users=/x"],
            "--listen: 127.0.0.1:1: submission without TLS needs --auth-without-tls, or nobody could \
             authenticate",
        ),
        (
            &[plain, "--auth=any"],
            "--auth: any is for sinks; whoever connects to a listener for submission could send what he \
             likes",
        ),
        (
            &["--users=/x", "--auth=any"],
            "--auth: any takes every password, so users has no use beside it; give one",
        ),
        (
            &["--auth-without-tls"],
            "--auth-without-tls: nobody may authenticate: give --users, or --auth any",
        ),
    ] {
        assert_eq!(with(args), Err(reason.to_owned()), "{args:?}");
    }
    assert_eq!(with(&[plain, "--users=/x", "--auth-without-tls"]), Ok(()));
    assert_eq!(with(&["--auth=any", "--auth-without-tls"]), Ok(()));
}

#[test]
fn sinks_offer_what_hide_and_only_leave() {
    let with = |hide: &str, only: &str, listen: &str| {
        let mut config = Config {
            listen: vec![Listen::parse(listen).unwrap()],
            hide: hide.to_owned(),
            only: only.to_owned(),
            ..Config::default()
        };
        let valid = config.validate("mx.example").map_err(|e| e.to_string());
        valid.map(|()| extension::ALL.and(config.sink_offers()))
    };
    let here = "127.0.0.1:1";
    assert_eq!(with("", "", here), Ok(extension::ALL));
    let hidden = Offered::SIZE.with(Offered::MT_PRIORITY);
    assert_eq!(
        with("size, MT-PRIORITY", "", here),
        Ok(extension::ALL.without(hidden))
    );
    assert_eq!(with("", "SIZE", here), Ok(Offered::SIZE));
    let allowed = "SIZE, PIPELINING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES";
    let error = with("SIZ", "", here).unwrap_err();
    let wanted = format!("--hide: \"SIZ\" is not allowed; allowed: {allowed}, ");
    assert!(error.starts_with(&wanted), "{error}");
    assert_eq!(
        with("SIZE,size", "", here).unwrap_err(),
        "--hide: \"size\" is given twice"
    );
    assert_eq!(
        with("SIZE", "DSN", here).unwrap_err(),
        "--only: hide and only exclude each other; give one"
    );
    let reason = "a listener speaks LMTP, which needs PIPELINING and ENHANCEDSTATUSCODES";
    assert_eq!(
        with("PIPELINING", "", "127.0.0.1:1,lmtp").unwrap_err(),
        format!("--hide: {reason}")
    );
    assert_eq!(
        with("", "SIZE", "127.0.0.1:1,lmtp").unwrap_err(),
        format!("--only: {reason}")
    );
}

#[test]
fn a_proxy_is_believed_only_where_its_network_is_named() {
    let args = |args: &[&str]| {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        Config::from_args(&args).map_err(|error| error.to_string())
    };
    let listen = "127.0.0.1:2525,proxy=detect";
    let Request::Run(config) = args(&[
        "--listen",
        listen,
        "--proxy-from",
        "10.0.0.0/8",
        "--proxy-from",
        "::1",
    ])
    .unwrap() else {
        panic!("help was not asked for");
    };
    let networks: Vec<String> = config.proxy_from.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    assert!(
        config
            .to_toml()
            .contains("proxy-from = [\"10.0.0.0/8\", \"::1/128\"]\n")
    );
    assert_eq!(
        args(&["--listen", listen]).unwrap_err(),
        "--listen: 127.0.0.1:2525: proxy=detect needs --proxy-from, the networks whose proxies are believed"
    );
    assert_eq!(
        args(&["--proxy-from", "10.0.0.0/8"]).unwrap_err(),
        "--proxy-from: no listener says proxy=required or proxy=detect"
    );
    let many: Vec<String> = (0..257)
        .flat_map(|n| {
            [
                "--proxy-from".to_owned(),
                format!("10.0.{}.{}", n / 256, n % 256),
            ]
        })
        .chain(["--listen".to_owned(), listen.to_owned()])
        .collect();
    assert_eq!(
        Config::from_args(&many).unwrap_err().to_string(),
        "--proxy-from: 257 networks; allowed: up to 256"
    );
    assert_eq!(
        args(&["--proxy-from", "10.0.0.1/8"]).unwrap_err(),
        "--proxy-from: \"10.0.0.1/8\": bits behind the length are set; write 10.0.0.0/8 for the network or \
         10.0.0.1/32 for the one address"
    );
}

#[test]
fn whoever_takes_mail_from_strangers_says_for_whom() {
    let refused = |words: &[&str]| {
        let error = Config::from_args(&args(words)).expect_err("refused");
        error.to_string()
    };
    for address in ["0.0.0.0:25", "[::]:25", "192.0.2.1:25", "[2001:db8::1]:25"] {
        assert_eq!(
            refused(&["--listen", address]),
            format!(
                "--listen: {address}: a sink that others than this machine can reach takes mail for everybody; add \
                 --accept-any-recipient if that is meant, otherwise \"{address},role=mx\" and --accept-domain NAME"
            )
        );
        config(&["--listen", address, "--accept-any-recipient"]);
        let mx = format!("{address},role=mx");
        config(&["--listen", &mx, "--accept-domain", "example.org"]);
        config(&["--listen", &mx, "--recipients-file", "r"]);
        config(&["--listen", &mx, "--accept-any-recipient"]);
    }
    for address in [
        "127.0.0.1:25",
        "127.255.0.1:25",
        "[::1]:25",
        "[::ffff:127.0.0.1]:25",
    ] {
        config(&["--listen", address]);
    }
    // An open sink beside an mx stays an open sink.
    let both = [
        "--listen",
        "[::1]:25,role=mx",
        "--listen",
        "0.0.0.0:26",
        "--accept-domain",
        "b.example",
    ];
    assert!(refused(&both).starts_with("--listen: 0.0.0.0:26: a sink that others"));
    assert_eq!(
        refused(&["--listen", "127.0.0.1:25,role=mx"]),
        "--listen: 127.0.0.1:25: role=mx does not know for whom to take mail; add --accept-domain NAME or \
         --recipients-file FILE, or --accept-any-recipient if it is meant to take mail for everybody"
    );
    assert_eq!(
        refused(&["--accept-domain", "example.org"]),
        "--accept-domain: no listener says role=mx, and only that asks for whom mail is"
    );
    assert_eq!(
        refused(&["--recipients-file", "r"]),
        "--recipients-file: no listener says role=mx, and only that asks for whom mail is"
    );
}

#[test]
fn lists_are_given_with_commas_or_again() {
    let mx = ["--listen", "127.0.0.1:25,role=mx"];
    let lists = [
        "--accept-domain",
        "a.example,.b.example",
        "--accept-domain",
        "[192.0.2.1]",
        "--deny-from",
        "10.0.0.0/8,::1",
    ];
    let config = config(&[&mx[..], &lists[..]].concat());
    assert_eq!(
        config.accept_domain,
        ["a.example", ".b.example", "[192.0.2.1]"]
    );
    let networks: Vec<String> = config.deny_from.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "::1/128"]);
    let text = config.to_toml();
    assert!(
        text.contains("accept-domain = [\"a.example\", \".b.example\", \"[192.0.2.1]\"]\n"),
        "{text}"
    );
    assert_eq!(
        flag_error(&["--accept-domain", "a.example,,b.example"]),
        "--accept-domain: \"\" is not allowed; allowed: example.org for all of a domain, .example.org for all \
         domains below it, user@example.org, or [192.0.2.1] for an address literal"
    );
    let many = vec!["10.0.0.1"; 257].join(",");
    assert_eq!(
        flag_error(&["--allow-from", &many]),
        "--allow-from: 257 entries; allowed: up to 256, and more in a file"
    );
}

#[test]
fn a_limit_has_two_values_and_the_second_is_a_fifth_where_it_is_not_given() {
    for (text, normal, stress) in [
        ("50,10", 50, 10),
        ("50", 50, 10),
        ("51", 51, 11),
        ("1", 1, 1),
        ("off", 0, 0),
        ("50,50", 50, 50),
        ("off,5", 0, 5),
        ("off,off", 0, 0),
        ("1000000000,1000000000", 1_000_000_000, 1_000_000_000),
    ] {
        let limited = config(&["--client-sessions", text]);
        assert_eq!(limited.client_sessions, Limit { normal, stress }, "{text}");
    }
    let bytes = config(&["--client-bytes", "1MiB,3kB"]);
    assert_eq!(
        bytes.client_bytes,
        Limit {
            normal: MIB,
            stress: 3_000
        }
    );
    for text in [
        "",
        "0",
        "0,0",
        "50,0",
        "50,",
        ",50",
        "-1",
        "+1",
        "1.5",
        "1000000001",
        "1,2,3",
        "50 ,10",
        "50,51",
        "50,off",
    ] {
        assert_eq!(
            flag_error(&["--client-sessions", text]),
            format!(
                "--client-sessions: {text:?} is not allowed; allowed: off, or up to 1000000000, and behind a comma no \
                 more than that for stress (a fifth if not given)"
            )
        );
    }
}

#[test]
fn nobody_is_exempt_where_none_is_said() {
    let limited = config(&["--unlimited-from", "none"]);
    assert_eq!(limited.unlimited_from, []);
    let text = limited.to_toml();
    assert!(text.contains("\nunlimited-from = []\n"), "{text}");
    let mut again = Config::default();
    again.apply_file(Path::new("r.toml"), &text).unwrap();
    assert_eq!(again.unlimited_from, []);
    let exempt: Vec<String> = config(&[])
        .unlimited_from
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(exempt, ["127.0.0.0/8", "::1/128"]);
}

#[test]
fn one_address_needs_no_array() {
    let mut config = Config::default();
    let applied = config.apply_file(Path::new("r.toml"), "listen = \"127.0.0.1:1\"");
    assert_eq!(applied, Ok(()));
    assert_eq!(
        config.listen,
        [Listen::plain("127.0.0.1:1".parse().unwrap())]
    );
}

#[test]
fn flags_take_their_value_after_a_space_or_an_equals_sign() {
    let spaced = config(&["--ring-size", "64MiB", "--discard", "--keep-for", "off"]);
    let joined = config(&["--ring-size=64MiB", "--discard=true", "--keep-for=off"]);
    assert_eq!(spaced, joined);
    assert_eq!(spaced.ring_size, 64 * MIB);
    assert!(spaced.discard);
    assert_eq!(spaced.keep_for, None);
    let help = Config::from_args(&args(&["--discard", "--help", "--nonsense"]));
    assert_eq!(help, Ok(Request::Help));
}

#[test]
fn a_bad_flag_is_named_with_what_is_allowed() {
    for (words, expected) in [
        (&["x"][..], "unexpected argument \"x\""),
        (&["--"], "unexpected argument \"--\""),
        (&["-p"], "unexpected argument \"-p\""),
        (&["--ring"], "--ring: needs a value"),
        (&["--ring", "--discard"], "--ring: needs a value"),
        (&["--ring="], "--ring: \"\" is not allowed; allowed: a path"),
        (
            &["--rings=x"],
            "--rings: unknown option; did you mean --ring?",
        ),
        (
            &["--frobnicate"],
            "--frobnicate: unknown option; `ringmx serve --help` lists all",
        ),
        (
            &["--evil\n\x1b"],
            "--evil\\n\\u{1b}: unknown option; `ringmx serve --help` lists all",
        ),
        (
            &["--takeover", "--discard"],
            "--takeover: discard keeps no directory in which the running server could be found",
        ),
        (&["--pool=8MiB", "--pool=8MiB"], "--pool: given twice"),
        (&["--config=a", "--config=b"], "--config: given twice"),
        (
            &["--pool", "1MiB"],
            "--pool: \"1MiB\" is not allowed; allowed: 4MiB to 1TiB",
        ),
        (
            &["--survive", "machine"],
            "--survive: \"machine\" is not allowed; allowed: nothing, process, power",
        ),
        (
            &["--listen", "localhost:2525"],
            "--listen: \"localhost:2525\" is not allowed; allowed: an IP address and a port, such as \
             127.0.0.1:2525 or [::1]:2525 (names are not looked up), unix:PATH (up to 255 bytes) or systemd:NAME, and behind commas \
             role=WORD, tls=WORD, proxy=WORD or lmtp",
        ),
        (
            &["--max-sessions", "+5"],
            "--max-sessions: \"+5\" is not allowed; allowed: 1 to 1000000",
        ),
        (
            &["--timeout-data=300"],
            "--timeout-data: \"300\" has no unit; allowed: a whole number and us, ms, s, min, h or d, \
             such as 30s",
        ),
        (
            &["--keep-for=0"],
            "--keep-for: \"0\" is not allowed; allowed: off, or 1s to 36500d",
        ),
        (
            &["--discard=yes"],
            "--discard: \"yes\" is not allowed; allowed: true or false",
        ),
        (
            &["--group=a\nb"],
            "--group: \"a\\nb\" is not allowed; allowed: text of 1 to 255 bytes without control \
             characters",
        ),
    ] {
        assert_eq!(flag_error(words), expected);
    }
}

#[test]
fn a_fault_of_the_file_is_named_with_file_line_key_and_what_is_allowed() {
    for (text, expected) in [
        (
            "\nrnig = \"x\"\n",
            "r.toml:2: rnig: unknown option; did you mean ring?",
        ),
        (
            "config = \"x\"",
            "r.toml:1: config: is a flag only; a file can't name another",
        ),
        (
            "takeover = true\n\naccept-any-recipient = true\nlisten = [\"systemd:smtp\"]",
            "r.toml:1: takeover: sockets that systemd opened stay open over a restart: restart instead",
        ),
        (
            "ring-size = \"1QiB\"",
            "r.toml:1: ring-size: \"1QiB\" is not a size; allowed: a whole number and B, KiB, MiB, GiB, \
             TiB or kB, MB, GB, TB, such as 50MiB",
        ),
        (
            "max-sessions = \"5\"",
            "r.toml:1: max-sessions: a string where an integer should be; allowed: 1 to 1000000",
        ),
        (
            "max-sessions = -1",
            "r.toml:1: max-sessions: \"-1\" is not allowed; allowed: 1 to 1000000",
        ),
        (
            "discard = 1",
            "r.toml:1: discard: an integer where true or false should be; allowed: true or false",
        ),
        (
            "keep-for = 7",
            "r.toml:1: keep-for: an integer where a string should be; allowed: off, or 1s to 36500d",
        ),
        (
            "survive = true",
            "r.toml:1: survive: a boolean where a string should be; allowed: nothing, process, power",
        ),
        (
            "listen = 25",
            "r.toml:1: listen: an integer where an array of strings should be; allowed: an IP address and \
             a port, such as 127.0.0.1:2525 or [::1]:2525 (names are not looked up), unix:PATH (up to 255 bytes) or systemd:NAME, and behind commas \
             role=WORD, tls=WORD, proxy=WORD or lmtp",
        ),
        (
            "listen = [\n 1 ]",
            "r.toml:1: listen: an integer in the array where an array of strings should be; allowed: an \
             IP address and a port, such as 127.0.0.1:2525 or [::1]:2525 (names are not looked up), unix:PATH (up to 255 bytes) or systemd:NAME, and behind commas \
             role=WORD, tls=WORD, proxy=WORD or lmtp",
        ),
        (
            "listen = []",
            "r.toml:1: listen: 0 addresses; allowed: 1 to 16",
        ),
        (
            "\n[ring]\nsize = 1",
            "r.toml:2: ring: a table where a string should be; allowed: a path",
        ),
        (
            "ring-size = \"8MiB\"\nmax-message = \"50MiB\"",
            "r.toml:2: max-message: 50MiB is more than an eighth of the ring (8MiB) or half of the pool \
             (256MiB); allowed here: up to 1MiB",
        ),
        (
            "server-name = \"-x.example\"",
            "r.toml:1: server-name: \"-x.example\" is not a domain; allowed: labels of letters, digits \
             and inner hyphens, up to 63 bytes each, joined by dots, up to 255 bytes",
        ),
    ] {
        assert_eq!(file_error(text), expected);
    }
    let twice = file_error("pool = 1\npool = 2\n");
    assert!(twice.starts_with("r.toml:2: not TOML: "), "{twice}");
    let broken = file_error("pool = \"\x01\n[[[");
    assert!(broken.starts_with("r.toml:1: not TOML: "), "{broken}");
    assert!(!broken.contains(|c: char| c.is_control()), "{broken:?}");
}

#[test]
fn no_file_panics() {
    let words = [
        "listen",
        "=",
        "[",
        "]",
        "\"",
        "1",
        "pool",
        "\n",
        ".",
        "{",
        "}",
        "true",
        "1979-05-27",
        "'",
        ",",
        "\u{fc}",
    ];
    let mut state = 1_u64;
    for _ in 0..5_000 {
        let mut text = String::new();
        for _ in 0..8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            text.push_str(words[(state % words.len() as u64) as usize]);
        }
        let mut config = Config::default();
        if let Err(error) = config.apply_file(Path::new("r.toml"), &text) {
            assert!(error.to_string().starts_with("r.toml:"), "{error}");
        }
    }
    let deep = format!("ring = {}", "[".repeat(100_000));
    assert!(
        Config::default()
            .apply_file(Path::new("r.toml"), &deep)
            .is_err()
    );
}

#[test]
fn settings_that_do_not_fit_together_are_refused() {
    for (words, expected) in [
        (
            &["--http", "127.0.0.1:2525"][..],
            "--http: 127.0.0.1:2525 is a listen address as well",
        ),
        (
            &["--listen=[::1]:25", "--listen=[::1]:25"],
            "--listen: [::1]:25 is given twice",
        ),
        (
            &["--busy-poll", "--spin-us=5"],
            "--spin-us: busy-poll never sleeps, so spin-us has no use beside it; give one",
        ),
        (
            &["--pool=8MiB", "--max-message=5MiB"],
            "--max-message: 5MiB is more than an eighth of the ring (1GiB) or half of the pool (8MiB); \
             allowed here: up to 4MiB",
        ),
    ] {
        assert_eq!(flag_error(words), expected);
    }
    let any_port = config(&[
        "--listen=127.0.0.1:0",
        "--listen=127.0.0.1:0",
        "--http=127.0.0.1:0",
    ]);
    assert_eq!(any_port.listen.len(), 2);
}

#[test]
fn a_message_fits_the_ring_and_the_pool_unless_it_was_given() {
    assert_eq!(config(&[]).max_message, 50 * MIB);
    assert_eq!(config(&["--ring-size=8MiB"]).max_message, MIB);
    assert_eq!(config(&["--pool=4MiB"]).max_message, 2 * MIB);
    assert_eq!(
        config(&["--ring-size=8MiB", "--discard"]).max_message,
        50 * MIB
    );
    assert_eq!(config(&["--ring-size=2097153"]).ring_size, 4 * MIB);
}

#[test]
fn trace_fields_are_limited_where_mail_may_go_on_and_on_sinks_when_asked_for() {
    let max = |words: &[&str]| {
        let config = config(words);
        Role::ALL.map(|role| config.hops_max(role))
    };
    assert_eq!(
        Role::ALL,
        [Role::Sink, Role::Mx, Role::Submission],
        "the order below"
    );
    assert_eq!(max(&[]), [None, Some(100), Some(100)]);
    assert_eq!(max(&["--max-hops=30"]), [Some(30); 3]);
    assert_eq!(max(&["--max-hops=0"]), [None; 3]);
    assert_eq!(
        flag_error(&["--max-hops=10001"]),
        "--max-hops: \"10001\" is not allowed; allowed: 0 to 10000"
    );
}

#[test]
fn warnings_say_what_may_not_be_meant() {
    assert_eq!(Config::default().warnings(2), [""; 0]);
    let unsafe_one = Config {
        discard: true,
        spin: Duration::from_micros(5),
        max_recipients: 99,
        timeout_command: Duration::from_secs(60),
        ..Config::default()
    };
    assert_eq!(
        unsafe_one.warnings(1),
        [
            "discard: accepted mail is stored nowhere, whatever survive says (power)",
            "max-recipients 99 is less than the 100 that RFC 5321 4.5.3.1.8 asks for",
            "timeout-command 1min is less than the 5 minutes that RFC 5321 4.5.3.2.7 asks for",
        ]
    );
    let spinning = Config {
        busy_poll: true,
        ..Config::default()
    };
    assert_eq!(
        spinning.warnings(1),
        ["busy-poll with survive power needs a second core for the sync thread; there is one"]
    );
    assert_eq!(spinning.warnings(2), [""; 0]);
}

#[test]
fn a_host_name_that_is_no_domain_becomes_localhost() {
    for (host, expected) in [
        ("mx1.example.org", "mx1.example.org"),
        ("vm", "vm"),
        ("", "localhost"),
        ("under_score", "localhost"),
        ("trailing.", "localhost"),
        ("a..b", "localhost"),
        ("line\nbreak", "localhost"),
    ] {
        let mut config = Config::default();
        config.validate(host).unwrap();
        assert_eq!(config.server_name, expected);
    }
    assert!(is_domain(&["a"; 128].join(".")));
    assert!(!is_domain(&["a"; 129].join(".")));
    assert!(!is_domain(&"a".repeat(64)));
}

#[test]
fn the_nearest_name_is_found_within_a_slip_of_the_fingers() {
    let known = ["serve", "send", "log"];
    assert_eq!(nearest("sevre", known), Some("serve"));
    assert_eq!(nearest("serv", known), Some("serve"));
    assert_eq!(nearest("sed", known), Some("send"));
    assert_eq!(nearest("consume", known), None);
    assert_eq!(nearest(&"s".repeat(1_000_000), known), None);
}
