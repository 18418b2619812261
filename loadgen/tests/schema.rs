//! Reports of real runs against the published JSON Schema, with a validator of the few keywords
//! that it uses.

use serde_json::Value;
use smtp_loadgen::sink::{Faults, Running};
use std::process::Command;

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("the validator does not know type {other}"),
    }
}

/// Appends what is wrong with `value` at `path`. Members that the schema does not name are wrong.
fn check(root: &Value, schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/$defs/").unwrap();
        check(root, &root["$defs"][name], value, path, faults);
    }
    let kinds = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect(),
        _ => Vec::new(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is_of(kind, value)) {
        faults.push(format!("{path} is no {kinds:?}"));
    }
    if !schema["const"].is_null() && schema["const"] != *value {
        faults.push(format!("{path} is not {}", schema["const"]));
    }
    if let Some(list) = schema["enum"].as_array()
        && !list.contains(value)
    {
        faults.push(format!("{path} is none of the values allowed: {value}"));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        faults.push(format!("{path} is below {least}"));
    }
    if let (Some(most), Some(number)) = (schema["maximum"].as_f64(), value.as_f64())
        && number > most
    {
        faults.push(format!("{path} is above {most}"));
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str()) {
        let fits = match pattern {
            "^[0-9a-f]{16}$" => text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit()),
            "^[A-Za-z0-9+/]+=*$" => text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b)),
            other => panic!("the validator does not know pattern {other}"),
        };
        if !fits {
            faults.push(format!("{path} does not fit {pattern}"));
        }
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        if schema["items"].is_object() {
            check(
                root,
                &schema["items"],
                item,
                &format!("{path}/{at}"),
                faults,
            );
        }
    }
    let Some(members) = value.as_object().filter(|_| schema["type"] != Value::Null) else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(name.as_str().unwrap()) {
            faults.push(format!("{path} has no {name}"));
        }
    }
    for (name, member) in members {
        let inner = format!("{path}/{name}");
        let names = schema["propertyNames"]["enum"].as_array();
        if names.is_some_and(|names| !names.iter().any(|known| known == name)) {
            faults.push(format!("{inner} is a name not allowed"));
        }
        let known = &schema["properties"][name];
        let others = &schema["additionalProperties"];
        match (known.is_object(), others.is_object()) {
            (true, _) => check(root, known, member, &inner, faults),
            (false, true) => check(root, others, member, &inner, faults),
            (false, false) => faults.push(format!("{inner} is not described")),
        }
    }
}

fn faults_of(report: &Value, schema: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    check(schema, schema, report, "", &mut faults);
    faults
}

fn program(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
        .args(arguments)
        .output()
        .unwrap();
    output.stdout
}

#[test]
fn reports_of_every_kind_of_run_fit_the_published_schema() {
    let schema: Value = serde_json::from_slice(&program(&["report", "--schema"])).unwrap();
    let path = std::env::temp_dir().join(format!("loadgen-schema-{}.json", std::process::id()));
    let file = path.display().to_string();
    let faults = Faults {
        defer: 7,
        reset: 11,
        ..Faults::default()
    };
    let sink = Running::start(faults, None).unwrap();
    let target = sink.address.to_string();
    let mut last = Value::Null;
    for more in [
        &["--messages", "100"][..],
        &[
            "--rate",
            "500",
            "--duration",
            "2500ms",
            "--fail-if",
            "p99>9s",
        ],
        &[
            "--rate",
            "300",
            "--poisson",
            "--duration",
            "300ms",
            "--ceiling",
            "900",
        ],
        &[
            "--messages",
            "20",
            "--no-preflight",
            "--hostile",
            "early-talker=10%",
        ],
    ] {
        let fixed = ["run", &target, "--quiet", "--json", &file];
        program(&[&fixed[..], more].concat());
        last = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(faults_of(&last, &schema), Vec::<String>::new(), "{more:?}");
    }
    let _ = std::fs::remove_file(&path);
    sink.stop().unwrap();

    // The validator can tell: each harm is found.
    let mut harmed = last.clone();
    harmed["totals"]["accepted"] = (-1).into();
    assert_eq!(faults_of(&harmed, &schema), ["/totals/accepted is below 0"]);
    let mut harmed = last.clone();
    harmed["verdict"]["state"] = "FINE".into();
    assert_eq!(faults_of(&harmed, &schema).len(), 1);
    let mut harmed = last;
    harmed.as_object_mut().unwrap().remove("window");
    harmed["extra"] = 1.into();
    assert_eq!(
        faults_of(&harmed, &schema),
        [" has no \"window\"", "/extra is not described"]
    );
}

