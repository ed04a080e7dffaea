//! The program, as it is started from a shell.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollway-sim"));
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(args: &[&str]) -> (Running, String) {
    let mut running = Running(program(args).spawn().unwrap());
    let mut line = String::new();
    let stdout = running.0.stdout.as_mut().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let url = line.trim().rsplit(' ').next().unwrap().to_owned();
    (running, url)
}

#[test]
fn it_prints_where_it_listens_and_enforces_the_rule_it_was_given() {
    let rule = ["--rule", "fixed-window", "--limit", "1", "--window", "1000"];
    let (_running, url) = start(&[&["payrix", "--port", "0"], &rule[..]].concat());
    let addr = url.strip_prefix("http://").unwrap();
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(addr).unwrap();
        let request = format!("GET /txns HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        statuses.push(answer[9..12].to_owned());
    }
    assert_eq!(statuses, ["200", "429"]);
}

#[test]
fn it_writes_the_certificate_where_it_was_told_to() {
    let file = std::env::temp_dir().join(format!("tollway-sim-{}.pem", std::process::id()));
    let (_running, url) = start(&["stripe", "--tls", "--ca", file.to_str().unwrap()]);
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let pem = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"));
}

#[test]
fn bad_settings_end_it_with_a_message_that_names_them() {
    for (args, named) in [
        (&["nobody"][..], "modern-treasury"),
        (&["payrix", "--faults", "2"], "faults"),
        (&["payrix", "--limit", "0"], "limit"),
        (&["payrix", "--window", "10"], "--limit"),
        (&["payrix", "--latency", "5..50"], "5ms..50ms"),
        (&["payrix", "--rule", "sliding"], "sliding-log"),
    ] {
        let output = program(args).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(message.contains(named), "{args:?}: {message}");
    }
}