#[test]
fn documents_of_every_other_command_fit_their_published_schemas() {
    let place = std::env::temp_dir().join(format!("loadgen-schemas-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(place.join("store")).unwrap();
    let at = |name: &str| place.join(name).display().to_string();
    let sink = Running::start(Faults::default(), Some(place.join("store"))).unwrap();
    let target = sink.address.to_string();
    let (a, b, out, ledger) = (at("a.json"), at("b.json"), at("out.json"), at("ledger"));
    let open = ["--rate", "40", "--duration", "5s", "--quiet", "--json"];
    for file in [&a, &b] {
        program(&[&["run", &target, "--ledger", &ledger][..], &open, &[file]].concat());
    }
    let short = ["--duration", "200ms", "--quiet", "--json", &out];
    let cache = at("cache");
    let of = |name: &str| -> Value {
        serde_json::from_slice(&program(&["report", "--schema", name])).unwrap()
    };
    for (name, arguments) in [
        (
            "search",
            [&["sweep", &target, "--rates", "50,100"][..], &short].concat(),
        ),
        (
            "ab",
            [
                &["ab", "--a", &target, "--b", &target, "--rounds", "2"][..],
                &short,
            ]
            .concat(),
        ),
        (
            "compare",
            vec!["compare", &a, &b, "--force", "--json", &out],
        ),
        (
            "verify",
            vec![
                "verify",
                "--ledger",
                &ledger,
                "--eml",
                &at("store"),
                "--json",
                &out,
            ],
        ),
        (
            "selftest",
            vec!["selftest", "--duration", "100ms", "--json", &out],
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
            .args(&arguments)
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .unwrap();
        let said = std::fs::read(&out).unwrap_or_else(|error| panic!("{name}: {error} {output:?}"));
        std::fs::remove_file(&out).unwrap();
        let document: Value = serde_json::from_slice(&said).unwrap();
        assert_eq!(document["schema"], format!("smtp-loadgen/{name}/1"));
        let schema = of(name);
        assert_eq!(
            faults_of(&document, &schema),
            Vec::<String>::new(),
            "{name}: {document:#}"
        );
        // The schema can tell: each document without its `schema`, and with a stranger in it.
        let mut harmed = document;
        harmed.as_object_mut().unwrap().remove("schema");
        harmed["extra"] = 1.into();
        assert_eq!(
            faults_of(&harmed, &schema),
            [" has no \"schema\"", "/extra is not described"],
            "{name}"
        );
    }
    // What selftest kept is stated by the next report, and its share is that of the rate.
    let next = [
        &["run", &target, "--messages", "500", "--quiet", "--json"][..],
        &[&out],
    ]
    .concat();
    let ceiling = |more: &[&str]| -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_smtp-loadgen"))
            .args(&next)
            .args(more)
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap();
        assert_eq!(faults_of(&report, &of("run")), Vec::<String>::new());
        let ceiling = report["generator"]["ceiling"].clone();
        let share = report["totals"]["accepted_per_s"].as_f64().unwrap()
            / ceiling["per_s"].as_f64().unwrap();
        assert!((ceiling["share"].as_f64().unwrap() / share - 1.0).abs() < 1e-9);
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("Ceiling"))
            .unwrap()
            .to_owned();
        assert!(
            line.contains(" msg/s this generator reaches here"),
            "{line}"
        );
        ceiling
    };
    let kept = ceiling(&[]);
    assert_eq!(kept["workload"], "kept, pipelined, 1 KiB");
    assert!(kept["measured_unix_s"].as_u64().unwrap() > 1_700_000_000);
    let given = ceiling(&["--ceiling", "12345"]);
    assert_eq!(
        (&given["per_s"], &given["workload"]),
        (&12345.0.into(), &Value::Null)
    );
    sink.stop().unwrap();
    std::fs::remove_dir_all(&place).unwrap();
}
